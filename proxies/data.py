"""Tokens on disk, and the batches and validation windows cut from them."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nfsearch.proxies.cache import cache_dir as default_cache
from nfsearch.proxies.cache import digest, publish
from nfsearch.proxies.settings import TrainingSettings
from nfsearch.proxies.shards import PARTS, Part, Share, dtype_of, shard_path, write_shards
from nfsearch.proxies.sources import identity, name_of, open_data
from nfsearch.proxies.tokenizers import load_tokenizer, resolve_tokenizer

_LEAST_READ = 2**24  # training tokens to keep where there are that many, so that short proxies share one cache
_ABOUT = "corpus.json"  # written beside the shards, and last


@dataclass(frozen=True)
class Corpus:
    """Tokenised data in the cache; small and picklable, it holds paths and no tokens.

    `digest` is of the tokens themselves: equal digests mean the same text, split and tokenizer, on any machine.
    """

    name: str
    digest: str
    vocab: int
    bytes_per_token: float  # of the validation set, in UTF-8
    tokenizer: str  # what `load_tokenizer` takes
    folder: Path
    sources: tuple[Share, ...]  # what the training tokens are of

    def tokens(self, part: Part) -> np.ndarray:
        """The shard as a read-only memory map, uint16 or uint32 [tokens]."""
        return np.memmap(self._path(part), dtype=dtype_of(self.vocab), mode="r")

    def verify(self) -> None:
        """Raises OSError, naming what is wrong, unless this machine has the shards that `digest` is of.

        Cheap enough for each evaluation: it asks for `corpus.json` and the sizes of the shards, and reads no tokens.
        """
        here = f"the tokens of {self.name} on {platform.node()}"
        try:
            about = json.loads((self.folder / _ABOUT).read_text())
            found = about["digest"]
            sizes = {part: about["tokens"][part] * np.dtype(dtype_of(self.vocab)).itemsize for part in PARTS}
            there = {part: self._path(part).stat().st_size for part in PARTS}
        except FileNotFoundError:
            raise FileNotFoundError(f"{here}: {self.folder} is missing or not complete") from None
        except (ValueError, KeyError, TypeError):
            raise OSError(f"{here}: {self.folder / _ABOUT} is damaged") from None
        if found != self.digest:
            raise OSError(f"{here}: {self.folder} holds other tokens ({found}) than the search's ({self.digest})")
        for part, size in sizes.items():
            if there[part] != size:
                raise OSError(f"{here}: {self._path(part)} has {there[part]} bytes, expected {size}")

    def _path(self, part: Part) -> Path:
        return shard_path(self.folder, part)


def prepare(settings: TrainingSettings, cache_dir: Path | None = None) -> Corpus:
    """Tokenises the data of `settings`, or finds it done; several processes may call it at once.

    As many training tokens are kept as `settings.tokens` (rounded up to a power of two, at least 16.8 million) and
    `settings.validation_tokens` of validation, or all there are: see `nfsearch.proxies.shards`. Raises ValueError,
    naming what was given, when the data is missing, unreadable, empty, or shorter than one window of
    `settings.sequence` + 1 tokens.
    """
    cache = cache_dir or default_cache()
    entries, data = open_data(settings.data), name_of(settings.data)
    name = resolve_tokenizer(settings.tokenizer, entries, cache)
    tokenizer = load_tokenizer(name)
    budget = max(_LEAST_READ, 1 << (settings.tokens - 1).bit_length())
    key = digest([identity(entries), tokenizer.digest, budget, settings.validation_tokens])
    folder = cache / "tokens" / key
    corpus = _open(folder, data, name)
    if corpus is None:
        with publish(folder) as scratch:
            about = write_shards(entries, tokenizer, {False: budget, True: settings.validation_tokens}, scratch)
            (scratch / _ABOUT).write_text(json.dumps(about, indent=1))
        corpus = _open(folder, data, name)
        if corpus is None:
            raise OSError(f"{folder}: tokens were written but do not read back")
    for part in PARTS:
        _starts(corpus.tokens(part), settings.sequence, f"{data}: the {part} part")
    return corpus


def batch(shard: np.ndarray, seed: int, step: int, batch: int, sequence: int) -> np.ndarray:
    """Random windows of a shard, int64 [batch, sequence + 1]: a pure function of its arguments.

    Drawn with a counter-based generator, so that any step can be had without those before it.
    """
    starts = _starts(shard, sequence, "the shard")
    key = np.array([seed % 2**64, step % 2**64], dtype=np.uint64)
    first = (np.random.Philox(key=key).random_raw(batch) % np.uint64(starts)).astype(np.int64)
    return shard[first[:, None] + np.arange(sequence + 1)].astype(np.int64)


def validation_batches(corpus: Corpus, batch: int, sequence: int) -> Iterator[np.ndarray]:
    """The whole validation set in windows side by side, int64 [up to batch, sequence + 1], the same ones every time.

    Neighbours share one token: the last target of one is the first input of the next.
    """
    shard = corpus.tokens("validation")
    windows = (_starts(shard, sequence, f"{corpus.name}: the validation part") - 1) // sequence + 1
    for first in range(0, windows, batch):
        begin = np.arange(first, min(first + batch, windows)) * sequence
        yield shard[begin[:, None] + np.arange(sequence + 1)].astype(np.int64)


def _starts(shard: np.ndarray, sequence: int, what: str) -> int:
    """How many positions a window of `sequence` inputs and their targets can start at."""
    if len(shard) <= sequence:
        raise ValueError(f"{what} has {len(shard)} tokens, a sequence of {sequence} needs at least {sequence + 1}")
    return len(shard) - sequence


def _open(folder: Path, name: str, tokenizer: str) -> Corpus | None:
    """The corpus in a cache folder, or None; a folder whose files are not what it says (a crash) is removed."""
    if not folder.is_dir():
        return None
    try:
        about = json.loads((folder / _ABOUT).read_text())
        sources = tuple(Share(**share) for share in about["sources"])
        corpus = Corpus(name, about["digest"], about["vocab"], about["bytes_per_token"], tokenizer, folder, sources)
        corpus.verify()
    except (OSError, ValueError, KeyError, TypeError):
        shutil.rmtree(folder)
        return None
    return corpus

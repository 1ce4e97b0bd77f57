"""Tokens on disk, tokenised once, and the batches and validation windows cut from them."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np

from nfsearch.proxies.cache import cache_dir as default_cache
from nfsearch.proxies.cache import digest, publish
from nfsearch.proxies.settings import TrainingSettings
from nfsearch.proxies.sources import SPLIT_VERSION, VALIDATION_SHARE, Source, open_source
from nfsearch.proxies.tokenizers import Tokenizer, load_tokenizer, resolve_tokenizer, utf8

Part = Literal["train", "validation"]
PARTS: tuple[Part, ...] = ("train", "validation")
_LEAST_READ = 2**24  # training tokens to keep where there are that many, so that short proxies share one cache
_ABOUT = "corpus.json"  # written beside the shards, and last
_ENCODE_AT_ONCE = 2_000_000  # characters handed to the tokenizer together


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

    def tokens(self, part: Part) -> np.ndarray:
        """The shard as a read-only memory map, uint16 or uint32 [tokens]."""
        return np.memmap(self._path(part), dtype=_dtype(self.vocab), mode="r")

    def verify(self) -> None:
        """Raises OSError, naming what is wrong, unless this machine has the shards that `digest` is of.

        Cheap enough for each evaluation: it asks for `corpus.json` and the sizes of the shards, and reads no tokens.
        """
        here = f"the tokens of {self.name} on {platform.node()}"
        try:
            about = json.loads((self.folder / _ABOUT).read_text())
            found = about["digest"]
            sizes = {part: about["tokens"][part] * np.dtype(_dtype(self.vocab)).itemsize for part in PARTS}
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
        return self.folder / f"{part}.bin"


def prepare(settings: TrainingSettings, cache_dir: Path | None = None) -> Corpus:
    """Tokenises the data of `settings`, or finds it done; several processes may call it at once.

    A large source is read only until there are as many training tokens as `settings.tokens` (rounded up to a power of
    two, at least 16.8 million) and `settings.validation_tokens` of validation. Raises ValueError, naming what was
    given, when the data is missing, unreadable, empty, or shorter than one window of `settings.sequence` + 1 tokens.
    """
    cache = cache_dir or default_cache()
    source = open_source(settings.data)
    name = resolve_tokenizer(settings.tokenizer, source, cache)
    tokenizer = load_tokenizer(name)
    budget = max(_LEAST_READ, 1 << (settings.tokens - 1).bit_length())
    key = digest([SPLIT_VERSION, source.identity, tokenizer.digest, budget, settings.validation_tokens])
    folder = cache / "tokens" / key
    corpus = _open(folder, source.name, name)
    if corpus is None:
        with publish(folder) as scratch:
            _tokenise(source, tokenizer, budget, settings.validation_tokens, scratch)
        corpus = _open(folder, source.name, name)
        if corpus is None:
            raise OSError(f"{folder}: tokens were written but do not read back")
    for part in PARTS:
        _starts(corpus.tokens(part), settings.sequence, f"{source.name}: the {part} part")
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


def _dtype(vocab: int) -> type[np.unsignedinteger]:
    return np.uint16 if vocab <= 2**16 else np.uint32


class _Shard:
    """Appends tokens to a file up to a limit, counting the bytes of text they stand for."""

    def __init__(self, stream: IO[bytes], limit: int, dtype: type[np.unsignedinteger]) -> None:
        self._stream, self._limit, self._dtype = stream, limit, dtype
        self._hash = hashlib.blake2b(digest_size=16)
        self.tokens = 0
        self.bytes = 0.0

    @property
    def full(self) -> bool:
        return self.tokens >= self._limit

    def add(self, ids: np.ndarray, text_bytes: int) -> None:
        kept = ids[: self._limit - self.tokens]
        content = kept.astype(self._dtype).tobytes()
        self._stream.write(content)
        self._hash.update(content)
        self.tokens += len(kept)
        self.bytes += text_bytes * len(kept) / max(1, len(ids))  # of a document cut short, its share

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _tokenise(source: Source, tokenizer: Tokenizer, train: int, validation: int, folder: Path) -> None:
    """Writes both shards and `corpus.json`, reading no further than the two limits in tokens ask for."""
    dtype = _dtype(tokenizer.vocab)
    with (folder / "train.bin").open("wb") as first, (folder / "validation.bin").open("wb") as second:
        shards = {False: _Shard(first, train, dtype), True: _Shard(second, validation, dtype)}
        documents = 0
        for texts, parts in _grouped(source, shards):
            documents += len(texts)
            for text, part, ids in zip(texts, parts, tokenizer.encode(texts), strict=True):
                shards[part].add(ids, len(utf8(text)))
    for part, what in ((False, "training"), (True, "validation")):
        if not shards[part].tokens:
            raise ValueError(f"{source.name}: no text for {what}{_split(documents)}")
    about = {
        "digest": digest([tokenizer.digest, shards[False].hexdigest(), shards[True].hexdigest()]),
        "vocab": tokenizer.vocab,
        "bytes_per_token": shards[True].bytes / shards[True].tokens,
        "tokens": {"train": shards[False].tokens, "validation": shards[True].tokens},
    }
    (folder / _ABOUT).write_text(json.dumps(about, indent=1))


def _split(documents: int) -> str:
    """What a source was split into, and what to do where one part of it is empty."""
    if not documents:
        return ""
    return (
        f"; one document in {VALIDATION_SHARE} validates, chosen by a hash, and the documents here (text is cut into "
        f"some of 2 to 4 thousand characters) are {documents}: give more, or say "
        "`proxy.data: {train: FILE, validation: FILE}`"
    )


def _grouped(source: Source, shards: dict[bool, _Shard]) -> Iterator[tuple[list[str], list[bool]]]:
    """Documents in groups that are worth a call of the tokenizer, until both shards are full."""
    texts: list[str] = []
    parts: list[bool] = []
    size = 0
    for text, part in source.documents(lambda part: not shards[part].full):
        texts.append(text)
        parts.append(part)
        size += len(text)
        if size >= _ENCODE_AT_ONCE:
            yield texts, parts
            texts, parts, size = [], [], 0
    if texts:
        yield texts, parts


def _open(folder: Path, name: str, tokenizer: str) -> Corpus | None:
    """The corpus in a cache folder, or None; a folder whose files are not what it says (a crash) is removed."""
    if not folder.is_dir():
        return None
    try:
        about = json.loads((folder / _ABOUT).read_text())
        corpus = Corpus(name, about["digest"], about["vocab"], about["bytes_per_token"], tokenizer, folder)
        corpus.verify()
    except (OSError, ValueError, KeyError, TypeError):
        shutil.rmtree(folder)
        return None
    return corpus

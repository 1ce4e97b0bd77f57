"""Data tokenised: a shard of tokens for training and one for validation.

Each entry of a mixture gets its share of the tokens of both. Within an entry all files and documents are sampled alike
(`nfsearch.proxies.sampling`). One that has fewer tokens than its share is repeated, so that the shares hold.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from nfsearch.proxies.cache import digest
from nfsearch.proxies.sampling import VALIDATION_SHARE, Sampler, sample, samplers_for
from nfsearch.proxies.sources import Entry
from nfsearch.proxies.tokenizers import Tokenizer, utf8

Part = Literal["train", "validation"]
PARTS: tuple[Part, ...] = ("train", "validation")
_ENCODE_AT_ONCE = 2_000_000  # characters handed to the tokenizer together
_ENOUGH = 0.9  # of the tokens aimed at; less is a sample that was too small


@dataclass(frozen=True)
class Share:
    """The training tokens of one source, and how many of them are different ones: fewer where it had to be repeated."""

    name: str
    tokens: int
    different: int


def dtype_of(vocab: int) -> type[np.unsignedinteger]:
    return np.uint16 if vocab <= 2**16 else np.uint32


def shard_path(folder: Path, part: Part) -> Path:
    return folder / f"{part}.bin"


def write_shards(
    entries: Sequence[Entry], tokenizer: Tokenizer, budgets: Mapping[bool, int], folder: Path
) -> dict[str, Any]:
    """Writes both shards, each of so many tokens or of all there are, and returns what there is to say about them.

    Raises ValueError, naming the source, where one has no text for a part that it serves.
    """
    weights = {part: sum(entry.weight for entry in entries if part in entry.parts) for part in budgets}
    mixed = len([entry for entry in entries if False in entry.parts]) > 1
    piles: dict[bool, list[_Pile]] = {False: [], True: []}
    for number, entry in enumerate(entries):
        wanted = {part: budgets[part] * entry.weight / weights[part] for part in entry.parts}
        for part, pile in _gather(entry, wanted, tokenizer, folder / f"pile-{number}", mixed).items():
            piles[part].append(pile)
    shards = {}
    for validation, name in enumerate(PARTS):
        part = bool(validation)
        with shard_path(folder, name).open("wb") as stream:
            shards[part] = _mix(piles[part], weights[part], budgets[part], _Shard(stream))
    for pile in (*piles[False], *piles[True]):
        pile.path.unlink()
    train, validation_shard = shards[False], shards[True]
    return {
        "digest": digest([tokenizer.digest, train.hash.hexdigest(), validation_shard.hash.hexdigest()]),
        "vocab": tokenizer.vocab,
        "bytes_per_token": validation_shard.bytes / validation_shard.tokens,
        "tokens": {name: shards[bool(part)].tokens for part, name in enumerate(PARTS)},
        "sources": [asdict(Share(name, count, train.different[name])) for name, count in train.counts.most_common()],
    }


class _Shard:
    """Appends tokens to a file, counting them, and the bytes of text that they stand for."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.hash = hashlib.blake2b(digest_size=16)
        self.tokens = 0
        self.bytes = 0.0
        self.counts: Counter[str] = Counter()  # of tokens, by source
        self.different: Counter[str] = Counter()  # of those that are no repeats

    def add(self, tokens: np.ndarray, text_bytes: float) -> None:
        content = tokens.tobytes()
        self._stream.write(content)
        self.hash.update(content)
        self.tokens += len(tokens)
        self.bytes += text_bytes


@dataclass
class _Pile:
    """The tokenised documents of an entry that serve for one part, one behind the other in a file."""

    path: Path
    weight: float
    dtype: type[np.unsignedinteger]
    lengths: list[int] = field(default_factory=list)  # of each document in tokens,
    sizes: list[int] = field(default_factory=list)  # in bytes of text,
    labels: list[str] = field(default_factory=list)  # and where it comes from
    tokens: int = 0

    def add(self, stream: IO[bytes], ids: np.ndarray, text_bytes: int, label: str) -> None:
        stream.write(ids.astype(self.dtype).tobytes())
        self.lengths.append(len(ids))
        self.sizes.append(text_bytes)
        self.labels.append(label)
        self.tokens += len(ids)

    def pour(self, quota: int, shard: _Shard) -> None:
        """Adds `quota` tokens to a shard: all documents as often as that holds them, then as many evenly chosen."""
        tokens = np.memmap(self.path, self.dtype, mode="r")
        times, rest = divmod(quota, self.tokens)
        for turn, kept in enumerate([self.lengths] * times + [_thinned(self.lengths, rest)] * (rest > 0)):
            position = 0
            for length, keep, size, label in zip(self.lengths, kept, self.sizes, self.labels, strict=True):
                if keep:
                    shard.add(tokens[position : position + keep], size * keep / length)
                    shard.counts[label] += keep
                    shard.different[label] += keep if turn == 0 else 0
                position += length


def _gather(
    entry: Entry, wanted: Mapping[bool, float], tokenizer: Tokenizer, path: Path, mixed: bool
) -> dict[bool, _Pile]:
    """Samples and tokenises what serves for each part: about as many tokens as wanted, or all there are."""
    name, dtype = entry.source.name, dtype_of(tokenizer.vocab)
    samplers = samplers_for(entry, wanted, lambda texts: sum(map(len, tokenizer.encode(texts))))
    for attempt in range(2):
        piles = {part: _Pile(path.with_name(f"{path.name}-{part}"), entry.weight, dtype) for part in wanted}
        with ExitStack() as files:
            streams = {part: files.enter_context(pile.path.open("wb")) for part, pile in piles.items()}
            for group in _grouped(sample(entry.source, samplers)):
                for (text, part, label), ids in zip(group, tokenizer.encode([t for t, _, _ in group]), strict=True):
                    piles[part].add(streams[part], ids, len(utf8(text)), name if mixed else label)
                if entry.source.endless and all(pile.tokens >= wanted[part] for part, pile in piles.items()):
                    break
        short = {part for part, pile in piles.items() if pile.tokens < _ENOUGH * wanted[part]}
        if attempt or all(math.isinf(samplers[part].rate) for part in short):
            break
        samplers = {part: _again(each, piles[part].tokens / wanted[part]) for part, each in samplers.items()}
    documents = sum(len(pile.lengths) for pile in piles.values())
    for part, pile in piles.items():
        if not pile.tokens:
            raise ValueError(f"{name}: no text for {'validation' if part else 'training'}{_split(documents)}")
    return piles


def _again(sampler: Sampler, reached: float) -> Sampler:
    """One that takes as much as that one should have, which reached this share of what it was to take."""
    rate = sampler.rate if reached >= _ENOUGH else sampler.rate / reached if reached else math.inf
    return Sampler(rate, sampler.piece)


def _grouped(documents: Iterator[tuple[str, bool, str]]) -> Iterator[list[tuple[str, bool, str]]]:
    """Documents in groups that are worth a call of the tokenizer."""
    group, size = [], 0
    for document in documents:
        group.append(document)
        size += len(document[0])
        if size >= _ENCODE_AT_ONCE:
            yield group
            group, size = [], 0
    if group:
        yield group


def _mix(piles: Sequence[_Pile], weights: float, budget: int, shard: _Shard) -> _Shard:
    """Pours the piles by their weights, `budget` tokens or as many as the one that lasts longest allows."""
    total = min(budget, max(pile.tokens * weights / pile.weight for pile in piles))
    for pile in piles:
        pile.pour(round(total * pile.weight / weights), shard)
    return shard


def _thinned(lengths: Sequence[int], keep: int) -> list[int]:
    """How many tokens of each document to keep, all of most: `keep` in all, what is left out evenly spread."""
    total = sum(lengths)
    kept, seen, dropped = list(lengths), 0, 0
    for i, length in enumerate(lengths):
        seen += length
        if dropped + length <= (total - keep) * seen / total:
            kept[i] = 0
            dropped += length
    excess = total - dropped - keep
    for i in range(len(kept) - 1, -1, -1):
        cut = min(kept[i], excess)
        kept[i] -= cut
        excess -= cut
    return kept


def _split(documents: int) -> str:
    """What a source was split into, and what to do where one part of it is empty."""
    if not documents:
        return ""
    return (
        f"; one document in {VALIDATION_SHARE} validates, chosen by a hash, and the documents here (text is cut into "
        f"some of about two thousand characters) are {documents}: give more, or say "
        "`proxy.data: {train: FILE, validation: FILE}`"
    )

"""A fair sample of a source: the same share of every file, taken all over it, and no more read than that needs.

Think of all files of a source behind one another, on a line of bytes. Documents are taken while what was taken is less
than its share of the line so far; what follows is skipped, up to where that is so again. So each file gives its share
of bytes, to within a document or a piece of a long one, however long the line is, and the sample is the same each time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

from nfsearch.proxies.sources import Entry, Input, Source, hashed

VALIDATION_SHARE = 20  # one document in so many
_DEPTH = 16  # how many times what is taken of a compressed file may be unpacked for it: the sample is of its beginning
_PATIENCE = 1000  # documents; one in 20 is on the rarer side, unless they are all alike
_PROBE = 2**20  # bytes read to learn how many tokens a byte has
_MARGIN = {False: 1.03, True: 1.25}  # aimed at more than is needed by this, and then thinned: validation is rare
_PIECES = 256  # at least so many in a sample, however long the documents are,
_SMALLEST, _LARGEST = 2**12, 2**16  # of bytes between these


@dataclass
class Sampler:
    """Takes documents along a line of bytes, whole or a piece of a long one, so that of any beginning of the line about
    `rate` has been taken; all of them where that is infinite. `taken` counts bytes, `passed` the documents of the
    other side that it met since, when it wanted one."""

    rate: float
    piece: float = _SMALLEST
    taken: float = 0.0
    passed: int = 0

    def take(self, start: float, end: float, size: float) -> float:
        """The share to take, from 0 to 1, of a document of `size` bytes that stands for the line from start to end."""
        if self.taken > self.rate * start > 0:
            return 0.0
        lacking = self.rate * end - self.taken
        share = min(1.0, max(self.piece, lacking) / size)
        self.taken += share * size
        self.passed = 0
        return share

    @property
    def goal(self) -> float:
        """Where on the line it takes the next document; nowhere, if none of many was for its side."""
        return self.taken / self.rate if self.passed < _PATIENCE else math.inf


Samplers = Mapping[bool, Sampler]  # of training (False) and of validation (True), or one of them
Measure = Callable[[Sequence[str]], int]  # the tokens of texts


def sample(source: Source, samplers: Samplers) -> Iterator[tuple[str, bool, str]]:
    """Texts, whether each is for validation, and the label of the input it comes from. Blank ones are left out.

    What a document is for depends on nothing but the document, so it stays on its side whatever is added beside it."""
    base = 0.0
    for one in source.inputs:
        size = one.size()
        if _goal(samplers) < base + size:
            size = yield from _sample_input(one, base, size, samplers)
        base += size


def _sample_input(
    one: Input, base: float, size: float, samplers: Samplers
) -> Generator[tuple[str, bool, str], None, float]:
    """Of the input that takes the line from `base` on. Returns how much of it, where that is known better now."""
    # Of a large compressed file each byte near its beginning stands for several.
    scale = max(1.0, 1 / (_DEPTH * max(sampler.rate for sampler in samplers.values()))) if one.packed else 1.0
    most = size / scale if scale > 1 else math.inf
    reached = 0.0
    for start, end, text in one.read(lambda: min((_goal(samplers) - base) / scale, most)):
        reached = end
        if start >= most:
            break
        if not text or text.isspace():
            continue
        mark = hashed(one.key or text)
        part = mark % VALIDATION_SHARE == 0 if len(samplers) == 2 else next(iter(samplers))
        for sampler in samplers.values():
            sampler.passed += sampler.goal <= base + start * scale
        share = samplers[part].take(base + start * scale, base + end * scale, end - start)
        if share:
            yield _cut(text, share, mark), part, one.label
    return reached if one.estimated and scale == 1 else size


def _goal(samplers: Samplers) -> float:
    return min(sampler.goal for sampler in samplers.values())


def _cut(text: str, share: float, mark: int) -> str:
    """A piece of a document, from a place that its hash says."""
    length = math.ceil(share * len(text))
    start = mark % (len(text) - length + 1)
    return text[start : start + length]


def samplers_for(entry: Entry, wanted: Mapping[bool, float], measure: Measure) -> dict[bool, Sampler]:
    """What takes about as many tokens of each part as are wanted, or somewhat more; all there are, where they are not
    so many. Reads about a megabyte to learn how many tokens a byte has."""
    source = entry.source
    size = sum(one.size() for one in source.inputs)
    most = {part: 1.0 if len(entry.parts) == 1 else _share(part) for part in entry.parts}
    if source.endless or all(size * most[part] <= wanted[part] for part in entry.parts):
        return {part: Sampler(math.inf) for part in entry.parts}
    probe = {part: _sampler(_PROBE * most[part] / size, most[part], size) for part in entry.parts}
    texts = [text for text, _, _ in sample(source, probe)]
    density = measure(texts) / max(1.0, sum(sampler.taken for sampler in probe.values())) or 1.0
    return {part: _sampler(_MARGIN[part] * wanted[part] / (size * density), most[part], size) for part in entry.parts}


def _sampler(rate: float, most: float, size: float) -> Sampler:
    """Of a line of `size` bytes where at `most` so much is there to be taken."""
    if rate >= most:
        return Sampler(math.inf)
    return Sampler(rate, min(max(rate * size / _PIECES, _SMALLEST), _LARGEST))


def _share(validation: bool) -> float:
    return 1 / VALIDATION_SHARE if validation else 1 - 1 / VALIDATION_SHARE


def training_texts(entries: Sequence[Entry], characters: int) -> Iterator[str]:
    """About so many characters for training, of each entry as its weight says, or all that it has."""
    entries = [entry for entry in entries if False in entry.parts]
    weights = sum(entry.weight for entry in entries)
    for entry in entries:
        wanted = characters * entry.weight / weights
        samplers = samplers_for(
            entry, dict.fromkeys(entry.parts, 1.0) | {False: wanted}, lambda texts: sum(map(len, texts))
        )
        seen = 0
        for text, validation, _ in sample(entry.source, samplers):
            if not validation:
                seen += len(text)
                yield text
            if entry.source.endless and seen >= wanted:
                break

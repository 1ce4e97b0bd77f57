"""The shortest text of a sequence of words in which repeats are folded: `A B A B A B` is `(A B){3}`.

A text is made of parts: words, and folds of a sequence that is repeated. At each place there are few parts to try: the
word, and the repeats of each primitive period (one that is no repeat itself; of those there are about log n). So the
shortest text from each place to the end follows from those from the places after it, and 2,000 words take about a
second; to compare all ways to split them would take minutes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

_NEVER = 2**30


def folded(words: Sequence[str]) -> str:
    """The shortest text; of those as short, one fold of everything, or else that with the shortest first part."""
    return _Folding(words).text(0, len(words))


class _Folding:
    def __init__(self, words: Sequence[str]) -> None:
        self.words = words
        numbers = {word: number for number, word in enumerate(dict.fromkeys(words))}
        self._sequence = "".join(chr(numbers[word]) for word in words)  # a character for each word
        self._periods = list(_periods(self._sequence))[::-1]
        # Where other folds end that begin among the words of one repeat, and end after it; the same of later repeats
        self._crossed: list[dict[int, int]] = [{} for _ in [*words, ""]]
        self._crossed_on: list[dict[int, int]] = [{} for _ in [*words, ""]]
        for i in reversed(range(len(words))):
            for period in self._periods[i]:
                self._crossed[i][period] = here = self._end_of_crossing(i, period)
                self._crossed_on[i][period] = min(here, self._crossed_on[i + period].get(period, _NEVER))
        self._texts: dict[str, str] = {}

    def text(self, i: int, j: int) -> str:
        """Of words i to j."""
        sequence = self._sequence[i:j]
        if sequence not in self._texts:
            self._texts[sequence] = self._text(i, j)
        return self._texts[sequence]

    def _text(self, i: int, j: int) -> str:
        lengths = {j: -1}  # of the shortest text from a place to j; of nothing: less than the space before it
        first = {}  # its first part
        for at in reversed(range(i, j)):
            best = (len(self.words[at]) + 1 + lengths[at + 1], at + 1 != j, at + 1, 0)
            for length, end, period in self._folds(at, j):
                best = min(best, (length + 1 + lengths[end], end != j, end, period))
            lengths[at], _, *first[at] = best
        parts = []
        while i < j:
            end, period = first[i]
            parts.append(_fold(self.text(i, i + period), period, (end - i) // period) if period else self.words[i])
            i = end
        return " ".join(parts)

    def _folds(self, i: int, j: int) -> Iterator[tuple[int, int, int]]:
        """(length, end, period) of those that begin at i, end at j or before it, and may be part of a shortest text."""
        for period, repeats in self._periods[i].items():
            most = min(repeats, (j - i) // period)
            if most < 2:
                return  # longer periods follow
            body = len(self.text(i, i + period))
            # All of one repeat more belongs into the fold, unless another fold begins in it and ends after it.
            crossed = self._crossed_on[i + 2 * period].get(period, _NEVER) <= j
            for n in range(2 if crossed else max(2, most - 1), most + 1):
                end = i + n * period
                if n >= most - 1 or self._crossed[end][period] <= j:
                    yield body + len(_fold("", period, n)), end, period

    def _end_of_crossing(self, i: int, period: int) -> int:
        end = i + period
        return min(
            (
                at + other * max(2, (end - at) // other + 1)
                for at in range(i, end)
                for other, repeats in self._periods[at].items()
                if other != period and at + other * repeats > end
            ),
            default=_NEVER,
        )


def _fold(body: str, period: int, repeats: int) -> str:
    return f"{body}{{{repeats}}}" if period == 1 else f"({body}){{{repeats}}}"


def _periods(sequence: str) -> Iterator[dict[int, int]]:
    """For each place, the last first: the primitive periods of what begins there, the shortest first, and how often
    each repeats."""
    equal: list[int] = []  # of each period from 1: so many words from here on equal those that far on
    for i in reversed(range(len(sequence))):
        word = sequence[i]
        equal = [(count + 1) * (other == word) for count, other in zip([*equal, 0], sequence[i + 1 :], strict=False)]
        squares = [period for period, count in enumerate(equal, 1) if count >= period]
        found: dict[int, int] = {}
        while squares:
            period = squares[0]
            found[period] = 1 + equal[period - 1] // period
            reach = period * found[period]
            squares = [each for each in squares if each % period or each > reach]
        yield found

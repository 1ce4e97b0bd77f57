"""The trainings of a fidelity study: which there are, in which order, and how one goes over its budgets.

A training is one architecture, one recipe and one seed. It yields a loss at each of its budgets in rising order, each
going on from where the one before left the trunk. What finished is in the journals, and is not done again.
"""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from nfsearch.latency_lut import device
from nfsearch.proxies import Job, Keeps, Proxy
from nfsearch.search.executor import attempt
from nfsearch.space import Architecture
from nfsearch.studies.config import StudySettings
from nfsearch.studies.journal import Entry, Journal, Known, read
from nfsearch.support.errors import WorkFailed
from nfsearch.support.terminal import duration, progress_display

CHECKPOINTS = "checkpoints"  # in a study's folder, while a training is at work
_BROKEN = 3  # failures in a row, of whatever but a loss, from which the process is taken to be broken


@dataclass(frozen=True)
class Training:
    """`budgets` are in tokens, rising."""

    architecture: Architecture
    recipe: str
    seed: int
    budgets: tuple[int, ...]

    @property
    def key(self) -> tuple[str, str, int]:
        """Its place in what the journals know."""
        return self.architecture.digest, self.recipe, self.seed

    @property
    def name(self) -> str:
        """Of its folder."""
        return "-".join(map(str, self.key))

    def lacking(self, known: Known) -> tuple[int, ...]:
        """The budgets that are yet to be measured; none beyond one that cannot be."""
        found = known.get(self.key, {})
        open_ended = []
        for tokens in self.budgets:
            entry = found.get(tokens)
            if entry and entry.error and entry.final:
                break
            if not (entry and entry.evaluation):
                open_ended.append(tokens)
        return tuple(open_ended)

    def work(self, budgets: Sequence[int]) -> float:
        """What these budgets cost, about, in some unit."""
        return float(sum(budgets)) * self.architecture.parameters


def trainings(
    study: StudySettings, architectures: Sequence[Architecture], share: tuple[int, int] = (1, 1)
) -> list[Training]:
    """In the order in which they are done: all architectures by the reference's recipe, with their first seeds and then
    the further ones, as each of them is compared with it; then by the other recipes, one after the other. A share k of
    n has every n-th architecture and seed."""
    recipes = sorted(study.recipes, key=lambda name: name != study.reference.recipe)
    pairs = [(number, seed) for number in range(len(architectures)) for seed in study.seeds_of(number)]
    pairs.sort(key=lambda pair: (pair[1] >= study.seeds, pair))
    k, n = share
    return [
        Training(architectures[number], name, seed, study.budgets(name))
        for name in recipes
        for number, seed in pairs[k - 1 :: n]
    ]


@dataclass
class Clock:
    """When how many tokens had been trained on, as they are reported."""

    tell: Callable[[int], None]
    points: list[tuple[int, float]] = field(default_factory=list)

    def __call__(self, tokens: int, loss: float) -> None:
        self.points.append((tokens, time.perf_counter()))
        self.tell(tokens)

    def whole(self, seconds: float) -> float:
        """The seconds that an evaluation would have taken from the first token on: those that it took, and, for the
        tokens that it found trained on, as many as its own took at the rate between the first report and the last."""
        if len(self.points) < 2:
            return seconds
        (first, began), (last, ended) = self.points[0], self.points[-1]
        gap = self.points[1][0] - first  # tokens between two reports, as before the first
        return seconds + max(0, first - gap) * (ended - began) / (last - first)


class Sitting:
    """The work of one process on a study. `stop` is asked between steps whether to end."""

    def __init__(
        self, folder: Path, proxies: Mapping[str, Proxy], work: Sequence[Training], kind: str, stop: Callable[[], bool]
    ) -> None:
        self.folder, self.proxies, self.work, self.stop = folder, proxies, work, stop
        self.device = device.device_slug(kind)
        self.began = time.monotonic()
        self.number = 0  # of the training at work
        self.done = self.left = 0.0  # in the unit of `Training.work`
        self.failures = 0  # in a row, of what leaves the process in doubt

    def run(self, journal: Journal) -> None:
        """Does what lacks. Raises KeyboardInterrupt where it is stopped, WorkFailed where nothing works any more."""
        with progress_display() as self.show:
            for number, training in enumerate(self.work):
                self.number = number
                known = read(self.folder)  # others may have done it meanwhile
                self.left = sum(each.work(each.lacking(known)) for each in self.work[number:])
                place = self.folder / CHECKPOINTS / training.name
                for tokens in training.lacking(known):
                    entry = self._evaluate(training, tokens, place)
                    journal.add_entry(entry)
                    self.done += training.work([tokens])
                    self.left -= training.work([tokens])
                    self._judge(entry)
                    if entry.error:
                        break
                shutil.rmtree(place, ignore_errors=True)
            self.show("", self._line("all done"), True)

    def _evaluate(self, training: Training, tokens: int, place: Path) -> Entry:
        proxy = self.proxies[training.recipe]
        fidelity = replace(proxy.fidelity, tokens=tokens)
        if isinstance(proxy, Keeps):
            proxy.keep_in(place)
        clock = Clock(lambda seen: self._tell(training, tokens, seen))
        began = time.perf_counter()
        outcome = attempt(proxy, Job(training.architecture, fidelity, training.seed), clock)
        seconds = clock.whole(time.perf_counter() - began)
        self.failures = 0 if outcome.sound else self.failures + 1
        return Entry(
            *training.key[:2],
            tokens,
            training.seed,
            fidelity,
            self.device,
            outcome.evaluation,
            seconds,
            outcome.error,
            outcome.sound and not outcome.too_large,
        )

    def _judge(self, entry: Entry) -> None:
        """Raises WorkFailed after so many failures in a row that the process may be to blame."""
        if self.failures == _BROKEN:
            raise WorkFailed(f"{_BROKEN} trainings in a row failed, the last with: {entry.error}")
        if entry.error:
            gc.collect()  # what an error holds of the device's memory

    def _tell(self, training: Training, tokens: int, seen: int) -> None:
        if self.stop():
            raise KeyboardInterrupt
        line = self._line(f"{training.architecture} by {training.recipe}, seed {training.seed}: {seen:,} of {tokens:,}")
        self.show(line, line, False)

    def _line(self, what: str) -> str:
        return f"training {self.number + 1} of {len(self.work)}, {duration(self._left())} left; {what}"

    def _left(self) -> float | None:
        """Seconds, by what was done in this sitting."""
        return (time.monotonic() - self.began) * self.left / self.done if self.done else None

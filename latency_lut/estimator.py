"""What a whole model costs, from the rows of a table: the sum of its parts' times, and its memory.

Times of passes are summed: a layer's rows as often as the layer occurs, and once the row of the two ends. A generation
is the sum over its positions, each at its own context, of what `nfsearch.latency_lut.interpolation` says between the
measured ones; the sum is exact and costs no more than one pass.

Where a block was measured in several places, its time is taken between those that are most like its place in the
model: by how many bytes other layers touch there between two of its kind, and by how many bytes a pass of the whole
model touches (on a GPU, of its layers: see `ends_stay`), both on a logarithmic axis. Nothing is carried beyond the
outermost place.

Memory is weights, and the state of every sequence at its longest, counted exactly; and the largest workspace of a part
as it was measured (0 where it was not, as on a CPU).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

from nfsearch.latency_lut.errors import TableError
from nfsearch.latency_lut.interpolation import neighbours, summed
from nfsearch.latency_lut.keys import ENDS, Part, ends_part, layer_parts
from nfsearch.latency_lut.measured import Measured
from nfsearch.latency_lut.places import ITEM_BYTES, ends_stay, touched_by_ends, touched_by_layer
from nfsearch.latency_lut.rows import Row
from nfsearch.latency_lut.workload import Span, Workload
from nfsearch.space.architecture import Architecture, Layer


@dataclass(frozen=True)
class Estimate:
    """Time of a workload on a whole model. `error` is twice the standard error that the spread of the rows leaves in
    their sum (about a 95 % interval of the measurement's noise; not of what a sum of blocks cannot see)."""

    seconds: float
    error: float
    joules: float | None = None  # of the board, where the rows know its power


class Point(NamedTuple):
    """What one pass of a part takes in a place."""

    seconds: float
    error: float  # standard error, in seconds
    joules: float


@dataclass(frozen=True)
class Cost:
    """Of passes of one part."""

    seconds: float
    error: float  # standard error, in seconds
    joules: float  # not a number where the power of a row is not known
    workspace: float  # bytes
    touched: float  # bytes, by a pass of the model in which it was measured
    between: float  # bytes of them, by other layers between one such block and the next

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.seconds + other.seconds,
            math.hypot(self.error, other.error),
            self.joules + other.joules,
            max(self.workspace, other.workspace),
            (self.touched + other.touched) / 2,
            (self.between + other.between) / 2,
        )


class Surface:
    """The cost of one part's passes over the places in which it was measured."""

    def __init__(self, costs: Sequence[Cost]) -> None:
        self.workspace = max(cost.workspace for cost in costs)
        by_between: dict[float, list[Cost]] = {}
        for cost in costs:
            by_between.setdefault(cost.between, []).append(cost)
        self._between = [_distance(between) for between in sorted(by_between)]
        lines = [sorted(by_between[between], key=lambda cost: cost.touched) for between in sorted(by_between)]
        self._lines = [
            (
                [math.log1p(cost.touched) for cost in line],
                [Point(cost.seconds, cost.error, cost.joules) for cost in line],
            )
            for line in lines
        ]

    def at(self, between: float, touched: float) -> Point:
        """Where a pass touches exp(touched) - 1 bytes; `between` is the `_distance` to the next block of the kind."""
        low, high, place = _around(self._between, between)
        one = _on_line(self._lines[low], touched)
        return one if low == high else _mixed(one, _on_line(self._lines[high], touched), place)


def _distance(between: float) -> float:
    """Of blocks between which so many bytes are touched, on an axis that is logarithmic beyond a few layers' worth."""
    return math.log2(1 + max(0.0, between) / 1e7)


def _around(points: Sequence[float], value: float) -> tuple[int, int, float]:
    """The indices of the rising points about a value, and its place between them; the outermost one twice beyond."""
    high = bisect_right(points, value)
    if high == 0 or high == len(points):
        end = min(high, len(points) - 1)
        return end, end, 0.0
    return high - 1, high, (value - points[high - 1]) / (points[high] - points[high - 1])


def _on_line(line: tuple[list[float], list[Point]], touched: float) -> Point:
    places, points = line
    low, high, place = _around(places, touched)
    return points[low] if low == high else _mixed(points[low], points[high], place)


def _mixed(one: Point, other: Point, place: float) -> Point:
    return Point(*((1 - place) * a + place * b for a, b in zip(one, other, strict=True)))


@dataclass(frozen=True)
class Price:
    """What one part of a model adds: for each span of the workload the bytes that a pass of it touches in the middle
    of the span, and its costs; and its memory, in bytes of weights and state, and of workspace."""

    spans: list[tuple[float, Surface]]
    memory: float
    workspace: float


class Prices:
    """Of models that share all but their layers, under one workload that is not throughput: looked up once and kept.

    Raises TableError where the table lacks a row, and OutOfMemory for one that did not fit.
    """

    def __init__(self, table: Measured, like: Architecture, workload: Workload, dtype: str) -> None:
        self.table, self.workload, self.dtype = table, workload, dtype
        self.width, self.meta_tokens, self.item = like.width, like.meta_tokens, ITEM_BYTES[dtype]
        self._layers: dict[Layer, Price] = {}
        weight = touched_by_ends(like.width, like.vocab, like.meta_tokens, self.item)
        touched = weight if ends_stay(table.provenance.kind) else 0.0
        # A pass reads but a row for each sequence of an embedding that is not the head.
        looked_up = 0.0 if like.tied_head else float(like.vocab * like.width * self.item)
        parts = [
            ends_part(like.width, like.vocab, span, dtype, like.meta_tokens, like.head_norm) for span in workload.spans
        ]
        self.ends = self._price([(touched, [part]) for part in parts], weight + looked_up)

    def layer(self, layer: Layer) -> Price:
        price = self._layers.get(layer)
        if price is None:
            spans = [
                (self._touched(layer, (span.first + span.last) / 2), self._parts(layer, span))
                for span in self.workload.spans
            ]
            price = self._layers[layer] = self._price(spans, self._touched(layer, self.workload.length))
        return price

    def estimate(self, layers: tuple[Layer, ...]) -> Estimate:
        total, variance, energy = 0.0, 0.0, 0.0
        for _, count, (seconds, error, joules) in self._shares(layers):
            total += count * seconds
            variance += (count * error) ** 2  # the same row: its error counts every time it is used
            energy += count * joules
        return Estimate(total, 2 * math.sqrt(variance), None if math.isnan(energy) else energy)

    def seconds_by_part(self, layers: tuple[Layer, ...]) -> dict[str, float]:
        """What `estimate` adds up, by block; the two ends together are `ends`."""
        found: dict[str, float] = {}
        for layer, count, (seconds, _, _) in self._shares(layers):
            name = ENDS if layer is None else str(layer)
            found[name] = found.get(name, 0.0) + count * seconds
        return found

    def _shares(self, layers: tuple[Layer, ...]) -> Iterator[tuple[Layer | None, int, Point]]:
        """Of the ends (None) and each kind of layer in each span: how many there are, and what one of them takes."""
        counts = [(layer, count, self.layer(layer)) for layer, count in Counter(layers).items()]
        for i, (ends_touched, ends) in enumerate(self.ends.spans):
            all_layers = sum(count * price.spans[i][0] for _, count, price in counts)
            touched = math.log1p(ends_touched + all_layers)
            yield None, 1, ends.at(0.0, touched)
            for layer, count, price in counts:
                own, surface = price.spans[i]
                yield layer, count, surface.at(_distance(all_layers / count - own), touched)

    def memory(self, layers: tuple[Layer, ...]) -> float:
        """Bytes."""
        size, workspace = self.ends.memory, self.ends.workspace
        for layer, count in Counter(layers).items():
            price = self.layer(layer)
            size += count * price.memory
            workspace = max(workspace, price.workspace)
        return size + workspace

    def _touched(self, layer: Layer, held: float) -> float:
        return touched_by_layer(layer, self.width, self.workload.batch, held + self.meta_tokens, self.item)

    def _parts(self, layer: Layer, span: Span) -> list[Part]:
        return layer_parts(layer, self.width, span, self.dtype, self.meta_tokens)

    def _price(self, spans: list[tuple[float, list[Part]]], memory: float) -> Price:
        priced = [(touched, self._surface(parts)) for touched, parts in spans]
        return Price(priced, memory, max(surface.workspace for _, surface in priced))

    def _surface(self, parts: list[Part]) -> Surface:
        """In each place in which all of the parts were measured. Raises what lacks in the first where there is none."""
        problem: TableError | None = None
        costs: list[Cost] = []
        for key in self.table.places(parts[0].key) or [parts[0].key]:
            try:
                each = [priced(self.table, part._replace(key=part.key.placed(key.others, key.cache))) for part in parts]
            except TableError as error:
                problem = problem or error
                continue
            costs.append(reduce(Cost.__add__, each))
        if problem and not costs:
            raise problem
        return Surface(costs)


def priced(table: Measured, part: Part) -> Cost:
    """All passes of `part` in its place: by the row of its context where there is one, else by those around it. Raises
    TableError and OutOfMemory."""
    key, last, times = part
    if key.context == last and key in table.rows:
        row = table.row(key)
        return _cost(times * _seconds(row), times * row.error_ms / 1e3, [row])
    if key.phase == "prefill":
        low, high, place = neighbours(table.grid(part), key.context)
        rows = [table.row(key.at(point)) for point in (low, high)]
        one, other = map(_seconds, rows)
        seconds = one ** (1 - place) * other**place
        relative = math.hypot((1 - place) * rows[0].error_ms / 1e3 / one, place * rows[1].error_ms / 1e3 / other)
        return _cost(times * seconds, times * seconds * relative, rows)
    weights = summed(table.grid_of_sum(part), key.context, last)
    found = [(table.row(key.at(point)), weight) for point, weight in weights.items()]
    return _cost(
        times * sum(weight * _seconds(row) for row, weight in found),
        times * math.hypot(*(weight * row.error_ms / 1e3 for row, weight in found)),
        [row for row, _ in found],
    )


def _cost(seconds: float, error: float, rows: list[Row]) -> Cost:
    powers = [math.nan if row.power_w is None else row.power_w for row in rows]
    return Cost(
        seconds,
        error,
        seconds * sum(powers) / len(powers),
        max((row.workspace_mb or 0.0) * 1e6 for row in rows),
        1e6 * sum(row.working_set_mb for row in rows) / len(rows),
        1e6 * sum(row.between_mb for row in rows) / len(rows),
    )


def _seconds(row: Row) -> float:
    assert row.latency_ms is not None  # `LatencyTable.row` gives no other
    return row.latency_ms / 1e3

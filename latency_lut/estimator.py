"""What a whole model costs, from the rows of a table: the sum of its parts' times, and its memory.

Times of passes are summed: a layer's rows as often as the layer occurs, embedding, final norm and head once, and once
the constant cost of a forward pass. A generation is the sum over its positions, each at its own context, of what
`nfsearch.latency_lut.interpolation` says between the measured ones; the sum is exact and costs no more than one pass.

Memory is weights, and the state of every sequence at its longest, counted exactly; and the largest workspace of a part
as it was measured (0 where it was not, as on a CPU).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

from nfsearch.latency_lut.interpolation import neighbours, summed
from nfsearch.latency_lut.keys import Part, end_parts, layer_parts
from nfsearch.latency_lut.measured import Measured
from nfsearch.latency_lut.rows import Row
from nfsearch.latency_lut.workload import Workload
from nfsearch.space.architecture import Architecture, Layer

ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True)
class Estimate:
    """Time of a workload on a whole model. `error` is twice the standard error that the spread of the rows leaves in
    their sum (about a 95 % interval of the measurement's noise; not of what a sum of blocks cannot see)."""

    seconds: float
    error: float
    joules: float | None = None  # of the board, where the rows know its power


@dataclass(frozen=True)
class Price:
    """What one part of a model adds."""

    seconds: float
    error: float  # standard error, in seconds
    joules: float  # not a number where the power of a row is not known
    memory: float  # bytes of weights and state
    workspace: float  # bytes


class Prices:
    """Of models that share all but their layers, under one workload that is not throughput: looked up once and kept.

    Raises TableError where the table lacks a row, and OutOfMemory for one that did not fit.
    """

    def __init__(self, table: Measured, like: Architecture, workload: Workload, dtype: str) -> None:
        self.table, self.workload, self.dtype = table, workload, dtype
        self.width, self.meta_tokens, self.item = like.width, like.meta_tokens, ITEM_BYTES[dtype]
        self._layers: dict[Layer, Price] = {}
        parts = [
            part
            for span in workload.spans
            for part in end_parts(like.width, like.vocab, span, dtype, like.meta_tokens, like.head_norm)
        ]
        weights = (like.vocab + like.meta_tokens + 1) * like.width * self.item  # the head is the embedding
        ends = self._price(parts, weights)
        overheads = [(span.count, *table.overhead(span.phase, span.batch, dtype)) for span in workload.spans]
        self.constant = replace(
            ends,
            seconds=ends.seconds + sum(n * seconds for n, seconds, _ in overheads),
            error=math.hypot(ends.error, *(n * error for n, _, error in overheads)),
        )
        self._overhead = self.constant.seconds - ends.seconds  # what passes cost whatever is in them

    def layer(self, layer: Layer) -> Price:
        price = self._layers.get(layer)
        if price is None:
            cost, workload = layer.cost(self.width), self.workload
            state = cost.state_bytes(workload.batch, workload.length + self.meta_tokens, self.item)
            parts = [
                part
                for span in workload.spans
                for part in layer_parts(layer, self.width, span, self.dtype, self.meta_tokens)
            ]
            price = self._layers[layer] = self._price(parts, (cost.parameters + self.width) * self.item + state)
        return price

    def estimate(self, layers: tuple[Layer, ...]) -> Estimate:
        seconds, variance, joules = self.constant.seconds, self.constant.error**2, self.constant.joules
        for layer, count in Counter(layers).items():
            price = self.layer(layer)
            seconds += count * price.seconds
            variance += (count * price.error) ** 2  # the same row: its error counts every time it is used
            joules += count * price.joules
        # The overhead is taken to need the same power as the rest.
        energy = None if math.isnan(joules) else joules * seconds / (seconds - self._overhead)
        return Estimate(seconds, 2 * math.sqrt(variance), energy)

    def memory(self, layers: tuple[Layer, ...]) -> float:
        """Bytes."""
        size, workspace = self.constant.memory, self.constant.workspace
        for layer, count in Counter(layers).items():
            price = self.layer(layer)
            size += count * price.memory
            workspace = max(workspace, price.workspace)
        return size + workspace

    def _price(self, parts: list[Part], memory: float) -> Price:
        seconds, variance, joules, workspace = 0.0, 0.0, 0.0, 0.0
        for part in parts:
            time, error, rows = priced(self.table, part)
            seconds += time
            variance += error**2
            powers = [math.nan if row.power_w is None else row.power_w for row in rows]
            joules += time * sum(powers) / len(powers)
            workspace = max(workspace, *((row.workspace_mb or 0.0) * 1e6 for row in rows))
        return Price(seconds, math.sqrt(variance), joules, memory, workspace)


def priced(table: Measured, part: Part) -> tuple[float, float, list[Row]]:
    """Seconds of all passes of `part`, their standard error, and the rows that say so: the row of its context where
    there is one, else those around it. Raises TableError and OutOfMemory."""
    key, last, times = part
    if key.context == last and key in table.rows:
        row = table.row(key)
        return times * _seconds(row), times * row.error_ms / 1e3, [row]
    grid = table.grid(part)
    if key.phase == "prefill":
        low, high, place = neighbours(grid, key.context)
        rows = [table.row(replace(key, context=point)) for point in (low, high)]
        one, other = map(_seconds, rows)
        seconds = one ** (1 - place) * other**place
        relative = math.hypot((1 - place) * rows[0].error_ms / 1e3 / one, place * rows[1].error_ms / 1e3 / other)
        return times * seconds, times * seconds * relative, rows
    found = [(table.row(replace(key, context=point)), w) for point, w in summed(grid, key.context, last).items()]
    return (
        times * sum(weight * _seconds(row) for row, weight in found),
        times * math.hypot(*(weight * row.error_ms / 1e3 for row, weight in found)),
        [row for row, _ in found],
    )


def _seconds(row: Row) -> float:
    assert row.latency_ms is not None  # `LatencyTable.row` gives no other
    return row.latency_ms / 1e3

"""Could another device's table, scaled by one factor, stand in for measurements here? A few rows measured here tell.

Half of them set the factor, the other half shows how wrong the scaled copy is. The answer holds for these two devices
and these rows, and is a reason to build a table here, or not to.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from nfsearch.latency_lut.agreement import Agreement, agreement_of
from nfsearch.latency_lut.errors import TableError
from nfsearch.latency_lut.keys import Key
from nfsearch.latency_lut.table import LatencyTable


@dataclass(frozen=True)
class Transfer:
    """`factor` times the other table's time is the scaled copy's. Its errors are shares of the time measured here, on
    rows that did not set the factor: of all, and by the operator (or end of a model) and phase."""

    factor: float
    fitted: int  # rows that set the factor
    overall: Agreement
    by_operator: dict[str, Agreement]


def sample_keys(keys: Iterable[Key], other: LatencyTable, number: int) -> list[Key]:
    """Up to `number` of `keys` that the other table has a time for, its dtype aside, spread evenly over their times
    there. Raises TableError if there are fewer than four."""
    known = sorted((time, key) for key in keys if (time := _time_there(key, other)) is not None)
    if len(known) < 4:
        raise TableError(f"{other.name} has {len(known)} rows that CONFIG asks for; calibrating takes at least 4")
    number = max(4, min(number, len(known)))
    return [known[i * (len(known) - 1) // (number - 1)][1] for i in range(number)]


def compare(keys: Sequence[Key], here: LatencyTable, other: LatencyTable) -> Transfer:
    """What the rows of `keys` say. Raises TableError if fewer than four of them fit into the memory of both devices."""
    times = {key: (_time_there(key, other), here.rows[key].latency_ms) for key in keys}
    pairs = [(key, there, own) for key, (there, own) in times.items() if there is not None and own is not None]
    if len(pairs) < 4:
        raise TableError(f"only {len(pairs)} of the rows have a time on both devices; calibrating takes at least 4")
    factor = math.exp(statistics.median(math.log(own / there) for _, there, own in pairs[::2]))
    scaled = [(key, factor * there, own) for key, there, own in pairs[1::2]]
    groups: dict[str, list[tuple[float, float]]] = {}
    for key, estimate, own in scaled:
        groups.setdefault(f"{key.block.partition('[')[0]} {key.phase}", []).append((estimate, own))
    return Transfer(
        factor,
        len(pairs) - len(scaled),
        agreement_of([(estimate, own) for _, estimate, own in scaled]),
        {name: agreement_of(group) for name, group in sorted(groups.items())},
    )


def _time_there(key: Key, other: LatencyTable) -> float | None:
    row = other.rows.get(replace(key, dtype=other.only_dtype()))
    return row.latency_ms if row else None

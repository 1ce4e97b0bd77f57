"""The latency table: measured rows of one device, and what whole models cost by them."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from nfsearch.latency_lut.errors import OutOfMemory, TableError
from nfsearch.latency_lut.estimator import Estimate, Prices
from nfsearch.latency_lut.measured import Measured
from nfsearch.latency_lut.rows import Row
from nfsearch.latency_lut.workload import Workload
from nfsearch.space.architecture import Architecture

_USABLE = 0.95  # of a device's memory; the rest is the driver's, and what allocation wastes


@dataclass
class LatencyTable(Measured):
    """What whole models cost by the rows that were measured on one device."""

    _prices: dict[Hashable, Prices] = field(default_factory=dict, repr=False, compare=False)

    def add(self, row: Row) -> None:
        super().add(row)
        self._prices.clear()

    def estimate(self, architecture: Architecture, workload: Workload, dtype: str | None = None) -> Estimate:
        """The time of `workload`: see `nfsearch.latency_lut.estimator`.

        `dtype` may be left out where the table has only one. Raises TableError for a row that the table lacks, and
        OutOfMemory for one that did not fit. Takes microseconds: what was looked up once is kept.
        """
        chosen = self.choice(architecture, workload, dtype)
        found = self._priced(architecture, chosen, dtype).estimate(architecture.layers)
        if workload.phase != "throughput":
            return found
        joules = found.joules and found.joules / chosen.batch
        return Estimate(found.seconds / chosen.batch, found.error / chosen.batch, joules)

    def memory(self, architecture: Architecture, workload: Workload, dtype: str | None = None) -> float:
        """Bytes that `workload` takes at its peak. Raises as `estimate` does."""
        chosen = self.choice(architecture, workload, dtype)
        return self._priced(architecture, chosen, dtype).memory(architecture.layers)

    def choice(self, architecture: Architecture, workload: Workload, dtype: str | None = None) -> Workload:
        """The workload that is measured: itself, or for throughput the decode step at the largest batch that fits.

        Raises OutOfMemory if none does, and TableError if the memory is not known.
        """
        if workload.phase != "throughput":
            return workload
        whole = self.provenance.memory_gb
        room = workload.memory_gb or (whole and _USABLE * whole)
        if not room:
            raise TableError(f"{self.name} does not know its device's memory: give the throughput workload a memory_gb")
        for choice in workload.choices:
            try:
                if self._priced(architecture, choice, dtype).memory(architecture.layers) <= room * 1e9:
                    return choice
            except OutOfMemory:
                continue
        raise OutOfMemory(f"{architecture} does not fit into {room:g} GB at any of the batches {workload.batches}")

    def breakdown(self, architecture: Architecture, workload: Workload, dtype: str | None = None) -> dict[str, float]:
        """Seconds by part: what `estimate` adds up, largest first. `ends` are embedding, final norm and head, and the
        constant cost of a pass."""
        chosen = self.choice(architecture, workload, dtype)
        parts = self._priced(architecture, chosen, dtype).seconds_by_part(architecture.layers)
        share = chosen.batch if workload.phase == "throughput" else 1
        return {name: seconds / share for name, seconds in sorted(parts.items(), key=lambda part: -part[1])}

    def _priced(self, architecture: Architecture, workload: Workload, dtype: str | None) -> Prices:
        a = architecture
        place = (a.width, a.vocab, a.meta_tokens, a.head_norm, a.tied_head, workload, dtype)
        prices = self._prices.get(place)
        if prices is None:
            prices = self._prices[place] = Prices(self, a, workload, dtype or self.only_dtype())
        return prices

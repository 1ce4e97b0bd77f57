"""How well a latency table's estimates agree with whole models: what was found, and where it is kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nfsearch.latency_lut.agreement import Agreement, Doubt, Trust, agreement_of, doubt_of
from nfsearch.latency_lut.errors import TableError
from nfsearch.latency_lut.measured import Measured
from nfsearch.latency_lut.workload import Workload
from nfsearch.support.files import write_atomically


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Check(_Part):
    """One whole model under one workload, measured and estimated."""

    workload: str
    architecture: str = Field(description="notation @ width")
    digest: str
    depth: int
    estimated_ms: float
    error_ms: float = Field(description="of the estimate")
    measured_ms: float
    spread_ms: float = Field(description="interquartile range of the measurement")
    estimated_gb: float = Field(description="peak memory, 1e9 bytes")
    measured_gb: float | None = Field(
        description="null on a CPU, and for a generation, of which only some positions are run"
    )

    @property
    def relative(self) -> float:
        """(estimated - measured) / measured."""
        return self.estimated_ms / self.measured_ms - 1


class Verification(_Part):
    """What `nfsearch lut verify` found: every check that was made, and how well they agree."""

    device: str
    dtype: str
    seed: int
    table: str = Field(description="date of the table that was checked")
    agreement: dict[str, Agreement] = Field(description="by workload")
    by_depth: dict[str, dict[str, Agreement]] = Field(
        description="by workload and by range of depths, up to three that hold about as many models each"
    )
    memory: dict[str, Agreement] = Field(description="of peak memory, by workload, where it was measured")
    workloads: dict[str, Workload] = Field(default_factory=dict, description="that were checked, by name")
    checks: tuple[Check, ...]

    @classmethod
    def of(
        cls,
        checks: Iterable[Check],
        *,
        device: str,
        dtype: str,
        seed: int,
        table: str,
        workloads: Mapping[str, Workload],
    ) -> Verification:
        """With the agreement that the checks come to."""
        checks = tuple(checks)
        by_workload: dict[str, list[Check]] = {}
        for check in checks:
            by_workload.setdefault(check.workload, []).append(check)
        return cls(
            device=device,
            dtype=dtype,
            seed=seed,
            table=table,
            agreement={name: _times(group) for name, group in by_workload.items()},
            by_depth={
                name: {label: _times(part) for label, part in _thirds(group).items()}
                for name, group in by_workload.items()
            },
            memory={name: agreement_of(pairs) for name, group in by_workload.items() if (pairs := _peaks(group))},
            workloads=dict(workloads),
            checks=checks,
        )

    def checks_of(self, workloads: Mapping[str, Workload], dtype: str) -> list[Check]:
        """Those that were made under these very workloads."""
        same = {name for name, workload in workloads.items() if self.workloads.get(name) == workload}
        return [check for check in self.checks if check.workload in same] if self.dtype == dtype else []

    def joined(self, other: Verification) -> Verification:
        """With the checks of `other`, an earlier one of the same table, that this one has not made itself; those under
        a workload that has another meaning here, or of another dtype, are dropped."""
        if self.dtype != other.dtype:
            return self
        workloads = {**other.workloads, **self.workloads}
        made = {(check.digest, check.workload) for check in self.checks}
        kept = [
            check
            for check in other.checks
            if other.workloads.get(check.workload) == workloads.get(check.workload)
            and (check.digest, check.workload) not in made
        ]
        return Verification.of(
            (*kept, *self.checks),
            device=self.device,
            dtype=self.dtype,
            seed=self.seed,
            table=self.table,
            workloads=workloads,
        )

    def complaints(self, trust: Trust) -> list[str]:
        """What is bad about the table, in words: a line for each workload and figure."""
        return [text for name, found in self.agreement.items() for text in trust.complaints(name, found)]

    def doubt(self, workload: str = "") -> Doubt:
        """How far estimates of a workload are off; of one that was not checked, as far as all checks together are."""
        own = [check for check in self.checks if check.workload == workload]
        return doubt_of([(check.estimated_ms, check.measured_ms) for check in own or self.checks])


def verification_path(table: Path) -> Path:
    """Where the check of a table is kept, beside it."""
    return table.with_suffix(".verification.json")


def keep_verification(table: Measured, found: Verification) -> None:
    """Writes the check of a table that is in a file beside it."""
    assert table.path is not None
    write_atomically(verification_path(table.path), found.model_dump_json(indent=1) + "\n")


def known_verification(table: Measured) -> Verification | None:
    """The check that is kept beside a table, if it was made of this table, which may have been given more rows since.
    Raises TableError if it cannot be read."""
    if table.path is None or not (path := verification_path(table.path)).is_file():
        return None
    try:
        found = Verification.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise TableError(
            f"{path} is no verification of this version ({where}: {first['msg']}); "
            f"`nfsearch lut verify {table.path} --config CONFIG` makes a new one"
        ) from None
    same = (found.device, found.table) == (table.provenance.device, table.provenance.date)
    return found if same else None


def _thirds(checks: list[Check]) -> dict[str, list[Check]]:
    depths = sorted(check.depth for check in checks)
    tops = sorted({depths[len(depths) // 3], depths[2 * len(depths) // 3], depths[-1]})
    groups = [[c for c in checks if low < c.depth <= top] for low, top in zip([0, *tops], tops, strict=False)]
    return {_range([check.depth for check in group]): group for group in groups}


def _range(depths: list[int]) -> str:
    low, high = min(depths), max(depths)
    return f"{low} operators" if low == high else f"{low} to {high} operators"


def _times(checks: list[Check]) -> Agreement:
    return agreement_of([(check.estimated_ms, check.measured_ms) for check in checks])


def _peaks(checks: list[Check]) -> list[tuple[float, float]]:
    return [(check.estimated_gb, check.measured_gb) for check in checks if check.measured_gb is not None]

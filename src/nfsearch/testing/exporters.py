"""The suite that every exporter passes."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest

from nfsearch.export import EXPORTERS, Winner, choose
from nfsearch.latency_lut import Workload
from nfsearch.proxies import PROXIES, Proxy
from nfsearch.report.result import ConfigRecord, Run, RunResult, SpaceRecord, build_result
from nfsearch.run.metrics import known_metrics
from nfsearch.search import STRATEGIES, Candidate, History, Limits
from nfsearch.space import Architecture
from nfsearch.support.versions import versions
from nfsearch.testing.samples import LOSS, candidate, problem, small_space

if TYPE_CHECKING:
    from nfsearch.ops.model import HybridLM


class ExporterSuite:
    """Name the exporter, and layers that it can express, at a width; and others that it refuses, if it does."""

    name: ClassVar[str]
    layers: ClassVar[str] = "(D[head_dim=16] F[ratio=2]){2}"
    refused: ClassVar[str | None] = None
    width: ClassVar[int] = 32

    @pytest.fixture
    def winner(self) -> Winner:
        """The best candidate of a made-up search whose one member has these layers; its weights are random."""
        return self._winner(self.layers)

    def _winner(self, layers: str) -> Winner:
        result = _result(layers, self.width)
        record = choose(result)

        def train() -> HybridLM:
            from nfsearch.ops.model import HybridLM

            return HybridLM(Architecture.from_dict(record.architecture))

        def proxy() -> Proxy:
            kind = PROXIES.find("training")
            return kind(kind.Settings(tokens=64, sequence=16, batch=2, validation_tokens=64), "cpu")  # type: ignore[call-arg]

        return Winner(result, record, proxy, train)

    def test_it_writes_where_it_is_told(self, winner: Winner, tmp_path: Path) -> None:
        out = tmp_path / "new" / "out"
        assert EXPORTERS.find(self.name)().export(winner, out) == out
        assert out.exists()
        assert list(out.parent.iterdir()) == [out], "something was left beside it"
        files = [path for path in (out.rglob("*") if out.is_dir() else [out]) if path.is_file()]
        assert files
        assert all(path.stat().st_size for path in files)

    def test_it_writes_over_nothing(self, winner: Winner, tmp_path: Path) -> None:
        taken = tmp_path / "taken"
        taken.write_text("mine")
        with pytest.raises(FileExistsError, match="taken"):
            EXPORTERS.find(self.name)().export(winner, taken)
        assert taken.read_text() == "mine"
        assert list(tmp_path.iterdir()) == [taken]

    def test_what_it_refuses_is_not_trained(self, winner: Winner, tmp_path: Path) -> None:
        exporter = EXPORTERS.find(self.name)()
        refusal = getattr(exporter, "refusal", None)
        assert refusal is None or refusal(winner.architecture) == ""
        if self.refused is None:
            pytest.skip("nothing is said to be refused")

        def untrained() -> HybridLM:
            raise AssertionError("what was refused is trained")

        other = replace(self._winner(self.refused), train=untrained)
        assert refusal is not None, "a search cannot be kept to what this exporter can express"
        said = refusal(other.architecture)
        assert said
        with pytest.raises(ValueError, match=re.escape(said)):
            exporter.export(other, tmp_path / "out")
        assert not list(tmp_path.iterdir())


def _result(layers: str, width: int) -> RunResult:
    given = problem(small_space(width=width, layers=layers, where={}))
    kind = STRATEGIES.find("random")
    strategy = kind(given, kind.Settings(strategy="random"))
    found: list[Candidate] = [candidate(0, strategy.propose(0, History()), random.Random(0).random())]
    now = datetime(2026, 1, 1, tzinfo=timezone.utc)
    return build_result(
        found,
        run=Run(status="complete", started=now, seconds=1.0, device="cpu", command="nfsearch run", versions=versions()),
        config=ConfigRecord(text="", resolved={}),
        space=SpaceRecord(notation=layers, widths=[width]),
        metrics=list(known_metrics([LOSS], {"tpot": Workload()}).values()),
        objectives=["loss"],
        limits=Limits(),
        population=1,
        storage="study.journal",
    )

"""Rows that are measured for real, on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nfsearch.latency_lut import Key, Row, Workload, keys_for, load_table, profiler
from nfsearch.latency_lut.frames import terms_of
from nfsearch.latency_lut.keys import STREAMED
from nfsearch.latency_lut.profiler import Profiler, rows_of
from nfsearch.latency_lut.timing import Samples
from nfsearch.latency_lut.whole import Timed, is_out_of_memory
from nfsearch.space.search_space import SearchSpace

from .helpers import measure_quickly, small_space

WORKLOADS = {"tpot": Workload(context=12)}
KEYS = [key.placed(0, STREAMED) for key in keys_for(small_space((32,)), WORKLOADS, "float32")]
END = next(key for key in KEYS if key.is_end and key.phase == "decode").placed(4, STREAMED)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    measure_quickly(monkeypatch)


def rows(space: SearchSpace, workloads: dict[str, Workload], dtype: str = "float32") -> list[Key]:
    return rows_of(space, workloads, dtype, "cpu")


def test_builds_every_row_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure_quickly(monkeypatch, looks=2)
    seen: list[tuple[int, int, Row | None]] = []
    spent: dict[str, float] = {}
    ttft = Workload(phase="prefill", context=9)
    keys = rows(small_space((32,)), WORKLOADS) + rows(small_space((32,), head_norm=True), {"ttft": ttft})
    path = tmp_path / "t.parquet"
    table = profiler.build(keys, path, device="cpu", progress=lambda *now: seen.append(now), spent=spent)
    assert table.missing(keys) == []
    assert load_table(path) == table
    for row in table.rows.values():
        assert row.latency_ms is not None
        assert 0 < row.latency_ms < 1e3
        assert row.spread_ms >= 0
        assert row.disturbance >= 0
        assert row.working_set_mb > 0
        assert row.layers == len(terms_of(row.key, 1e6)[-1].model.layers)
        assert (row.between_mb > 0) == (row.key.others > 0 and not row.key.is_end)
        assert row.cuda_graph is False
    assert set(spent) == {"warm-up", "models", "timing", "clean up"}
    assert [now[:2] for now in seen] == [(looks, 2 * len(keys)) for looks in range(2 * len(keys) + 1)]
    assert table.provenance.threads == torch.get_num_threads()


def test_bfloat16_rows(tmp_path: Path) -> None:
    keys = rows(small_space((32,)), {"tpot": Workload(batch=3, context=5)}, "bfloat16")
    assert all(row.latency_ms for row in profiler.build(keys, tmp_path / "t.parquet", device="cpu").rows.values())


def test_a_busy_machine_is_taken_where_it_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # so that disturbances count
    measure_quickly(monkeypatch)
    monkeypatch.setattr("nfsearch.latency_lut.rows.QUIET", -1.0)  # as if something always went on
    table = profiler.build(KEYS[:1], tmp_path / "t.parquet", device="cpu", accept=["busy"])
    assert table.rows[KEYS[0]].disturbed


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_out_of_memory_is_recorded(monkeypatch: pytest.MonkeyPatch, error: RuntimeError) -> None:
    def fails(*_: object) -> Row:
        raise error

    monkeypatch.setattr(Profiler, "_difference", fails)
    row = Profiler("cpu").measure(KEYS[0])
    assert (row.status, row.latency_ms, row.runs) == ("out_of_memory", None, 0)


def test_out_of_memory_within_a_capture_is_seen() -> None:
    error = RuntimeError("operation failed due to a previous error during capture")
    error.__context__ = torch.OutOfMemoryError("CUDA out of memory")
    assert is_out_of_memory(error)
    error.__context__ = ValueError("other")
    assert not is_out_of_memory(error)


def test_other_errors_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> Row:
        raise RuntimeError("a kernel is wrong")

    monkeypatch.setattr(Profiler, "_difference", fails)
    with pytest.raises(RuntimeError, match="kernel is wrong"):
        Profiler("cpu").measure(KEYS[0])


def test_what_exceeds_the_free_memory_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "free_memory", lambda kind: 1.0)
    monkeypatch.setattr(profiler, "build_model", None)
    assert Profiler("cpu").measure(KEYS[0]).status == "out_of_memory"


@pytest.mark.parametrize(
    ("less", "more", "status"), [(10e-3, 18e-3, "measured"), (10e-3, 10e-3, "whole"), (10e-3, 8e-3, "whole")]
)
def test_a_row_is_a_difference_and_never_negative(
    monkeypatch: pytest.MonkeyPatch, less: float, more: float, status: str
) -> None:
    samples = Samples([[less] * 3, [more] * 3])
    monkeypatch.setattr(profiler, "time_models", lambda *_: Timed(samples, None, [], lambda: None))
    key = KEYS[0]
    _, last = terms_of(key, 1e6)
    row = Profiler("cpu").measure(key)
    expected = (more - less) * last.weight if status == "measured" else more / len(last.model.layers)
    assert (row.status, row.latency_ms) == (status, pytest.approx(1e3 * expected))


def test_ends_are_what_a_model_takes_less_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = Samples([[5e-3] * 3, [8e-3] * 3, [6e-3] * 3])  # four layers under a small head, eight, four under the own
    monkeypatch.setattr(profiler, "time_models", lambda *_: Timed(samples, None, [], lambda: None))
    assert Profiler("cpu").measure(END).latency_ms == pytest.approx(6 - (8 - 5))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_builds_on_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    workloads = {"tpot": Workload(context=100), "ttft": Workload(phase="prefill", context=128)}
    keys = rows_of(small_space((256,)), workloads, "bfloat16", "cuda")
    table = profiler.build(keys, tmp_path / "t.parquet", device="cuda")
    assert all(row.latency_ms and row.cuda_graph for row in table.rows.values())
    assert table.provenance.driver

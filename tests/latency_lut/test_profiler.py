from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from nfsearch.latency_lut import (
    Key,
    Row,
    TableError,
    Workload,
    chains,
    keys_for,
    load_table,
    profiler,
    save_table,
    timing,
)
from nfsearch.latency_lut.device import provenance
from nfsearch.latency_lut.files import Journal, read_tables, write_tables
from nfsearch.latency_lut.profiler import Profiler
from nfsearch.latency_lut.timing import CPU, CUDA, Bounds, Samples
from nfsearch.ops.model import HybridLM

from .helpers import made_up_row, made_up_table, small_space

QUICK = dataclasses.replace(CPU, warm_up=0.0, least=3, most=6, seconds=0.05, cached=0, working_set=1e9, longest=2)
KEYS = keys_for(small_space((32,)), {"tpot": Workload(context=12)}, "float32")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "bounds", lambda kind: QUICK)
    monkeypatch.setattr(profiler, "warm_up", lambda kind: None)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Key]:
    """The keys that were measured, which takes no time."""
    keys: list[Key] = []

    def measure(self: Profiler, key: Key) -> Row:
        keys.append(key)
        return made_up_row(key)

    monkeypatch.setattr(Profiler, "measure", measure)
    return keys


def test_builds_every_row_on_the_cpu(tmp_path: Path) -> None:
    seen: list[tuple[int, int, Row | None]] = []
    spent: dict[str, float] = {}
    ttft = Workload(phase="prefill", context=9)
    keys = KEYS + keys_for(small_space((32,), head_norm=True), {"ttft": ttft}, "float32")
    path = tmp_path / "t.parquet"
    table = profiler.build(keys, path, device="cpu", progress=lambda *now: seen.append(now), spent=spent)
    assert table.missing(keys) == []
    assert load_table(tmp_path / "t.parquet") == table
    for row in table.rows.values():
        assert row.latency_ms is not None
        assert 0 < row.latency_ms < 1e3
        assert (row.short_chain, row.long_chain) == (2, 4)
        assert row.spread_ms >= 0
        assert row.cuda_graph is False
    assert set(spent) >= {"weights and states", "first run, compiling", "capture", "timing"}
    assert [now[:2] for now in seen] == [(looks, 2 * len(keys)) for looks in range(2 * len(keys) + 1)]
    assert table.provenance.threads == torch.get_num_threads()


def test_bfloat16_rows(tmp_path: Path) -> None:
    keys = keys_for(small_space((32,)), {"tpot": Workload(batch=3, context=5)}, "bfloat16")
    assert all(row.latency_ms for row in profiler.build(keys, tmp_path / "t.parquet", device="cpu").rows.values())


@pytest.mark.parametrize("stop", [1, 3, len(KEYS), len(KEYS) + 2])
def test_resumes_without_measuring_again(tmp_path: Path, measured: list[Key], stop: int) -> None:
    path = tmp_path / "t.parquet"

    def interrupt(done: int, total: int, row: Row | None) -> None:
        if done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profiler.build(KEYS, path, device="cpu", progress=interrupt)
    assert [row.key for row in Journal(path).read()[1]] == measured == (2 * KEYS)[:stop]
    with Journal(path).path.open("a") as file:
        file.write('{"phase": "deco')  # killed while it wrote
    started: list[int] = []
    table = profiler.build(KEYS, path, device="cpu", progress=lambda done, total, row: started.append(done))
    assert started == list(range(stop, 2 * len(KEYS) + 1))
    assert measured == 2 * KEYS
    assert load_table(path) == table
    profiler.build(KEYS, path, device="cpu")
    assert measured == 2 * KEYS
    assert list(tmp_path.iterdir()) == [path]


def test_a_journal_grows_by_the_same_for_every_row(tmp_path: Path, measured: list[Key]) -> None:
    sizes: list[int] = []
    path = tmp_path / "t.parquet"
    profiler.build(
        KEYS, path, device="cpu", progress=lambda *now: sizes.append(Journal(path).path.stat().st_size if now[2] else 0)
    )
    added = [after - before for before, after in pairwise(sizes[1:-1])]
    assert max(added) < 1.5 * min(added)


def test_tables_of_other_devices_in_the_file_stay(tmp_path: Path, measured: list[Key]) -> None:
    path = tmp_path / "t.parquet"
    other = made_up_table(KEYS[:2])
    write_tables(path, [other])
    table = profiler.build(KEYS, path, device="cpu")
    assert read_tables(path) == {"test-device": other, table.provenance.device: table}


@pytest.mark.parametrize(("field", "value"), [("driver", "1"), ("torch", "1.0"), ("threads", 99)])
def test_rows_of_another_origin_are_not_mixed(tmp_path: Path, measured: list[Key], field: str, value: object) -> None:
    path = tmp_path / "t.parquet"
    table = profiler.build(KEYS[:1], path, device="cpu")
    table.provenance = dataclasses.replace(table.provenance, **{field: value})  # type: ignore[arg-type]
    save_table(table, path)
    content = path.read_bytes()
    with pytest.raises(TableError, match=rf"rows that new ones cannot join \({field} {value}, now .*another file"):
        profiler.build(KEYS, path, device="cpu")
    assert path.read_bytes() == content
    path.unlink()
    with Journal(path) as journal:
        journal.start(table.provenance)
    with pytest.raises(TableError, match=rf"\({field} {value}, now .*and t.parquet.journal, if it is there"):
        profiler.build(KEYS, path, device="cpu")
    assert measured == 2 * KEYS[:1]


def test_rows_of_other_code_are_measured_anew_and_no_others(tmp_path: Path, measured: list[Key]) -> None:
    path = tmp_path / "t.parquet"
    table = made_up_table([*KEYS[:-1], dataclasses.replace(KEYS[0], batch=9)])
    stale = [key for key in KEYS[:-1] if key.block.startswith("D")]
    for key in [*stale, dataclasses.replace(KEYS[0], batch=9)]:  # of which the last is not asked for
        table.add(made_up_row(key, 1e-9, code="0" * 12))
    table.provenance = dataclasses.replace(provenance("cpu"), date="2001-01-01", nfsearch="0")
    save_table(table, path)
    with Journal(path) as journal:
        journal.start(provenance("cpu"))
        journal.add(made_up_row(KEYS[-1]))
        journal.add(made_up_row(KEYS[-1], code="0" * 12))  # counts as not measured
    again = profiler.build(KEYS, path, device="cpu")
    assert Counter(measured) == {**dict.fromkeys(stale, 2), KEYS[-1]: 1}
    assert again.stale(KEYS) == []
    assert len(again.stale()) == 1
    assert again.provenance.date > "2001-01-01"  # a check of the rows before says nothing about these


def test_date_and_command_may_differ(tmp_path: Path, measured: list[Key]) -> None:
    path = tmp_path / "t.parquet"
    table = profiler.build(KEYS[:1], path, device="cpu")
    table.provenance = dataclasses.replace(table.provenance, date="2001-01-01", command="other", clock_mhz=3.0)
    save_table(table, path)
    profiler.build(KEYS, path, device="cpu")
    assert measured == 2 * KEYS[:1] + 2 * KEYS[1:]


def test_the_faster_of_two_looks_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([3.0, 1.0, 2.0, 5.0])
    monkeypatch.setattr(
        Profiler, "measure", lambda self, key: dataclasses.replace(made_up_row(key), latency_ms=next(times))
    )
    table = profiler.build(KEYS[:2], tmp_path / "t.parquet", device="cpu")
    assert [table.rows[key].latency_ms for key in KEYS[:2]] == [2.0, 1.0]
    assert load_table(tmp_path / "t.parquet") == table


def test_folder_that_cannot_be_written_shows_before_the_work(tmp_path: Path, measured: list[Key]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        profiler.build(KEYS, tmp_path / "file" / "t.parquet", device="cpu")
    assert measured == []


def test_absent_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="device 'nvidia-b9000' is not here; this machine has"):
        profiler.build(KEYS, tmp_path / "t.parquet", device="nvidia-b9000")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_out_of_memory_is_recorded(monkeypatch: pytest.MonkeyPatch, error: RuntimeError) -> None:
    def fails(*_: object) -> Row:
        raise error

    monkeypatch.setattr(Profiler, "_slope", fails)
    row = Profiler("cpu").measure(KEYS[0])
    assert (row.status, row.latency_ms, row.runs) == ("out_of_memory", None, 0)


def test_out_of_memory_within_a_capture_is_seen() -> None:
    error = RuntimeError("operation failed due to a previous error during capture")
    error.__context__ = torch.OutOfMemoryError("CUDA out of memory")
    assert profiler._is_out_of_memory(error)
    error.__context__ = ValueError("other")
    assert not profiler._is_out_of_memory(error)


def test_other_errors_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> Row:
        raise RuntimeError("a kernel is wrong")

    monkeypatch.setattr(Profiler, "_slope", fails)
    with pytest.raises(RuntimeError, match="kernel is wrong"):
        Profiler("cpu").measure(KEYS[0])


def test_chain_follows_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    size = chains.touched(KEYS[0])
    monkeypatch.setattr(profiler, "free_memory", lambda kind: 2.5 * size)
    assert Profiler("cpu").measure(KEYS[0]).short_chain == 1
    monkeypatch.setattr(profiler, "free_memory", lambda kind: 1.5 * size)
    assert Profiler("cpu").measure(KEYS[0]).status == "out_of_memory"


@pytest.mark.parametrize(
    ("short", "long", "status", "latency", "overhead"),
    [(10e-3, 18e-3, "slope", 4.0, 2.0), (10e-3, 10e-3, "whole", 2.5, 0.0), (10e-3, 8e-3, "whole", 2.0, 0.0)],
)
def test_slope_is_never_negative(
    monkeypatch: pytest.MonkeyPatch, short: float, long: float, status: str, latency: float, overhead: float
) -> None:
    monkeypatch.setattr(profiler, "take", lambda *_: Samples([[short] * 3, [long] * 3]))
    row = Profiler("cpu").measure(KEYS[0])
    assert row.status == status
    assert (row.latency_ms, row.overhead_ms) == (pytest.approx(latency), pytest.approx(overhead))


def test_blocks_of_a_chain_share_nothing() -> None:
    key = next(key for key in KEYS if key.block.startswith("A"))
    chain = chains.Chain.of(key, 3, chains.Weights(key, "cpu"))
    blocks = [link.__closure__ for link in chain.links]  # type: ignore[attr-defined]
    assert len({id(cell.cell_contents) for cells in blocks for cell in cells if cell.cell_contents is not key}) == 9
    with torch.inference_mode():
        assert chain.run(3).shape == (1, 32)
        assert not torch.equal(chain.run(1), chain.run(3))


def test_bytes_are_those_allocated() -> None:
    for key in KEYS:
        if key.end is None:
            (block, _, state) = (
                cell.cell_contents for cell in chains.Chain.of(key, 1, chains.Weights(key, "cpu")).links[0].__closure__
            )  # type: ignore[attr-defined]
            tensors = [*block.parameters(), *state.values()]
            assert chains.touched(key) == sum(t.nbytes for t in tensors) + 4 * key.batch * key.width * 4


# --- timing ----------------------------------------------------------------------------------------------------------


def test_samples_combine() -> None:
    samples = Samples([[1.0, 2.0, 3.0], [10.0, 10.0, 14.0]])
    value, spread = samples.combine(-0.5, 0.5)
    assert value == 4.0
    assert spread == pytest.approx(0.5 * (1**2 + 2**2) ** 0.5)


def test_disturbed_samples_do_not_count_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0] * 5 + [1.0, 50.0, 9.0, 1.0, 70.0] * 100)
    monkeypatch.setattr(timing, "sample", lambda run, repeats, kind: next(times))
    within = dataclasses.replace(CPU, warm_up=0, keep=0.25, least=20, most=40)
    samples = timing.take([lambda: None], (1.0,), "cpu", within)
    assert set(samples.runs[0]) == {1.0}
    assert samples.count == 5  # agreed at once: a quarter of the least


def test_sampling_stops_at_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(float(i) for i in range(1, 1000))
    monkeypatch.setattr(timing, "sample", lambda run, repeats, kind: next(times))
    within = dataclasses.replace(CPU, warm_up=0, keep=1.0, least=4, most=30, seconds=60.0)
    assert timing.take([lambda: None], (1.0,), "cpu", within).count == 30
    content = dataclasses.replace(within, target=1e9)
    assert timing.take([lambda: None], (1.0,), "cpu", content).count == 4
    hurried = dataclasses.replace(within, seconds=0.0)
    assert timing.take([lambda: None], (1.0,), "cpu", hurried).count == timing._FEWEST


@pytest.mark.parametrize("within", [CPU, CUDA])
@pytest.mark.parametrize("size", [1e2, 1e4, 1e5, 1e6, 2.4e6, 2.6e6, 1e7, 1e8, 1e9])
def test_chain_is_all_in_the_cache_or_far_beyond_it(within: Bounds, size: float) -> None:
    short = within.chain(size)
    assert 1 <= short <= within.longest
    assert 2 * short * size <= within.cached or short == within.longest or short * size >= within.working_set


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_builds_on_cuda(tmp_path: Path) -> None:
    workloads = {"tpot": Workload(context=100), "ttft": Workload(phase="prefill", context=128)}
    table = profiler.build(keys_for(small_space((256,)), workloads, "bfloat16"), tmp_path / "t.parquet", device="cuda")
    assert all(row.latency_ms and row.cuda_graph for row in table.rows.values())
    assert table.provenance.driver


def test_weights_are_shared_by_the_rows_of_a_block_and_width(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    new = chains.Weights._new
    monkeypatch.setattr(chains.Weights, "_new", lambda self: made.append(f"{self.block} {self.width}") or new(self))
    workloads = {"near": Workload(context=5), "far": Workload(context=9), "many": Workload(batch=2, context=9)}
    keys = keys_for(small_space((32, 64)), workloads, "float32")
    measuring = Profiler("cpu")
    for key in keys:
        assert measuring.measure(key).latency_ms
    # Four blocks of the long chain; a chain of embeddings has one.
    for width in (32, 64):
        assert made.count(f"A[head_dim=16] {width}") == made.count(f"head[vocab=64] {width}") == 4
        assert made.count(f"embedding[vocab=64] {width}") == 1


def test_the_embedding_of_a_row_is_that_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up: list[tuple[int, ...]] = []
    embed_next = HybridLM.embed_next
    monkeypatch.setattr(HybridLM, "embed_next", lambda self, x: looked_up.append(tuple(x.shape)) or embed_next(self, x))
    for workload in (Workload(batch=3, context=5), Workload(phase="prefill", context=5)):
        (key,) = (key for key in keys_for(small_space((32,)), {"w": workload}, "float32") if key.end == "embedding")
        chains.Chain.of(key, 2, chains.Weights(key, "cpu")).run(2)
    assert looked_up == [(3,), (3,)]

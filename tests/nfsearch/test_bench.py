"""`nfsearch bench` as a dry run on a CPU, and that it catches what computes something else."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from nfsearch.bench import baselines, kernels, model, race
from nfsearch.bench.ops import bytes_moved
from nfsearch.bench.schema import BenchResult, Comparison, Entry
from nfsearch.cli import main as cli
from nfsearch.ops import Block, HybridLM, deltanet
from nfsearch.space import Architecture

Run = Callable[..., BenchResult]
ATTENTION = (
    "ops",
    "--op",
    "A[head_dim=16,qk_norm=all,rope=0.5,gate=true]",
    "--width",
    "64",
    "--context",
    "24",
    "--compile",
    "none",
)


def status(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Of `nfsearch bench ...` on one thread of the CPU."""
    monkeypatch.setattr(sys, "argv", ["nfsearch", "bench", *map(str, arguments), "--device", "cpu"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs it with as few samples as give a figure."""
    monkeypatch.setattr("nfsearch.bench.session.warm_up", lambda kind: None)
    monkeypatch.setitem(race._BOUNDS, "cpu", replace(race._BOUNDS["cpu"], warm_up=0.0, least=2, most=2, seconds=0.01))

    def run(*arguments: str) -> BenchResult:
        path = tmp_path / "result.json"
        assert status(monkeypatch, *arguments, "-o", path) == 0
        result = BenchResult.load(path)
        assert result.to_json() == path.read_text()
        assert result.provenance["kind"] == "cpu"
        assert result.bandwidth.bytes_per_s > 0
        return result

    return run


def entries(found: Comparison) -> dict[str, Entry]:
    return {entry.name: entry for entry in found.entries}


def hold_together(found: Comparison) -> None:
    """Figures of a comparison follow from each other."""
    timed = [entry for entry in found.entries if entry.status == "measured"]
    for entry in found.entries:
        assert (entry.median_us is not None) == (entry.status == "measured")
        assert bool(entry.reason) == (entry.status != "measured"), entry
    for entry in timed:
        assert entry.error is not None
        assert entry.median_us is not None
        assert entry.error <= found.tolerance
        if found.floor_us:
            assert entry.floor_ratio == pytest.approx(entry.median_us / found.floor_us)
            assert entry.bandwidth_percent == pytest.approx(100 / entry.floor_ratio)
    best = min((e for e in timed if e.role == "baseline"), key=lambda e: e.median_us or 0.0)
    assert found.best_baseline == best.name
    ours = next(entry for entry in found.entries if entry.role == "ours")
    if ours.median_us and best.median_us:
        assert found.ratio == pytest.approx(ours.median_us / best.median_us)


def test_ops(bench: Run, capsys: pytest.CaptureFixture[str]) -> None:
    operators = ["F", "D[head_dim=16]", "GDN[head_dim=16]", "GLA", "M2[head_dim=16]", "A[head_dim=16,window=8]", "C"]
    result = bench("ops", *(a for op in operators for a in ("--op", op)), "--width", "64", "--context", "24",
                   "--batch", "1", "--batch", "2", "--compile", "none")  # fmt: skip
    by_layer = {(found.case.get("layer"), found.case["batch"]): found for found in result.comparisons}
    for batch in (1, 2):
        for layer in operators:
            found = by_layer[layer, batch]
            hold_together(found)
            assert entries(found)["nfsearch"].path == "plain step: the tensors are on cpu, not CUDA"
            assert entries(found)["plain step"].status == "measured"
    assert entries(by_layer["D[head_dim=16]", 1])["fla-core"].reason == "fla-core's kernels need CUDA"
    assert entries(by_layer["M2[head_dim=16]", 1])["mamba-ssm"].status == "absent"
    assert entries(by_layer["A[head_dim=16,window=8]", 1])["SDPA, FA2"].status == "measured"
    assert "--compile none" in entries(by_layer["F", 1])["plain step, compiled"].reason
    names = [found.name for found in result.comparisons]
    assert "projection 64 to 384  batch 1" in names
    assert "attention alone  4 heads, 1 kv of 16  context 24  batch 2" in names
    printed = capsys.readouterr().out
    assert "A[head_dim=16,window=8]  width 64  context 24  batch 2" in printed
    assert "fla-core's kernels need CUDA" in printed
    assert "TB/s read and written" in printed


def test_model(bench: Run) -> None:
    mixed = "D[head_dim=16] F A[head_dim=16] M2[head_dim=16] GLA GDN[head_dim=16]"
    result = bench("model", "--model", mixed, "--model", "A[head_dim=16] F", "--width", "64", "--context", "24",
                   "--compile", "none")  # fmt: skip
    first, second = result.comparisons
    hold_together(first)
    hold_together(second)
    assert entries(first)["library parts"].status == "absent"
    assert entries(second)["library parts"].status == "measured"
    ratio = next(r for r in result.ratios if r.reference == "A[head_dim=16] F: library parts")
    mine, other = entries(first)["nfsearch"].median_us, entries(second)["library parts"].median_us
    assert mine is not None
    assert other is not None
    assert ratio.speedup == pytest.approx(other / mine)


def test_a_model_with_a_head_of_its_own(bench: Run, tmp_path: Path) -> None:
    sizes = []
    for tied in ("true", "false"):
        design = "{layers: 'A[head_dim=16] F', width: 64, vocab: 500, tied_head: %s}"
        (tmp_path / "own.yaml").write_text(f"format: nfsearch.architecture/1\narchitecture: {design % tied}\n")
        model = ("model", "--model", tmp_path / "own.yaml", "--context", "24", "--compile", "none")
        (found,) = bench(*model).comparisons
        assert entries(found)["library parts"].status == "measured"
        sizes.append(found.bytes)
    assert sizes[0] == sizes[1]  # of the embedding a row is read


def test_as_many_sequences_as_fit(bench: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "_CPU_MEMORY", 64 << 20)
    monkeypatch.setattr(model, "_MARGIN", 0)
    result = bench("model", "--model", "D[head_dim=16]", "--model", "A[head_dim=16]", "--width", "64", "--context",
                   "100", "--batch", "max", "--compile", "none")  # fmt: skip
    first, second = result.comparisons
    assert first.case["batch"] > second.case["batch"] > 20  # keys and values take more than a state
    assert [entry.name for entry in first.entries] == ["nfsearch"]
    (ratio,) = result.ratios
    rates = [found.case["batch"] / found.entries[0].median_us for found in (first, second)]  # type: ignore[operator]
    assert ratio.speedup == pytest.approx(rates[0] / rates[1])


def test_a_result_is_shown_again_as_a_table_and_as_a_picture(
    bench: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench("ops", "--op", "F", "--width", "32", "--width", "64", "--only", "blocks", "--compile", "none")
    capsys.readouterr()
    saved, table, figure = (tmp_path / name for name in ("result.json", "table.md", "figure.png"))

    def show(*options: str | Path) -> int:
        monkeypatch.setattr(sys, "argv", ["nfsearch", "bench", "show", *map(str, (saved, *options))])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0)

    assert show() == 0
    assert "F  width 64  context 8192  batch 1" in capsys.readouterr().out
    assert show("--table", table, "--figure", figure) == 0
    assert table.read_text().count("\n| F  width") == 2
    assert "projection" not in table.read_text()
    assert figure.read_bytes().startswith(b"\x89PNG")
    bench("model", "--model", "F", "--width", "32", "--compile", "none")
    assert show("--figure", figure) == 2


def test_training(bench: Run) -> None:
    result = bench("training", "--width", "64", "--head-dim", "16", "--sequence", "40", "--batch", "2")
    assert [found.case["layer"] for found in result.comparisons] == [
        "D[head_dim=16]", "GDN[head_dim=16]", "GLA[heads=2]", "M2[head_dim=16]", "A[head_dim=16]",
    ]  # fmt: skip
    for found in result.comparisons:
        hold_together(found)
        ours = entries(found)["nfsearch"]
        assert ours.path
        assert ours.first_call_s is not None
        rival = "SDPA, math" if found.case["layer"].startswith("A[") else "chunked PyTorch"
        assert entries(found)[rival].status == "measured"


# --- what computes something else ------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["output", "nan", "cache"])
def test_a_wrong_baseline_is_not_timed(bench: Run, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    original = baselines.sdpa

    def sdpa(backend: object) -> Callable[..., Tensor]:
        attend = original(backend)  # type: ignore[arg-type]
        if backend is not None:
            return attend

        def other(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if wrong == "cache":
                k[:, :, -1] = 0.5  # overwrites what was just appended, in the operator's own cache
            return attend(q, k, v) * {"output": 1.1, "nan": float("nan")}.get(wrong, 1.0)

        return other

    monkeypatch.setattr(baselines, "sdpa", sdpa)
    found = bench(*ATTENTION).comparisons[0]
    hold_together(found)
    assert entries(found)["SDPA, default"].status == "wrong"
    assert "off, more than 0.001" in entries(found)["SDPA, default"].reason
    assert entries(found)["SDPA, FA2"].status == "measured"


def test_ours_is_checked_like_the_others(bench: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Block.step

    def forgets(self: Block, x: Tensor, state: dict[str, Tensor], position: Tensor) -> Tensor:
        return original(self, x, {name: tensor.clone() for name, tensor in state.items()}, position)

    monkeypatch.setattr(Block, "step", forgets)
    found = bench(*ATTENTION).comparisons[0]
    assert entries(found)["nfsearch"].status == "wrong"
    assert found.ratio is None
    assert entries(found)["plain step"].status == "measured"


def test_wrong_gradients_are_caught(bench: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    original = deltanet.delta_rule

    def no_gradient_of_beta(q, k, v, beta, *rest, like):  # type: ignore[no-untyped-def]
        return original(q, k, v, beta.detach(), *rest, like=like)

    monkeypatch.setattr(deltanet, "delta_rule", no_gradient_of_beta)
    (found,) = bench("training", "--op", "D", "--width", "64", "--head-dim", "16", "--sequence", "40").comparisons
    assert entries(found)["nfsearch"].status == "wrong"
    assert entries(found)["chunked PyTorch"].status == "measured"


def test_a_baseline_that_breaks_is_reported(bench: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(setup: object) -> Callable[..., Tensor]:
        raise RuntimeError("no kernel image\nand more")

    for module in (kernels, baselines):
        monkeypatch.setattr(module, "flex", broken)
    for found in bench(*ATTENTION).comparisons[:2]:  # the block, and attention alone
        assert entries(found)["flex-decoding"].reason == "RuntimeError: no kernel image"


# --- what is counted -------------------------------------------------------------------------------------------------


def test_bytes_are_those_of_the_cost_model() -> None:
    text = "D[head_dim=16] F A[head_dim=16] A[head_dim=16,window=8] M2[head_dim=16] GLA GDN[head_dim=16]"
    architecture = Architecture.parse(text, width=64, vocab=128)
    model = HybridLM(architecture)
    costs = list(architecture.costs())
    norms_and_head = (len(costs) + 1) * 64 + 128 * 64
    expected = 4 * norms_and_head + sum(cost.bytes_read(3, 25, 4) + 3 * 4 * cost.state for cost in costs)
    assert bytes_moved([model], model.init_state(3, 25)) == expected


# --- wrong input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("model", "--model", "llama"), "--width"),
        (("model", "--model", "nothing.yaml"), "nothing.yaml"),
        (("ops", "--op", "D F", "--width", "64"), "2 layers"),
        (("ops", "--op", "D", "--width", "100"), "not a multiple"),
        (("ops", "--op", "F", "--dtype", "int8"), "bfloat16"),
        (("training", "--op", "F"), "head_dim"),
        (("training", "--op", "D[head_dim=32]"), "expected a name alone, such as D"),
        (("training", "--model", "F"), "--width"),
        (("training", "--model", "F", "--op", "D", "--width", "32"), "one of them"),
        (("training", "--model", "F", "--width", "32", "--width", "64"), "2 times for 1 models"),
        (("candidate", "F", "--width", "32", "--set", "tokenz=3"), "tokenz"),
        (("candidate", "D[head_dim=24]", "--width", "32"), "not a multiple"),
    ],
)
def test_wrong_input_is_said_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    assert status(monkeypatch, *arguments, "-o", tmp_path / "result.json") == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_result_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"format": "nfsearch.bench/9"}))
    with pytest.raises(ValueError, match="is no benchmark result: format"):
        BenchResult.load(path)

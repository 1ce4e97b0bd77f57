"""`nfsearch lut`, and runs that plan for a device that is not here."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from nfsearch.cli import tables
from nfsearch.latency_lut import load_table, measured, profiler, rows, save_table
from nfsearch.latency_lut.device import cache_bytes
from nfsearch.latency_lut.files import Journal
from nfsearch.latency_lut.profiler import Profiler
from nfsearch.latency_lut.verification import verification_path
from nfsearch.report.result import RunResult
from nfsearch.run import search
from nfsearch.run.config import load_config
from nfsearch.run.tables import checked, given_table
from nfsearch.support.terminal import plain_console
from tests.latency_lut.helpers import made_up_check, made_up_row, made_up_verification, measure_quickly
from tests.nfsearch.runs import files_of_at_most, invented_table, kill_group, start, tiny_config

LATENCY = {
    "device": "cpu",
    "workloads": {
        "tpot": {"context": 16},
        "story": {"phase": "generation", "prompt": 4, "tokens": 600},
        "serving": {"phase": "throughput", "context": 16, "batches": [1, 2], "memory_gb": 1},
    },
}


Command = Callable[..., tuple[str, str]]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    measure_quickly(monkeypatch)


def config(folder: Path, **latency: Any) -> Path:
    path = folder / "lut.yaml"
    space = {"width": [32, 64], "layers": "(A[head_dim=16,window=8|none] | D[head_dim=16]) F[ratio=2]{0..1}"}
    path.write_text(yaml.safe_dump({"space": space, "latency": {**LATENCY, **latency}}))
    return path


def test_built_shown_verified_and_asked(quick: None, tmp_path: Path, command: Command) -> None:
    table = tmp_path / "t.parquet"
    assert "measurements (0 known before)" in command("lut", "build", config(tmp_path), "-o", table)[1]
    assert "0 measurements" not in command("lut", "build", config(tmp_path), "-o", table)[1]
    assert "D[head_dim=16]" in command("lut", "show", table)[0]
    strict = ("--set", "latency.trust.mape=1e-9")
    out, err = command("lut", "verify", table, "--config", config(tmp_path), "-n", "3", *strict)
    assert f"DO NOT TRUST {table}: story: estimates are " in err
    assert "story: 3 models, MAPE" in out
    assert "operators: " in out
    kept = json.loads(verification_path(table).read_text())
    assert {check["workload"] for check in kept["checks"]} == {"tpot", "story", "serving"}
    assert verification_path(table).with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    narrow = ("lut", "verify", table, "--config", config(tmp_path), "-n", "2", "--set", "space.width=32")
    out, _ = command(*narrow)
    assert "tpot: 2 models, MAPE" in out.split("Together with earlier checks")[0]
    renewed = json.loads(verification_path(table).read_text())["checks"]
    assert all(check in renewed for check in kept["checks"])
    assert len(renewed) > len(kept["checks"])
    command(*narrow)
    assert json.loads(verification_path(table).read_text())["checks"] == renewed
    asked = ("lut", "estimate", table, "A[head_dim=16] F[ratio=2]", "--width", "64")
    out, _ = command(*asked, "--phase", "generation", "--prompt", "4", "--tokens", "600")
    assert "generation, batch 1, prompt 4, tokens 600" in out
    assert "bias and spread of the table's check" in out
    assert "up to 604, but not 5000" in command(*asked, "--context", "5000", status=2)[1]
    assert "no row for" in command(*asked, "--batch", "7", status=2)[1]


def test_a_shipped_table_is_asked_by_its_device(command: Command) -> None:
    asked = ("lut", "estimate", "nvidia-h200", "(D F M2 F A F M2 F){2} (D F M2 F){2}", "--width", "2048")
    assert "say which" in command(*asked, status=2)[1]  # of two heads
    for told in (["--vocab", "131072", "--head-norm"], ["--head-norm"]):
        out, _ = command(*asked, *told, "--context", "8192")
        assert "vocabulary 131072, normalised head" in out
    assert "ends[vocab=7]" in command(*asked, "--vocab", "7", "--no-head-norm", status=2)[1]
    assert "only of nvidia-h200" in command("lut", "show", "nvidia-b9000", status=2)[1]


def test_a_table_is_shown_in_as_many_parts_as_fit(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "stdout", lambda: plain_console(width=300))
    wide = command("lut", "show", "nvidia-h200")[0]
    monkeypatch.setattr(tables, "stdout", lambda: plain_console(width=80))
    narrow = command("lut", "show", "nvidia-h200")[0]
    assert narrow.count("milliseconds per block") > wide.count("milliseconds per block")
    assert "…" not in narrow
    assert narrow.count("%") == wide.count("%")


def test_the_name_of_a_device_is_no_markup(tmp_path: Path, command: Command) -> None:
    table = load_table(invented_table(tmp_path / "table.parquet"))
    table.provenance = dataclasses.replace(table.provenance, device_name="[/red] :smile:")
    save_table(table, tmp_path / "table.parquet")
    out, _ = command("lut", "show", "table.parquet")
    assert "[/red] :smile:" in out
    assert "A[head_dim=16]" in out


def test_an_estimate_says_its_context_and_whether_a_run_would_take_the_table(tmp_path: Path, command: Command) -> None:
    table = load_table(invented_table(tmp_path / "table.parquet"))
    asked = ("lut", "estimate", "table.parquet", "A[head_dim=16] F[ratio=2]", "--width", "64")
    out, err = command(*asked)
    assert "context 64 (the longest that was measured; --context asks for another)" in out
    assert "BEWARE: `nfsearch run` refuses" not in err
    table.rows = {key: dataclasses.replace(row, code="0" * 12) for key, row in table.rows.items()}
    save_table(table, tmp_path / "table.parquet")
    out, err = command(*asked, "--context", "64")
    assert "context 64, vocabulary" in out
    assert "BEWARE: `nfsearch run` refuses table.parquet: " in err
    assert "rows were timed with other code" in err


def test_calibrating_measures_a_few_rows_and_tells_the_error_of_a_scaled_table(
    quick: None, tmp_path: Path, command: Command
) -> None:
    command("lut", "build", config(tmp_path), "-o", tmp_path / "here.parquet")
    other = load_table(tmp_path / "here.parquet")
    other.provenance = dataclasses.replace(other.provenance, device="nvidia-h200", kind="cuda")
    save_table(other, tmp_path / "other.parquet")
    new = tmp_path / "new.parquet"
    calibrating = ("--calibrate", tmp_path / "other.parquet", "--rows", "6")
    out, _ = command("lut", "build", config(tmp_path), "-o", new, *calibrating)
    assert "times as long as nvidia-h200 (median of 3 rows)" in out
    assert "all: 3 rows, MAPE" in out
    assert len(load_table(new).rows) == 6


def test_a_busy_machine_is_exit_status_1_and_accepted_by_name(
    quick: None, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "QUIET", profiler.QUIET)
    monkeypatch.setattr(Profiler, "measure", lambda self, key: made_up_row(key, disturbance=0.5))
    table = tmp_path / "t.parquet"
    build = ("lut", "build", config(tmp_path), "-o", table)
    err = command(*build, status=1)[1]
    assert "nfsearch: the machine is busy with something else: " in err
    assert "with --set 'latency.accept=[busy]' it takes them as they are" in err
    assert not table.exists()
    err = command(*build, "--set", "latency.accept=[busy]")[1]
    count = len(load_table(table).rows)
    assert f"Beware: {count} of {count} rows were measured while something else used the machine" in err
    assert f"~ {count} of {count} rows were measured" in " ".join(command("lut", "show", table)[0].split())
    monkeypatch.setattr(Profiler, "measure", None)  # what was accepted is not measured again
    command(*build)


def test_a_run_goes_on_with_what_a_busy_machine_measured(
    quick: None, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "QUIET", profiler.QUIET)
    monkeypatch.setattr(Profiler, "measure", lambda self, key: made_up_row(key, disturbance=0.5))
    err = command("run", measuring_config(tmp_path), "--out", tmp_path / "run", status=1)[1]
    assert "the machine is busy" in err
    assert 1 <= len(re.findall(r"latency table on .*: (\d+) of \1\b", err)) <= 2  # not for each that is measured again
    monkeypatch.setattr(Profiler, "measure", None)
    again = ("run", "--resume", tmp_path / "run")
    command(*again, "--set", "latency.accept=[busy]")
    command(*again)  # which the folder's config remembers
    result = RunResult.load(tmp_path / "run" / "result.json")
    assert len(result.in_state("done")) == 4


def measuring_config(folder: Path) -> Path:
    """Of a run of four candidates that measures its table."""
    path = tiny_config(folder, search={"evaluations": 4})
    values = yaml.safe_load(path.read_text())
    del values["latency"]["table"]
    path.write_text(yaml.safe_dump(values))
    return path


def test_limits_on_sizes_are_tried_before_anything_is_measured(tmp_path: Path, command: Command) -> None:
    for limit in ("{parameters_m: 0.001}", "{state_gb: 1e-9}"):
        err = command("run", measuring_config(tmp_path), "--out", "run", "--set", f"limits={limit}", status=2)[1]
        assert "no member of the space keeps the limits: 2000 tried" in err
    assert not (tmp_path / "run").exists()


def test_a_run_keeps_the_table_that_its_candidates_were_timed_by(
    quick: None, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever has become of the code: measured anew, times would not compare with those that are there."""
    monkeypatch.setattr(Profiler, "measure", lambda self, key: made_up_row(key))
    found = made_up_verification(made_up_check(1, 1))
    monkeypatch.setattr(search, "checked", lambda config, space, table: found)
    command("run", measuring_config(tmp_path), "--out", "run")
    assert verification_path(tmp_path / "run" / "latency.parquet").is_file()  # for other runs that use the table
    monkeypatch.setattr(Profiler, "measure", None)
    before = (tmp_path / "run" / "latency.parquet").read_bytes()
    monkeypatch.setattr(measured, "digest_of", lambda key: "other code")
    again = ("run", "--resume", "run", "--set", "search.evaluations=6")
    err = command(*again, status=1)[1]
    assert "rows were timed with other code" in err
    assert "search anew (--out), or go on with it: --set 'latency.accept=[kernels]'" in err
    assert (tmp_path / "run" / "latency.parquet").read_bytes() == before
    command(*again, "--set", "latency.accept=[kernels]")
    assert len(RunResult.load(tmp_path / "run" / "result.json").in_state("done")) == 6
    assert (tmp_path / "run" / "latency.parquet").read_bytes() == before
    table = load_table(tmp_path / "run" / "latency.parquet")
    table.provenance = dataclasses.replace(table.provenance, date="2001-01-01")
    save_table(table, tmp_path / "run" / "latency.parquet")
    err = command("run", "--resume", "run", status=1)[1]
    assert re.search(r"timed by another latency table .* 2001-01-01\): put that one back, or search anew", err)


def test_a_full_disk_is_exit_status_1_and_the_rows_before_it_are_kept(
    quick: None, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Profiler, "measure", lambda self, key: made_up_row(key))
    table = tmp_path / "t.parquet"
    build = ("lut", "build", config(tmp_path), "-o", table)
    with files_of_at_most(3000):
        err = command(*build, status=1)[1]
    assert err.count("nfsearch: ") == 1
    assert f"File too large: '{Journal(table).path}'" in err
    assert not table.exists()
    kept = len(Journal(table).read()[1])
    assert kept
    assert f"({kept} known before)" in command(*build)[1]


@pytest.mark.slow
def test_killed_and_resumed_nothing_is_measured_again(
    quick: None, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "t.parquet"
    asked = config(tmp_path, workloads={"tpot": {}}, accept=["busy"])
    arguments = ("lut", "build", asked, "-o", table, "--set", "space.width=32")
    process = start(*arguments, cwd=tmp_path)
    journal = Journal(table).path
    deadline = time.monotonic() + 60
    while (not journal.exists() or journal.read_bytes().count(b"\n") < 5) and time.monotonic() < deadline:
        time.sleep(0.02)
    kill_group(process)
    first = Journal(table).read()[1]
    assert len(first) >= 4
    monkeypatch.setattr(profiler, "cache_bytes", cache_bytes)  # so that the same rows are asked for
    monkeypatch.setattr(Profiler, "measure", lambda self, key: made_up_row(key, 1e9))
    err = command(*arguments)[1]
    assert f"({len(first)} known before)" in err
    assert not journal.exists()
    kept = load_table(table).rows
    assert {row.key for row in first} == {key for key, row in kept.items() if row.latency_ms != 1e9}
    assert all(kept[row.key] in first for row in first)


# --- planning for another device -------------------------------------------------------------------------------------


def elsewhere(folder: Path, code: str | None = None) -> Path:
    """A table of a device that is not here, in the dtype of a GPU; with `code`, of other code."""
    path = invented_table(folder / "nvidia-h200.parquet", dtype="bfloat16")
    table = load_table(path)
    values = {"device": "nvidia-h200", "device_name": "NVIDIA H200", "kind": "cuda", "torch": "2.0", "driver": "570"}
    table.provenance = dataclasses.replace(table.provenance, **values)  # type: ignore[arg-type]
    if code:
        table.rows = {key: dataclasses.replace(row, code=code) for key, row in table.rows.items()}
    save_table(table, path)
    return path


@pytest.mark.slow
def test_a_run_plans_for_another_device_and_trains_twins_here(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_config(
        tmp_path,
        latency={"device": "nvidia-h200", "table": str(elsewhere(tmp_path)), "verify": 10},
        proxy={"narrow": 2},
        objectives=["loss", "tpot", "memory"],
        search={"evaluations": 3, "population": 2},
    )
    _, err = command("run", path, "--out", "run")
    assert "Planning for nvidia-h200, training on" in err
    assert "BEWARE" in err
    assert "never compared with whole models" in err
    result = RunResult.load(tmp_path / "run" / "result.json")
    assert result.table is not None
    assert result.table.verification is None
    for record in result.candidates:
        assert record.fidelity.twin == 2
        assert "a twin narrowed 2 times" in str(record.fidelity)
        assert record.value("memory") == pytest.approx(2 * record.metrics["parameters"].value, rel=0.5)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Losses here are of narrowed twins" in page
    assert "The latency table was never checked" in page
    _, err = command("export", tmp_path / "run", "--to", "hf", "-o", tmp_path / "model", status=2)
    assert "trained as twins narrowed 2 times" in err


def test_the_check_kept_beside_a_table_of_another_device_is_the_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = elsewhere(tmp_path)
    settings, _ = load_config(
        tiny_config(tmp_path, latency={"device": "nvidia-h200", "table": str(path), "verify": 10})
    )
    table = given_table(settings)
    assert table is not None
    space = settings.space.build(257)
    assert checked(settings, space, table) is None
    assert "BEWARE" in capsys.readouterr().err
    kept = made_up_verification(made_up_check(1.0, 1.02), device="nvidia-h200", table=table.provenance.date)
    verification_path(path).write_text(kept.model_dump_json())
    assert checked(settings, space, table) == kept
    assert "BEWARE" not in capsys.readouterr().err


def test_rows_of_other_code_that_are_accepted_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    latency = {"device": "nvidia-h200", "table": str(elsewhere(tmp_path, code="0" * 12)), "accept": ["kernels"]}
    settings, _ = load_config(tiny_config(tmp_path, latency=latency))
    table = given_table(settings)
    assert table is not None
    table.require(table.rows, settings.latency.accept)
    assert f"{len(table.rows)} of {len(table.rows)} rows were timed with other code" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "latency", "message"),
    [
        ({}, {"device": "nvidia-b9000"}, "was measured on nvidia-h200, and the device asked for is nvidia-b9000"),
        ({"code": "0" * 12}, {}, "rows were timed with other code: A decode (2), D decode (2)"),
        ({"code": "0" * 12}, {"accept": ["device"]}, "`latency.accept: [kernels]` takes them all the same"),
        (
            {},
            {"device": "nvidia-b9000", "table": "auto"},
            "device 'nvidia-b9000' is not here, and nfsearch has no table of",
        ),
        ({}, {"workloads": {"tpot": {"context": 4096}}}, "but not 4096, and nothing is guessed beyond"),
        ({}, {"workloads": {"tpot": {"batch": 3, "context": 64}}}, "batch 3"),
    ],
)
def test_tables_that_do_not_serve_are_refused(
    tmp_path: Path, command: Command, changes: dict[str, str], latency: dict[str, Any], message: str
) -> None:
    table = elsewhere(tmp_path, **changes)
    path = tiny_config(tmp_path, latency={"device": "nvidia-h200", "table": str(table), **latency})
    _, err = command("run", path, status=2)
    assert message in err
    assert "nfsearch lut build CONFIG -o" in err
    assert not (tmp_path / "runs").exists()


def test_an_estimate_is_at_the_longest_context_that_all_layers_were_measured_at(command: Command) -> None:
    """Of some attention the bundled table knows 8k alone, of other 32k."""
    asked = ("--width", "2048", "--vocab", "131072", "--no-head-norm")
    out, _ = command("lut", "estimate", "nvidia-h200", "A[rope=0] F[act=relu2,ratio=4] M2", *asked)
    assert "context 8192 (the longest that was measured" in out
    out, _ = command("lut", "estimate", "nvidia-h200", "A M2", *asked)
    assert "context 32768 (the longest" in out

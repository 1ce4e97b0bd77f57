"""Wrong input: exit status 2 (1 where the work itself fails), one clear message, no traceback, nothing half written."""

import dataclasses
import re
import sys
from pathlib import Path

import pytest

from nfsearch.latency_lut import load_table, save_table
from nfsearch.ops import fla_layers
from nfsearch.run import plan
from nfsearch.run.config import load_config
from tests.nfsearch.runs import SPACE, Run, tiny_config


def test_more_than_this_machine_has_is_told_before_any_work(tmp_path: Path, fails: Run) -> None:
    """Nor is the latency table measured, which the config does not name."""
    config = tiny_config(tmp_path, latency={"table": "auto"}, workers={"executor": "ray"})
    for asked, told in (("{count: 2, cpus: 1000}", "2 with 1000 CPUs"), ("{cpus: 1000}", "1 with 1000 CPUs")):
        err = fails("run", config, "--set", f"workers={asked}", "--out", "run")
        assert re.search(rf"workers: {told} and 0 GPUs each were asked for; this machine has \d+ CPUs, 0 GPUs", err)
    err = fails("run", config, "--set", "workers={gpus: .inf}", "--out", "run")
    assert "workers.gpus: expected a finite number" in err


def space_with(layers: str) -> dict:
    return {"space": {**SPACE, "layers": layers}}


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            "deltanett F",
            "space.layers: column 1: 'deltanett' is neither an operator nor a defined name, did you mean deltanet?",
        ),
        ("(D F", "expected ')' for the '(' at column 1, found the end"),
        ("D{3..2}", "{3..2}: the first number is larger than the second"),
        ("(" * 10_000, "more than 50 brackets in brackets"),
        ("D[head_dim=48]", "width 32 is not a multiple of head_dim 48"),
        ("D[head_dim=16]{9999}", "the space has members of 9999 layers"),
    ],
)
def test_notation(fails: Run, tmp_path: Path, layers: str, message: str) -> None:
    err = fails("run", tiny_config(tmp_path, **space_with(layers)))
    assert message in err
    assert "config.yaml:1: space" in err or ": space.layers:" in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "space: {width: 64, layers: F}\nsearch:\n  populaton: 3\n",
            "config.yaml:3: search.populaton: unknown key, did you mean population?",
        ),
        (
            "space: {width: 64, layers: F}\nproxy: {tokens: many}\n",
            "config.yaml:2: proxy.tokens: expected a whole number, found 'many'",
        ),
        (
            "space: {width: 64, layers: F}\nproxy:\n  narrow: 1\n  batch: 1000000000000\n  learning_rate: .inf\n",
            "config.yaml:4: proxy.batch: expected less than or equal to 65536, found 1000000000000\n"
            "config.yaml:5: proxy.learning_rate: expected a finite number, found inf",
        ),
        (
            "space: {width: 64, layers: F}\nproxy:\n  batch: 4096\n  sequence: 8192\n",
            "config.yaml:2: proxy: a step of 4096 sequences of 8192 tokens has 33,554,432 tokens: expected up to",
        ),
        (
            "space: {width: 64, layers: F}\nproxy:\n  data: ~nosuchuser/x\n  tokenizer: ~nosuchuser/x\n",
            "config.yaml:3: proxy.data: ~nosuchuser/x: no path: Could not determine home directory.\n"
            "config.yaml:4: proxy.tokenizer: ~nosuchuser/x: no path: Could not determine home directory.",
        ),
        (
            "space: {width: 64, layers: F}\nproxy:\n  data: {train: a, validation: " + "a" * 300 + "}\n",
            "config.yaml:3: proxy.data: " + "a" * 100 + ": no path: File name too long",
        ),
        (
            "space: {width: 64, layers: F}\nproxy:\n  data:\n  - {path: a}\n  - {path: b, weight: -1}\n",
            "config.yaml:5: proxy.data.1.weight: expected greater than 0, found -1",
        ),
        (
            "space: {width: 64, layers: F}\nproxy:\n  data: [{path: a}, {path: a, weight: 2}]\n",
            "config.yaml:3: proxy.data: a is listed twice in a mixture",
        ),
        ("space: {width: 64, layers: F}\nproxy: {data: []}\n", "proxy.data: a mixture has at least one source"),
        (
            "space: {width: 64, layers: F}\nproxy:\n  data: nowhere.txt\n",
            "config.yaml:2: proxy: nowhere.txt: no such file or folder; `data` is python-stdlib, a file, a folder",
        ),
        (
            "space: {width: 64, layers: F}\nproxy: {narrow: 48}\n",
            "config.yaml:2: proxy: narrow: designs of width 64 cannot be narrowed 48 times: width 64 is not a multiple",
        ),
        (
            "space: {width: 64, layers: F}\nalso:\n  mqar: {pairs: 4, narrow: 48}\n",
            "config.yaml:3: also.mqar: mqar.narrow: designs of width 64 cannot be narrowed 48 times",
        ),
        (
            "space: {width: 64, layers: F}\nlimits: {tpt_ms: 3}\n",
            "config.yaml:2: limits.tpt_ms: expected NAME_UNIT of sized_loss, loss, bits_per_byte, perplexity, tpot, "
            "memory, parameters, state, tpot_energy (such as tpot_ms; latency.workloads defines workloads), "
            "did you mean tpot_ms?",
        ),
        (
            "space: {width: 64, layers: F}\nsearch:\n  strategy: random\n  populaton: 3\n",
            "config.yaml:4: search.populaton: unknown key",
        ),
        (
            "space: {width: 64, layers: F}\nworkers:\n  executor: local\n  count: 3\n",
            "config.yaml:4: workers.count: unknown key",
        ),
        (
            "space: {width: 64, layers: F}\nrule:\n  kind: median\n  wram_up: 3\n",
            "config.yaml:4: rule.wram_up: unknown key",
        ),
        ("space: {width: 64, layers: F}\nrule:\n  warm_up: 3\n", "config.yaml:2: rule.kind: is missing"),
        (
            "space: {width: 64, layers: F}\nsearch:\n  strategy: agin\n",
            "config.yaml:3: search.strategy: unknown strategy 'agin', did you mean aging?",
        ),
        ("space: {width: 64\n", "not valid YAML"),
        ("just words", "expected keys and values, found str"),
        ("", "the file is empty"),
        ("space: {width: 64, width: 32, layers: F}", "config.yaml:1: not valid YAML: the key 'width' is given twice"),
        (
            "a: &a [x,x,x,x,x,x,x,x,x]\n"
            + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
            "more than 10,000 values, aliases followed",
        ),
        ("a: " + "[" * 1_000, "not valid YAML: brackets in brackets too deep"),
        ("a: \x07", "not valid YAML"),
        ("[1, 2]: 3", "config.yaml:1: not valid YAML: a key has to be a word"),
        ("search:\nspace: {width: 64}", "config.yaml:2: space.layers: is missing"),
    ],
    ids=[
        "unknown-key",
        "bounds",
        "step",
        "no path",
        "long path",
        "weight",
        "source twice",
        "no source",
        "data that is not there",
        "twin",
        "twin of a task",
        "wrong-type",
        "unknown-limit",
        "key-of-another-strategy",
        "key-of-another-executor",
        "key-of-a-rule",
        "rule-without-a-kind",
        "unknown-strategy",
        "unclosed",
        "no-mapping",
        "empty",
        "twice",
        "alias-bomb",
        "nested",
        "control",
        "list-key",
        "empty-section",
    ],
)
def test_config_file(fails: Run, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    assert message in fails("run", "config.yaml")


@pytest.mark.parametrize(
    ("section", "key", "kind", "message"),
    [
        ("search", "strategy", "randm", "unknown strategy 'randm', did you mean random?"),
        ("search", "strategy", "x", "unknown strategy 'x'; known: aging, "),
        ("proxy", "kind", "trainning", "unknown proxy 'trainning', did you mean training?"),
        ("rule", "kind", "mean", "unknown stopping rule 'mean', did you mean median?"),
        ("workers", "executor", "locl", "unknown executor 'locl', did you mean local?"),
    ],
)
def test_a_kind_that_nobody_defines(
    fails: Run, tmp_path: Path, section: str, key: str, kind: str, message: str
) -> None:
    (tmp_path / "config.yaml").write_text(f"space: {{width: 64, layers: F}}\n{section}:\n  {key}: {kind}\n")
    err = fails("run", "config.yaml")
    assert f"config.yaml:3: {section}.{key}: {message}" in err
    assert len(err.splitlines()) == 1
    config = tiny_config(tmp_path)
    assert f"--set {section}.{key}={kind}: {section}.{key}: {message}" in fails(
        "run", config, "--set", f"{section}.{key}={kind}"
    )


def test_missing_and_unreadable_config(fails: Run, tmp_path: Path) -> None:
    assert "nowhere.yaml: No such file or directory" in fails("run", "nowhere.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "binary.yaml: not a text file" in fails("run", "binary.yaml")


def test_assignments(fails: Run, tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    assert "--set search.seed: expected KEY=VALUE" in fails("run", config, "--set", "search.seed")
    assert "--set search.sed=3: search.sed: unknown key, did you mean seed?" in fails(
        "run", config, "--set", "search.sed=3"
    )
    section = "workers={executor: local, count: 2}"  # replaces the file's
    assert f"--set {section}: workers.count: unknown key" in fails("run", config, "--set", section)
    assert "--set search.seed.more=3: seed holds a value, not a section" in fails(
        "run", config, "--set", "search.seed=1", "--set", "search.seed.more=3"
    )
    (tmp_path / "config.yaml").write_text("space: {width: 64, layers: F}\nproxy: {tokens: 1000, rungs: [5000]}\n")
    # The section is wrong as a whole: whether by the file or by what was assigned of it, the reader sees.
    assert "config.yaml:2 with --set proxy.batch=2: proxy: the last rung, 5,000 tokens, is not below" in fails(
        "run", "config.yaml", "--set", "search.seed=1", "--set", "proxy.batch=2"
    )


def test_data(fails: Run, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "other.jsonl").write_text('{"body": "no text here"}\n')
    for data, message in (("empty.txt", "empty"), ("nothing.txt", "nothing.txt"), ("other.jsonl", "text")):
        assert message in fails("run", tiny_config(tmp_path, proxy={"data": data}))


def test_known_design_outside_the_space(fails: Run, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, search={"seeds_known": ["GLA F"]})
    assert "seeds_known: 'GLA F' at width 64 or 32 is no member of the space" in fails("run", config)


def test_unreachable_budget(fails: Run, tmp_path: Path) -> None:
    err = fails("run", tiny_config(tmp_path, limits={"tpot_ms": 1e-6}))
    assert "no member of the space keeps the limits" in err
    assert "against 0.000001000 ms" in err


def test_table_of_another_device_and_with_missing_rows(fails: Run, tmp_path: Path) -> None:

    config = tiny_config(tmp_path)
    path = tmp_path / "table.parquet"
    table = load_table(path)
    own = table.provenance
    table.provenance = dataclasses.replace(own, device="nvidia-h200", device_name="NVIDIA H200")
    save_table(table, path)
    assert "was measured on nvidia-h200, and the device asked for is" in fails("run", config)
    table.provenance = own
    del table.rows[next(iter(table.rows))]
    save_table(table, path)
    err = fails("run", config)
    assert "has no row for" in err
    assert "nfsearch lut build" in err


@pytest.mark.parametrize("keep", [0, 3, 200])
def test_damaged_table(fails: Run, tmp_path: Path, keep: int) -> None:
    config = tiny_config(tmp_path)
    table = tmp_path / "table.parquet"
    table.write_bytes(table.read_bytes()[:keep])
    assert "table.parquet is " in fails("run", config)


def test_a_broken_verification_is_told_before_anything_is_written(fails: Run, tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    (tmp_path / "table.verification.json").write_text("{")
    assert "table.verification.json is no verification" in fails("run", config)


def test_a_storage_is_a_url(fails: Run, tmp_path: Path) -> None:
    assert "storage: expected a URL, such as sqlite:///" in fails("run", tiny_config(tmp_path, storage="plainname"))
    for lost in ("sqlite://", "sqlite:///", "sqlite:///:memory:"):
        assert "storage: expected a URL of what outlives" in fails("run", tiny_config(tmp_path, storage=lost))


def test_a_folder_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "proj" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "proj" / "sub")
    assert plan._folder(Path("../config.yaml"), None) == Path("runs/proj")
    for nameless in ("/config.yaml", "...yaml", "..yaml"):
        with pytest.raises(ValueError, match="gives no name to the folder"):
            plan._folder(Path(nameless), None)


def test_output_folder(fails: Run, tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    assert "there is no run to resume" in fails("run", "--resume", "nothing")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").write_text("precious: 1")
    assert "there is no run to resume" in fails("run", "--resume", "mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("precious")
    assert "is not empty: remove what is there" in fails("run", config, "--out", "full")
    assert "is not empty: go on with its run (--resume mine)" in fails("run", config, "--out", "mine")
    assert "is a file" in fails("run", config, "--out", "full/mine")
    assert "nfsearch: " in fails("run", config, "--out", "/proc/nfsearch")  # nobody can write there, root neither


def test_init_does_not_overwrite(fails: Run, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("mine")
    assert "config.yaml is there already" in fails("init")


def test_use_of_the_command_line(fails: Run) -> None:
    assert "No such command 'rnu'" in fails("rnu")
    assert "expected a config to begin with" in fails("run")
    assert "column 1: 'Q' is neither" in fails("space", "Q")


def test_a_throughput_on_a_cpu_says_how_much_memory(fails: Run, tmp_path: Path) -> None:
    workloads = {"serving": {"phase": "throughput", "context": 64, "batches": [1, 2]}}
    err = fails("run", tiny_config(tmp_path, latency={"table": "auto", "workloads": workloads}))
    assert "latency.workloads.serving: on a CPU a throughput needs memory_gb" in err


def test_a_storage_that_cannot_be_opened(fails: Run, tmp_path: Path) -> None:
    fails("run", tiny_config(tmp_path, storage="nosuchdb://x/y"), "--out", "new")
    assert not (tmp_path / "new").exists()


def test_names_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("auto", "bytes", "python-stdlib", "bpe:300"):
        (tmp_path / name).mkdir()
    config, _ = load_config(tiny_config(tmp_path, latency={"table": "auto"}, proxy={"tokenizer": "bpe:300"}))
    assert (config.latency.table, config.proxy.tokenizer, config.proxy.data) == ("auto", "bpe:300", "python-stdlib")


def test_what_an_estimate_does_not_take(fails: Run) -> None:
    asked = ("lut", "estimate", "nvidia-h200", "D F", "--width", "2048", "--head-norm")
    assert "prompt" in (err := fails(*asked, "--prompt", "5"))
    assert len(err.splitlines()) == 1


def test_layers_of_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, fails: Run, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "fla.layers", None)
    monkeypatch.setattr("nfsearch.ops.fla_layers._cost", fla_layers._cost.__wrapped__)
    config = tiny_config(tmp_path, **space_with("fla:KimiDeltaAttention F"), latency={"table": "auto"})
    for command in (("run", config), ("lut", "build", config, "-o", "new.parquet")):
        err = fails(*command)
        assert "nfsearch: fla:KimiDeltaAttention needs flash-linear-attention, which cannot be imported here" in err
        assert "pip install '.[fla-layers]'" in err

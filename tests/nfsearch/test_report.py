from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

from nfsearch.report import favourites
from nfsearch.report.favourites import Bias, Favourites
from nfsearch.report.outputs import candidates_frame, front_frame, write_outputs
from nfsearch.report.page import ancestry, mutation_table, plot_data, render, size
from nfsearch.report.result import RunResult
from nfsearch.run.summary import print_summary
from tests.nfsearch.fake_run import (
    FAILED,
    NOTE,
    NOTED,
    STOPPED,
    fake_candidates,
    fake_confirmations,
    fake_timings,
    make_result,
)

ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """Tags with their attributes, visible text, and the content of scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data


def hostile() -> RunResult:
    """Every text that comes from elsewhere is an attack; one note is of all candidates, the other of some."""
    """Markup wherever a user or an exception may put text."""
    result = make_result()
    records = [
        record.model_copy(
            update={
                "notation": f"D {ATTACK}",
                "origin": ATTACK,
                "layers": [f"D[{ATTACK}]"],
                "error": ATTACK,
                "notes": [ATTACK, f"some: {ATTACK}"] if record.number in NOTED else [ATTACK],
            }
        )
        for record in result.candidates
    ]
    assert result.table is not None
    return result.model_copy(
        update={
            "table": result.table.model_copy(update={"complaints": [ATTACK]}),
            "candidates": records,
            "refusals": {ATTACK: 1},
            "config": result.config.model_copy(update={"text": ATTACK, "resolved": {"a": ATTACK}}),
            "space": result.space.model_copy(update={"notation": ATTACK, "where": {ATTACK: ATTACK}}),
            "run": result.run.model_copy(update={"device": ATTACK, "command": ATTACK, "versions": {ATTACK: ATTACK}}),
        }
    )


def test_every_file_is_written_and_agrees(result: RunResult, tmp_path: Path) -> None:
    paths = write_outputs(result, tmp_path / "run")
    assert sorted(path.name for path in paths) == sorted(path.name for path in (tmp_path / "run").iterdir())
    assert RunResult.load(tmp_path / "run" / "result.json") == result
    candidates = pd.read_csv(tmp_path / "run" / "candidates.csv")
    front = pd.read_csv(tmp_path / "run" / "front.csv")
    assert list(candidates["number"]) == [record.number for record in result.candidates]
    assert list(front["number"]) == result.front
    assert set(candidates.loc[candidates["front"], "number"]) == set(result.front)
    for row in candidates.itertuples():
        record = result.candidate(row.number)
        assert row.tpot_ms == pytest.approx(record.metrics["tpot"].value * 1e3)
        assert row.tpot_ms_error == pytest.approx(record.metrics["tpot"].error * 1e3)
        assert row.parameters_m == pytest.approx(record.metrics["parameters"].value / 1e6)
        loss = record.value("loss")
        assert (row.loss == pytest.approx(loss)) if loss else pd.isna(row.loss)
        assert (row.job, row.seed, row.fidelity) == (record.job, 0, str(record.fidelity))
        assert (row.notes == NOTE) if row.number in NOTED else pd.isna(row.notes)
        assert row.state == record.state
    assert (tmp_path / "run" / "front.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_written_if_a_part_fails(result: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise RuntimeError

    monkeypatch.setattr("nfsearch.report.outputs.render", fail)
    with pytest.raises(RuntimeError):
        write_outputs(result, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("status", ["complete", "interrupted", "failed-to-finish", "running"])
@pytest.mark.parametrize("candidates", [0, 1, 40])
def test_every_kind_of_run_renders(status: str, candidates: int, tmp_path: Path) -> None:
    result = make_result(fake_candidates(candidates), status=status, verified=candidates != 1)
    if status == "complete":  # the other files do not depend on it
        write_outputs(result, tmp_path)
    assert status in Page(render(result)).text


def test_one_objective_and_three_objectives_render(tmp_path: Path) -> None:
    for workloads in ((), ("tpot", "ttft", "batch")):
        write_outputs(make_result(workloads=workloads), tmp_path)
        page = Page((tmp_path / "report.html").read_text())
        assert all(f"{name} (ms)" in page.text for name in workloads)


@pytest.mark.parametrize(
    ("first", "label"),
    [
        ("memory", "memory (GB)"),
        ("parameters", "parameters (M)"),
        ("bits_per_byte", "bits_per_byte"),
        ("state", "state (GB)"),
    ],
)
def test_any_metric_can_come_first(first: str, label: str) -> None:
    result = make_result(objectives=[first, "loss"], limits={"parameters_m": 10, "loss": 2})
    page = Page(render(result))
    assert f"Lowest {first}" in page.text
    assert f"Median change of {label}" in page.text
    assert f"what it did to {label}." in page.text
    words = result.metric(first).unit.words(result.candidate(result.front[0]).metrics[first].value, 3)
    assert f", {first} {words}" in page.text
    data = json.loads(page.scripts[0])
    assert (data["x"], data["y"]) == ("loss", first)
    assert data["axes"][0] == {"key": first, "label": label}
    front = front_frame(result)
    metric = result.metric(first)
    lowest = result.candidate(result.front[0]).metrics[first].value
    assert front[metric.column][0] == pytest.approx(lowest * metric.unit.scale)
    assert data["best"][-1][1] == pytest.approx(lowest * metric.unit.scale)
    assert "parameters 10 M, loss 2.0000 nats" in page.text


def test_best_so_far_is_of_candidates_that_may_be_on_the_front() -> None:
    """Costs are known of failed candidates too, and those over a limit that only training tells are no best."""
    candidates = fake_candidates()
    tiny = {
        **candidates[9].proposal.costs,
        "parameters": replace(candidates[9].proposal.costs["parameters"], value=1.0),
    }
    for number in (FAILED[0], STOPPED):
        candidates[number] = replace(candidates[number], proposal=replace(candidates[number].proposal, costs=tiny))
    result = make_result(candidates, objectives=["parameters"], limits={"loss": 2})
    best = plot_data(result)["best"]
    assert best[-1][1] == pytest.approx(result.candidate(result.front[0]).metrics["parameters"].value / 1e6)
    assert result.candidate(result.front[0]).metrics["loss"].value <= 2


def test_without_a_candidate_within_the_limits_the_page_says_so(tmp_path: Path) -> None:
    result = make_result(limits={"loss": 0.01})
    write_outputs(result, tmp_path)
    page = Page((tmp_path / "report.html").read_text())
    assert result.in_state("done")
    assert "No candidate keeps all limits, so there is no front yet." in page.text
    data = json.loads(page.scripts[0])
    assert (data["best"], data["hypervolume"]) == ([], [])


def test_what_workers_had_to_say_comes_first_with_the_candidates_it_was_said_of(result: RunResult) -> None:
    page = Page(render(result))
    assert f"{NOTE} (#{NOTED[0]}, #{NOTED[1]})" in page.text
    assert page.text.index(NOTE) < page.text.index("The front")
    assert {f"#c{number}" for number in NOTED} <= {a.get("href") for tag, a in page.tags if tag == "a"}
    everyone = result.model_copy(
        update={"candidates": [r.model_copy(update={"notes": ["slow"]}) for r in result.candidates]}
    )
    assert "slow (all candidates)" in Page(render(everyone)).text
    assert "Not everything ran as it should" not in Page(render(make_result([]))).text


def test_which_operators_the_proxy_favours_is_told_where_it_was_studied(
    result: RunResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert result.favourites is None
    assert (
        "Whether this proxy favours some operators was not studied; `nfsearch study fidelity` would tell."
        in Page(render(result)).text
    )
    bias = {"A": Bias(error=0.05, low=0, high=0.1), "M2": Bias(error=-0.21, low=-0.3, high=-0.1)}
    of = {"metric": result.objectives[0], "fidelity": result.candidates[0].fidelity, "tokens": 48_000_000}
    known = Favourites(**of, architectures=40, operators=bias)
    monkeypatch.setattr(favourites, "_shipped", lambda: [known])
    studied = make_result()
    assert studied.favourites == known
    said = (
        "Beware: the proxy favours some operators: it places M2 21% of the list too high (95 %: 10% to 30%), "
        "in a study of 40 architectures against 48,000,000 tokens of training."
    )
    assert Page(render(studied)).text.count(said) == 2  # among what comes first, and beside the config
    studied.save(tmp_path / "result.json")
    assert RunResult.load(tmp_path / "result.json") == studied
    print_summary(studied, tmp_path)
    assert said in capsys.readouterr().err.replace("\n", " ")


def test_a_stopped_candidate_is_told_and_on_no_plot(result: RunResult) -> None:
    page = Page(render(result))
    assert "1 stopped early" in page.text
    assert "after 1,000,000 tokens, training loss" in page.text
    data = json.loads(page.scripts[0])
    assert STOPPED not in {point["number"] for point in data["points"]} | {curve["number"] for curve in data["curves"]}
    frame = candidates_frame(result).set_index("number")
    assert frame.loc[STOPPED, "state"] == "stopped"
    assert not frame.loc[STOPPED, "front"]
    assert pd.isna(frame.loc[STOPPED, "loss"])
    done = frame[frame.state == "done"]
    assert (done.loss_at_1000000 == done.loss + 0.3).all()


def test_without_a_table_the_page_says_so(result: RunResult) -> None:
    assert "The latency table was not finished" in Page(render(result.model_copy(update={"table": None}))).text
    unchecked = Page(render(make_result(verified=False), "runs/my search")).text
    assert "The latency table was never checked" in unchecked
    assert "nfsearch lut verify 'runs/my search/latency.parquet' --config 'runs/my search/config.yaml'" in unchecked


def test_the_page_loads_nothing(result: RunResult) -> None:
    page = Page(render(result))
    for tag, attributes in page.tags:
        assert tag not in {"iframe", "object", "embed", "base"}
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:,")), (tag, value)
    (policy,) = [a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_a_confirmed_front_comes_first_with_both_bars_and_the_sentence(tmp_path: Path) -> None:
    first, second, third, *others = make_result().front
    timings = fake_timings(dict.fromkeys([first, second, third, *others], 1.1))
    losses = {first: [1.9, 1.8, 1.85], second: [1.7, 1.71, 1.72], third: [1.75, 1.76, 1.75]}
    evaluations = fake_confirmations(losses)
    evaluations[0] = replace(evaluations[0], state="failed", evaluation=None, error=ATTACK)
    result = make_result(timings=timings, confirmations=evaluations)
    write_outputs(result, tmp_path)
    page = Page((tmp_path / "report.html").read_text())
    (confirmed,) = result.confirmed
    assert f"By loss: {confirmed.order()}" in page.text
    assert confirmed.fallen(result.objectives, result.front)
    assert all(line in page.text for line in confirmed.fallen(result.objectives, result.front))
    assert "Lowest loss, confirmed" in page.text
    assert f"Seed 1 of #{first} failed and is in no figure: {ATTACK}" in page.text
    ids = [attributes.get("id") for _, attributes in page.tags]
    assert ids.index("plot-confirmed") < ids.index("plot-front")
    data = json.loads(page.scripts[0])
    assert {point["number"] for point in data["confirmed"]} == set(losses)
    for point in data["confirmed"]:
        record, finalist = result.candidate(point["number"]), confirmed.finalist(point["number"])
        assert finalist is not None
        assert point["y"] == finalist.metrics["loss"].value
        assert point["y_error"] == finalist.metrics["loss"].error > 0
        assert point["x"] == pytest.approx(1.1e3 * record.estimates["tpot"].value)
        assert point["x_error"] == pytest.approx(point["x"] / 100)
        assert point["before"] == [1e3 * record.estimates["tpot"].value, record.metrics["loss"].value]
    assert "nfsearch confirm" not in page.text
    assert "nfsearch confirm runs/x" in Page(render(make_result(), "runs/x")).text


def test_a_newcomer_finds_the_words(result: RunResult) -> None:
    html = render(result)
    for word in ("answer set", "fidelity", "tournament", "skipped (refused)"):
        assert f"<dt>{word}</dt>" in html


def test_markup_in_texts_stays_text() -> None:
    clean, page = Page(render(make_result())), Page(render(hostile()))
    assert ATTACK in page.text
    assert f"{ATTACK} (all candidates)" in page.text
    assert f"some: {ATTACK} (#{NOTED[0]}, #{NOTED[1]})" in page.text
    assert len(page.scripts) == len(clean.scripts)
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    data = json.loads(page.scripts[0])
    assert data["points"][0]["notation"] == f"D {ATTACK}"


def test_the_front_table_gives_the_command_to_export_each_point(result: RunResult) -> None:
    text = Page(render(result, "runs/it's here")).text
    for number in result.front:
        assert f"nfsearch export 'runs/it'\"'\"'s here' --pick {number} --to yaml -o candidate-{number}.yaml" in text


def test_every_candidate_has_one_row(result: RunResult) -> None:
    page = Page(render(result))
    rows = [a["id"] for tag, a in page.tags if tag == "tr" and re.fullmatch(r"c\d+", a.get("id") or "")]
    assert sorted(rows, key=lambda row: int(str(row)[1:])) == [f"c{record.number}" for record in result.candidates]


@pytest.mark.parametrize(
    ("count", "cue"), [(28, "; the table scrolls sideways"), (60, "; the table scrolls, down and")]
)
def test_few_rows_all_show_and_many_say_that_they_scroll(count: int, cue: str) -> None:
    html = render(make_result(fake_candidates(count)))
    assert cue in html
    assert ("scroll high" in html) == (count > 40)
    heads = re.findall(r'<button type="button">(.*?)</button></th>', html)
    assert heads.index("Origin") < len(heads) / 2  # it is on the first screen


def test_ancestry_ends_at_the_candidate_and_survives_a_lost_parent(result: RunResult) -> None:
    records = {record.number: record for record in result.candidates}
    child = next(record for record in result.candidates if record.parents)
    chain = ancestry(child, records)
    assert chain[-1] is child
    assert not chain[0].parents
    assert all(after.parents[0] == before.number for before, after in pairwise(chain))
    del records[child.parents[0]]
    assert ancestry(child, records) == [child]
    alone = replace(fake_candidates()[0], proposal=replace(fake_candidates()[0].proposal, parents=(99,)))
    render(make_result([alone]))


def test_the_mutation_table_counts_everyone_once(result: RunResult) -> None:
    table = mutation_table(result)
    assert sum(row["made"] for row in table) == len(result.candidates)
    assert sum(row["front"] for row in table) == len(result.front)
    assert sum(row["failed"] for row in table) == 2
    for row in table:
        assert row["better"] <= row["compared"] <= row["made"]


def test_frames_of_an_empty_run_have_their_columns() -> None:
    result = make_result([])
    assert "loss" in candidates_frame(result).columns
    assert "loss" in front_frame(result).columns


def test_numbers_read_well() -> None:
    """Those of metrics are tested with their units, in test_support.py."""
    assert [size(v) for v in (None, 1234, 10**40)] == ["not counted", "1,234", "1.00 × 10^40"]

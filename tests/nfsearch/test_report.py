from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

from nfsearch.report.outputs import candidates_frame, front_frame, write_outputs
from nfsearch.report.page import ancestry, milliseconds, mutation_table, render, short, size
from nfsearch.report.result import RunResult
from tests.nfsearch.fake_run import fake_candidates, make_result

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
    """Markup wherever a user or an exception may put text."""
    result = make_result()
    records = [
        record.model_copy(
            update={"notation": f"D {ATTACK}", "origin": ATTACK, "layers": [f"D[{ATTACK}]"], "error": ATTACK}
        )
        for record in result.candidates
    ]
    return result.model_copy(
        update={
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
        assert row.latency_ms_tpot == pytest.approx(record.latency["tpot"].seconds * 1e3)
        assert (row.loss == pytest.approx(record.loss)) if record.loss else pd.isna(row.loss)
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
    write_outputs(result, tmp_path)
    assert status in Page((tmp_path / "report.html").read_text()).text


def test_one_objective_and_three_objectives_render(tmp_path: Path) -> None:
    for workloads in ((), ("tpot", "ttft", "batch")):
        write_outputs(make_result(workloads=workloads), tmp_path)
        page = Page((tmp_path / "report.html").read_text())
        assert all(f"{name} (ms)" in page.text for name in workloads)


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


def test_markup_in_texts_stays_text() -> None:
    clean, page = Page(render(make_result())), Page(render(hostile()))
    assert ATTACK in page.text
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
    assert [short(v) for v in (999, 1234, 12_345_678, 965_400_000, 2.75e9)] == [
        "999",
        "1.23k",
        "12.3M",
        "965M",
        "2.75B",
    ]
    assert [milliseconds(v) for v in (1.234e-6, 1.234e-3, 0.1234, 12.345)] == ["0.00123", "1.23", "123", "12,345"]
    assert [milliseconds(v) for v in (0, 3.21e-8)] == ["0", "0.0000321"]
    assert [short(v) for v in (999, 999_400, 999_600, 999_700_000)] == ["999", "999k", "1M", "1B"]
    assert [size(v) for v in (None, 1234, 10**40)] == ["not counted", "1,234", "1.00 × 10^40"]

"""A few of the fuzzer's cases; `python -m tests.fuzz` runs thousands, and kills what hangs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import fuzzer, targets

CASES = 200


def test_wrong_input_ends_with_a_message(tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NFSEARCH_CACHE", str(tmp_path / "cache"))
    targets.prepare(tmp_path, finished_run)
    found = {seed: fuzzer.judged(seed, tmp_path, tmp_path / "case") for seed in (f"7/{case}" for case in range(CASES))}
    assert len(found) == CASES
    assert {seed: what for seed, what in found.items() if what} == {}


def test_what_goes_wrong_is_found(tmp_path: Path) -> None:
    """A command that raises, one that writes and then refuses, and one that ends with another status."""
    from tests.fuzz.cases import judge

    (tmp_path / "file").write_text("x")
    for command, what in ((_raises, "KeyError"), (_writes, "something was written"), (_ends, "exit status 3")):
        target = targets.Target("broken", [], [], [command])
        assert what in (judge(target, tmp_path / "file") or "")


def _raises(path: Path) -> None:
    raise KeyError(path)


def _writes(path: Path) -> None:
    path.with_name("written").write_text("x")
    raise ValueError(path)


def _ends(path: Path) -> None:
    raise SystemExit(3)

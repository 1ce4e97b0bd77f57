"""What a run keeps of what it trained, and what an export makes of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from nfsearch.proxies import Job, Keeps
from nfsearch.run import finished
from nfsearch.run.config import load_config
from nfsearch.run.records import result_of
from nfsearch.run.search import search
from nfsearch.run.tables import proxy_of
from nfsearch.run.weights import WEIGHTS, Weights
from nfsearch.search.study import load_store
from nfsearch.space import Architecture

from .fake_run import fake_candidates
from .runs import tiny_config


class _Kept:
    """Keeps a file of a hundred bytes for each job."""

    most_kept = 350.0

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep_in(self, folder: Path) -> None: ...

    def weights(self, job: Job) -> None: ...

    def kept(self, job: Job) -> Path:
        return self.folder / job.digest

    def trained(self, job: Job) -> None:
        self.kept(job).mkdir()
        (self.kept(job) / "x").write_bytes(bytes(100))


def test_what_is_dominated_goes_first_and_the_oldest_of_it(tmp_path: Path) -> None:
    kept: Any = _Kept(tmp_path)
    assert isinstance(kept, Keeps)
    candidates = [dataclasses.replace(each, number=i) for i, each in enumerate(fake_candidates()[:6])]
    weights = Weights(kept)

    def left(after: int, front: tuple[int, ...]) -> list[int]:
        weights.bound(candidates[: after + 1], front)
        return [each.number for each in candidates if kept.kept(each.proposal.job).is_dir()]

    for candidate in candidates[:4]:
        kept.trained(candidate.proposal.job)
    assert left(2, (0, 2)) == [0, 1, 2, 3]  # number 3 is not known to have finished
    assert left(3, (0, 2)) == [0, 2, 3]
    kept.trained(candidates[4].proposal.job)
    assert left(4, (0, 2, 3, 4)) == [2, 3, 4]  # more than there is room for are on the front
    assert left(5, (2,)) == [2, 3, 4]  # one that kept nothing
    kept.most_kept = 1e9
    assert Weights(kept).bound(candidates, ()) is None  # as a search that goes on begins
    assert left(5, ()) == [2, 3, 4]


def test_a_run_keeps_its_weights_and_an_export_takes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    search(tiny_config(tmp_path, search={"evaluations": 2, "population": 2}), folder)
    (record, _) = result_of(load_store(folder / "study.journal")).candidates
    config, _ = load_config(folder / "config.yaml")
    proxy = proxy_of(config)
    job = Job(Architecture.from_dict(record.architecture), record.fidelity, record.seed)
    proxy.keep_in(folder / WEIGHTS)
    model = proxy.weights(job)
    trained, _ = proxy_of(config).train(job)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), trained.parameters(), strict=True))
    result = result_of(load_store(folder / "study.journal"))
    monkeypatch.setattr(type(proxy), "train", lambda *arguments: pytest.fail("it was trained again"))
    again = finished._trained(folder, proxy, result, record)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), trained.parameters(), strict=True))
    (file,) = proxy.kept(job).glob("weights-*.safetensors")
    file.write_bytes(b"{}")
    with pytest.raises(OSError, match=r"weights-2048\.safetensors is damaged .* delete it"):
        finished._trained(folder, proxy, result, record)


def test_a_run_that_keeps_nothing(tmp_path: Path) -> None:
    search(tiny_config(tmp_path, search={"evaluations": 2, "population": 2}, proxy={"keep_gb": 0}), tmp_path / "run")
    assert not (tmp_path / "run" / WEIGHTS).exists()


def test_the_bound_holds_at_the_end_and_may_be_changed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    few = {"evaluations": 3, "population": 2}
    search(tiny_config(tmp_path, search=few, proxy={"keep_gb": 1e-6}), folder)
    assert not list((folder / WEIGHTS).rglob("*.safetensors"))
    more = ["proxy.keep_gb=1", "search.evaluations=4"]
    search(None, None, resume=folder, assignments=more)
    assert list((folder / WEIGHTS).rglob("*.safetensors"))

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from nfsearch.search import Candidate
from nfsearch.search.progress import Progress
from nfsearch.search.study import load_store
from nfsearch.search.worker import EvaluatorFactory, Worker
from tests.search.fakes import engine, evaluator, small_space, strategy

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]


def designs(candidates: list[Candidate] | Any) -> list[tuple[str, float | None]]:
    return [(str(c.proposal.architecture), c.score and c.score.loss) for c in candidates]


def assert_asked_in_order(candidates: Any, **settings: Any) -> None:
    """One worker evaluates what the strategy proposes from the results before it, and nothing else."""
    chosen = strategy(**settings)
    for number, found in enumerate(candidates):
        assert found.number == found.proposal.index == number
        assert chosen.propose(number, candidates[:number]) == found.proposal


def bad(deed: str, log: Path, always: bool = False) -> EvaluatorFactory:
    """Does something bad to the second design that it sees: once, or each time."""

    def factory() -> Callable[..., Mapping[str, Any]]:
        good = evaluator(log)()

        def evaluate(architecture: Mapping[str, Any], seed: int, report: Callable[[int, float], None]) -> Any:
            import time

            name = f"{architecture['layers']} @ {architecture['width']}"
            before = log.read_text().splitlines() if log.exists() else []
            score = good(architecture, seed, report)
            victim = before[1] if len(before) > 1 else name
            if len(before) >= 1 and name == victim and (always or before.count(name) == 0):
                if deed == "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                elif deed == "hang":
                    time.sleep(60)
                elif deed == "diverge":
                    raise FloatingPointError("the loss is nan after 100 tokens")
                elif deed == "raise":
                    raise RuntimeError("CUDA out of memory\nsecond line")
                elif deed == "nan":
                    return {**score, "loss": float("nan")}
            return score

        return evaluate

    return factory


def test_same_seed_same_search(tmp_path: Path) -> None:
    one = engine(tmp_path / "one", evaluator()).run()
    two = engine(tmp_path / "two", evaluator()).run()
    assert len(one.candidates) == 12
    assert designs(one.candidates) == designs(two.candidates)
    assert one.ended is None
    assert_asked_in_order(one.candidates)
    assert load_store(tmp_path / "one" / "study.journal").candidates() == list(one.candidates)


def test_interrupted_twice_and_resumed_is_the_same_search(tmp_path: Path) -> None:
    log, handler = tmp_path / "log", signal.getsignal(signal.SIGINT)

    def interrupt(progress: Progress) -> None:
        if len(progress.candidates) == 5:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    stopped = engine(tmp_path / "part", evaluator(log))
    with pytest.raises(KeyboardInterrupt):
        stopped.run(interrupt)
    assert signal.getsignal(signal.SIGINT) is handler
    finished = stopped.store.candidates()
    assert 5 <= len(finished) < 12
    stopped.store.close()
    begun = log.read_text().splitlines()
    resumed = engine(tmp_path / "part", evaluator(log), resume=True)
    final = resumed.run()
    assert len(final.candidates) == 12
    assert_asked_in_order(final.candidates)
    again = log.read_text().splitlines()[len(begun) :]
    assert not {str(c.proposal.architecture) for c in finished} & set(again)
    resumed.store.close()
    over = engine(tmp_path / "part", evaluator(log), resume=True).run()  # nothing is left to do
    assert over.candidates == final.candidates


def test_two_workers(tmp_path: Path) -> None:
    seen: list[Progress] = []
    log = tmp_path / "log"
    final = engine(tmp_path / "run", evaluator(log, seconds=0.3), count=2).run(seen.append)
    assert sorted(c.proposal.index for c in final.candidates) == list(range(12))
    assert [c.number for c in final.candidates] == list(range(12))
    assert len(set(log.read_text().splitlines())) == 12
    assert max(len(progress.running) for progress in seen) == 2


@pytest.mark.parametrize(
    ("deed", "error", "attempts", "begun"),
    [
        ("die", "the worker process died", 2, 2),
        ("hang", "no result within 3 s", 2, 2),
        ("diverge", "the loss is nan after 100 tokens", 1, 1),
        ("raise", "RuntimeError: CUDA out of memory (test_engine.py:", 1, 1),
        ("nan", "the loss is nan", 1, 1),
    ],
)
def test_a_bad_candidate_fails_and_the_search_goes_on(
    tmp_path: Path, deed: str, error: str, attempts: int, begun: int
) -> None:
    log = tmp_path / "log"
    limits = {"timeout_s": 3}  # also in a busy test run nothing else takes so long
    final = engine(tmp_path, bad(deed, log, always=True), evaluations=6, workers=limits).run()
    assert [c.state for c in final.candidates] == ["done", "failed", "done", "done", "done", "done"]
    failed = final.candidates[1]
    assert error in (failed.error or "")
    assert failed.attempts == attempts
    assert log.read_text().splitlines().count(str(failed.proposal.architecture)) == begun
    assert not any(failed.number in c.proposal.parents for c in final.candidates)
    assert final.failed == 1
    assert load_store(tmp_path / "study.journal").candidates() == list(final.candidates)


def test_a_worker_that_dies_once_is_forgiven(tmp_path: Path) -> None:
    final = engine(tmp_path, bad("die", tmp_path / "log"), evaluations=4).run()
    assert [c.attempts for c in final.candidates] == [1, 2, 1, 1]
    assert final.failed == 0


def test_no_retries(tmp_path: Path) -> None:
    final = engine(tmp_path, bad("die", tmp_path / "log"), evaluations=4, workers={"retries": 0}).run()
    assert [c.state for c in final.candidates] == ["done", "failed", "done", "done"]


def test_a_worker_that_grew_is_replaced(tmp_path: Path) -> None:
    def factory() -> Callable[..., Mapping[str, Any]]:
        with (tmp_path / "starts").open("a") as file:
            file.write("x")
        return evaluator()()

    few = {"evaluations": 2, "population": 2}
    engine(tmp_path / "a", factory, **few, workers={"max_memory_gb": 1e-3}).run()
    assert (tmp_path / "starts").read_text() == "xx"
    engine(tmp_path / "b", factory, **few).run()
    assert (tmp_path / "starts").read_text() == "xxx"


def test_a_worker_that_cannot_start(tmp_path: Path) -> None:
    def raises() -> Any:
        raise FileNotFoundError("no corpus")

    with pytest.raises(RuntimeError, match=r"a worker could not start: FileNotFoundError: no corpus"):
        engine(tmp_path / "a", raises).run()

    def dies() -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RuntimeError, match="3 workers in a row did not start"):
        engine(tmp_path / "b", dies).run()


def test_exhausted_space_ends_the_search(tmp_path: Path) -> None:
    space = small_space(width=128, layers="(D|A|M2) F{0..1}", where={})
    final = engine(tmp_path, evaluator(), space=space, population=2).run()
    assert len(final.candidates) == 6
    assert "no new design" in (final.ended or "")


def test_unreachable_budget_trains_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keeps the limits"):
        engine(tmp_path, evaluator(tmp_path / "log"), budget=1e-6).run()
    assert not (tmp_path / "log").exists()


def test_progress(tmp_path: Path) -> None:
    seen: list[Progress] = []
    # Long enough for a worker to be asked and to answer, whatever else the machine does.
    final = engine(tmp_path, evaluator(seconds=2), evaluations=4, count=2, budget=1e-3).run(seen.append)
    assert seen[0].eta_seconds is None
    reports = [task for progress in seen for task in progress.running if task.loss is not None]
    assert reports
    assert {task.tokens for task in reports} == {50}
    halfway = next(progress for progress in seen if len(progress.candidates) == 2)
    assert 0.5 < (halfway.eta_seconds or 0) < 10
    assert final.eta_seconds == 0
    losses = [c.score.loss for c in final.candidates if c.score]
    assert final.best is not None
    assert final.best.score is not None
    assert final.best.score.loss == min(losses)
    assert final.best.number in final.front


def test_history_and_settings_decide_what_is_left(tmp_path: Path) -> None:
    first = engine(tmp_path, evaluator(), evaluations=5)
    first.run()
    first.store.close()
    longer = engine(tmp_path, evaluator(), evaluations=8, resume=True).run()
    assert len(longer.candidates) == 8
    assert_asked_in_order(longer.candidates)


def test_killed_driver_leaves_a_study_that_resumes(tmp_path: Path) -> None:
    """kill -9 with two workers busy, then at once another start."""
    log = tmp_path / "log"
    script = f"""
from pathlib import Path
from tests.search.fakes import engine, evaluator
folder = Path({str(tmp_path)!r})
engine(folder, evaluator(folder / "log", seconds=0.2), count=2, evaluations=40).run()
"""
    driver = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
    while not log.exists() or len(log.read_text().splitlines()) < 7:
        assert driver.poll() is None
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    resumed = engine(tmp_path, evaluator(log), count=2, evaluations=16, resume=True)
    finished = {str(c.proposal.architecture) for c in resumed.history}
    assert 4 <= len(finished) <= 8
    begun = len(log.read_text().splitlines())
    final = resumed.run()
    assert sorted(c.proposal.index for c in final.candidates) == list(range(16))
    assert not finished & set(log.read_text().splitlines()[begun:])


def test_workers_have_the_priority_of_the_search(tmp_path: Path) -> None:
    def factory() -> Callable[..., Mapping[str, Any]]:
        good = evaluator()()
        return lambda *asked: {**good(*asked), "loss": float(os.nice(0))}

    final = engine(tmp_path, factory, evaluations=2, population=2).run()
    assert [c.score and c.score.loss for c in final.candidates] == [os.nice(0)] * 2


def test_threads_are_limited() -> None:
    import torch

    before = torch.get_num_threads()
    worker = Worker(lambda: lambda architecture, seed, report: {"loss": float(torch.get_num_threads())}, 1)
    assert worker.start() is None
    try:
        outcome = worker.evaluate({}, 0)
    finally:
        torch.set_num_threads(before)
    assert outcome.score == {"loss": 1.0}
    assert outcome.resident > 1e7

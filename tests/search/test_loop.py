"""The loop, in this process: no Ray, no processes, no clocks."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nfsearch.proxies import Evaluation, Job
from nfsearch.search import Candidate, History
from nfsearch.search.progress import Progress, Training, eta_seconds
from nfsearch.search.study import load_store
from nfsearch.support.metrics import Measurement
from nfsearch.support.notes import note
from nfsearch.testing.samples import small_space
from tests.search.fakes import FakeProxy, HandExecutor, loop, loss_of, search, strategy


def designs(candidates: Sequence[Candidate]) -> list[tuple[str, float | None]]:
    return [(str(c.proposal.architecture), loss_of(c)) for c in candidates]


def assert_asked_in_order(candidates: Sequence[Candidate], **settings: Any) -> None:
    """One worker evaluates what the strategy proposes from the results before it, and nothing else."""
    chosen = strategy(**settings)
    for number, found in enumerate(candidates):
        assert found.number == found.proposal.index == number
        assert chosen.propose(number, History(candidates[:number])) == found.proposal


def test_no_ray_is_loaded(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.search.fakes import loop\n"
        f"loop(Path({str(tmp_path)!r}), evaluations=4).run()\nprint({{'ray', 'torch'}} & set(sys.modules))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_same_seed_same_search(tmp_path: Path) -> None:
    one = loop(tmp_path / "one").run()
    two = loop(tmp_path / "two").run()
    assert len(one.candidates) == 12
    assert designs(one.candidates) == designs(two.candidates)
    assert one.ended is None
    assert_asked_in_order(one.candidates)
    assert load_store(tmp_path / "one" / "study.journal").candidates() == list(one.candidates)


def test_stopped_and_resumed_is_the_same_search(tmp_path: Path) -> None:
    log = tmp_path / "log"
    enough = [False]

    def watch(progress: Progress) -> None:
        enough[0] = enough[0] or len(progress.candidates) == 5

    stopped = loop(tmp_path / "part", FakeProxy(log), stop=lambda: enough[0])
    stopped.run(watch)
    finished = stopped.store.candidates()
    assert len(finished) == 5
    stopped.store.close()
    begun = log.read_text().splitlines()
    resumed = loop(tmp_path / "part", FakeProxy(log), resume=True)
    final = resumed.run()
    assert len(final.candidates) == 12
    assert_asked_in_order(final.candidates)
    again = log.read_text().splitlines()[len(begun) :]
    assert not {str(c.proposal.architecture) for c in finished} & set(again)
    resumed.store.close()
    over = loop(tmp_path / "part", FakeProxy(log), resume=True).run()  # nothing is left to do
    assert over.candidates == final.candidates


def test_stopped_within_a_job_drops_it(tmp_path: Path) -> None:
    stop = [False]

    def watch(progress: Progress) -> None:
        stop[0] = bool(progress.candidates) and any(task.loss for task in progress.running)

    final = loop(tmp_path, stop=lambda: stop[0]).run(watch)
    assert len(final.candidates) == 1
    assert load_store(tmp_path / "study.journal").candidates() == list(final.candidates)


def test_two_workers(tmp_path: Path) -> None:
    seen: list[Progress] = []
    log = tmp_path / "log"
    executor = HandExecutor(FakeProxy(log), 2, delay=lambda number: 1 + number % 3)
    final = loop(tmp_path / "run", executor).run(seen.append)
    assert sorted(c.proposal.index for c in final.candidates) == list(range(12))
    assert [c.number for c in final.candidates] == list(range(12))
    assert [c.proposal.index for c in final.candidates] != list(range(12))  # recorded as they finish
    assert len(set(log.read_text().splitlines())) == 12
    assert max(len(progress.running) for progress in seen) == 2
    assert executor.left


def fails_second(tmp_path: Path, how: str) -> Any:
    """A deed that is done to the second design."""
    count = [0]

    def deed(job: Job, found: Evaluation) -> Evaluation:
        count[0] += 1
        if count[0] == 2:
            if how == "diverge":
                raise FloatingPointError("the loss is nan after 100 tokens")
            if how == "raise":
                raise RuntimeError("CUDA out of memory\nsecond line")
            return Evaluation({"loss": Measurement(float("nan"))}, 100, 0.1)
        return found

    return deed


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("diverge", "the loss is nan after 100 tokens"),
        ("raise", "RuntimeError: CUDA out of memory (test_loop.py:"),
        ("nan", "the loss is nan"),
    ],
)
def test_a_bad_candidate_fails_and_the_search_goes_on(tmp_path: Path, how: str, error: str) -> None:
    final = loop(tmp_path, FakeProxy(deed=fails_second(tmp_path, how)), evaluations=6).run()
    assert [c.state for c in final.candidates] == ["done", "failed", "done", "done", "done", "done"]
    failed = final.candidates[1]
    assert error in (failed.error or "")
    assert not any(failed.number in c.proposal.parents for c in final.candidates)
    assert final.count("failed") == 1
    assert load_store(tmp_path / "study.journal").candidates() == list(final.candidates)


def test_a_machine_that_lacks_something_ends_the_search(tmp_path: Path) -> None:
    """Without its tokens, say: no candidate's fault, so none fails of it. One that alone raises OSError does."""

    class Lacks(FakeProxy):
        there = True

        def start(self) -> None:
            if not self.there:
                raise FileNotFoundError("no tokens here")

    def deed(job: Job, found: Evaluation) -> Evaluation:
        begun = len((tmp_path / "log").read_text().splitlines())
        proxy.there = begun < 5
        if begun in (2, 5):
            raise FileNotFoundError("no tokens here")
        return found

    proxy = Lacks(tmp_path / "log", deed)
    with pytest.raises(FileNotFoundError, match="no tokens here"):
        loop(tmp_path, proxy).run()
    found = load_store(tmp_path / "study.journal").candidates()
    assert [candidate.state for candidate in found] == ["done", "failed", "done", "done"]


def test_a_failure_after_the_end_was_asked_for_is_not_kept(tmp_path: Path) -> None:
    """What asks for it, such as a scheduler, may end the workers before the search."""
    stop = [False]

    def deed(job: Job, found: Evaluation) -> Evaluation:
        stop[0] = len((tmp_path / "log").read_text().splitlines()) == 3
        if stop[0]:
            raise RuntimeError("ended")
        return found

    final = loop(tmp_path, FakeProxy(tmp_path / "log", deed), stop=lambda: stop[0]).run()
    assert [candidate.state for candidate in final.candidates] == ["done", "done"]


def test_a_search_in_which_all_fail_ends(tmp_path: Path) -> None:
    jobs: list[Job] = []

    def fails(job: Job, found: Evaluation) -> Evaluation:
        raise ValueError("nothing works")

    def fails_later(job: Job, found: Evaluation) -> Evaluation:
        jobs.append(job)
        return found if len(jobs) == 1 else fails(job, found)

    final = loop(tmp_path / "all", FakeProxy(deed=fails), evaluations=30).run()
    assert (len(final.candidates), final.ended) == (
        10,
        f"the first 10 candidates failed, the last with: {final.candidates[-1].error}",
    )
    again = loop(tmp_path / "all", evaluations=12, resume=True).run()  # what was wrong is mended
    assert [each.state for each in again.candidates[10:]] == ["done"] * 2
    final = loop(tmp_path / "one", FakeProxy(deed=fails_later), evaluations=15).run()
    assert [each.state for each in final.candidates] == ["done"] + ["failed"] * 14


def test_exhausted_space_ends_the_search(tmp_path: Path) -> None:
    space = small_space(width=128, layers="(D|A|M2) F{0..1}", where={})
    final = loop(tmp_path, space=space, population=2).run()
    assert len(final.candidates) == 6
    assert "no new design" in (final.ended or "")


def test_unreachable_budget_trains_nothing(tmp_path: Path) -> None:
    executor = HandExecutor(FakeProxy(tmp_path / "log"), 1)
    with pytest.raises(ValueError, match="keeps the limits"):
        loop(tmp_path, executor, budget=1e-6).run()
    assert not (tmp_path / "log").exists()
    assert not executor.entered


def test_progress(tmp_path: Path) -> None:
    seen: list[Progress] = []
    final = loop(tmp_path, HandExecutor(FakeProxy(), 2), evaluations=4, budget=1e-3).run(seen.append)
    assert seen[0].eta_seconds is None
    reports = [task for progress in seen for task in progress.running if task.loss is not None]
    assert {task.tokens for task in reports} == {50, 100}
    halfway = next(progress for progress in seen if len(progress.candidates) == 2)
    assert halfway.eta_seconds is not None
    assert final.eta_seconds == 0
    best = final.standing.best
    assert best is not None
    assert best.value("loss") == min(c.value("loss") for c in final.candidates)
    assert best.number in final.standing.front


def test_history_and_settings_decide_what_is_left(tmp_path: Path) -> None:
    first = loop(tmp_path, evaluations=5)
    first.run()
    first.store.close()
    longer = loop(tmp_path, evaluations=8, resume=True).run()
    assert len(longer.candidates) == 8
    assert_asked_in_order(longer.candidates)


class FirstOnly:
    """Stops each job but the first at its first report."""

    def __init__(self) -> None:
        self.asked: list[tuple[Job, list[tuple[int, float]], int]] = []

    def go_on(self, job: Job, curve: Sequence[tuple[int, float]], history: Sequence[Candidate]) -> bool:
        self.asked.append((job, list(curve), len(history)))
        return not history


@pytest.mark.parametrize("hand", [False, True])
def test_a_rule_stops_jobs_and_the_study_keeps_their_curves(tmp_path: Path, hand: bool) -> None:
    rule = FirstOnly()
    proxy = FakeProxy()
    final = loop(tmp_path, HandExecutor(proxy, 1) if hand else proxy, evaluations=5, rule=rule).run()
    assert [c.state for c in final.candidates] == ["done", *["stopped"] * 4]
    first = rule.asked[0][0]
    assert [points for job, points, _ in rule.asked if job == first] == [
        [(50, pytest.approx(final.candidates[0].value("loss") + 1))],
        list(final.candidates[0].evaluation.curve),  # type: ignore[union-attr]
    ]
    stopped = final.candidates[1].evaluation
    assert stopped is not None
    assert stopped.curve == tuple(rule.asked[2][1])
    assert stopped.tokens == 50
    assert not stopped.metrics
    assert final.standing.front == (0,)
    store = load_store(tmp_path / "study.journal")
    assert store.candidates() == list(final.candidates)
    trials = store._study.get_trials()
    assert [trial.state.name for trial in trials] == ["COMPLETE", *["PRUNED"] * 4]
    assert list(trials[0].intermediate_values) == [50, 100]
    assert trials[1].intermediate_values == dict(stopped.curve)


def test_a_report_that_comes_again_is_no_point_of_the_curve_and_is_heard(tmp_path: Path) -> None:
    class Again(FakeProxy):
        """Something is at work after the training, and during that of the second job the search is to stop."""

        def evaluate(self, job: Job, report: Any) -> Evaluation:
            found = super().evaluate(job, report)
            stop[0] = len(ended) == 1 and rule is None
            report(*found.curve[-1])
            ended.append(job)
            return found

    ended: list[Job] = []
    stop = [False]
    rule: FirstOnly | None = FirstOnly()
    final = loop(tmp_path / "rule", Again(), evaluations=4, rule=rule).run()
    assert [len(points) for job, points, _ in rule.asked if job == rule.asked[0][0]] == [1, 2]
    assert [candidate.state for candidate in final.candidates] == ["done", *["stopped"] * 3]
    ended.clear()
    rule = None
    final = loop(tmp_path / "stop", Again(), evaluations=4, stop=lambda: stop[0]).run()
    assert len(final.candidates) == len(ended) == 1


def test_what_is_said_of_a_job_is_kept_with_it(tmp_path: Path) -> None:
    def deed(job: Job, found: Evaluation) -> Evaluation:
        if job.architecture.width == 256:
            note("the kernels of something are not used")
            note("the kernels of something are not used")
        return found

    final = loop(tmp_path, FakeProxy(deed=deed)).run()
    assert {c.proposal.architecture.width for c in final.candidates} == {128, 256}
    for found in final.candidates:
        assert found.evaluation is not None
        wide = found.proposal.architecture.width == 256
        assert found.evaluation.notes == (("the kernels of something are not used",) if wide else ())
    assert load_store(tmp_path / "study.journal").candidates() == list(final.candidates)


def test_what_is_said_of_a_job_that_fails_is_in_its_error(tmp_path: Path) -> None:
    def deed(job: Job, found: Evaluation) -> Evaluation:
        note("the kernels of something are not used")
        raise FloatingPointError("the loss is nan")

    final = loop(tmp_path, FakeProxy(deed=deed), evaluations=4).run()
    assert {c.error for c in final.candidates} == {"the loss is nan; after: the kernels of something are not used"}


def test_a_limit_that_only_training_tells_keeps_off_the_front(tmp_path: Path) -> None:
    free = loop(tmp_path / "free", evaluations=8).run()
    losses = sorted(c.value("loss") for c in free.candidates)
    final = loop(tmp_path / "limited", evaluations=8, limits={"loss": losses[0] * 1.0001}).run()
    assert len(final.candidates) == 8
    assert all(final.candidates[number].value("loss") <= losses[0] * 1.0001 for number in final.standing.front)


def test_killed_driver_leaves_a_study_that_resumes(tmp_path: Path) -> None:
    """kill -9 in the middle of a search, then at once another start."""
    log = tmp_path / "log"
    script = f"""
import time
from pathlib import Path
from tests.search.fakes import FakeProxy, loop
folder = Path({str(tmp_path)!r})
loop(folder, FakeProxy(folder / "log", lambda job, found: time.sleep(0.05) or found), evaluations=40).run()
"""
    driver = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
    while not log.exists() or len(log.read_text().splitlines()) < 7:
        assert driver.poll() is None
        time.sleep(0.01)
    driver.kill()
    driver.wait()
    resumed = loop(tmp_path, FakeProxy(log), evaluations=16, resume=True)
    finished = {str(c.proposal.architecture) for c in resumed.history}
    assert 4 <= len(finished) <= 8
    begun = len(log.read_text().splitlines())
    final = resumed.run()
    assert [c.proposal.index for c in final.candidates] == list(range(16))
    assert not finished & set(log.read_text().splitlines()[begun:])


def test_the_time_left_is_told_from_the_first_report_on() -> None:
    running = [
        Training(0, "D", 10.0, 1, tokens=100, loss=3.0, of=400),
        Training(1, "A", 30.0, 1, tokens=200, loss=3.0, of=400),
        Training(2, "F", 2.0, 1, of=400),
    ]
    assert eta_seconds([], running[2:], 10, 2) is None
    assert eta_seconds([], [Training(0, "D", 40.0, 1, tokens=400, loss=3.0, of=400)], 10, 2) is None  # tasks follow
    assert eta_seconds([], running, 10, 2) == pytest.approx((10 * 50 - 42) / 2)  # a whole one takes 40 and 60 s
    first = search(strategy(), 1)
    assert eta_seconds(first, running, 10, 1) == pytest.approx(max(10 * first[0].seconds - 3 * first[0].seconds, 0.0))


def test_a_search_begins_at_once_however_long_it_is_to_be(tmp_path: Path) -> None:
    most = loop(tmp_path, evaluations=1_000_000, stop=lambda: True).run()
    assert most.evaluations == 1_000_000

"""Ray workers: they evaluate side by side, and what dies, hangs or grows is replaced."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tests.search.fakes
from nfsearch.proxies import Evaluation, Job
from nfsearch.search import History
from nfsearch.search.executors.cluster import RaySettings
from nfsearch.search.executors.ray import RayExecutor
from nfsearch.search.executors.scratch import PREFIX
from nfsearch.search.executors.worker import Worker, resident_bytes
from nfsearch.search.loop import Loop
from nfsearch.search.progress import Progress
from nfsearch.search.study import load_store
from nfsearch.support.interrupt import interruptible
from nfsearch.support.metrics import Measurement
from nfsearch.support.notes import note
from nfsearch.testing import ExecutorSuite
from nfsearch.testing.samples import FIDELITY, evaluation
from tests.search.fakes import FakeProxy, loop, strategy

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]


def ray_loop(folder: Path, proxy: Any, *, count: int = 1, workers: Any = None, **settings: Any) -> Loop:
    from ray import cloudpickle  # not above: Ray reads the environment, which `cluster` sets, when it is imported

    for module in (tests.search.fakes, sys.modules[__name__]):
        cloudpickle.register_pickle_by_value(module)  # the workers cannot import the tests
    return loop(folder, RayExecutor(RaySettings(count=count, **(workers or {})), proxy, "cpu"), **settings)


class Deeds(FakeProxy):
    """Does something bad to some of the designs, told by the order in which they are first seen; those `once` only the
    first time."""

    def __init__(self, log: Path, deeds: Mapping[int, str], once: bool = False) -> None:
        super().__init__(log, self.do)
        self.deeds, self.once = deeds, once

    def start(self) -> None:
        with self.log.with_name("starts").open("a") as file:  # type: ignore[union-attr]
            file.write("x")

    def do(self, job: Job, found: Evaluation) -> Evaluation:
        begun = self.log.read_text().splitlines()  # type: ignore[union-attr]
        name = str(job.architecture)
        deed = self.deeds.get(list(dict.fromkeys(begun)).index(name))
        if self.once and begun.count(name) > 1:
            deed = None
        if deed == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif deed == "hang":
            time.sleep(60)
        elif deed == "diverge":
            raise FloatingPointError("the loss is nan after 100 tokens")
        elif deed == "raise":
            raise RuntimeError("CUDA out of memory\nsecond line")
        elif deed == "lack":
            raise FileNotFoundError("no tokens here")
        elif deed == "nan":
            return replace(found, metrics={"loss": Measurement(float("nan"))})
        elif deed == "say":
            note("the kernels of something are not used")
        return found


def test_a_bad_candidate_fails_and_the_search_goes_on(tmp_path: Path) -> None:
    """It dies or hangs each time, or its numbers or its code are bad: retried or not, it fails alone."""
    log = tmp_path / "log"
    deeds = {1: "die", 2: "hang", 3: "diverge", 4: "lack", 5: "raise", 7: "nan", 8: "say"}
    limits = {"timeout_s": 3}  # also in a busy test run nothing else takes so long
    final = ray_loop(tmp_path, Deeds(log, deeds), evaluations=10, population=9, workers=limits).run()
    expected = {
        1: ("the worker process died", 2),
        2: ("no result within 3 s", 2),
        3: ("the loss is nan after 100 tokens", 1),
        4: ("FileNotFoundError: no tokens here (test_ray.py:", 2),
        5: ("RuntimeError: CUDA out of memory (test_ray.py:", 1),
        7: ("the loss is nan", 1),
    }
    begun = log.read_text().splitlines()
    for number, found in enumerate(final.candidates):
        assert found.number == found.proposal.index == number
        error, attempts = expected.get(number, ("", 1))
        assert found.state == ("failed" if error else "done")
        assert error in (found.error or "")
        assert found.attempts == attempts
        assert begun.count(str(found.proposal.architecture)) == attempts
        assert number == 9 or not found.proposal.parents
    assert final.count("failed") == 6
    said = [found.evaluation.notes for found in final.candidates if found.evaluation]
    assert said == [(), (), ("the kernels of something are not used",), ()]
    # A new worker after each death, each hanging attempt, and each error that is no arithmetic
    assert (tmp_path / "starts").read_text() == "x" * 8
    assert load_store(tmp_path / "study.journal").candidates() == list(final.candidates)
    chosen = strategy(evaluations=10, population=9)
    assert chosen.propose(9, History(final.candidates[:9])) == final.candidates[9].proposal


def test_a_worker_that_dies_once_is_forgiven(tmp_path: Path) -> None:
    final = ray_loop(tmp_path, Deeds(tmp_path / "log", {1: "die"}, once=True), evaluations=4).run()
    assert [c.attempts for c in final.candidates] == [1, 2, 1, 1]
    assert final.count("failed") == 0


def test_no_retries(tmp_path: Path) -> None:
    proxy = Deeds(tmp_path / "log", {1: "die"}, once=True)
    final = ray_loop(tmp_path, proxy, evaluations=4, workers={"retries": 0}).run()
    assert [c.state for c in final.candidates] == ["done", "failed", "done", "done"]


def test_a_worker_that_grew_is_replaced(tmp_path: Path) -> None:
    proxy = Deeds(tmp_path / "log", {})
    few = {"evaluations": 2, "population": 2}
    ray_loop(tmp_path / "a", proxy, **few, workers={"max_memory_gb": 1e-3}).run()
    assert (tmp_path / "starts").read_text() == "xx"
    ray_loop(tmp_path / "b", proxy, **few).run()
    assert (tmp_path / "starts").read_text() == "xxx"


def test_a_worker_that_cannot_start(tmp_path: Path) -> None:
    class Raises(FakeProxy):
        def start(self) -> None:
            raise FileNotFoundError("no corpus")

    with pytest.raises(RuntimeError, match=r"a worker could not start: FileNotFoundError: no corpus"):
        ray_loop(tmp_path / "a", Raises()).run()

    class Dies(FakeProxy):
        def start(self) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RuntimeError, match="3 workers in a row did not start"):
        ray_loop(tmp_path / "b", Dies()).run()


class Slow(FakeProxy):
    """Long enough for a worker to be asked and to answer, whatever else the machine does."""

    def evaluate(self, job: Job, report: Any) -> Evaluation:
        report(50, 3.0)
        time.sleep(2)
        report(100, 2.0)
        return evaluation(float(os.nice(0)))


class Never:
    """Stops the second job at its first report."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def go_on(self, job: Job, curve: Any, history: Any) -> bool:
        self.jobs.append(job)
        return job == self.jobs[0]


def test_two_workers_report_and_can_be_cancelled(tmp_path: Path) -> None:
    seen: list[Progress] = []
    rule = Never()
    final = ray_loop(tmp_path, Slow(), count=2, evaluations=2, population=2, rule=rule).run(seen.append)
    assert sorted(c.proposal.index for c in final.candidates) == [0, 1]
    assert max(len(progress.running) for progress in seen) == 2
    assert {task.tokens for progress in seen for task in progress.running} >= {None, 50}
    by_state = {c.state: c for c in final.candidates}
    assert by_state.keys() == {"done", "stopped"}
    assert by_state["done"].value("loss") == os.nice(0)  # workers have the priority of the search
    assert by_state["stopped"].evaluation.curve == ((50, 3.0),)  # type: ignore[union-attr]
    assert seen[0].eta_seconds is None
    assert final.eta_seconds == 0


@pytest.mark.parametrize("count", [1, 2])
def test_interrupted_twice_and_resumed_is_the_same_search(tmp_path: Path, count: int) -> None:
    """With two workers what was proposed hangs on which of them was faster."""
    log, handler = tmp_path / "log", signal.getsignal(signal.SIGINT)

    def interrupt(progress: Progress) -> None:
        if len(progress.candidates) == 5:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with interruptible() as interrupted:
        stopped = ray_loop(tmp_path / "part", FakeProxy(log), count=count, stop=interrupted.is_set)
        stopped.run(interrupt)
        assert interrupted.is_set()
    assert signal.getsignal(signal.SIGINT) is handler
    finished = stopped.store.candidates()
    assert 5 <= len(finished) < 12
    stopped.store.close()
    begun = log.read_text().splitlines()
    final = ray_loop(tmp_path / "part", FakeProxy(log), count=count, resume=True).run()
    assert len(final.candidates) == 12
    assert list(final.candidates[: len(finished)]) == finished
    chosen = strategy()
    for number, found in enumerate(final.candidates):
        assert count == 2 or chosen.propose(number, History(final.candidates[:number])) == found.proposal
    assert not {str(c.proposal.architecture) for c in finished} & set(log.read_text().splitlines()[len(begun) :])


def test_killed_driver_leaves_a_study_that_resumes(tmp_path: Path) -> None:
    """kill -9 with two workers busy, then at once another start."""
    log = tmp_path / "log"
    script = f"""
import time
from pathlib import Path
from nfsearch.search.executors.cluster import RaySettings, cluster
from tests.search import test_ray
folder = Path({str(tmp_path)!r})
proxy = test_ray.FakeProxy(folder / "log", lambda job, found: time.sleep(0.2) or found)
with cluster(RaySettings(count=2)):
    test_ray.ray_loop(folder, proxy, count=2, evaluations=40).run()
"""
    driver = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
    while not log.exists() or len(log.read_text().splitlines()) < 7:
        assert driver.poll() is None
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    resumed = ray_loop(tmp_path, FakeProxy(log), count=2, evaluations=16, resume=True)
    finished = {str(c.proposal.architecture) for c in resumed.history}
    assert 4 <= len(finished) <= 8
    begun = len(log.read_text().splitlines())
    final = resumed.run()
    assert sorted(c.proposal.index for c in final.candidates) == list(range(16))
    assert not finished & set(log.read_text().splitlines()[begun:])


def test_memory_is_watched_while_a_job_runs() -> None:
    """Also where the worker is new: then it is the job's fault."""

    released = threading.Event()

    class Takes(FakeProxy):
        def evaluate(self, job: Job, report: Any) -> Evaluation:
            if job.seed:
                taken = bytes(range(256)) * 2**20  # 256 MiB
                released.wait(60)
                del taken
            return evaluation(1.0)

    worker = Worker(Takes(), 1, resident_bytes() + 100e6)
    job = strategy().propose(0, History()).job
    for first in (True, False):
        began = time.monotonic()
        outcome, resident = worker.evaluate(replace(job, seed=1))
        assert time.monotonic() - began < 20
        assert resident > 200e6
        assert outcome.error is not None
        assert re.fullmatch(r"it took \d\.\d\d GB of memory; workers\.max_memory_gb is [\d.]+", outcome.error)
        assert not outcome.sound
        assert outcome.again is not first  # in a worker that has grown it may not have been the job
    released.set()
    outcome, _ = Worker(Takes(), 1, resident_bytes() + 100e6).evaluate(job)
    assert outcome.evaluation is not None


def test_threads_are_limited() -> None:
    import torch

    class Threads(FakeProxy):
        def evaluate(self, job: Job, report: Any) -> Evaluation:
            return evaluation(float(torch.get_num_threads()))

    before = torch.get_num_threads()
    worker = Worker(Threads(), 1)
    assert worker.start() is None
    try:
        job = strategy().propose(0, History()).job
        outcome, resident = worker.evaluate(job)
    finally:
        torch.set_num_threads(before)
    assert job.fidelity == FIDELITY
    assert outcome.evaluation is not None
    assert outcome.evaluation.metrics["loss"].value == 1.0
    assert resident > 1e7


class TestSuite(ExecutorSuite):
    name = "ray"
    settings = {"count": 1}  # noqa: RUF012


# --- who else could reach it ------------------------------------------------------------------------------------------

LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


def family(process: int) -> list[int]:
    """A process and all that descend from it."""
    parents: dict[int, list[int]] = {}
    for line in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            parents.setdefault(int(line.read_text().rpartition(")")[2].split()[1]), []).append(int(line.parent.name))
    found = [process]
    for each in found:
        found += parents.get(each, [])
    return found


def listening(processes: Sequence[int]) -> list[str]:
    """The addresses at which these processes accept connections, as the kernel writes them."""
    sockets: set[str] = set()
    for process in processes:
        held = []
        with suppress(OSError):  # it has just ended
            held = list(Path(f"/proc/{process}/fd").iterdir())
        for each in held:
            with suppress(OSError):
                sockets.add(str(each.readlink()))
    lines = [line.split() for kind in ("tcp", "tcp6") for line in Path(f"/proc/net/{kind}").read_text().splitlines()]
    return [line[1].partition(":")[0] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in sockets]


def test_nobody_else_reaches_ray() -> None:
    """It listens on the loopback interface alone; its folder, which it opens to all, lies in one of ours."""
    found = listening(family(os.getpid()))
    assert len(found) > 2
    assert set(found) <= LOOPBACK
    from ray._private import worker

    session = Path(worker._global_node.get_session_dir_path())
    assert session.parents[1].name.startswith(PREFIX)
    assert stat.S_IMODE(session.parents[1].stat().st_mode) == 0o700

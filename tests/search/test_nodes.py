"""A cluster of which nodes lack the data, join and are lost in the middle of a search."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tests.search.fakes
from nfsearch.proxies import Evaluation, Job
from nfsearch.search.executors.cluster import OBJECT_STORE_BYTES, RaySettings, set_environment
from nfsearch.search.executors.ray import RayExecutor
from nfsearch.search.progress import Progress
from tests.search.fakes import FakeProxy, loop

pytestmark = pytest.mark.slow

# So that a lost node is noticed in a second, where it takes 15
EAGER = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 300, "health_check_failure_threshold": 3}


@pytest.fixture
def nodes() -> Iterator[Any]:
    """A cluster with one node, which takes no work."""
    set_environment()
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    started = Cluster(initialize_head=True, head_node_args={**head, "_system_config": EAGER})
    yield started
    started.shutdown()


class OnNode(FakeProxy):
    """Writes on which node it evaluates; cannot start where the tokens are not, and hangs at the fourth of the first
    node."""

    def start(self) -> None:
        if os.environ["NFSEARCH_CACHE"] == "nothing":
            raise FileNotFoundError("no tokens here")

    def evaluate(self, job: Job, report: Any) -> Evaluation:
        evaluated = self.log.with_name("nodes")  # type: ignore[union-attr]
        with evaluated.open("a") as file:
            file.write(os.environ["NFSEARCH_CACHE"] + "\n")
        if os.environ["NFSEARCH_CACHE"] == "first" and evaluated.read_text().count("first") == 4:
            time.sleep(300)
        return super().evaluate(job, report)


def test_nodes_that_lack_the_data_that_join_and_that_are_lost(
    tmp_path: Path, nodes: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from ray import cloudpickle

    for module in (tests.search.fakes, sys.modules[__name__]):
        cloudpickle.register_pickle_by_value(module)  # the workers cannot import the tests

    def add(cache: str) -> Any:
        memory = {"object_store_memory": OBJECT_STORE_BYTES}
        return nodes.add_node(num_cpus=1, env_vars={"NFSEARCH_CACHE": cache}, **memory)

    first = add("first")
    add("nothing")
    evaluated = tmp_path / "nodes"
    lost: list[int] = []

    def watch(progress: Progress) -> None:
        done = len(progress.candidates)
        if done == 2 and len(nodes.worker_nodes) == 2:
            add("joined")
        if not lost and "joined" in evaluated.read_text():
            nodes.remove_node(first, allow_graceful=False)
            lost.append(done)

    executor = RayExecutor(RaySettings(address=nodes.address, retries=0), OnNode(tmp_path / "log"), "cpu")
    final = loop(tmp_path / "run", executor, evaluations=12).run(lambda now: now.candidates and watch(now))
    assert [candidate.state for candidate in final.candidates] == ["done"] * 12
    assert sorted(candidate.attempts for candidate in final.candidates) == [1] * 11 + [2]  # a lost node is no failure
    assert evaluated.read_text().split() == ["first"] * 4 + ["joined"] * 9
    said = capsys.readouterr().err
    assert said.count("is left out: a worker could not start: FileNotFoundError: no tokens here") == 1
    assert said.count("has joined") == 1
    assert said.count("is lost") == 1

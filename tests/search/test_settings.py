from __future__ import annotations

import pytest
from pydantic import ValidationError

from nfsearch.proxies import Bounds, Evaluation, Job, Report, TooLarge
from nfsearch.proxies.combined import combined
from nfsearch.search.executor import Outcome, attempt
from nfsearch.search.executors.cluster import RaySettings, require_room, room_for
from nfsearch.search.executors.ray import RayExecutor
from nfsearch.search.strategies.aging import AgingSettings
from nfsearch.space import Architecture
from nfsearch.testing.samples import FIDELITY, SampleProxy


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tournament": 50}, "tournament .50. is larger than population .40."),
        ({"evaluations": 10}, "population .40. is larger than evaluations .10."),
        ({"population": 2, "tournament": 1, "seeds_known": ["A", "D", "F"]}, "3 designs; population .2."),
        ({"seeds_known": ["A ("]}, "expected"),
        ({"seeds_known": [{"width": 0, "layers": "A"}]}, "greater than 0"),
        ({"crossover": 1.5}, "less than or equal to 1"),
        ({"speed": 1}, "Extra inputs"),
    ],
)
def test_bad_search_settings(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AgingSettings.model_validate(fields)


@pytest.mark.parametrize("fields", [{"count": 0}, {"count": "many"}, {"gpus": 1.5}, {"timeout_s": 0}, {"retries": -1}])
def test_bad_worker_settings(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RaySettings.model_validate(fields)


def test_room_for_workers() -> None:
    machine = {"CPU": 16.0, "GPU": 2.0}
    assert room_for(RaySettings(), False, machine) == 16
    assert room_for(RaySettings(), True, machine) == 2
    assert room_for(RaySettings(gpus=0.5), True, machine) == 4
    require_room(RaySettings(count=3, cpus=4), False, [machine], "this machine has")
    for settings in (RaySettings(count=3), RaySettings(gpus=4), RaySettings(cpus=17)):
        with pytest.raises(ValueError, match="this machine has 16 CPUs, 2 GPUs"):
            require_room(settings, True, [machine], "this machine has")


class Bounded(SampleProxy):
    """Keeps what it is told that a job may take, and refuses all."""

    given: Bounds | None = None

    def bound(self, bounds: Bounds) -> None:
        self.given = bounds

    def evaluate(self, job: Job, report: Report) -> Evaluation:
        raise TooLarge("a model needs 9 GB, and 8 GB are there")


def test_a_proxy_is_told_what_a_candidate_may_take() -> None:
    proxy = Bounded()
    for settings, share in (({"gpus": 0.25}, 0.25), ({"gpus": 2}, 1.0), ({"gpus": 0}, 1.0)):
        RayExecutor(RaySettings(count=1, timeout_s=7, **settings), combined(proxy, {"b": SampleProxy()}), "cpu")  # type: ignore[arg-type]
        assert proxy.given == Bounds(7.0, share)


def test_a_candidate_that_is_refused_leaves_its_worker_alone() -> None:
    job = Job(Architecture.parse("F", width=8, vocab=8), FIDELITY)
    assert attempt(Bounded(), job, lambda *_: None) == Outcome(
        None, "a model needs 9 GB, and 8 GB are there", too_large=True
    )

"""The suite that every proxy passes."""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from nfsearch.proxies import PROXIES, Evaluation, Fidelity, Job, Proxy
from nfsearch.space import Architecture


class ProxySuite:
    """Name the proxy, settings with which an evaluation takes seconds, and layers that it can score; `device` is "cpu"
    or "cuda". `reports` says whether an evaluation tells how far it is."""

    name: ClassVar[str]
    settings: ClassVar[Mapping[str, Any]] = {}
    layers: ClassVar[str] = "M2[head_dim=16,state=16] F[ratio=2]"
    width: ClassVar[int] = 32
    device: ClassVar[str] = "cpu"
    reports: ClassVar[bool] = True

    @pytest.fixture
    def proxy(self) -> Proxy:
        return self.make()

    def make(self) -> Proxy:
        kind = PROXIES.find(self.name)
        return kind(kind.Settings(kind=self.name, **self.settings), self.device)

    def job(self, proxy: Proxy, seed: int = 0) -> Job:
        architecture = Architecture.parse(self.layers, width=self.width, vocab=proxy.vocab)
        return Job(architecture, proxy.fidelity, seed)

    def run(self, proxy: Proxy, seed: int = 0) -> tuple[Evaluation, list[tuple[int, float]]]:
        proxy.start()
        reports: list[tuple[int, float]] = []
        return proxy.evaluate(self.job(proxy, seed), lambda *report: reports.append(report)), reports

    def test_it_measures_what_it_says(self, proxy: Proxy) -> None:
        found, reports = self.run(proxy)
        names = [metric.name for metric in proxy.metrics]
        assert names, "a proxy without a metric ranks nothing"
        assert len(set(names)) == len(names)
        assert list(found.metrics) == names
        assert all(math.isfinite(each.value) and each.error >= 0 for each in found.metrics.values())
        assert found.seconds >= 0
        assert bool(reports) == self.reports
        assert [tokens for tokens, _ in reports] == sorted(tokens for tokens, _ in reports)
        assert Evaluation.from_dict(found.to_dict()) == found

    def test_the_same_seed_gives_the_same_figures(self, proxy: Proxy) -> None:
        """Also in another process, which gets the proxy by pickle."""
        first = self.run(proxy, seed=3)[0]
        again = self.run(pickle.loads(pickle.dumps(proxy)), seed=3)[0]
        assert again.metrics == first.metrics
        assert again.curve == first.curve

    def test_the_fidelity_is_that_of_the_settings(self, proxy: Proxy) -> None:
        assert self.make().fidelity == proxy.fidelity
        assert Fidelity.from_dict(proxy.fidelity.to_dict()) == proxy.fidelity

    def test_what_a_report_raises_ends_the_evaluation(self, proxy: Proxy) -> None:
        if not self.reports:
            pytest.skip("it does not report")

        class Enough(BaseException):
            pass

        def report(tokens: int, loss: float) -> None:
            raise Enough

        proxy.start()
        with pytest.raises(Enough):
            proxy.evaluate(self.job(proxy), report)
        assert self.run(proxy)[0].metrics, "the next one is not disturbed"

"""A user's project in miniature: `make types` reads it as `mypy --strict` would there, without the plugin of pydantic.

Each of the settings is made with some of its fields only, which a field hides that does not say `Field(default=...)`.
"""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, Field

from nfsearch.export import load_architecture
from nfsearch.latency_lut import Estimate, LatencySettings, LatencyTable, Workload, load_table
from nfsearch.ops import HybridLM
from nfsearch.proxies.settings import TrainingSettings
from nfsearch.proxies.sources import SplitData
from nfsearch.search import STRATEGIES, Candidate, KnownDesign, SearchSettings, Strategy
from nfsearch.search.executors.cluster import RaySettings
from nfsearch.search.rules.median import MedianSettings
from nfsearch.search.strategies.aging import AgingSettings
from nfsearch.search.strategies.drafts import DraftStrategy
from nfsearch.search.strategy import Draft
from nfsearch.space import Architecture, Layer, Limits, SearchSpace, SpaceSettings


class MySettings(SearchSettings):
    """A setting more."""

    greed: float = Field(default=0.5, ge=0, le=1)


class Mine(DraftStrategy):
    """A strategy of one's own."""

    Settings = MySettings
    settings: MySettings

    def drafts(self, rng: random.Random, index: int, history: Sequence[Candidate]) -> Iterator[Draft | None]:
        if rng.random() < self.settings.greed:
            member = self.space.sample(rng)
            yield Draft(member.architecture, member.answers, "random", ())
        yield from self.random_drafts(rng)


def time(path: Path) -> Estimate:
    """An architecture against a table."""
    table: LatencyTable = load_table(path)
    architecture = Architecture(width=64, layers=(Layer.of("D", head_dim=32), Layer.of("F", ratio=2)))
    return table.estimate(architecture, Workload(context=512))


def build(path: Path) -> HybridLM:
    """A model of an exported recipe."""
    return HybridLM(load_architecture(path))


def sample() -> Architecture:
    """A space from Python."""
    settings = SpaceSettings(width=(64, 128), layers="(D[head_dim=32] F){1..4}", limits=Limits(layers=8))
    space: SearchSpace = settings.build(257)
    return space.sample(random.Random(0)).architecture


def sections() -> list[BaseModel]:
    """Sections of a config."""
    return [
        MySettings(evaluations=30, seeds_known=("D F", KnownDesign(width=64, layers="D F"))),
        AgingSettings(tournament=3),
        MedianSettings(kind="median", least=3),
        RaySettings(gpus=0.5),
        TrainingSettings(data=SplitData(train="a", validation="b"), tokens=4096),
        LatencySettings(workloads={"tpot": Workload(context=64)}),
    ]


def find() -> type[Strategy]:
    """By name, as configs do."""
    return STRATEGIES.find("random")

"""Recall as a proxy: values are told with their keys, and asked for later (MQAR; in-context recall of MAD)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator
from typing_extensions import Self

from nfsearch.proxies.proxy import ProxySettings
from nfsearch.proxies.task_proxy import TaskProxy
from nfsearch.proxies.tasks import UNASKED, TaskSettings
from nfsearch.support.metrics import Metric
from nfsearch.support.settings import SettingError

if TYPE_CHECKING:
    from torch import Generator, Tensor

_FILLER = 0  # the token between questions
_NEARNESS = 0.1  # the power of the law that says how far behind the pairs a question stands, as in Zoology


class MqarSettings(TaskSettings):
    """Multi-query associative recall."""

    kind: str = "mqar"
    pairs: int = Field(default=64, gt=0, le=2**16, description="pairs of a key and a value, each asked for once")
    sequence: int = Field(default=256, gt=2, le=2**16, description="tokens in a sequence, at least three for each pair")
    symbols: int = Field(
        default=256,
        gt=3,
        le=2**20,
        description="different tokens: a filler, and as many keys as values; many take long to learn",
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.sequence < 3 * self.pairs:
            text = f"{self.pairs} pairs and the questions for them take {3 * self.pairs} tokens, found {self.sequence}"
            raise SettingError(text, "sequence")
        if self.symbols < 2 * self.pairs + 1:
            text = f"{self.pairs} pairs take at least {2 * self.pairs + 1} different tokens, found {self.symbols}"
            raise SettingError(text, "symbols")
        return self

    @property
    def asked(self) -> int:
        return self.pairs

    @property
    def answers(self) -> int:
        return self.pairs


class MqarProxy(TaskProxy):
    """Multi-query associative recall (Arora et al., "Zoology", arXiv 2312.04927, section 4): a sequence begins with
    pairs of a key and a value; later each key stands there once more, and the value that goes with it is asked for. How
    far behind the pairs it stands follows a power law. The number of pairs is what the state of a recurrent operator
    has to hold; attention looks them up."""

    Settings: ClassVar[type[ProxySettings]] = MqarSettings
    metrics: ClassVar[Sequence[Metric]] = (Metric("mqar"),)
    settings: MqarSettings

    def draw(self, count: int, generator: Generator) -> Tensor:
        import torch

        of, device = self.settings, generator.device
        pairs, told = of.pairs, 2 * of.pairs
        kinds = (of.symbols - 1) // 2  # of keys, and of values: 1 .. kinds, and kinds + 1 .. 2 kinds
        chance = torch.rand(count, kinds, generator=generator, device=device)
        keys = 1 + chance.topk(pairs, dim=1).indices  # [count, pairs], all different in a row
        values = 1 + kinds + torch.randint(kinds, (count, pairs), generator=generator, device=device)
        places = told + self._places(count, of.sequence - told, generator)
        tokens = torch.full((count, of.sequence), _FILLER, device=device)
        tokens[:, 0:told:2], tokens[:, 1:told:2] = keys, values
        tokens.scatter_(1, places, keys)
        return torch.cat((tokens, places, values), dim=1)

    def _places(self, count: int, room: int, generator: Generator) -> Tensor:
        """Different places [count, pairs] from 0 to room - 1, the near ones more likely: the largest of log weights
        with Gumbel noise are a draw without replacement, in the order in which it draws."""
        import torch

        weights = torch.arange(1, room + 1, device=generator.device) ** (_NEARNESS - 1.0)
        noise = torch.rand(count, room, generator=generator, device=generator.device)
        gumbel = -torch.log(-torch.log(noise.clamp(1e-20, 1 - 1e-7)))
        return (weights.log() + gumbel).topk(self.settings.pairs, dim=1).indices


class InContextRecallSettings(TaskSettings):
    """In-context recall."""

    kind: str = "in_context_recall"
    sequence: int = Field(
        default=128, gt=3, le=2**16, description="tokens in a sequence: two pairs, or nothing is asked"
    )
    symbols: int = Field(default=16, gt=3, le=2**20, description="tokens: as many keys as values")

    @property
    def asked(self) -> int:
        return self.sequence // 2

    @property
    def answers(self) -> int:
        return self.symbols // 2


class InContextRecallProxy(TaskProxy):
    """In-context recall of MAD (Poli et al., arXiv 2403.17844, appendix B.1): keys and values alternate, each sequence
    has a dictionary of its own, and from the second time on that a key comes its value is asked for."""

    Settings: ClassVar[type[ProxySettings]] = InContextRecallSettings
    metrics: ClassVar[Sequence[Metric]] = (Metric("in_context_recall"),)
    settings: InContextRecallSettings

    def draw(self, count: int, generator: Generator) -> Tensor:
        import torch

        of, device = self.settings, generator.device
        kinds, pairs = of.symbols // 2, of.asked
        dictionary = torch.randint(kinds, (count, kinds), generator=generator, device=device)
        keys = torch.randint(kinds, (count, pairs), generator=generator, device=device)
        values = kinds + dictionary.gather(1, keys)
        seen = (keys[:, :, None] == keys[:, None, :]).tril(-1).any(dim=2)  # [count, pairs]
        tokens = torch.stack((keys, values), dim=2).flatten(1)
        tokens = torch.nn.functional.pad(tokens, (0, of.sequence - 2 * pairs))
        places = torch.arange(0, 2 * pairs, 2, device=device).expand(count, pairs)
        return torch.cat((tokens, places, torch.where(seen, values, UNASKED)), dim=1)

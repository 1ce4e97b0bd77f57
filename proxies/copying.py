"""Copying as a proxy: what stood in the sequence is asked for at its end (selective copying and compression of MAD)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator
from typing_extensions import Self

from nfsearch.proxies.proxy import ProxySettings
from nfsearch.proxies.task_proxy import TaskProxy
from nfsearch.proxies.tasks import TaskSettings
from nfsearch.support.metrics import Metric
from nfsearch.support.settings import SettingError

if TYPE_CHECKING:
    from torch import Generator, Tensor

_BLANK, _COPY = 0, 1  # tokens of selective copying; all others are copied
_SUM = 0  # the last token of compression; all others are compressed


class SelectiveCopyingSettings(TaskSettings):
    """Selective copying."""

    kind: str = "selective_copying"
    sequence: int = Field(default=256, gt=2, le=2**16, description="tokens in a sequence, at least two for each copied")
    copied: int = Field(default=16, gt=0, le=2**15, description="tokens to copy")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.sequence < 2 * self.copied:
            text = f"{self.copied} tokens and their copies take {2 * self.copied}, found {self.sequence}"
            raise SettingError(text, "sequence")
        return self

    @property
    def asked(self) -> int:
        return self.copied

    @property
    def answers(self) -> int:
        return self.symbols - 2


class SelectiveCopyingProxy(TaskProxy):
    """Selective copying of MAD (Poli et al., arXiv 2403.17844, appendix B.4): some tokens stand at random places
    between blanks; at the end they are asked for, in their order."""

    Settings: ClassVar[type[ProxySettings]] = SelectiveCopyingSettings
    metrics: ClassVar[Sequence[Metric]] = (Metric("selective_copying"),)
    settings: SelectiveCopyingSettings

    def draw(self, count: int, generator: Generator) -> Tensor:
        import torch

        of, device = self.settings, generator.device
        content = torch.randint(2, of.symbols, (count, of.copied), generator=generator, device=device)
        room = of.sequence - of.copied
        chance = torch.rand(count, room, generator=generator, device=device)
        places = chance.topk(of.copied, dim=1).indices.sort(dim=1).values
        tokens = torch.full((count, of.sequence), _BLANK, device=device)
        tokens[:, room:] = _COPY
        tokens.scatter_(1, places, content)
        asked = torch.arange(room, of.sequence, device=device).expand(count, of.copied)
        return torch.cat((tokens, asked, content), dim=1)


class CompressionSettings(TaskSettings):
    """Compression."""

    kind: str = "compression"
    sequence: int = Field(default=32, gt=2, le=2**16, description="tokens in a sequence, the summing one included")

    @property
    def asked(self) -> int:
        return self.sequence - 1

    @property
    def answers(self) -> int:
        return self.symbols - 1


class CompressionProxy(TaskProxy):
    """Compression of MAD (Poli et al., arXiv 2403.17844, appendix B.6): random tokens, then one that sums them up; from
    the features at that one position a decoder is to tell every token that came before."""

    Settings: ClassVar[type[ProxySettings]] = CompressionSettings
    metrics: ClassVar[Sequence[Metric]] = (Metric("compression"),)
    decodes: ClassVar[bool] = True
    settings: CompressionSettings

    def draw(self, count: int, generator: Generator) -> Tensor:
        import torch

        of, device = self.settings, generator.device
        content = torch.randint(1, of.symbols, (count, of.asked), generator=generator, device=device)
        last = torch.full((count, 1), _SUM, device=device)
        places = torch.full((count, of.asked), of.asked, device=device)
        return torch.cat((content, last, places, content), dim=1)

"""The `space:` section of a config."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from nfsearch.space.family import find_family
from nfsearch.space.limits import Limits
from nfsearch.space.notation import parse, parse_definitions
from nfsearch.space.operators import LARGEST
from nfsearch.space.search_space import SearchSpace
from nfsearch.space.serving import serving
from nfsearch.support.settings import Settings


class FitWidth(Settings):
    """`{fit: latency, from: [...]}`: the widest of these that meets the latency limits."""

    model_config = ConfigDict(populate_by_name=True)

    fit: Literal["latency"]
    widths: tuple[int, ...] = Field(alias="from", min_length=1)


class SpaceSettings(Settings):
    """What may be built."""

    width: int | tuple[int, ...] | FitWidth = Field(
        description="hidden size: one, a list, or {fit: latency, from: [...]}"
    )
    where: dict[str, str] = Field(default_factory=dict, description="named expressions")
    layers: str = Field(description="the notation; its top-level items are the stages")
    limits: Limits = Field(default_factory=Limits)
    vocab: Annotated[int, Field(gt=0, le=LARGEST)] | Literal["auto"] = Field(
        default="auto", description="size of the vocabulary; auto = the tokenizer's"
    )
    meta_tokens: int | tuple[int, ...] = Field(
        default=0, description="learned vectors before every sequence: a number or a list"
    )
    head_norm: bool = Field(
        default=False, description="divide logits by the norm of their row of the head, as released"
    )
    tied_head: bool = Field(default=True, description="the head is the embedding; false = a matrix of its own")
    serves: str | None = Field(
        default=None, description="an exporter, such as nemotron_h: members that it cannot express are left out"
    )

    @field_validator("serves")
    @classmethod
    def _expresses(cls, serves: str | None) -> str | None:
        if serves is not None:
            find_family(serves)
        return serves

    @field_validator("where")
    @classmethod
    def _definitions(cls, where: dict[str, str]) -> dict[str, str]:
        parse_definitions(where)
        return where

    @field_validator("layers")
    @classmethod
    def _expression(cls, layers: str, info: ValidationInfo) -> str:
        if "where" in info.data:  # else what is wrong there has been said
            parse(layers, info.data["where"])
        return layers

    @field_validator("width", "meta_tokens")
    @classmethod
    def _positive(
        cls, value: int | tuple[int, ...] | FitWidth, info: ValidationInfo
    ) -> int | tuple[int, ...] | FitWidth:
        numbers = value.widths if isinstance(value, FitWidth) else value if isinstance(value, tuple) else (value,)
        least = 1 if info.field_name == "width" else 0
        if not numbers or min(numbers) < least or max(numbers) > LARGEST:
            raise ValueError(f"expected whole numbers from {least} to {LARGEST:,}, found {list(numbers)}")
        if len(set(numbers)) < len(numbers):
            raise ValueError(f"a number is listed twice in {list(numbers)}")
        return value

    @model_validator(mode="after")
    def _builds(self) -> SpaceSettings:
        self.build(vocab=32000)
        return self

    @property
    def fit_width(self) -> bool:
        return isinstance(self.width, FitWidth)

    def build(self, vocab: int) -> SearchSpace:
        """The space; `vocab` is the tokenizer's, used where the setting is auto."""
        widths = self.width.widths if isinstance(self.width, FitWidth) else self.width
        space = SearchSpace(
            layers=parse(self.layers, self.where),
            where=parse_definitions(self.where),
            widths=widths if isinstance(widths, tuple) else (widths,),
            fit_width=self.fit_width,
            limits=self.limits,
            vocab=vocab if self.vocab == "auto" else self.vocab,
            meta_tokens=self.meta_tokens if isinstance(self.meta_tokens, tuple) else (self.meta_tokens,),
            head_norm=self.head_norm,
            tied_head=self.tied_head,
        )
        return serving(space, find_family(self.serves)) if self.serves else space

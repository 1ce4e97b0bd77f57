"""What all sections of a config have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

_MOST = 2**63 - 1  # what libraries keep in 64 bits; and no product of a few such numbers is infinite


class SettingError(ValueError):
    """Something is wrong with one setting of the section that raises this; `place` leads from the section to it."""

    def __init__(self, text: str, *place: str | int) -> None:
        super().__init__(f"{'.'.join(map(str, place))}: {text}")
        self.text, self.place = text, place


class Settings(BaseModel):
    """A section of a config: it has no keys but its own, and its numbers are finite and fit into 64 bits."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _bounded(cls, value: Any) -> Any:
        for each in _values(value):
            if isinstance(each, (int, float)) and abs(each) > _MOST:
                raise ValueError(f"expected a number up to {_MOST:.3g}, found a larger one")
        return value


def _values(value: Any) -> Iterator[Any]:
    if isinstance(value, (tuple, list)):
        for each in value:
            yield from _values(each)
    elif isinstance(value, dict):
        yield from _values([*value.values()])
    else:
        yield value

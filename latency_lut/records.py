"""Rows and provenance from a file, which may hold anything: checked before they are taken for what they say."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from nfsearch.latency_lut.keys import CACHES, ENDS, Key
from nfsearch.latency_lut.places import ITEM_BYTES
from nfsearch.latency_lut.provenance import Provenance
from nfsearch.latency_lut.rows import Row

_MOST = 2**31 - 1  # what a column of the file holds
_Positive = Annotated[int, Field(gt=0, le=_MOST)]
_Count = Annotated[int, Field(ge=0, le=_MOST)]
_LARGEST = (
    1e12  # of any number that is measured; sums and squares of such numbers, and of the smallest time, are finite
)
_Time = Annotated[float, Field(ge=1e-9, le=_LARGEST)]  # milliseconds
_Amount = Annotated[float, Field(ge=0, le=_LARGEST)]
_NARROWER: dict[str, Any] = {
    "phase": Literal["decode", "prefill"],
    "dtype": Literal[tuple(ITEM_BYTES)],
    "batch": _Positive,
    "width": _Positive,
    "context": _Count,
    "others": _Count,
    "cache": Literal[CACHES],
    "working_set_mb": _Amount,
    "between_mb": _Amount,
    "disturbance": _Amount,
    "latency_ms": _Time | None,
    "spread_ms": _Amount,
    "runs": _Count,
    "layers": _Count,
    "workspace_mb": _Amount | None,
    "clock_mhz": _Amount | None,
    "power_w": _Amount | None,
}


def row_of(record: Mapping[str, Any]) -> Row:
    """The row that a record says. Raises ValueError for a value that is missing or cannot be."""
    row = Row.from_record(_checked(Row, record))
    if row.latency_ms is not None and not row.runs:
        raise ValueError("runs: a time of no runs")
    if row.key.is_end and not row.key.end_settings.get("vocab", "").isdecimal():
        raise ValueError(f"block: expected {ENDS}[vocab=N], found {row.key.block!r}")
    return row


def provenance_of(values: Mapping[str, Any]) -> Provenance:
    """The provenance that a mapping says. Raises ValueError for a value that is missing or cannot be."""
    return Provenance.from_dict(_checked(Provenance, values))


def _checked(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return dict(_model(kind).model_validate(values))
    except ValidationError as error:
        first = error.errors()[0]
        found = "" if first["type"] == "missing" else f", found {first['input']!r:.40}"
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or kind.__name__}: {first['msg']}{found}") from None


@cache
def _model(kind: type) -> type[BaseModel]:
    hints = get_type_hints(kind)
    if kind is Row:
        del hints["key"]
        hints = {**get_type_hints(Key), **hints}
    fields: dict[str, Any] = {name: (_NARROWER.get(name, hint), ...) for name, hint in hints.items()}
    return create_model(kind.__name__, __config__=ConfigDict(allow_inf_nan=False), **fields)

"""Tables that come with nfsearch, one file for each device, and what is kept beside a table's file."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from nfsearch.latency_lut.files import TableError

if TYPE_CHECKING:
    from nfsearch.latency_lut.table import LatencyTable
    from nfsearch.latency_lut.verify import Verification

SUFFIX = ".parquet"


def folder() -> Path:
    """Where the tables are."""
    return Path(str(files("nfsearch.latency_lut"))) / "tables"


def bundled_table(device: str) -> Path:
    """The file of a device's table. Raises TableError, naming the devices that there are tables of, if it has none."""
    there = {path.stem: path for path in sorted(folder().glob(f"*{SUFFIX}"))}
    if device not in there:
        others = f" (only of {', '.join(there)})" if there else ""
        raise TableError(
            f"device {device!r} is not here, and nfsearch has no table of it{others}: "
            f"`nfsearch lut build CONFIG -o {device}{SUFFIX}` on the device makes one for latency.table"
        )
    return there[device]


def verification_path(table: Path) -> Path:
    """Where the check of a table is kept, beside it."""
    return table.with_suffix(".verification.json")


def known_verification(table: LatencyTable) -> Verification | None:
    """The check that is kept beside a table, if it was made of this table, which may have been given more rows since.
    Raises TableError if it cannot be read."""
    from nfsearch.latency_lut.verify import Verification

    if table.path is None or not (path := verification_path(table.path)).is_file():
        return None
    try:
        found = Verification.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (KeyError, TypeError, ValueError) as error:
        raise TableError(
            f"{path} is no verification of this version ({error}); "
            f"`nfsearch lut verify {table.path} --config CONFIG` makes a new one"
        ) from None
    same = (found.device, found.table) == (table.provenance.device, table.provenance.date)
    return found if same else None

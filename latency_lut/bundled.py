"""Tables that come with nfsearch, one file for each device."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from nfsearch.latency_lut.errors import TableError

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

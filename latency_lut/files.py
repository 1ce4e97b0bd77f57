"""A latency table's files: the finished Parquet file, and the journal of rows while they are being measured."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from nfsearch.latency_lut.errors import TableError
from nfsearch.latency_lut.provenance import Provenance
from nfsearch.latency_lut.records import provenance_of, row_of
from nfsearch.latency_lut.rows import COLUMNS, Row
from nfsearch.latency_lut.table import LatencyTable
from nfsearch.support.errors import first_line
from nfsearch.support.files import whole
from nfsearch.support.lines import Lines

SCHEMA_VERSION = 5
MAX_ROWS = 200_000  # some hundred times what a table has
_META_SCHEMA, _META_PROVENANCE = b"nfsearch.latency_table", b"nfsearch.provenance"


def load_table(path: str | Path, device: str | None = None) -> LatencyTable:
    """The table of `device` (a short name, such as nvidia-h200) in a file; the only one where none is named.

    Raises TableError for a file that is missing, is no latency table, is truncated, has another schema, or holds
    no table of that device.
    """
    tables = read_tables(Path(path))
    held = ", ".join(tables)
    if device is None:
        if len(tables) != 1:
            raise TableError(f"{path} holds tables of {held or 'no device'}: say which device is meant")
        return next(iter(tables.values()))
    if device not in tables:
        raise TableError(
            f"{path} was measured on {held}, and the device asked for is {device}; times of one device say nothing "
            f"about another: `nfsearch lut build CONFIG -o TABLE` on {device} itself makes a table, and "
            "`latency.accept: [device]` takes this one all the same"
        )
    return tables[device]


def save_table(table: LatencyTable, path: str | Path) -> None:
    """Writes a file of this table alone; a reader sees the old file or the new one, never a part."""
    write_tables(path, [table])
    table.path = Path(path)


def records(table: LatencyTable) -> list[dict[str, Any]]:
    """A mapping of the file's columns for each row."""
    return [{"device": table.provenance.device, **row.record()} for row in table.rows.values()]


def read_tables(path: Path) -> dict[str, LatencyTable]:
    """The tables in a file, by device; a file may hold several. Raises TableError for a file that is missing, is no
    latency table, is truncated, or has another schema."""
    import pyarrow
    import pyarrow.parquet

    if path.is_dir():
        raise TableError(f"{path} is a folder, and a latency table is a file")
    build = f"`nfsearch lut build CONFIG -o {path}`"
    if not path.is_file():
        if Journal(path).path.is_file():
            raise TableError(f"{path} is not finished: {build} goes on with it")
        raise TableError(f"there is no latency table {path}; {build} makes one")
    anew = f"delete it and {build} makes it anew"
    try:
        count = pyarrow.parquet.read_metadata(path).num_rows
        if count > MAX_ROWS:
            raise TableError(f"{path} has {count:,} rows, and no latency table has more than {MAX_ROWS:,}")
        content = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        with path.open("rb") as file:
            cut = file.read(4) == b"PAR1"
        if not cut:
            raise TableError(f"{path} is not a Parquet file, and so no latency table") from None
        reason = first_line(error)
        raise TableError(f"{path} is damaged or cut short ({reason}); {anew}") from None
    metadata = content.schema.metadata or {}
    version = metadata.get(_META_SCHEMA, b"").decode(errors="replace")
    if not version:
        raise TableError(f"{path} is a Parquet file, but not a latency table of nfsearch")
    if version != str(SCHEMA_VERSION):
        raise TableError(
            f"{path} has version {version} of the table format, and this nfsearch reads {SCHEMA_VERSION}; {anew}"
        )
    try:
        tables = {
            device: LatencyTable(provenance_of(values), path=path)
            for device, values in json.loads(metadata[_META_PROVENANCE]).items()
        }
        for record in content.select(list(COLUMNS)).to_pylist():
            row = row_of(record)
            tables[record["device"]].rows[row.key] = row
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise TableError(f"{path} is not a complete latency table: {first_line(error)}; {anew}") from None
    if empty := [device for device, table in tables.items() if not table.rows]:
        raise TableError(f"{path} has no rows of {', '.join(empty)}; {anew}")
    return tables


def write_tables(path: str | Path, tables: Iterable[LatencyTable]) -> None:
    """Writes one Parquet file of tables of different devices; readers see the old file or the new one, never a part."""
    import pyarrow
    import pyarrow.parquet

    tables = list(tables)
    schema = pyarrow.schema(
        [
            pyarrow.field(name, pyarrow.type_for_alias(kind), metadata={"help": text})
            for name, (kind, text) in COLUMNS.items()
        ],
        metadata={
            _META_SCHEMA: str(SCHEMA_VERSION),
            _META_PROVENANCE: json.dumps({t.provenance.device: t.provenance.to_dict() for t in tables}, indent=1),
        },
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = pyarrow.Table.from_pylist([record for table in tables for record in records(table)], schema)
    with whole(path) as scratch:
        pyarrow.parquet.write_table(content, scratch)


class Journal:
    """Rows measured for the table at a path and not in it yet: lines of JSON in a file beside it, the provenance first.

    Adding a row appends one line, where writing the table anew costs more the more rows it has. A line cut short by a
    kill was never acknowledged, and is dropped.
    """

    def __init__(self, table: Path) -> None:
        self.path = table.with_name(f"{table.name}.journal")
        self._lines: Lines | None = None

    def read(self) -> tuple[Provenance | None, list[Row]]:
        """What is there, in the order in which it was written. Raises TableError if it is no such journal."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None, []
        try:
            text = content[: content.rfind(b"\n") + 1].decode()
            values: list[dict[str, Any]] = [json.loads(line) for line in text.split("\n")[:-1]]
            return (provenance_of(values[0]) if values else None), [row_of(each) for each in values[1:]]
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise TableError(
                f"{self.path} is no journal of this version's latency tables ({first_line(error)}); "
                "delete it to begin anew"
            ) from None

    def start(self, provenance: Provenance) -> None:
        """Opens it for more rows; a new one begins with the provenance. Raises ValueError where another process builds
        the table."""
        self._lines = Lines(self.path)
        if not self._lines.begun:
            self._write(provenance.to_dict())

    @property
    def is_open(self) -> bool:
        """Whether rows can be added."""
        return self._lines is not None

    def add(self, row: Row) -> None:
        """Handed to the system when this returns."""
        self._write(row.record())

    def _write(self, values: dict[str, Any]) -> None:
        assert self._lines is not None
        self._lines.add(json.dumps(values))

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lines is not None:
            self._lines.close()

    def remove(self) -> None:
        """Once the table holds all of it."""
        self.path.unlink(missing_ok=True)

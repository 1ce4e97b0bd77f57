"""Files of text as documents, which can be entered in the middle.

A reader yields (start, end, text): a document and the bytes of the unpacked file that it takes. Before each it asks
`goal` for the first place that anyone wants, and skips what lies before. It ends with an empty document at the end of
the file. Where a file is entered decides which documents are read, and not where they begin and end.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import math
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from nfsearch.support.errors import first_line

Goal = Callable[[], float]
Documents = Iterator[tuple[float, float, str]]

_PIECE = 2048  # bytes
_LONGEST_LINE = 2**28  # bytes of JSONL
_LOOK = 2**20  # unpacked bytes that a compressed file's size is estimated from
_AT_ONCE = 2**22  # bytes of a Parquet column
_SHOWN = 40  # characters of a value in a complaint
_TABLES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
_TEXT = {".txt", ".text", ".md", ".rst", ".tex", ".html", ".xml", ".csv", ".py", ".c", ".h", ".cc", ".cpp", ".cu"}
_TEXT |= {".java", ".js", ".ts", ".go", ".rs", ".sh", ".json", ".yaml", ".yml", ".toml"}
_OPENERS: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open}


def kind(path: Path) -> str | None:
    """text, jsonl or parquet, by the file's name."""
    name = Path(path.stem) if packed(path) else path
    suffix = name.suffix.lower()
    return _TABLES.get(suffix) or ("text" if suffix in _TEXT else None)


def packed(path: Path) -> bool:
    """Whether it is compressed as a whole: then what is skipped has to be unpacked too."""
    return path.suffix.lower() in _OPENERS


def unpacked_size(path: Path) -> float:
    """The bytes of text in a file: those of a Parquet file's column, of a compressed file about (by its beginning)."""
    with _errors(path), path.open("rb") as raw:
        if packed(path):
            with _OPENERS[path.suffix.lower()](raw) as stream:
                found = len(stream.read(_LOOK))
            if found < _LOOK:
                return found
            estimate = path.stat().st_size * found / raw.tell()
            stored = _stored_size(path, raw)  # of the last of several streams in a file, so it may be too small
            return stored if stored > estimate / 2 else estimate
        if kind(path) == "parquet":
            return float(sum(_group_sizes(path, _parquet(raw))))
    return path.stat().st_size


def _stored_size(path: Path, raw: IO[bytes]) -> int:
    """The unpacked bytes that a compressed file says it has, at its end (RFC 1952; the .xz file format, sections 2.1.2
    and 4); 0 where that is no end of one."""
    if path.suffix.lower() == ".gz":
        raw.seek(-4, io.SEEK_END)
        return int.from_bytes(raw.read(4), "little")
    raw.seek(-12, io.SEEK_END)
    footer = raw.read(12)
    index_size = (int.from_bytes(footer[4:8], "little") + 1) * 4
    if footer[10:] != b"YZ" or 12 + index_size > path.stat().st_size:
        return 0
    raw.seek(-12 - index_size, io.SEEK_END)
    numbers, shift, value = [], 0, 0
    for byte in raw.read(index_size)[1:-4]:  # seven bits in a byte, the lowest first
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(value)
            shift, value = 0, 0
    return sum(numbers[2 : 1 + 2 * numbers[0] : 2]) if numbers else 0


def read(path: Path, goal: Goal) -> Documents:
    """The documents of a file. Raises ValueError that names the file, whatever is wrong inside it.

    A line of JSONL and a row of Parquet (field `text`) is a document. Text is cut at line ends into documents of about
    two thousand bytes, so that a single long file can be split too.
    """
    readers = {"text": _read_text, "jsonl": _read_jsonl, "parquet": _read_parquet}
    opener = _OPENERS.get(path.suffix.lower(), open)
    with _errors(path), opener(path, "rb") as stream:
        yield from readers[kind(path) or "text"](path, stream, goal)


def read_whole(path: Path, goal: Goal) -> Documents:
    """A file as one document."""
    with _errors(path):
        content = path.read_bytes()
    yield 0, len(content), content.decode("utf-8", "replace")


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Turns what reading a file raises into a ValueError that names it."""
    from pyarrow import ArrowException

    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason})") from None
    except (lzma.LZMAError, zlib.error, gzip.BadGzipFile, EOFError, ArrowException) as error:
        raise ValueError(f"{path}: damaged or not what its name says ({first_line(error)})") from None
    except OSError as error:  # also of what cannot be unpacked within a Parquet file
        raise ValueError(f"{path}: cannot be read ({error.strerror or first_line(error)})") from None


def _read_text(path: Path, stream: Any, goal: Goal) -> Documents:
    """Document i goes from the end of the line at byte i * _PIECE to the end of that at (i + 1) * _PIECE."""
    index, position = 0, 0
    while True:
        if (wanted := math.ceil(goal() / _PIECE)) > index:
            index = wanted
            stream.seek(index * _PIECE)
            _rest_of_line(stream)
            position = stream.tell()
        index += 1
        content = stream.read(index * _PIECE - position)
        if not content:
            yield position, position, ""
            return
        content += _rest_of_line(stream)
        yield position, position + len(content), content.decode("utf-8")
        position += len(content)


def _rest_of_line(stream: Any) -> bytes:
    """Up to the end of the line or, where it is long, of a character: fewer bytes than a piece has."""
    line: bytes = stream.readline(_PIECE - 4)
    for _ in range(3):
        if not line.endswith(b"\n") and 0x80 <= (stream.peek(1)[:1] or b" ")[0] < 0xC0:  # a character goes on
            line += stream.read(1)
    return line


def _read_jsonl(path: Path, stream: Any, goal: Goal) -> Documents:
    position = 0
    while True:
        if (wanted := math.ceil(goal())) > position:
            stream.seek(wanted - 1)  # a line that begins at the goal is read
            _line(path, stream)
            position = stream.tell()
        line = _line(path, stream)
        end = position + len(line)
        yield position, end, _text_of(path, position, line) if line.strip() else ""
        if not line:
            return
        position = end


def _line(path: Path, stream: IO[bytes]) -> bytes:
    line = stream.readline(_LONGEST_LINE)
    if len(line) == _LONGEST_LINE:
        raise ValueError(f"{path}: a line has more than {_LONGEST_LINE:,} bytes")
    return line


def _text_of(path: Path, position: int, line: bytes) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}:{_number(path, position)}: not a line of JSON ({error})") from None
    if isinstance(record, dict) and "text" in record:
        text = record["text"]
        if text is None or isinstance(text, str):  # as in Parquet, nothing is no document
            return text or ""
        seen = f"a `text` that is {json.dumps(text)[:_SHOWN]}"
    else:
        seen = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
    place = f"{path}:{_number(path, position)}"
    raise ValueError(f"{place}: expected an object with a string field `text`, found {seen or 'none'}")


def _number(path: Path, position: int) -> int:
    """Of the line that begins at a position."""
    number = 1
    with _OPENERS.get(path.suffix.lower(), open)(path, "rb") as stream:
        while position > 0:
            block = stream.read(min(position, _LOOK))
            number += block.count(b"\n")
            position -= len(block)
    return number


def _read_parquet(path: Path, stream: Any, goal: Goal) -> Documents:
    import pyarrow.compute as pc

    with tempfile.TemporaryFile() as unpacked:
        if packed(path):  # its footer is read first, which is at the end
            shutil.copyfileobj(stream, unpacked)
            stream = unpacked
        file = _parquet(stream)
        position = 0.0
        for group, size in enumerate(_group_sizes(path, file)):
            if goal() >= position + size:
                position += size
                continue
            rows = file.metadata.row_group(group).num_rows
            at_once = max(1, min(1024, int(_AT_ONCE * rows / max(size, 1))))
            for batch in file.iter_batches(batch_size=at_once, row_groups=[group], columns=["text"]):
                column = batch.column(0)
                for row, length in enumerate(pc.fill_null(pc.binary_length(column), 0).to_pylist()):
                    end = position + length + 4  # each is stored behind its length
                    if length and goal() < end:
                        yield position, end, column[row].as_py()
                    position = end
    yield position, position, ""


def _parquet(stream: Any) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(stream, buffer_size=_AT_ONCE)  # of large row groups it keeps no more than that in memory


def _group_sizes(path: Path, file: Any) -> list[int]:
    """Bytes of the column `text` in each row group. Raises ValueError unless there is one of strings."""
    import pyarrow as pa

    names = file.schema_arrow.names
    if names.count("text") != 1:
        raise ValueError(f"{path}: expected one column `text`, found {', '.join(names) or 'none'}")
    found = file.schema_arrow.field("text").type
    if not (pa.types.is_string(found) or pa.types.is_large_string(found)):
        raise ValueError(f"{path}: expected the column `text` to hold strings, found {found}")
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    columns = [[group.column(i) for i in range(group.num_columns)] for group in groups]
    return [sum(c.total_uncompressed_size for c in group if c.path_in_schema == "text") for group in columns]

"""Where documents come from: this interpreter's standard library, local files, or the Hugging Face hub."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import os
import platform
import sysconfig
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pydantic import Field

from nfsearch.support.errors import first_line
from nfsearch.support.files import local_path
from nfsearch.support.settings import Settings
from nfsearch.support.versions import to_install

SPLIT_VERSION = 2  # raise it when the same data would be split or cut differently
VALIDATION_SHARE = 20  # one document in so many
_PIECE = 2048  # characters
_TABLES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
_TEXT = {".txt", ".text", ".md", ".rst", ".tex", ".html", ".xml", ".csv", ".py", ".c", ".h", ".cc", ".cpp", ".cu"}
_TEXT |= {".java", ".js", ".ts", ".go", ".rs", ".sh", ".json", ".yaml", ".yml", ".toml"}
_NOT_STDLIB = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}


class SplitData(Settings):
    """Training and validation data that are separate already."""

    train: str = Field(description="what to train on: anything that `data` itself may be")
    validation: str = Field(description="what to measure the loss on")


@dataclass(frozen=True)
class Source:
    """Documents, and a JSON value `identity` that changes whenever they may have changed.

    A stream yields (text, key) from its first document on each time it is called. All of a stream belongs to training
    (False) or validation (True), or each document goes where the hash of its key says (None).
    """

    name: str
    identity: Any
    streams: tuple[tuple[Callable[[], Iterator[tuple[str, str]]], bool | None], ...]

    def documents(self, wanted: Callable[[bool], bool]) -> Iterator[tuple[str, bool]]:
        """(text, whether it is for validation), blank texts and unwanted parts left out.

        `wanted(part)` is asked before each document, and no more is read than it needs.
        """
        for stream, fixed in self.streams:
            parts = (False, True) if fixed is None else (fixed,)
            for text, key in stream():
                if not any(wanted(part) for part in parts):
                    break
                part = _for_validation(key) if fixed is None else fixed
                if wanted(part) and text.strip():
                    yield text, part


def open_source(data: str | SplitData) -> Source:
    """The source that a config names. Raises ValueError when there is nothing of that name; reads no text yet."""
    if isinstance(data, SplitData):
        parts = [(open_source(data.validation), True), (open_source(data.train), False)]
        streams = tuple((stream, part) for source, part in parts for stream, _ in source.streams)
        return Source(f"{data.train} | {data.validation}", ["split", *(one.identity for one, _ in parts)], streams)
    if data == "python-stdlib":
        return _stdlib()
    if data.startswith("hf:"):
        return _hub(data)
    return _local(data)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _for_validation(key: str) -> bool:
    """Depends on nothing but the key, so that a document stays on its side whatever is added beside it."""
    return _hash(key) % VALIDATION_SHARE == 0


def _stdlib() -> Source:
    """The `.py` files of the running interpreter's own standard library, whole files, split by their relative names.

    Left out: installed packages; test folders (they are more than half of the bytes, repetitive, and many systems
    ship without them); and `_sysconfigdata*`, which records how this one interpreter was built.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if name not in _NOT_STDLIB]
        names = [name for name in names if name.endswith(".py") and not name.startswith("_sysconfigdata")]
        files += [Path(folder, name) for name in names]
    if not files:
        raise ValueError(f"python-stdlib: {root} holds no .py files; name a text file or folder as `data` instead")

    def stream() -> Iterator[tuple[str, str]]:
        for path in _shuffled(root, files):
            text = path.read_bytes().decode("utf-8", "replace")
            yield text, path.relative_to(root).as_posix()

    version = f"{platform.python_implementation()} {platform.python_version()}"
    return Source(f"python-stdlib ({version})", ["stdlib", version, _listing(root, files)], ((stream, None),))


def _local(data: str) -> Source:
    """A file, or every file of a known kind in a folder; split by a hash of each document, so copies stay together.

    A line of JSONL and a row of Parquet (field `text`) is a document. Text is cut at line ends into documents of
    2 to 4 thousand characters, so that a single long file can be split too.
    """
    root = local_path(data)
    if root.is_dir():
        files = [path for path in root.rglob("*") if path.is_file() and _kind(path) and not _hidden(root, path)]
        if not files:
            raise ValueError(f"{data}: the folder holds no text (.txt, .md, .py, ...), .jsonl or .parquet file")
    elif root.is_file():
        files, root = [root], root.parent
    elif root.exists():
        raise ValueError(f"{data}: neither a file nor a folder, but a device, a pipe or a socket")
    else:
        raise ValueError(f"{data}: no such file or folder; `data` is python-stdlib, a file, a folder or hf:NAME")

    def stream() -> Iterator[tuple[str, str]]:
        for path in _shuffled(root, files):
            for text in _read(path):
                yield text, text

    return Source(data, ["local", str(root.resolve()), _listing(root, files)], ((stream, None),))


def _hidden(root: Path, path: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _shuffled(root: Path, files: Iterable[Path]) -> list[Path]:
    """In the order of a hash of their names: the beginning, where a bounded reader stops, is then a fair sample."""
    return sorted(files, key=lambda path: (_hash(path.relative_to(root).as_posix()), path))


def _listing(root: Path, files: Iterable[Path]) -> list[list[Any]]:
    stats = ((path.relative_to(root).as_posix(), path.stat()) for path in sorted(files))
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def _suffixes(path: Path) -> tuple[str, str]:
    """The suffix that names the kind, and the compression's or ''."""
    last = path.suffix.lower()
    return (Path(path.stem).suffix.lower(), last) if last in (".xz", ".gz") else (last, "")


def _kind(path: Path) -> str | None:
    suffix, _ = _suffixes(path)
    return _TABLES.get(suffix) or ("text" if suffix in _TEXT else None)


def _read(path: Path) -> Iterator[str]:
    """The documents of one file. Raises ValueError that names the file, whatever is wrong inside it."""
    from pyarrow import ArrowException

    readers: dict[str, Callable[[Path, IO[bytes]], Iterator[str]]]
    readers = {"text": _read_text, "jsonl": _read_jsonl, "parquet": _read_parquet}
    opener: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open, "": open}
    try:
        with opener[_suffixes(path)[1]](path, "rb") as stream:
            yield from readers[_kind(path) or "text"](path, stream)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start} of a block)") from None
    except (lzma.LZMAError, zlib.error, gzip.BadGzipFile, EOFError, ArrowException) as error:
        raise ValueError(f"{path}: damaged or not what its name says ({first_line(error)})") from None
    except OSError as error:  # also of what cannot be unpacked within a Parquet file
        raise ValueError(f"{path}: cannot be read ({error.strerror or first_line(error)})") from None


def _read_text(path: Path, stream: IO[bytes]) -> Iterator[str]:
    text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
    while piece := text.read(_PIECE):
        yield piece + text.readline(_PIECE)


def _read_jsonl(path: Path, stream: IO[bytes]) -> Iterator[str]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}:{number}: not a line of JSON ({error})") from None
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            seen = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
            raise ValueError(f"{path}:{number}: expected an object with a string field `text`, found {seen or 'none'}")
        yield record["text"]


def _read_parquet(path: Path, stream: IO[bytes]) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # A compressed stream cannot jump to the footer cheaply, so it is unpacked first.
    table = pq.ParquetFile(io.BytesIO(stream.read()) if _suffixes(path)[1] else stream)
    names = table.schema_arrow.names
    if "text" not in names:
        raise ValueError(f"{path}: expected a column `text`, found {', '.join(names) or 'none'}")
    kind = table.schema_arrow.field("text").type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ValueError(f"{path}: expected the column `text` to hold strings, found {kind}")
    for rows in table.iter_batches(batch_size=1024, columns=["text"]):
        yield from (text for text in rows.column(0).to_pylist() if text is not None)


def _hub(data: str) -> Source:
    """The `train` split of a data set of the Hugging Face hub, streamed; documents are split by their hash.

    The identity is the name: a data set that changes on the hub is noticed only when the cache is emptied.
    """
    name, _, config = data.removeprefix("hf:").partition(":")
    if not name:
        raise ValueError(f"{data}: expected hf:NAME or hf:NAME:CONFIG")

    def stream() -> Iterator[tuple[str, str]]:
        try:
            from datasets import load_dataset
        except ImportError:
            raise ValueError(f"{data}: reading from the hub needs datasets: {to_install('hf')}") from None
        try:
            for row in load_dataset(name, config or None, split="train", streaming=True):
                if not isinstance(row.get("text"), str):
                    raise ValueError(f"expected a string field `text`, found {', '.join(map(str, row)) or 'none'}")
                yield row["text"], row["text"]
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"{data}: {first_line(error)}") from None

    return Source(data, ["hub", name, config], ((stream, None),))

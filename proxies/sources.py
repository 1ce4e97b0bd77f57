"""Where documents come from: this interpreter's standard library, local files, the Hugging Face hub, or a mixture."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from nfsearch.proxies.readers import Documents, Goal, kind, packed, read, read_whole, unpacked_size
from nfsearch.support.errors import first_line
from nfsearch.support.files import local_path
from nfsearch.support.settings import Settings
from nfsearch.support.versions import to_install

SAMPLE_VERSION = 3  # raise it when the same data would be sampled, split or cut differently
_MOST_LABELS = 12
_NOT_STDLIB = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}


class Ingredient(Settings):
    """One of several sources that are mixed."""

    path: str = Field(description="a file, a folder, python-stdlib or hf:NAME")
    weight: float = Field(default=1.0, gt=0, le=1e6, description="its share of all tokens, relative to the others'")


Mixture = tuple[Ingredient, ...]


def _kind_of_data(value: Any) -> str:
    """By it alone a wrong value is judged, and not by all that it might have been."""
    return "mixture" if isinstance(value, (list, tuple)) else "split" if isinstance(value, (dict, SplitData)) else "one"


_One = Annotated[str, Tag("one")]
_Mixture = Annotated[Mixture, Tag("mixture")]


class SplitData(Settings):
    """Training and validation data that are separate already."""

    train: Annotated[_One | _Mixture, Discriminator(_kind_of_data)] = Field(
        description="what to train on: a source, or a mixture"
    )
    validation: Annotated[_One | _Mixture, Discriminator(_kind_of_data)] = Field(
        description="what to measure the loss on: likewise"
    )


Data = Annotated[_One | _Mixture | Annotated[SplitData, Tag("split")], Discriminator(_kind_of_data)]


@dataclass(frozen=True)
class Input:
    """A file of a source, or a stream: its documents, and how many bytes they take on the line of all inputs."""

    label: str  # what its tokens are counted under
    read: Callable[[Goal], Documents]
    size: Callable[[], float]  # in bytes
    estimated: bool = False  # that size
    packed: bool = False  # skipping costs as much as reading
    key: str | None = None  # what decides its side; each document's text by default


@dataclass(frozen=True)
class Source:
    """Inputs in an order that has nothing to do with what they hold, and a JSON value `identity` that changes whenever
    they may have changed."""

    name: str
    identity: Any
    inputs: tuple[Input, ...]
    endless: bool = False  # its size is not known, and it is read from its beginning as far as needed


@dataclass(frozen=True)
class Entry:
    """A source of the data, its weight among all, and what it serves for: training (False), validation (True) or both,
    and then each document goes where its hash says."""

    source: Source
    weight: float
    parts: tuple[bool, ...]


def open_data(data: Data) -> tuple[Entry, ...]:
    """The sources that a config names. Raises ValueError when there is nothing of that name; reads no text yet."""
    if isinstance(data, SplitData):
        return (*_entries(data.validation, (True,)), *_entries(data.train, (False,)))
    return _entries(data, (False, True))


def identity(entries: Sequence[Entry]) -> Any:
    """A JSON value that changes whenever the entries, or what is made of them, may have changed."""
    return [SAMPLE_VERSION, *([entry.source.identity, entry.weight, list(entry.parts)] for entry in entries)]


def name_of(data: Data) -> str:
    """What data are called in messages."""
    if isinstance(data, SplitData):
        return f"{name_of(data.train)} | {name_of(data.validation)}"
    return data if isinstance(data, str) else " + ".join(one.path for one in data)


def paths_of(data: Data) -> list[str]:
    """All that may be a path in it."""
    if isinstance(data, SplitData):
        return [*paths_of(data.train), *paths_of(data.validation)]
    return [data] if isinstance(data, str) else [one.path for one in data]


def renamed(data: Data, rename: Callable[[str], str]) -> Data:
    """The same with other paths."""
    if isinstance(data, SplitData):
        return data.model_copy(update={part: renamed(getattr(data, part), rename) for part in ("train", "validation")})
    if isinstance(data, str):
        return rename(data)
    return tuple(one.model_copy(update={"path": rename(one.path)}) for one in data)


def hashed(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _entries(data: str | Mixture, parts: tuple[bool, ...]) -> tuple[Entry, ...]:
    if isinstance(data, str):
        return (Entry(_open(data), 1.0, parts),)
    return tuple(Entry(_open(one.path), one.weight, parts) for one in data)


def _open(data: str) -> Source:
    if data == "python-stdlib":
        return _stdlib()
    return _hub(data) if data.startswith("hf:") else _local(data)


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
    version = f"{platform.python_implementation()} {platform.python_version()}"
    name = f"python-stdlib ({version})"
    inputs = tuple(
        Input(name, partial(read_whole, path), partial(unpacked_size, path), key=path.relative_to(root).as_posix())
        for path in _shuffled(root, files)
    )
    return Source(name, ["stdlib", version, _listing(root, files)], inputs)


def _local(data: str) -> Source:
    """A file, or every file of a known kind in a folder; split by a hash of each document, so copies stay together."""
    root = local_path(data)
    if root.is_dir():
        files = [path for path in root.rglob("*") if path.is_file() and kind(path) and not _hidden(root, path)]
        if not files:
            raise ValueError(f"{data}: the folder holds no text (.txt, .md, .py, ...), .jsonl or .parquet file")
        labels = _labels(files)
    elif root.is_file():
        files, labels, root = [root], {root: _printable(data)}, root.parent
    elif root.exists():
        raise ValueError(f"{data}: neither a file nor a folder, but a device, a pipe or a socket")
    else:
        raise ValueError(f"{data}: no such file or folder; `data` is python-stdlib, a file, a folder or hf:NAME")
    inputs = tuple(
        Input(
            labels[path],
            partial(read, path),
            partial(unpacked_size, path),
            estimated=packed(path) or kind(path) == "parquet",
            packed=packed(path),
        )
        for path in _shuffled(root, files)
    )
    return Source(data, ["local", str(root.resolve()), _listing(root, files)], inputs)


def _hidden(root: Path, path: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _printable(name: str) -> str:
    """The name of a file; what is no UTF-8 in it, which no report can hold, replaced."""
    return os.fsencode(name).decode("utf-8", "replace")


def _labels(files: Iterable[Path]) -> dict[Path, str]:
    """What each file's tokens are counted under: where files and folders part, the first name; of many, the largest."""
    files = list(files)
    common = Path(os.path.commonpath([path.parent for path in files]))
    inner = {path: path.relative_to(common).parts for path in files}
    labels = {path: _printable(parts[0]) + ("/" if len(parts) > 1 else "") for path, parts in inner.items()}
    sizes: Counter[str] = Counter()
    for path in sorted(files):
        sizes[labels[path]] += path.stat().st_size
    if len(sizes) <= _MOST_LABELS:
        return labels
    largest = {label for label, _ in sizes.most_common(_MOST_LABELS - 1)}
    others = f"{len(sizes) - len(largest)} other files"
    return {path: label if label in largest else others for path, label in labels.items()}


def _shuffled(root: Path, files: Iterable[Path]) -> list[Path]:
    """In the order of a hash of their names."""
    return sorted(files, key=lambda path: (hashed(path.relative_to(root).as_posix()), path))


def _listing(root: Path, files: Iterable[Path]) -> list[list[Any]]:
    stats = ((path.relative_to(root).as_posix(), path.stat()) for path in sorted(files))
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def _hub(data: str) -> Source:
    """The `train` split of a data set of the Hugging Face hub, streamed: read from its beginning, as far as needed.

    The identity is the name: a data set that changes on the hub is noticed only when the cache is emptied.
    """
    name, _, config = data.removeprefix("hf:").partition(":")
    if not name:
        raise ValueError(f"{data}: expected hf:NAME or hf:NAME:CONFIG")

    def stream(goal: Goal) -> Documents:
        try:
            from datasets import load_dataset
        except ImportError:
            raise ValueError(f"{data}: reading from the hub needs datasets: {to_install('hf')}") from None
        position = 0
        try:
            for row in load_dataset(name, config or None, split="train", streaming=True):
                text = row.get("text")
                if not isinstance(text, str):
                    raise ValueError(f"expected a string field `text`, found {', '.join(map(str, row)) or 'none'}")
                yield position, position + len(text), text
                position += len(text)
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"{data}: {first_line(error)}") from None

    return Source(data, ["hub", name, config], (Input(data, stream, lambda: math.inf),), endless=True)

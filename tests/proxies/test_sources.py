"""Sources: what is read, how it is split, and what is said about bad input."""

from __future__ import annotations

import gzip
import json
import lzma
import math
import os
import random
import sys
import sysconfig
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nfsearch.proxies.readers import unpacked_size
from nfsearch.proxies.sampling import Sampler, sample
from nfsearch.proxies.sources import Data, SplitData, identity, open_data

TEXTS = [f"document number {i}\n" * 3 for i in range(200)]


def everything(data: Data) -> list[tuple[str, bool]]:
    entries = open_data(data)
    found = (sample(entry.source, {part: Sampler(math.inf) for part in entry.parts}) for entry in entries)
    return [(text, part) for each in found for text, part, _ in each]


def write_jsonl(path: Path, texts: Sequence[str | None]) -> Path:
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    opener: dict[str, Any] = {".xz": lzma.open, ".gz": gzip.open}
    with opener.get(path.suffix, open)(path, "wb") as stream:
        stream.write(content)
    return path


def write_parquet(path: Path, column: str = "text", values: list[Any] = TEXTS) -> Path:
    pq.write_table(pa.table({column: values}), path)
    return path


def test_stdlib_is_split_by_file() -> None:
    documents = everything("python-stdlib")
    share = sum(validation for _, validation in documents) / len(documents)
    assert len(documents) > 300
    assert 0.02 < share < 0.08
    assert documents == everything("python-stdlib")
    this = Path(sysconfig.get_path("stdlib"), "argparse.py").read_text()
    assert sum(text == this for text, _ in documents) == 1


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.xz", "a.jsonl.gz", "a.parquet", "a.parquet.xz"])
def test_kinds_of_file_hold_the_same_documents(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if ".parquet" in name:
        plain = write_parquet(tmp_path / "plain.parquet")
        path.write_bytes(lzma.compress(plain.read_bytes()) if name.endswith(".xz") else plain.read_bytes())
    else:
        write_jsonl(path, TEXTS)
    documents = everything(str(path))
    assert [text for text, _ in documents] == TEXTS
    assert 0 < sum(validation for _, validation in documents) < 30


def test_a_document_stays_on_its_side(tmp_path: Path) -> None:
    few = dict(everything(str(write_jsonl(tmp_path / "few.jsonl", TEXTS[:100]))))
    many = dict(everything(str(write_jsonl(tmp_path / "many.jsonl", ["new", *reversed(TEXTS), *TEXTS[:5]]))))
    assert all(many[text] == side for text, side in few.items())


def test_one_long_text_is_cut_and_complete(tmp_path: Path) -> None:
    text = "".join(f"line {i} of the text, with ünïcode\r\n" for i in range(40_000)) + "x" * 50_000
    path = tmp_path / "long.txt.xz"
    path.write_bytes(lzma.compress(text.encode()))
    documents = everything(str(path))
    assert "".join(piece for piece, _ in documents) == text
    assert len({validation for _, validation in documents}) == 2
    assert max(len(piece) for piece, _ in documents) <= 2 * 8192


def test_folder_takes_known_kinds_and_skips_hidden_files(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.txt").write_text("one")
    (tmp_path / "b.md.gz").write_bytes(gzip.compress(b"two"))
    write_jsonl(tmp_path / "c.jsonl", ["three", "  \n", "", None])
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "d.txt").write_text("hidden")
    assert sorted(text for text, _ in everything(str(tmp_path))) == ["one", "three", "two"]


def test_a_name_that_is_no_utf_8_can_be_told(tmp_path: Path) -> None:
    for name in (b"caf\xe9.txt", b"tea.txt"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_text("text")
    labels = {each.label for entry in open_data(str(tmp_path)) for each in entry.source.inputs}
    assert labels == {"caf\ufffd.txt", "tea.txt"}


def test_identity_follows_the_files(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    before = identity(open_data(str(path)))
    assert identity(open_data(str(path))) == before
    write_jsonl(path, [*TEXTS, "more"])
    assert identity(open_data(str(path))) != before


def test_separate_validation_data(tmp_path: Path) -> None:
    train, validation = write_jsonl(tmp_path / "t.jsonl", TEXTS), write_jsonl(tmp_path / "v.jsonl", ["unseen"] * 3)
    documents = everything(SplitData(train=str(train), validation=str(validation)))
    assert [text for text, part in documents if part] == ["unseen"] * 3
    assert [text for text, part in documents if not part] == TEXTS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"body": "x"}\n', r"a\.jsonl:2: expected an object .* field `text`, found body"),
        ("a.jsonl", b'{"text": 3}\n', r"a\.jsonl:1: .*string field `text`, found a `text` that is 3"),
        ("a.jsonl", b"[1, 2]\n", r"a\.jsonl:1: .*found list"),
        ("a.jsonl", b'{"text": \n', r"a\.jsonl:1: not a line of JSON"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl:1: not a line of JSON"),
        ("a.txt", b"fine\n\xff\xfe\x00", r"a\.txt: not UTF-8"),
        ("a.txt.xz", b"not xz", r"a\.txt\.xz: damaged"),
        ("a.txt.xz", lzma.compress(b"text" * 10_000)[:-20], r"a\.txt\.xz: damaged"),
        ("a.txt.gz", b"not gz", r"a\.txt\.gz: damaged"),
        ("a.txt.gz", gzip.compress(b"text" * 10_000, mtime=0)[:-20], r"a\.txt\.gz: damaged"),
        ("a.parquet", b"PAR1 and then nothing", r"a\.parquet: damaged"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        everything(str(tmp_path / name))


@pytest.mark.parametrize("spoil", [lambda packed: packed[: len(packed) // 2], lambda packed: packed + b"\xff" * 120])
def test_the_size_of_a_damaged_file_is_estimated_from_its_beginning(
    tmp_path: Path, spoil: Callable[[bytes], bytes]
) -> None:
    text = random.Random(0).randbytes(2**21).hex().encode()  # compresses to about the half
    path = tmp_path / "a.txt.xz"
    path.write_bytes(lzma.compress(text, preset=0))
    assert unpacked_size(path) == len(text)
    path.write_bytes(spoil(path.read_bytes()))
    assert len(text) / 3 < unpacked_size(path) < 1.2 * len(text)


def test_bad_parquet_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected one column `text`, found body"):
        everything(str(write_parquet(tmp_path / "a.parquet", "body")))
    twice = pa.table([["one"], ["two"]], names=["text", "text"])
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(ValueError, match="expected one column `text`, found text, text"):
        everything(str(tmp_path / "twice.parquet"))
    with pytest.raises(ValueError, match="to hold strings, found int64"):
        everything(str(write_parquet(tmp_path / "b.parquet", "text", [1, 2])))
    cut = tmp_path / "c.parquet"
    cut.write_bytes(write_parquet(tmp_path / "whole.parquet").read_bytes()[:-10])
    with pytest.raises(ValueError, match="damaged"):
        everything(str(cut))


def test_missing_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no/such: no such file or folder"):
        open_data("no/such")
    os.mkfifo(tmp_path / "pipe.txt")
    for endless in ("/dev/zero", str(tmp_path / "pipe.txt")):
        with pytest.raises(ValueError, match=f"{endless}: neither a file nor a folder"):
            open_data(endless)
    with pytest.raises(ValueError, match="holds no text"):
        open_data(str(tmp_path))
    with pytest.raises(ValueError, match="expected hf:NAME"):
        open_data("hf:")


def test_hub_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"hf:org/name: .*\[hf\]"):
        everything("hf:org/name")

    calls = []

    def load_dataset(*args: Any, **named: Any) -> Any:
        calls.append((args, named))
        if args[0] == "org/missing":
            raise FileNotFoundError("Dataset 'org/missing' doesn't exist")
        return iter([{"body": "x"}] if args[0] == "org/other" else [{"text": text} for text in TEXTS])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert [text for text, _ in everything("hf:org/name:de")] == TEXTS
    assert calls == [(("org/name", "de"), {"split": "train", "streaming": True})]
    with pytest.raises(ValueError, match="hf:org/other: expected a string field `text`, found body"):
        everything("hf:org/other")
    with pytest.raises(ValueError, match="hf:org/missing: Dataset 'org/missing' doesn't exist"):
        everything("hf:org/missing")

"""Tokenizers, the cache of tokens, batches and validation windows."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import platform
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfsearch.proxies import cache, data
from nfsearch.proxies.settings import TrainingSettings
from nfsearch.proxies.sources import SplitData
from nfsearch.proxies.tokenizers import ByteTokenizer, load_tokenizer
from nfsearch.support.errors import WorkFailed


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.jsonl"
    lines = [f"The {i}th line says häuser, {i * i} trees and {i % 7} clouds.\n" * 4 for i in range(400)]
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file can be larger than 1,000 bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def proxy(path: Path | str, **named: object) -> TrainingSettings:
    return TrainingSettings.model_validate({"data": str(path), "sequence": 32, **named})


def test_bytes_are_the_documents(text: Path, tmp_path: Path) -> None:
    corpus = data.prepare(proxy(text), tmp_path / "cache")
    assert corpus.vocab == 257
    shards = {part: corpus.tokens(part) for part in data.PARTS}
    documents = {part: bytes(t for t in shards[part] if t < 256) for part in data.PARTS}
    assert sorted(len(one) for one in documents.values())[0] > 0
    assert sum(map(len, documents.values())) == sum(
        len(json.loads(line)["text"].encode()) for line in text.read_text().splitlines()
    )
    ends = (shards["validation"] == 256).sum()
    assert corpus.bytes_per_token == pytest.approx(1 - ends / len(shards["validation"]))
    assert shards["train"].dtype == np.uint16
    assert pickle.loads(pickle.dumps(corpus)) == corpus


def test_second_prepare_reads_nothing(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for tokenizer in ("bytes", "bpe:300"):
        first = data.prepare(proxy(text, tokenizer=tokenizer), tmp_path / "cache")
        with monkeypatch.context() as patch:
            patch.setattr(data, "write_shards", None)
            assert data.prepare(proxy(text, tokenizer=tokenizer, learning_rate=0.5), tmp_path / "cache") == first
    text.write_text(text.read_text() + json.dumps({"text": "one more line"}))
    assert data.prepare(proxy(text), tmp_path / "cache").digest != first.digest


def test_digest_is_of_the_content(text: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(text.read_bytes())
    first, second = (data.prepare(proxy(path), tmp_path / "cache") for path in (text, copy))
    assert first.digest == second.digest
    assert first.folder != second.folder


def test_damaged_cache_is_rebuilt(text: Path, tmp_path: Path) -> None:
    first = data.prepare(proxy(text), tmp_path / "cache")
    shard = first.folder / "train.bin"
    for damage in (shard.unlink, lambda: shard.write_bytes(shard.read_bytes()[:-2]), lambda: shard.write_bytes(b"")):
        damage()
        again = data.prepare(proxy(text), tmp_path / "cache")
        assert again == first
        assert len(again.tokens("train")) > 1000
    (first.folder / "corpus.json").write_text("{")
    assert data.prepare(proxy(text), tmp_path / "cache") == first


def test_a_machine_without_the_tokens_says_so(text: Path, tmp_path: Path) -> None:
    corpus = data.prepare(proxy(text), tmp_path / "cache")
    corpus.verify()
    about, shard = corpus.folder / "corpus.json", corpus.folder / "train.bin"
    whole, tokens = about.read_text(), shard.read_bytes()

    def refused() -> str:
        with pytest.raises(OSError, match=rf"the tokens of .*text\.jsonl on {platform.node()}: ") as caught:
            corpus.verify()
        return str(caught.value)

    shard.write_bytes(tokens[:-2])
    assert f"train.bin has {len(tokens) - 2} bytes, expected {len(tokens)}" in refused()
    shard.unlink()
    assert "is missing or not complete" in refused()
    shard.write_bytes(tokens)
    about.write_text(whole.replace(corpus.digest, "0" * 20))
    assert "holds other tokens" in refused()
    for damage in ("{", "[]", '{"digest": 1}'):
        about.write_text(damage)
        assert "corpus.json is damaged" in refused()
    shutil.rmtree(corpus.folder)
    assert f"{corpus.folder} is missing" in refused()


def _slow_prepare(path: Path, folder: Path) -> None:
    encode = ByteTokenizer.encode

    def slow(self: ByteTokenizer, texts: list[str]) -> list[np.ndarray]:
        (folder / "started").touch()
        time.sleep(60)
        return encode(self, texts)

    ByteTokenizer.encode = slow
    data.prepare(proxy(path), folder)


def test_kill_in_the_middle_leaves_nothing_half_done(text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    process = multiprocessing.get_context("fork").Process(target=_slow_prepare, args=(text, folder))
    process.start()
    while not (folder / "started").exists():
        time.sleep(0.01)
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    (left,) = (folder / "tokens").iterdir()
    assert left.name.startswith(".unfinished-")
    corpus = data.prepare(proxy(text), folder)
    assert len(corpus.tokens("train")) > 1000
    assert left.exists()  # it might belong to someone who is still writing
    os.utime(left, (0, 0))
    with cache.publish(folder / "tokens" / "other"):
        assert not left.exists()


def test_failed_work_is_not_published(tmp_path: Path) -> None:
    def fail() -> None:
        with cache.publish(tmp_path / "a" / "folder") as scratch:
            (scratch / "file").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list((tmp_path / "a").iterdir()) == []


def test_a_full_disk_is_no_wrong_input(text: Path, tmp_path: Path, small_files: None) -> None:
    for tokenizer in ("bytes", "bpe:300"):
        with pytest.raises(WorkFailed, match=r"cache/token.*: cannot be written: File too large; NFSEARCH_CACHE"):
            data.prepare(proxy(text, tokenizer=tokenizer), tmp_path / "cache")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file() or path.name.startswith(".")] == []


def test_first_of_two_writers_wins(tmp_path: Path) -> None:
    with cache.publish(tmp_path / "folder") as slow:
        (slow / "file").write_text("slow")
        with cache.publish(tmp_path / "folder") as fast:
            (fast / "file").write_text("fast")
    assert (tmp_path / "folder" / "file").read_text() == "fast"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_two_processes_at_once(text: Path, tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        first, second = pool.starmap(data.prepare, [(proxy(text, tokenizer="bpe:300"), tmp_path / "cache")] * 2)
    assert first == second


def test_too_little_data(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("")
    with pytest.raises(ValueError, match=r"a\.txt: no text for training$"):
        data.prepare(proxy(path), tmp_path / "cache")
    path.write_text("One short document.\n")
    with pytest.raises(
        ValueError, match=r"a\.txt: no text for (validation|training); one document in 20 .* are 1: give more, or"
    ):
        data.prepare(proxy(path), tmp_path / "cache")
    both = TrainingSettings(data=SplitData(train=str(path), validation=str(path)), sequence=32)
    with pytest.raises(ValueError, match=r"the train part has 21 tokens, a sequence of 32 needs at least 33"):
        data.prepare(both, tmp_path / "cache")
    assert data.prepare(both.model_copy(update={"sequence": 20}), tmp_path / "cache").vocab == 257


def test_bpe_round_trip_and_size(text: Path, tmp_path: Path) -> None:
    corpus = data.prepare(proxy(text, tokenizer="bpe:400"), tmp_path / "cache")
    tokenizer = load_tokenizer(corpus.tokenizer)
    assert corpus.vocab == tokenizer.vocab <= 400
    assert corpus.bytes_per_token > 2
    for sample in ("The 17th line says häuser", "never \x00 seen ☃ before\n", ""):
        (ids,) = tokenizer.encode([sample])
        assert tokenizer.decode(ids[:-1]) == sample
        assert tokenizer.decode(ids) == sample
        assert tokenizer.decode([ids[-1]]) == ""
    assert tokenizer.decode(tokenizer.encode(["a lone \ud800 surrogate"])[0]) == "a lone ? surrogate"
    direct = data.prepare(proxy(text, tokenizer=corpus.tokenizer), tmp_path / "cache")
    assert (direct.digest, direct.vocab) == (corpus.digest, corpus.vocab)


@given(st.text())
@settings(max_examples=50, deadline=None)
def test_byte_round_trip(text: str) -> None:
    tokenizer = ByteTokenizer()
    (ids,) = tokenizer.encode([text])
    assert ids[-1] == 256
    assert tokenizer.decode(ids) == text


def test_bad_tokenizers(text: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no/such\.json: No such file .*`tokenizer` is bytes"):
        data.prepare(proxy(text, tokenizer="no/such.json"), tmp_path / "cache")
    with pytest.raises(ValueError, match="/dev/zero: not a file; `tokenizer` is"):
        data.prepare(proxy(text, tokenizer="/dev/zero"), tmp_path / "cache")
    with pytest.raises(ValueError, match=r"text\.jsonl: not a tokenizer\.json"):
        data.prepare(proxy(text, tokenizer=str(text)), tmp_path / "cache")
    for name in ("bpe:", "bpe:12", "bpe:-300", "bpe:1e3", "bpe:²", "bpe:9999999999999"):
        with pytest.raises(ValueError, match="a number from 257 to 1048576"):
            proxy(text, tokenizer=name)


@given(st.integers(0, 2**63), st.integers(0, 2**40), st.integers(1, 8), st.integers(1, 30))
@settings(max_examples=50, deadline=None)
def test_batches_are_windows_and_pure(seed: int, step: int, size: int, sequence: int) -> None:
    shard = np.arange(1000, 1031, dtype=np.uint16)
    windows = data.batch(shard, seed, step, size, sequence)
    assert windows.dtype == np.int64
    assert windows.shape == (size, sequence + 1)
    assert (np.diff(windows) == 1).all()
    assert np.array_equal(windows, data.batch(shard, seed, step, size, sequence))


def test_batches_differ_and_reach_everything() -> None:
    shard = np.arange(40, dtype=np.uint16)
    batches = [data.batch(shard, seed, step, 8, 9) for seed in range(5) for step in range(20)]
    assert len({one.tobytes() for one in batches}) == len(batches)
    assert set(np.concatenate(batches)[:, 0]) == set(range(31))
    assert np.concatenate(batches).max() == 39
    # The stream is part of what a seed means: it must not change between versions.
    assert data.batch(shard, 1, 2, 6, 9)[:, 0].tolist() == [16, 16, 11, 19, 9, 25]


def test_validation_windows_cover_the_shard_once(text: Path, tmp_path: Path) -> None:
    corpus = data.prepare(proxy(text, validation_tokens=1000), tmp_path / "cache")
    shard = corpus.tokens("validation")
    windows = np.concatenate(list(data.validation_batches(corpus, 4, 32)))
    assert windows.shape == ((1000 - 1) // 32, 33)
    assert np.array_equal(windows[:, 1:].ravel(), shard[1 : 1 + windows[:, 1:].size])
    assert np.array_equal(windows, np.concatenate(list(data.validation_batches(corpus, 7, 32))))
    exact = np.concatenate(list(data.validation_batches(corpus, 4, 999)))
    assert exact.shape == (1, 1000)


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NFSEARCH_CACHE", "/some/where")
    assert cache.cache_dir() == Path("/some/where")
    monkeypatch.delenv("NFSEARCH_CACHE")
    assert cache.cache_dir() == Path("~/.cache/nfsearch").expanduser()

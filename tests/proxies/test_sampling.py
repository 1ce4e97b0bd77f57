"""All of the data is used: every file, every part of it, in proportion, and mixtures by their weights."""

from __future__ import annotations

import gzip
import json
import lzma
import random
import re
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfsearch.proxies import data, sampling
from nfsearch.proxies.data import Corpus
from nfsearch.proxies.readers import read, unpacked_size
from nfsearch.proxies.sampling import Sampler, sample, training_texts
from nfsearch.proxies.settings import TrainingSettings
from nfsearch.proxies.shards import _thinned
from nfsearch.proxies.sources import Input, Source, identity, open_data


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Samples are of as many tokens as settings say, not of 16.8 million."""
    monkeypatch.setattr(data, "_LEAST_READ", 1)
    monkeypatch.setenv("NFSEARCH_CACHE", str(tmp_path / "cache"))


def documents(letter: str, size: int, seed: int = 0, longest: int = 8000) -> list[str]:
    """Numbered documents of one letter, `size` characters in all; a line's number tells how far into them it is."""
    found, left, draw = [], size, random.Random(seed)
    while left > 0:
        length = min(left, max(40, int(longest * draw.random() ** 3)))
        places = [(size - left + at) * 1000 // size for at in range(0, length, 36)]
        found.append("".join(f"{letter}{place:03d} {letter * 10}{draw.randrange(10**20):020d}\n" for place in places))
        left -= len(found[-1])
    return found


def write(path: Path, texts: list[str]) -> None:
    """The documents as a file of the kind that its name says."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), path, row_group_size=50)
    elif path.suffix == ".txt":
        path.write_text("".join(texts))
    else:  # with much that is no text
        lines = "".join(json.dumps({"meta": "x" * (len(text) // 2), "text": text}) + "\n" for text in texts).encode()
        path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of four kinds with 2.4, 1.2, 0.8 and 0.4 million characters."""
    (tmp_path / "data" / "deep").mkdir(parents=True)
    names = {"a": "a.txt", "b": "b.jsonl", "c": "deep/c.parquet", "d": "deep/d.jsonl.gz"}
    for (letter, name), size in zip(names.items(), (2_400_000, 1_200_000, 800_000, 400_000), strict=True):
        write(tmp_path / "data" / name, documents(letter, size, seed=size))
    return tmp_path / "data"


def prepared(what: object, tokens: int = 2**20, **named: object) -> Corpus:
    settings = {"data": what, "tokens": tokens, "sequence": 64, "validation_tokens": 50_000, **named}
    return data.prepare(TrainingSettings.model_validate(settings))


def letters(corpus: Corpus, part: data.Part) -> dict[str, float]:
    """The share of each file, by the letter that it is made of."""
    counts = np.bincount(corpus.tokens(part), minlength=257)
    found = {letter: int(counts[ord(letter)]) for letter in "abcdefg" if counts[ord(letter)]}
    return {letter: count / sum(found.values()) for letter, count in found.items()}


def mostly(text: str) -> str:
    return max("abcd", key=text.count)


def test_a_folder_is_sampled_in_proportion(folder: Path) -> None:
    corpus = prepared(str(folder))
    assert (len(corpus.tokens("train")), len(corpus.tokens("validation"))) == (2**20, 50_000)
    shares = {"a": 1 / 2, "b": 1 / 4, "c": 1 / 6, "d": 1 / 12}
    assert letters(corpus, "train") == pytest.approx(shares, rel=0.02)
    assert letters(corpus, "validation") == pytest.approx(shares, abs=0.07)  # of a dozen pieces
    counted = {one.name: one.tokens / 2**20 for one in corpus.sources}
    assert counted == pytest.approx({"a.txt": 1 / 2, "b.jsonl": 1 / 4, "deep/": 1 / 4}, rel=0.02)
    assert all(one.different == one.tokens for one in corpus.sources)


def test_every_part_of_a_file_is_sampled_and_no_document_is_on_both_sides(folder: Path) -> None:
    corpus = prepared(str(folder))
    text = {part: "".join(map(chr, corpus.tokens(part) % 256)) for part in data.PARTS}
    lines = {part: re.findall(r"[abcd]\d{3} [abcd]{10}\d{20}", found) for part, found in text.items()}
    places = {part: Counter(line[:2] for line in found) for part, found in lines.items()}
    for letter in "abcd":
        tenths = [places["train"][f"{letter}{tenth}"] for tenth in range(10)]
        assert min(tenths) > 0.6 * max(tenths), letter
    assert sum(places["validation"][f"a{tenth}"] > 0 for tenth in range(10)) > 4
    assert not set(lines["train"]) & set(lines["validation"])


def test_the_same_sample_every_time(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = prepared(str(folder), tokens=2**18)
    monkeypatch.setenv("NFSEARCH_CACHE", str(tmp_path / "other cache"))
    again = prepared(str(folder), tokens=2**18)
    assert again.folder != first.folder
    assert again.digest == first.digest
    assert prepared(str(folder), tokens=2**17).digest != first.digest


def test_weights_are_shares_of_the_tokens(folder: Path) -> None:
    mixture = [
        {"path": str(folder / "a.txt"), "weight": 1},
        {"path": str(folder / "b.jsonl"), "weight": 2},
        {"path": str(folder / "deep"), "weight": 5},
    ]
    corpus = prepared(mixture)
    found = letters(corpus, "train")
    assert found == pytest.approx({"a": 1 / 8, "b": 2 / 8, "c": 5 / 8 * 2 / 3, "d": 5 / 8 / 3}, rel=0.02)
    found = letters(corpus, "validation")
    assert (found["a"], found["b"]) == pytest.approx((1 / 8, 2 / 8), rel=0.02)
    assert [(one.name, one.tokens) for one in corpus.sources] == [
        (str(folder / "deep"), 2**20 * 5 // 8),
        (str(folder / "b.jsonl"), 2**20 // 4),
        (str(folder / "a.txt"), 2**20 // 8),
    ]
    other = [{**mixture[0], "weight": 2}, *mixture[1:]]
    entries = [open_data(TrainingSettings.model_validate({"data": each}).data) for each in (mixture, other)]
    assert identity(entries[0]) != identity(entries[1])
    assert prepared(other).digest != corpus.digest


def test_a_source_too_small_for_its_share_is_repeated(folder: Path) -> None:
    write(folder / "few.jsonl", documents("e", 100_000, longest=2000))
    corpus = prepared([{"path": str(folder / "a.txt")}, {"path": str(folder / "few.jsonl"), "weight": 1}])
    assert letters(corpus, "train") == pytest.approx({"a": 1 / 2, "e": 1 / 2}, rel=0.02)
    few = next(one for one in corpus.sources if "few" in one.name)
    assert few.tokens == 2**19
    assert 90_000 < few.different < 100_000
    # Where all are small, the most plentiful one is used once.
    both = prepared([{"path": str(folder / "few.jsonl")}, {"path": str(folder / "deep" / "d.jsonl.gz"), "weight": 2}])
    plenty, scarce = both.sources
    assert plenty.tokens == plenty.different < 400_000
    assert scarce.tokens == pytest.approx(plenty.tokens / 2, abs=1)


def test_separate_data_may_be_mixtures(folder: Path) -> None:
    train = [{"path": str(folder / "a.txt")}, {"path": str(folder / "b.jsonl"), "weight": 3}]
    corpus = prepared({"train": train, "validation": str(folder / "deep")}, validation_tokens=100_000)
    assert letters(corpus, "train") == pytest.approx({"a": 1 / 4, "b": 3 / 4}, rel=0.02)
    assert letters(corpus, "validation") == pytest.approx({"c": 2 / 3, "d": 1 / 3}, abs=0.06)  # of 20 documents
    assert len(corpus.tokens("validation")) == 100_000


def test_all_is_taken_where_less_is_there_than_wanted(folder: Path) -> None:
    corpus = prepared(str(folder), tokens=2**23)
    assert len(corpus.tokens("train")) < 2**23
    assert letters(corpus, "train") == pytest.approx({"a": 1 / 2, "b": 1 / 4, "c": 1 / 6, "d": 1 / 12}, rel=0.05)
    assert (corpus.tokens("train") < 256).sum() == pytest.approx(0.95 * 4_800_000, rel=0.03)


def test_many_files_are_counted_together(tmp_path: Path) -> None:
    for number in range(30):
        write(tmp_path / f"{number:02d}.txt", documents("abc"[number % 3], 2000 + 100 * number))
    names = [one.name for one in prepared(str(tmp_path), validation_tokens=1000).sources]
    assert set(names) == {"19 other files", *(f"{number}.txt" for number in range(19, 30))}


def test_much_more_than_is_needed_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "a.txt", documents("a", 100_000))
    with (tmp_path / "data" / "huge.txt").open("wb") as stream:
        stream.truncate(2**40)  # a hole, which takes no space
    (source,) = [entry.source for entry in open_data(str(tmp_path / "data"))]
    read_at: list[float] = []

    def watched(one: Input) -> Input:
        def reader(goal: Callable[[], float]) -> Iterator[tuple[float, float, str]]:
            for document in one.read(goal):
                read_at.append(document[0])
                yield document

        return Input(one.label, reader, one.size, one.estimated, one.packed, one.key)

    samplers = {False: Sampler(2**20 / 2**40), True: Sampler(2**15 / 2**40)}
    list(sample(Source("", 0, tuple(map(watched, source.inputs))), samplers))
    assert len(read_at) < 3000
    assert max(read_at) > 0.99 * 2**40
    assert samplers[False].taken == pytest.approx(2**20, rel=0.02)


def test_a_large_compressed_file_is_sampled_near_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.jsonl.gz", documents("a", 4_000_000))
    write(tmp_path / "b.jsonl", documents("b", 4_000_000))
    monkeypatch.setattr(sampling, "_DEPTH", 4)
    corpus = prepared(str(tmp_path), tokens=2**18, validation_tokens=10_000)
    assert letters(corpus, "train") == pytest.approx({"a": 1 / 2, "b": 1 / 2}, rel=0.05)
    text = "".join(map(chr, corpus.tokens("train") % 256))
    deepest = {letter: max(map(int, re.findall(rf"\n{letter}(\d\d\d) ", text))) for letter in "ab"}
    assert deepest["a"] == pytest.approx(4 * 1000 * 2**18 / 8e6, rel=0.15)
    assert deepest["b"] > 980


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet", "a.jsonl.gz"])
def test_documents_are_the_same_wherever_a_file_is_entered(tmp_path: Path, name: str) -> None:
    texts = documents("ä", 100_000)
    texts[3] = "no line ends here, häuser " * 500
    write(tmp_path / name, texts)
    whole = list(read(tmp_path / name, lambda: 0.0))
    assert all(one[1] == other[0] for one, other in pairwise(whole))
    if "txt" in name:
        assert "".join(text for _, _, text in whole) == "".join(texts)
    else:
        assert [text for _, _, text in whole if text] == texts
    assert unpacked_size(tmp_path / name) == pytest.approx(whole[-1][1], rel=0.03)
    draw = random.Random(0)
    for _ in range(100):
        goal = draw.uniform(0, whole[-1][1])
        first = next(read(tmp_path / name, lambda goal=goal: goal))
        assert first[2] in {text for _, _, text in whole}
        assert first[1] > goal
        assert first[0] < goal + 2 * max(len(text) for text in texts)


def test_the_size_of_a_compressed_file_is_read_at_its_end(tmp_path: Path) -> None:
    text = "".join(documents("a", 1_500_000)).encode()
    for name, packed in (("a.txt.gz", gzip.compress(text, 1)), ("a.txt.xz", lzma.compress(text, preset=0))):
        (tmp_path / name).write_bytes(packed)
        assert unpacked_size(tmp_path / name) == len(text)
    (tmp_path / "two.txt.gz").write_bytes(gzip.compress(text, 1) + gzip.compress(text[:1000]))  # estimated
    assert unpacked_size(tmp_path / "two.txt.gz") == pytest.approx(len(text), rel=0.1)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=200), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_thinning_keeps_what_it_should_evenly(lengths: list[int], share: float) -> None:
    keep = int(share * sum(lengths))
    kept = _thinned(lengths, keep)
    assert sum(kept) == keep
    assert all(0 <= new <= old for new, old in zip(kept, lengths, strict=True))
    so_far = np.cumsum(kept) - np.cumsum(lengths) * keep / sum(lengths)
    assert abs(so_far).max() <= 2 * max(lengths)


def test_a_stream_of_the_hub_is_read_no_further_than_needed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: object, **__: object) -> Iterator[dict[str, str]]:
        for number in count():
            assert number < 5000
            yield {"text": f"{number} {'e' * 500}\n"}

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    mixture = [{"path": "hf:org/endless"}, {"path": str(folder / "a.txt")}]
    corpus = prepared(mixture, tokens=2**18, validation_tokens=10_000)
    assert letters(corpus, "train").keys() == {"a", "e"}
    assert [one.tokens for one in corpus.sources] == [2**17, 2**17]
    assert 0 <= sum(map(len, training_texts(open_data("hf:org/endless"), 100_000))) - 100_000 < 1000


def test_merges_are_learned_from_all_files(folder: Path) -> None:
    assert {mostly(text) for text in training_texts(open_data(str(folder)), 1_000_000)} == set("abcd")
    mixture = TrainingSettings.model_validate(
        {"data": [{"path": str(folder / "a.txt"), "weight": 3}, {"path": str(folder / "b.jsonl")}]}
    ).data
    sizes: Counter[str] = Counter()
    for text in training_texts(open_data(mixture), 400_000):
        sizes[mostly(text)] += len(text)
    assert sizes["a"] == pytest.approx(300_000, rel=0.06)
    assert sizes["b"] == pytest.approx(100_000, rel=0.06)

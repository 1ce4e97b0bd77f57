from __future__ import annotations

import pytest
import torch

from nfsearch.proxies.data import Corpus, prepare
from tests.proxies.small import SMALL


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("data")
    text = folder / "text.txt"
    text.write_text("".join(f"{i}: the quick brown fox jumps over {i % 9} lazy dogs.\n" for i in range(5000)))
    return prepare(SMALL.model_copy(update={"data": str(text)}), folder / "cache")

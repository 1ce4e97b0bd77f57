from __future__ import annotations

from pathlib import Path

import pytest

from nfsearch.result import RunResult
from tests.nfsearch.fake_run import make_result
from tests.nfsearch.runs import nfsearch, tiny_config


@pytest.fixture
def result() -> RunResult:
    return make_result()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny search that has run to its end; copy it before changing it."""
    folder = tmp_path_factory.mktemp("finished")
    nfsearch("run", tiny_config(folder), "--out", "run", cwd=folder)
    return folder / "run"

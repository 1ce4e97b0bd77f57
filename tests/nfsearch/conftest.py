from __future__ import annotations

import pytest

from nfsearch.result import RunResult
from tests.nfsearch.fake_run import make_result


@pytest.fixture
def result() -> RunResult:
    return make_result()

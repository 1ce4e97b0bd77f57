"""Six extensions as another package would write them, a file each: installed, held to the suites, used in a search."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def test_each_is_one_short_file() -> None:
    files = sorted((HERE / "acme").glob("acme_*.py"))
    assert len(files) == 6
    assert all(len(path.read_text().splitlines()) <= 60 for path in files)


@pytest.mark.slow
def test_each_passes_its_suite_and_a_search_uses_them_all(tmp_path: Path) -> None:
    """In one process in which the package is installed, away from its sources."""
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-deps"]
    subprocess.run([*pip, "--no-index", "--no-build-isolation", "--target", str(site), str(HERE / "acme")], check=True)
    pytest_command = [sys.executable, "-m", "pytest", "-rp", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    done = subprocess.run(
        [*pytest_command, str(HERE / "acme_cases.py")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{HERE.parents[1]}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    passed = set(re.findall(r"PASSED .*?::(\w+)", done.stdout))
    suites = {"TestAverage", "TestClimb", "TestAtStart", "TestCeiling", "TestJson", "TestThreads"}
    assert passed == {*suites, "test_a_search_uses_them_all"}

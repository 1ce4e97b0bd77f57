"""The command line itself, and what is said where a package is missing."""

import platform
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import nfsearch
from nfsearch import testing
from nfsearch.cli.main import app
from nfsearch.proxies.data import prepare
from nfsearch.proxies.settings import TrainingSettings

Command = Callable[..., tuple[str, str]]


def test_version(command: Command) -> None:
    assert command("--version") == (f"nfsearch {nfsearch.__version__}\n", "")


def test_the_shell_completes_commands(command: Command) -> None:
    assert "--install-completion" in command("--help")[0]
    asked = {"_NFSEARCH_COMPLETE": "complete_bash", "COMP_WORDS": "nfsearch lut e", "COMP_CWORD": "2"}
    assert CliRunner().invoke(app, env=asked, prog_name="nfsearch").stdout.split() == ["estimate"]


def test_other_systems_than_linux_are_refused(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert "nfsearch: this runs on Linux alone" in command("--version", status=2)[1]


@pytest.mark.parametrize(
    ("missing", "wanted", "message"),
    [
        ("pytest", lambda: testing.StrategySuite, "pip install pytest"),
        ("datasets", lambda: prepare(TrainingSettings(data="hf:any")), r"pip install '\.\[hf\]' in nfsearch's folder"),
    ],
)
def test_a_missing_package_is_named_with_what_brings_it(
    missing: str, wanted: Callable[[], object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NFSEARCH_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises((ImportError, ValueError), match=f"{missing}.*{message}"):
        wanted()

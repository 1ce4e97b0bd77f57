from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import pytest

from nfsearch.cli import doctor
from nfsearch.cli.main import main
from nfsearch.space import operators

LIGHT = """
import sys
sys.argv = ["nfsearch", "doctor"]
from nfsearch.cli import doctor
from nfsearch.cli.main import main
doctor.WIDTH = 128
try: main()
except SystemExit as end: status = end.code
print("loaded", *sorted({"ray", "optuna", "plotly", "transformers", "fla"} & set(sys.modules)))
sys.exit(status)
"""


def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: int = 0) -> str:
    monkeypatch.setattr(sys, "argv", ["nfsearch", "doctor"])
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capsys.readouterr()
    assert end.value.code == status, err
    return out


def line(text: str, start: str) -> str:
    return next(row for row in text.splitlines() if row.startswith(f"│ {start} "))


def test_every_operator_and_what_the_machine_has(tmp_path: Path) -> None:
    """Light: of what takes long to import, torch alone."""
    done = subprocess.run([sys.executable, "-c", LIGHT], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["loaded"]
    for name in ("python", "cores", "memory", "C compiler", "triton", "torch", "processor", *operators()):
        assert line(done.stdout, name)
    training, why, decoding, because = (cell.strip() for cell in line(done.stdout, "D").split("│")[2:6])
    assert training in ("triton", "torch")
    assert decoding in ("triton", "torch")
    assert why
    assert because


def test_an_operator_that_fails_hides_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "WIDTH", 128)
    monkeypatch.setattr("nfsearch.ops.deltanet.DeltaNet.__init__", lambda self, *rest, **sizes: 1 / 0)
    text = printed(monkeypatch, capsys)
    assert "ZeroDivisionError: division by zero" in line(text, "D")
    assert "its own forward" in line(text, "F")


def test_missing_extras_say_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"fla-core": None, "optuna-dashboard": "0.18"}
    monkeypatch.setattr(doctor, "installed", lambda package: found.get(package, "1.0"))
    monkeypatch.setattr(doctor, "WIDTH", 128)
    text = printed(monkeypatch, capsys)
    assert "fla-core missing" in line(text, "fla")
    assert "pip install '.[fla]'" in line(text, "fla")
    assert "optuna-dashboard 0.18" in line(text, "dashboard")
    assert "pip install" not in line(text, "dashboard")
    assert "Nothing will run" not in text


def test_a_missing_requirement_is_fatal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "installed", lambda package: None if package in ("ray", "triton") else "1.0")
    text = printed(monkeypatch, capsys, status=1)
    assert "Nothing will run: needed, but not installed: ray (pip install . in nfsearch's folder)" in text
    assert "not installed: no fused decode kernels" in line(text, "triton")


def test_a_broken_torch_is_fatal(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.13: cannot open [shared] object file')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "nfsearch", "doctor"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "torch cannot be imported: OSError: libcudart.so.13: cannot open [shared] object file" in done.stdout
    assert line(done.stdout, "python")


def test_every_extra_says_what_it_gives() -> None:
    assert doctor.GIVES.keys() == set(metadata("nfsearch").get_all("Provides-Extra") or [])
    assert doctor._requirements().keys() == {"", *doctor.GIVES}

"""The wheel holds all it needs, and the lines of README.md work with it, in a clone and away from it. The source
distribution holds the tests. A search in one process needs no Ray."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import yaml

import nfsearch
from tests.nfsearch.runs import invented_table
from tests.readme import README, ROOT, SPACE, Step, as_json, shortened, steps

FOLDERS = ("src/nfsearch", "space", "ops", "latency_lut", "proxies", "search")
NOT_IN_A_CLONE = (".*", "__pycache__", "build", "dist", "*.egg-info", "runs", "config.yaml")
LIGHT = "import sys; assert not {'ray', 'transformers'} & set(sys.modules)"
HERE = "import nfsearch, sys; assert nfsearch.__file__.startswith(sys.prefix), nfsearch.__file__"


@dataclasses.dataclass(frozen=True)
class Installed:
    """A clone, what was built in it, and an environment that has the wheel."""

    clone: Path
    built: Path
    said: str  # by the build
    python: Path


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    root = tmp_path_factory.mktemp("installed")
    clone, built = root / "clone", root / "built"
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(*NOT_IN_A_CLONE))
    built.mkdir()
    code = "from setuptools import build_meta as b; b.build_sdist({0!r}); b.build_wheel({0!r})".format(str(built))
    # `pip install .` leaves in the clone what this does.
    build = subprocess.run([sys.executable, "-c", code], cwd=clone, capture_output=True, text=True)
    assert build.returncode == 0, build.stderr
    venv.create(root / "env", with_pip=False)
    python = root / "env" / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(root / "env")}))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", str(python)]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", *built.glob("*.whl")], check=True)
    # The other packages come from here: a path in a .pth file is searched, its own .pth files (our checkout) are not.
    (site / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    return Installed(clone, built, build.stdout + build.stderr, python)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_both_distributions_hold_every_file_and_are_built_without_a_warning(installed: Installed) -> None:
    (wheel,) = installed.built.glob("nfsearch-*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    for folder in FOLDERS:
        package = f"nfsearch/{folder.removeprefix('src/nfsearch')}/".replace("//", "/")
        assert {package + file for file in files(installed.clone / folder)} <= held
    (source,) = installed.built.glob("nfsearch-*.tar.gz")
    with tarfile.open(source) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    made = re.compile(r"build/|nfsearch\.egg-info/|.*__pycache__/")
    assert {file for file in files(installed.clone) if not made.match(file)} <= held
    assert not [line for line in installed.said.splitlines() if re.search(r"warning(?!: .*byte-compiling)", line, re.I)]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["clone", "elsewhere"])
def test_every_line_of_the_readme_works(installed: Installed, place: str, tmp_path: Path, one_thread: None) -> None:
    """With a smaller space and shorter training, all in one process; in a clone, whose folders have the names of parts
    of the package, no table is timed once more."""
    folder = installed.clone if place == "clone" else tmp_path
    plan, code = tmp_path / "steps.json", (ROOT / "tests" / "readme" / "play.py").read_text()
    table = invented_table(tmp_path / "invented.parquet", SPACE)
    lines = [*shortened(steps(README.read_text(encoding="utf-8")), str(table))]
    if place == "clone":
        lines = [step for step in lines if "mine.parquet" not in step.text]
    plan.write_text(json.dumps([*map(as_json, checked(lines))]))
    done = subprocess.run(
        [installed.python, "-c", code, installed.clone, plan],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NFSEARCH_CACHE": str(installed.clone.parent / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for start in ([installed.python, "-m", "nfsearch"], [installed.python.parent / "nfsearch"]):
        assert subprocess.check_output([*start, "--version"], cwd=folder, text=True).split()[-1] == nfsearch.__version__
    config = yaml.safe_load((folder / "found" / "config.yaml").read_text())
    assert config["workers"] == {"executor": "local"}
    for name in ("report.html", "front.png", "front.csv", "candidates.csv", "result.json", "study.journal"):
        assert (folder / "found" / name).stat().st_size > 100


def checked(lines: Iterable[Step]) -> Iterator[Step]:
    yield Step(0, "python", HERE)
    for step in lines:
        yield step
        if step.text.startswith("nfsearch run "):
            yield Step(step.line, "python", LIGHT)


def test_the_version_is_the_same_everywhere() -> None:
    assert f'version = "{nfsearch.__version__}"\n' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == nfsearch.__version__

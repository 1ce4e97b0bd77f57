"""The wheel works away from the checkout, and a search in one process needs no Ray."""

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
FOLDERS = ("src/nfsearch", "space", "ops", "latency_lut", "proxies", "search")
TINY = [
    "latency.verify=0",
    "proxy.tokens=2048",
    "proxy.sequence=64",
    "proxy.batch=8",
    "proxy.validation_tokens=2048",
    "search.evaluations=3",
    "search.population=2",
    "search.tournament=2",
    "space.width=64",
    "space.where.mixer=D[head_dim=32]",  # a row of the table takes a third of a second
    "search.seeds_known=[]",
    "workers={executor: local}",
]
RUN = """
import sys
from nfsearch.cli.main import main
try: main()
finally: print("loaded", *sorted({"ray", "transformers"} & set(sys.modules)))
"""


@pytest.mark.slow
def test_the_wheel_installed_alone_runs_a_search_without_ray(tmp_path: Path) -> None:
    checkout, away = tmp_path / "checkout", tmp_path / "away"
    away.mkdir()
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, checkout / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(tmp_path), str(checkout)]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = tmp_path.glob("nfsearch-*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("nfsearch/")}
    for folder in FOLDERS:
        files = [path.relative_to(checkout / folder) for path in (checkout / folder).rglob("*") if path.is_file()]
        assert {f"nfsearch/{folder.removeprefix('src/nfsearch')}/{path}".replace("//", "/") for path in files} <= held
    shutil.rmtree(checkout)

    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "env")}))
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)], check=True)
    # The other packages come from here: a path in a .pth file is searched, its own .pth files (our checkout) are not.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def run(*command: str) -> str:
        done = subprocess.run(
            [str(site.parents[2] / "bin" / command[0]), *command[1:]], cwd=away, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    tables = "import nfsearch.latency_lut.bundled as b; print(b.__file__, [path.name for path in b.folder().iterdir()])"
    assert str(tmp_path) in (out := run("python", "-c", tables))
    assert "README.md" in out
    run("nfsearch", "init")
    sets = [argument for value in TINY for argument in ("--set", value)]
    out = run("python", "-c", RUN, "run", "config.yaml", "--out", "found", *sets)
    assert "Pareto front" in out
    assert out.splitlines()[-1].split() == ["loaded"]
    config = yaml.safe_load((away / "found" / "config.yaml").read_text())
    assert config["workers"] == {"executor": "local"}  # the section was replaced, which had keys of the other executor
    for name in ("report.html", "front.png", "front.csv", "candidates.csv", "result.json", "study.journal"):
        assert (away / "found" / name).stat().st_size > 100

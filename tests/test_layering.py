"""Imports point one way: nfsearch -> search -> proxies, latency_lut -> ops -> space -> nfsearch.support.

No files import one another in a circle.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SUPPORT = "src/nfsearch/support"
FOLDERS = ("space", "ops", "latency_lut", "proxies", "search")
MAY_IMPORT = {
    SUPPORT: set(),
    "space": {SUPPORT},
    "ops": {SUPPORT, "space"},
    "latency_lut": {SUPPORT, "space", "ops"},
    "proxies": {SUPPORT, "space", "ops"},
    "search": {SUPPORT, "space", "ops", "latency_lut", "proxies"},
    "src/nfsearch": {SUPPORT, *FOLDERS},
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_point_one_way(folder: str) -> None:
    allowed = {folder, *MAY_IMPORT[folder]}
    for path in (ROOT / folder).rglob("*.py"):
        for name in imports(path):
            assert name.split(".")[0] not in FOLDERS, f"{path} imports {name} without its package"
            if name.startswith("nfsearch."):
                part = name.split(".")[1]
                part = part if part in FOLDERS else SUPPORT if part == "support" else "src/nfsearch"
                assert part in allowed, f"{path} imports {name}"


@cache
def files() -> Mapping[str, Path]:
    """Every file of the project by the name that it is imported under; a package's `__init__.py` by the package's."""
    found = {}
    for folder in ("src/nfsearch", *FOLDERS):
        top = "nfsearch" if folder == "src/nfsearch" else f"nfsearch.{folder}"
        for path in (ROOT / folder).rglob("*.py"):
            inner = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((top, *inner)).removesuffix(".__init__")] = path
    return found


@cache
def graph() -> Mapping[str, frozenset[str]]:
    """Which files each imports: wherever the import is, and though it is for types only. A package's `__init__.py`
    counts where a name is imported from the package itself."""

    def file_of(name: str) -> str | None:
        return name if name in files() else name.rpartition(".")[0]

    return {
        module: frozenset(file for name in imports(path) if (file := file_of(name)) in files() and file != module)
        for module, path in files().items()
    }


def reached(module: str) -> Mapping[str, list[str]]:
    """What a file imports, directly or not, each with the shortest way there."""
    ways: dict[str, list[str]] = {}
    todo = [[module]]
    for way in todo:
        for other in sorted(graph()[way[-1]]):
            if other not in ways:
                ways[other] = [*way, other]
                todo.append(ways[other])
    return ways


@pytest.mark.parametrize("folder", ["src/nfsearch", *FOLDERS])
def test_no_files_import_one_another_in_a_circle(folder: str) -> None:
    inside = (module for module, path in files().items() if path.is_relative_to(ROOT / folder))
    ways = (reached(module).get(module) for module in inside)
    circles = {frozenset(way): " -> ".join(way) for way in ways if way}
    assert not circles, "\n".join(circles.values())


def test_space_knows_no_torch() -> None:
    for path in (ROOT / "space").rglob("*.py"):
        assert not {name.split(".")[0] for name in imports(path)} & {"torch", "numpy", "ray", "optuna"}, path


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import nfsearch", {"torch", "ray", "optuna", "pandas", "pydantic"}),
        ("import nfsearch.cli.main", {"torch", "ray", "optuna", "pandas", "pydantic", "numpy"}),
        ("import nfsearch.space", {"torch", "ray", "optuna", "pandas", "numpy"}),
        (
            "from nfsearch.space import SearchSpace, parse\n"
            "assert SearchSpace(parse('(fla:HGRN2Attention[expand_ratio=32|64] F){1..3}'), (64, 96)).count() == 12",
            {"torch", "fla"},
        ),
        (
            "from nfsearch.space import SpaceSettings\n"
            "space = SpaceSettings(width=64, layers='A[head_dim=32,rope=0|1]{1..3}', serves='nemotron_h').build(9)\n"
            "assert space.count() == 3",
            {"torch", "transformers"},
        ),
        (
            "from nfsearch.space import SpaceSettings\n"
            "space = SpaceSettings(width=64, layers='C{1..3} fla:HGRN2Attention{0..1}', serves='torchtitan').build(9)\n"
            "found = {space.refusal(member.architecture)[:29] for member in space.enumerate()}\n"
            "assert found == {'', 'layer 1 is fla:HGRN2Attention', 'layer 2 is fla:HGRN2Attention', "
            "'layer 3 is fla:HGRN2Attention'}",
            {"torch", "fla"},
        ),
        ("import nfsearch.run.config, nfsearch.latency_lut, nfsearch.proxies, nfsearch.search", {"torch", "ray"}),
    ],
)
def test_light_imports_stay_light(code: str, absent: set[str], tmp_path: Path) -> None:
    check = f"{code}\nimport sys\nprint(*({absent!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_help_loads_no_torch_and_no_ray(tmp_path: Path) -> None:
    check = (
        "import sys\nsys.argv = ['nfsearch', '--help']\nfrom nfsearch.cli.main import main\n"
        "try: main()\nexcept SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'ray', 'optuna', 'pandas'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "Search: measure latencies" in done.stdout

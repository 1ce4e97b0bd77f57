"""Extensions are found by name, whoever brings them."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from nfsearch.support.registry import Registry

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a package with these entry points of the group `nfsearch.shapes`."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(package: str, **entries: str) -> None:
        folder = tmp_path / f"{package}-1.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
        lines = [f"{name} = {value}" for name, value in entries.items()]
        (folder / "entry_points.txt").write_text("\n".join(["[nfsearch.shapes]", *lines]))

    return install


def shapes() -> Registry[object]:
    return Registry("nfsearch.shapes", "shape")


def test_extensions_of_all_packages_are_found(install: Install) -> None:
    install("one", square="math:floor", circle="math:ceil")
    install("other", line="math:pi")
    assert shapes().names == ["circle", "line", "square"]
    assert shapes().find("line") == pytest.approx(3.14159, abs=1e-5)
    assert list(shapes().all()) == ["circle", "line", "square"]
    with pytest.raises(ValueError, match="unknown shape 'squre', did you mean square"):
        shapes().find("squre")


def test_a_broken_extension_is_named_when_it_is_loaded(install: Install) -> None:
    install("one", square="math:floor", broken="math:nothing")
    assert shapes().find("square")
    for load in (shapes().all, lambda: shapes().find("broken")):
        with pytest.raises(ValueError, match=r"shape broken \(math:nothing\) cannot be imported: AttributeError"):
            load()


def test_a_name_belongs_to_one_extension(install: Install) -> None:
    install("one", square="math:floor")
    install("other", square="math:ceil")
    with pytest.raises(ValueError, match=re.escape("shape square is defined twice, by math:ceil and math:floor")):
        shapes().find("square")


def test_a_stale_installation_is_told() -> None:
    with pytest.raises(ValueError, match=r"no shape is registered .* nfsearch\.shapes: install nfsearch again"):
        shapes().find("square")

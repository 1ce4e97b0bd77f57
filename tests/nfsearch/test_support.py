"""Extensions are found by name, whoever brings them; units and metrics say how figures are read; notes are heard."""

import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from nfsearch.support.metrics import BYTES, COUNT, JOULES, NATS, NUMBER, SECONDS, Metric, Unit
from nfsearch.support.notes import listening, note
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


@pytest.mark.parametrize(
    ("unit", "digits", "texts"),
    [
        (COUNT, 3, {999: "0.000999", 12_345_678: "12.3", 965_400_000: "965", 2.75e9: "2,750"}),
        (SECONDS, 3, {1.234e-6: "0.00123", 1.234e-3: "1.23", 0.1234: "123", 12.345: "12,345"}),
        (SECONDS, 3, {0: "0", 3.21e-8: "0.0000321", 0.9999: "1,000"}),
        (SECONDS, 4, {1.2345e-3: "1.234", 12.345: "12,345", 1e-9: "0.000001000"}),
        (BYTES, 3, {16e9: "16", 2.5e6: "0.0025"}),
        (JOULES, 4, {0.0123456: "12.35"}),
        (NATS, 4, {2: "2.0000", 1.23456: "1.2346"}),
        (NUMBER, 4, {1.23456: "1.235", -1.5: "-1.5"}),
    ],
)
def test_figures_are_read_without_exponents(unit: Unit, digits: int, texts: dict[float, str]) -> None:
    assert {value: unit.text(value, digits) for value in texts} == texts


def test_figures_are_told_with_their_unit() -> None:
    assert SECONDS.words(0.00123) == "1.23 ms"
    assert COUNT.words(965.4e6) == "965.4 M"
    assert BYTES.words(16e9, 3) == "16 GB"
    assert NATS.words(2.1) == "2.1000 nats"
    assert NUMBER.words(1.5) == "1.5"


@pytest.mark.parametrize(
    ("metric", "label", "column"),
    [
        (Metric("tpot", SECONDS), "tpot (ms)", "tpot_ms"),
        (Metric("memory", BYTES), "memory (GB)", "memory_gb"),
        (Metric("parameters", COUNT), "parameters (M)", "parameters_m"),
        (Metric("tpot_energy", JOULES), "tpot_energy (mJ)", "tpot_energy_mj"),
        (Metric("loss", NATS), "loss (nats)", "loss"),
        (Metric("bits_per_byte"), "bits_per_byte", "bits_per_byte"),
    ],
)
def test_axes_and_columns_carry_the_unit(metric: Metric, label: str, column: str) -> None:
    """A column is called as a limit on what is in it."""
    assert (metric.label, metric.column) == (label, column)
    unit = column.removeprefix(metric.name).removeprefix("_")
    assert metric.limit(1, unit) * metric.unit.scale == pytest.approx(1)


def test_a_limit_is_given_in_any_unit_of_its_metric() -> None:
    time = Metric("story", SECONDS, tokens=8)
    assert time.limit_units == ("us", "ms", "s", "tokens_per_s")
    assert [time.limit(2, unit) for unit in time.limit_units] == [2e-6, 2e-3, 2, 4]  # a rate is a time from above
    assert Metric("tpot", SECONDS).limit_units == ("us", "ms", "s")
    assert [Metric("memory", BYTES).limit(3, unit) for unit in ("mb", "gb")] == [3e6, 3e9]
    assert [Metric("parameters", COUNT).limit(3, unit) for unit in ("", "m", "b")] == [3, 3e6, 3e9]
    assert [Metric("energy", JOULES).limit(3, unit) for unit in ("mj", "j")] == [3e-3, 3]
    assert Metric("loss", NATS).limit(2.5, "") == 2.5


def test_notes_are_heard_by_all_who_listen_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    said = "a kernel of this test was refused"
    with caplog.at_level(logging.WARNING), listening() as outer:
        for _ in range(2):
            with listening() as inner:
                note(said)
                note(said)
            assert list(inner) == [said]
    note("nobody listens to this")
    assert list(outer) == [said]
    assert caplog.messages.count(said) == 1


def test_a_listener_that_leaves_takes_no_other_with_it() -> None:
    """In two threads the one that came first may leave first."""
    first, second = listening(), listening()
    heard = [first.__enter__(), second.__enter__()]
    second.__exit__(None, None, None)
    note("the second has left")
    first.__exit__(None, None, None)
    assert [list(each) for each in heard] == [["the second has left"], []]

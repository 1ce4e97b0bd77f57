"""The configs under experiments/ say what they claim to."""

import importlib
from pathlib import Path

import pytest

from nfsearch.cli.describe import check_member, read_space
from nfsearch.export import load_architecture
from nfsearch.latency_lut import keys_for, load_table
from nfsearch.latency_lut.bundled import bundled_table
from nfsearch.run.config import Config, load_config
from nfsearch.run.yaml_file import read_yaml
from nfsearch.space.notation import parse_layers
from nfsearch.studies.config import load_study
from tests.latency_lut.helpers import made_up_row, made_up_table

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
LATENCY_WINNER = "(D F M2 F A F M2 F){2} (D F M2 F){2}"
PARAMETER_WINNER = "(M2 F A F A F D){3} M2 F A F D F F"


def config_of(path: Path) -> Config:
    """That of a run, or of a study's trainings."""
    return load_study(path).run if "study" in read_yaml(path).values else load_config(path)[0]


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*/config.yaml")), ids=lambda path: path.parent.name)
def test_every_config_is_valid(path: Path) -> None:
    config_of(path)


@pytest.mark.parametrize(("name", "millions"), [("1b", 965.4), ("3b", 2750.0)])
def test_nemotron_flash_has_its_published_size(name: str, millions: float) -> None:
    architecture = load_architecture(EXPERIMENTS / "nemotron_flash" / f"{name}.yaml")
    assert round(architecture.parameters / 1e6, 1) == millions
    assert architecture.head_norm


def test_both_published_winners_are_members_of_the_published_space_only() -> None:
    published, literal = (
        load_config(EXPERIMENTS / name / "config.yaml")[0].space.build(131072)
        for name in ("published_space", "paper_space")
    )
    for winner in (LATENCY_WINNER, PARAMETER_WINNER):
        layers = parse_layers(winner)
        answers = published.locate_layers(layers)
        assert answers is not None
        assert published.build({"width": 2048, **answers}).architecture.layers == layers
        windowed = parse_layers(winner.replace("A", "A[window=512]"))
        assert literal.locate_layers(windowed) is None  # the paper's own template does not reach its winners


def test_the_size_of_the_papers_space() -> None:
    space = load_config(EXPERIMENTS / "paper_space" / "config.yaml")[0].space.build(131072)
    assert space.count() == 351_298_031_616 == (28 * 252) ** 3
    assert space.count_within_depth() == 345_149_910


def test_what_the_check_of_a_member_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("space: {width: [128, 256], layers: '(D | A)*{1..3}', limits: {required: [A], params: 200k}}")
    space = read_space(str(path))
    assert space.vocab == 257
    answers = {
        "A D": (0, "a member: A D @ 128\n"),
        "D D": (1, "not a member: D D breaks limits.required (no A)\n"),
        "A D A": (1, "not a member: A D A breaks limits.params"),
        "A F": (1, "not a member: layer 2 is F, and the space has no F\n"),
        "A[window=8]": (1, "not a member: layer 1 is A[window=8], and the space has A\n"),
        "A A A A": (1, "not a member: no choices lead to A{4}\n"),
    }
    for notation, (status, text) in answers.items():
        assert check_member(space, notation) == status
        assert capsys.readouterr().out.startswith(text)


@pytest.mark.parametrize(
    ("name", "vocab"),
    [
        ("h200_table", 131072),
        ("equal_latency", 131072),
        ("fidelity", 32000),
        ("laptop_for_h200", 131072),
        ("paper_space", 32000),
        ("published_space", 32000),
    ],
)
def test_the_table_that_is_shipped_serves_the_experiments(name: str, vocab: int) -> None:
    """A change of an operator's code makes its rows useless: measure them anew, as experiments/h200_table says."""
    table = load_table(bundled_table("nvidia-h200"), "nvidia-h200")
    config = config_of(EXPERIMENTS / name / "config.yaml")
    table.require(keys_for(config.space.build(vocab), config.latency.workloads, "bfloat16"))


def test_equal_latency_finds_the_width_and_size_of_each_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """With times that are the bytes of the weights, equal time is equal size but for the embedding."""
    folder = EXPERIMENTS / "equal_latency"
    monkeypatch.syspath_prepend(str(folder))
    compare = importlib.import_module("compare")
    config, _ = load_config(folder / "config.yaml")
    space = config.space.build(257)
    table = made_up_table([])
    for key in keys_for(space, config.latency.workloads, "bfloat16"):
        weights = 0 if key.is_end else parse_layers(key.block)[0].cost(key.width).parameters
        table.add(made_up_row(key, 1e-9 * weights + 1e-9))
    for kind, (layers, *_) in compare.KINDS.items():
        assert space.locate_layers(parse_layers(layers)) is not None, kind
    lines = compare.report(config, table).splitlines()
    cells = {line.split("|")[1].strip(): line.split("|")[2:] for line in lines if line.startswith("| ")}
    assert set(cells) == {"24 operators", *compare.KINDS}
    width, size, share, *_ = cells["searched"]
    assert (width.strip(), size.strip(), share.strip()) == ("2048", "965", "100%")
    for kind, (width, _, share, *_) in list(cells.items())[1:]:
        assert 1024 < float(width) < 2560, kind
        assert 90 <= int(share.strip().rstrip("%")) <= 110, kind

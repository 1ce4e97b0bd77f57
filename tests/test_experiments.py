"""The configs under experiments/ say what they claim to."""

from pathlib import Path

import pytest

from nfsearch.config import load_config
from nfsearch.describe import check_member, read_space
from nfsearch.export import load_architecture
from nfsearch.space.notation import parse_layers

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
LATENCY_WINNER = "(D F M2 F A F M2 F){2} (D F M2 F){2}"
PARAMETER_WINNER = "(M2 F A F A F D){3} M2 F A F D F F"


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*/config.yaml")), ids=lambda path: path.parent.name)
def test_every_config_is_valid(path: Path) -> None:
    load_config(path)


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
        "D D": (1, "not a member: D D breaks limits.required"),
        "A D A": (1, "not a member: A D A breaks limits.params"),
        "F": (1, "not a member: no answers lead to F"),
    }
    for notation, (status, text) in answers.items():
        assert check_member(space, notation) == status
        assert capsys.readouterr().out.startswith(text)

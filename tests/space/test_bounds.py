"""Expressions that are small and stand for much: answered at once, or refused with what is too much."""

from __future__ import annotations

import random
import sys
import time

import pytest

from nfsearch.cli.describe import describe_space, read_space
from nfsearch.cli.main import main
from nfsearch.space.notation import parse_layers

DOUBLED = "n0; n27 = D{0..1}; " + "; ".join(f"n{i} = n{i + 1} n{i + 1}" for i in range(27))
EMPTY = "D n0; n27 = (); " + "; ".join(f"n{i} = n{i + 1} n{i + 1}" for i in range(27))
CHAIN = "n0; n1500 = D; " + "; ".join(f"n{i} = n{i + 1}" for i in range(1500))
RING = "n0; n1500 = n0; " + "; ".join(f"n{i} = n{i + 1}" for i in range(1500))
NESTED = f"{'(' * 40}n0{' | F){1..2} D' * 40}; n0 = {'(' * 40}D{' | F){1..2} D' * 40}"
MANY = (
    "A[" + ",".join(f"{name}={'|'.join(map(str, range(1, 31)))}" for name in ("window", "kv_heads", "rope_base")) + "]"
)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        (DOUBLED, f"the space has members of {2**27} layers; 2000 is the most"),
        (EMPTY, "the space has members of more than 20,000 parts, those that are () counted"),
        (CHAIN, "'n1350' has more than 150 expressions in one another"),
        (RING, "'n1500' is defined through itself: n1500 -> n0 -> n1 -> n2"),
        (NESTED, "there are more than 150 expressions in one another"),
        (
            MANY,
            "the space has more than 20,000 different layers, counting every combination of settings at every width",
        ),
    ],
    ids=["doubled", "empty", "chain", "ring", "nested", "settings"],
)
def test_what_is_too_much_is_refused(expression: str, message: str) -> None:
    with pytest.raises(ValueError) as said:  # noqa: PT011  (the text is compared)
        read_space(expression)
    assert message in str(said.value)


def test_names_of_names_are_counted_once() -> None:
    doubled = "n0; n10 = D{0..1}; " + "; ".join(f"n{i} = n{i + 1} n{i + 1}" for i in range(10))
    space = read_space(doubled)
    assert space.count() == 2**1024
    assert len(space.alphabet()) == 1
    began = time.process_time()
    either = "n0; n27 = D; " + "; ".join(f"n{i} = n{i + 1} | F n{i + 1}" for i in range(27))
    assert read_space(either).count() == 2**27
    assert time.process_time() - began < 10  # a moment; to follow each name anew would take minutes


def test_membership_of_hundreds_of_layers_is_found_in_time() -> None:
    began = time.process_time()
    space = read_space("(D{0..1} F{0..1})*{1..400}")
    answers = space.locate_layers(parse_layers("(D F){250} D"))
    assert answers is not None
    assert str(space.build(answers).architecture) == "D (F D){250} @ 1024"
    assert space.locate_layers(parse_layers("(D F){250} A")) is None
    assert time.process_time() - began < 10  # below one; it was minutes


def test_more_than_a_file_name_may_have_is_an_expression() -> None:
    assert len(read_space("D " * 200).sample(random.Random(0)).architecture.layers) == 200


def test_a_count_of_thousands_of_digits_is_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expression = "A[window=" + "|".join(map(str, range(1, 1001))) + "]*{1500}"
    describe_space(read_space(expression))
    assert f"choices      1{',000' * 1500} combinations" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["nfsearch", "space", "--count", expression])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().out == f"1{'0' * 4500}\n"


def test_an_expression_has_the_nearest_width_that_fits_all_its_operators() -> None:
    assert read_space("A F").widths == (1024,)
    assert read_space("A[head_dim=96] D[head_dim=48] F").widths == (1056,)
    with pytest.raises(ValueError, match=r"width 1024 is not a multiple of head_dim 10000"):
        read_space("A[head_dim=10000]")

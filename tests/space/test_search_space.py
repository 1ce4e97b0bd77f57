import hashlib
import random
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nfsearch.space import Architecture, Layer, Limits, Member, Question, SearchSpace, SpaceSettings, Unreachable
from nfsearch.space.notation import Node, parse
from tests.space.strategies import closed_nodes

STAGE = "(unit{1..4}){1..4}"
RICH = SpaceSettings(
    width=(128, 256, 384),
    layers=f"{STAGE} {STAGE} (D | M2 | A[window=64|none] F){{0..3}}",
    where={"mixer": "D | M2 | A[window=64]", "unit": "mixer F{0..2} (F | ())"},
    limits=Limits(layers=16, kinds_per_stage=2, params=3_000_000, required=("M2",)),
    meta_tokens=(0, 4),
).build(vocab=300)


def within_limits(member: Member, limits: Limits) -> bool:
    """The limits, written out once more."""
    architecture = member.architecture
    kinds = [{layer.op for layer in stage if layer.op != "F"} for stage in member.stage_layers()]
    return (
        0 < len(architecture.layers) <= (limits.layers or 1000)
        and architecture.parameters <= (limits.params or 10**15)
        and all(len(kind) <= (limits.kinds_per_stage or 99) for kind in kinds)
        and set(limits.required) <= {layer.op for layer in architecture.layers}
    )


@given(closed_nodes)
@settings(max_examples=200, deadline=None)
def test_the_count_is_the_number_enumerated(node: Node) -> None:
    space = SearchSpace(node, widths=(1024,), vocab=10)
    assume(space.count() <= 500)
    members = list(space.enumerate())
    assert len(members) == space.count()
    assert len({tuple(member.answers.items()) for member in members}) == len(members)
    by_depth = [len(member.architecture.layers) for member in members]
    assert {depth: by_depth.count(depth) for depth in set(by_depth)} == space.count_by_depth()


@given(closed_nodes, st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_every_member_is_located_and_replays(node: Node, seed: int) -> None:
    space = SearchSpace(node, widths=(1024, 2048), vocab=10, meta_tokens=(0, 3))
    try:
        member = space.sample(random.Random(seed))
    except Unreachable:
        return
    assert space.build(member.answers) == member
    answers = space.locate(member.architecture)
    assert answers is not None
    assert space.build(answers).architecture == member.architecture


@given(closed_nodes)
@settings(max_examples=100, deadline=None)
def test_membership_is_what_enumeration_finds(node: Node) -> None:
    space = SearchSpace(node, widths=(1024,), vocab=10)
    assume(space.count() <= 200)
    members = {member.architecture.layers for member in space.enumerate()}
    for layers in list(members)[:20]:
        for changed in (layers, layers[1:], (*layers, Layer("F")), layers[::-1]):
            assert (space.locate_layers(changed) is not None) == (changed in members)


def test_sampling_is_seeded_and_holds_the_limits() -> None:
    members = [RICH.sample(random.Random(7)) for _ in range(2)]
    assert members[0] == members[1]
    rng = random.Random(1)
    samples = [RICH.sample(rng) for _ in range(300)]
    assert all(within_limits(member, RICH.limits) for member in samples)
    assert {member.architecture.width for member in samples} == {128, 256, 384}


@pytest.mark.slow
def test_thousands_of_mutations_and_crossovers_stay_inside() -> None:
    rng = random.Random(0)
    parents = [RICH.sample(rng) for _ in range(50)]
    kinds = set()
    for _ in range(3_000):
        parent, other = rng.choice(parents), rng.choice(parents)
        child, kind = RICH.mutate(parent.answers, rng)
        crossed = RICH.cross(parent.answers, other.answers, rng)
        kinds.add(kind)
        assert child.architecture != parent.architecture
        for member in (child, crossed):
            assert within_limits(member, RICH.limits)
            assert RICH.build(member.answers) == member
        parents[rng.randrange(50)] = child
    assert kinds == {"operator", "ratio", "ffn", "blocks", "pattern", "setting", "width", "meta_tokens"}
    assert all(RICH.locate(parent.architecture) for parent in parents)


def test_mutation_changes_one_answer() -> None:
    space = SpaceSettings(width=128, layers="(D | M2){1..9} (F | A){1..9}").build(vocab=10)
    rng = random.Random(0)
    for _ in range(100):
        parent = space.sample(rng)
        child, _ = space.mutate(parent.answers, rng)
        assert sum(parent.answers[name] != child.answers[name] for name in parent.answers) == 1


def test_crossover_takes_every_answer_from_a_parent() -> None:
    space = SpaceSettings(width=(128, 256, 512), layers="(D | M2){1..9} (F | A){1..9}").build(vocab=10)
    rng = random.Random(0)
    seen = set()
    for _ in range(100):
        one, other = space.sample(rng), space.sample(rng)
        child = space.cross(one.answers, other.answers, rng)
        sources = [(child.answers[n] == one.answers[n], child.answers[n] == other.answers[n]) for n in child.answers]
        assert all(any(source) for source in sources)
        seen |= set(sources)
    assert {(True, False), (False, True)} <= seen


def test_repair_takes_blocks_from_the_last_stage() -> None:
    space = SpaceSettings(width=128, layers="(D F){3} (M2 F){1..5}", limits=Limits(layers=10)).build(vocab=10)
    assert {space.sample(random.Random(seed)).architecture.notation for seed in range(40)} == {
        "(D F){3} M2 F",
        "(D F){3} (M2 F){2}",
    }


def test_an_impossible_limit_ends_with_its_name() -> None:
    space = SpaceSettings(width=128, layers="D{4} F", limits=Limits(layers=3)).build(vocab=10)
    with pytest.raises(Unreachable, match="in 200 tries: layers 200 times"):
        space.sample(random.Random(0))
    with pytest.raises(Unreachable, match="nothing can be mutated"):
        SpaceSettings(width=128, layers="D F").build(vocab=10).mutate({}, random.Random(0))


def test_the_widest_that_fits() -> None:
    space = SpaceSettings(width={"fit": "latency", "from": [128, 256, 512]}, layers="(D F){1..4}").build(vocab=10)
    assert space.count() == 4

    def fits(architecture: Architecture) -> bool:
        return architecture.parameters < 1_000_000

    members = [space.sample(random.Random(seed), fits) for seed in range(40)]
    for member in members:
        wider = [w for w in space.widths if w > member.architecture.width]
        assert fits(member.architecture) or member.architecture.width == 128
        assert not any(fits(Architecture(w, member.architecture.layers, 10)) for w in wider)
    assert {member.architecture.width for member in members} == {128, 256}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(width=100, layers="A"), "width 100 is not a multiple of head_dim 128"),
        (dict(width=128, layers="D{1900} F{900}"), "members of 2800 layers"),
        (dict(width=128, layers="D F", limits={"required": ["A"]}), "limits.required names A"),
        (dict(width=128, layers="D F", limits={"required": ["Q"]}), "unknown operator 'Q'"),
        (dict(width=[], layers="D"), "expected whole numbers from 1 to 1,048,576"),
        (dict(width=[64, 64], layers="D"), "is listed twice"),
        (dict(width=128, layers="mx F", where={"mixer": "D"}), "'mx' is neither.*did you mean mixer"),
    ],
)
def test_bad_spaces_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpaceSettings(**fields)


def test_answers_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="no answer to meta_tokens"):
        RICH.build({})
    with pytest.raises(ValueError, match=r"width: 100 is none of 128, 256, 384"):
        RICH.build({"meta_tokens": 0, "width": 100})


def test_space_needs_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, nfsearch.space; assert not {'torch', 'ray', 'optuna', 'pandas'} & set(sys.modules), sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path.home())


def test_layers_of_another_library_are_searched_like_others() -> None:
    space = SearchSpace(parse("(fla:HGRN2Attention[expand_ratio=32|none] | D[head_dim=8]){1..2}"), (64,))
    members = list(space.enumerate())
    assert len(members) == space.count() == 6
    for member in members:
        answers = space.locate(member.architecture)
        assert answers is not None
        assert space.build(answers).architecture == member.architecture


def test_anything_can_answer() -> None:
    asked = []

    def last(question: Question) -> Any:
        asked.append(question)
        return question.options[-1]

    space = SpaceSettings(width=(128, 256), layers="(D | M2){1..3} F[ratio=2|4]", meta_tokens=(0, 4)).build(vocab=300)
    member = space.build_with(last)
    assert str(member.architecture) == "M2{3} F[ratio=4] @ 256"
    assert member.architecture.meta_tokens == 4
    assert tuple(asked) == member.questions
    assert member.answers == {question.name: question.options[-1] for question in asked}

    trial = optuna.create_study().ask()
    suggested = space.build_with(lambda question: trial.suggest_categorical(question.name, question.options))
    assert suggested.answers == trial.params
    assert space.build(trial.params) == suggested

    with pytest.raises(ValueError, match=r"meta_tokens: 'many' is none of 0, 4"):
        space.build_with(lambda question: "many")


def test_the_same_seed_gives_the_same_members() -> None:
    """A run can be repeated only while nobody changes how often the generator is asked; these are what it gave before
    anything but a generator could answer."""
    rng, digest = random.Random(0), hashlib.sha256()
    before = RICH.sample(rng)
    for _ in range(100):
        member = RICH.sample(rng)
        mutant, kind = RICH.mutate(member.answers, rng)
        child = RICH.cross(mutant.answers, before.answers, rng)
        digest.update(f"{member.answers} {mutant.answers} {kind} {child.answers} {child.architecture}\n".encode())
        before = child
    assert digest.hexdigest()[:16] == "0012be604d1a18eb"

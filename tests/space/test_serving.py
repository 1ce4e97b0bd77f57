"""Spaces kept to what a family of models can express."""

import random
from typing import Any

import pytest

from nfsearch.space import Architecture, Layer, SearchSpace, SpaceSettings, Unreachable
from nfsearch.space.family import Expressed, Family, find_family
from nfsearch.space.serving import serving


class Stacked(Family):
    """Mixers and FFNs in any order, each with numbers of its own."""

    family = "stacked"
    operators = {  # noqa: RUF012
        "A": Expressed(
            numbers={"heads": "num_heads", "kv_heads": "num_kv_heads"}, only={"window": (None,), "qk_norm": (True,)}
        ),
        "M2": Expressed(numbers={"state": "ssm_state_size"}),
        "F": Expressed(numbers={"inner": "intermediate_size"}, only={"act": ("relu2",)}),
    }


class Paired(Stacked):
    family, paired = "paired", True


FAMILY = Stacked()
OPEN = SpaceSettings(
    width=(64, 128, 256),
    where={
        "mixer": "D[head_dim=32] | GDN[head_dim=32] | M2[head_dim=32,state=16|32|64] "
        "| A[head_dim=16|32,kv_heads=none|1|2,window=none|8,qk_norm=false|true]",
        "wide": "F[ratio=1|2|3,act=swiglu|relu2]",
    },
    layers="(mixer wide{0..2})*{1..8} (mixer | GLA)*{0..3}",
    meta_tokens=(0, 4),
).build(vocab=100)


def small(layers: str, width: int | tuple[int, ...] = 64, **rest: Any) -> SearchSpace:
    return SpaceSettings(width=width, layers=layers, **rest).build(vocab=100)


def told(space: SearchSpace, family: Family = FAMILY) -> str:
    with pytest.raises(ValueError, match="can express no member") as said:
        serving(space, family)
    return str(said.value)


def test_what_is_never_expressed_is_taken_out_up_front() -> None:
    space = serving(OPEN, FAMILY)
    assert space.notation == (
        "(mixer wide{0..2})*{1..8} mixer*{0..3}\n"
        "mixer = M2[head_dim=32,state=16|32|64] | A[head_dim=16|32,kv_heads=none|1|2,qk_norm=true]\n"
        "wide = F[act=relu2,ratio=1|2|3]"
    )
    assert space.meta_tokens == (0,)
    assert Layer.of("D", head_dim=32) in space.left_out
    assert Layer.of("A", head_dim=16, qk_norm=True) not in space.left_out
    assert set(space.alphabet()) | set(space.left_out) == set(OPEN.alphabet())
    assert space.count() < OPEN.count()
    same = small("(M2[head_dim=32] | A[head_dim=32,qk_norm=true]) F[act=relu2]")
    assert serving(same, FAMILY).notation == same.notation
    assert (
        serving(small("(F[act=relu2|swiglu] | F[act=relu2] | GLA){2} GLA{0..3}"), FAMILY).notation
        == "F[act=relu2]{2} ()"
    )


def test_widths_at_which_nothing_is_expressed_are_taken_out() -> None:
    class Narrow(Stacked):
        def layer_refusal(self, layer: Layer, width: int) -> str:
            return super().layer_refusal(layer, width) or f"{layer}: narrow is narrow" * (width > 100)

    assert serving(small("F[act=relu2]", (64, 96, 128)), Narrow()).widths == (64, 96)


def test_a_space_of_which_nothing_is_left_is_refused_with_the_reasons() -> None:
    assert told(small("GLA F[act=relu2]")) == (
        "stacked can express no member of the space: GLA: stacked has layers for A, M2, F alone"
    )
    assert "F, with act=swiglu: stacked needs act=relu2" in told(small("F{1..3}"))
    assert "meta_tokens is 4: stacked has none" in told(small("F[act=relu2]", meta_tokens=4))
    assert "head_norm is true" in told(small("F[act=relu2]", head_norm=True))


def test_a_limit_that_requires_what_was_left_out_is_refused_with_the_reason() -> None:
    space = small("(F[act=relu2] | D[head_dim=32])*{1..6}", limits={"required": ["D"]})
    assert told(space) == (
        "stacked can express no member of the space: limits.required names D; "
        "D[head_dim=32]: stacked has layers for A, M2, F alone"
    )
    space = small("(F[act=relu2] | D[head_dim=32] | GLA)*{1..6}", limits={"required": ["GLA", "F", "D"]})
    assert "of the space: limits.required names GLA, D; D[head_dim=32]: stacked has layers" in told(space)
    kept = small("(M2[head_dim=32] | D[head_dim=32])*{1..6}", limits={"required": ["M2"], "layers": 3})
    assert serving(kept, FAMILY).limits == kept.limits


def test_a_family_that_needs_an_operator_says_why_none_is_left() -> None:
    class Attentive(Stacked):
        family, required = "attentive", "A"

    space = serving(small("(F[act=relu2] | M2[head_dim=32] | A[head_dim=32,qk_norm=true])*{1..6}"), Attentive())
    rng = random.Random(0)
    assert all("A" in {layer.op for layer in space.sample(rng).architecture.layers} for _ in range(50))
    why = "no layer is A: attentive counts the tokens in its cache by those of attention layers"
    assert Attentive().refusal(Architecture(64, (Layer.of("F", act="relu2"),), vocab=100)) == why
    said = told(small("(F[act=relu2] | A[head_dim=32])*{1..6}"), Attentive())
    assert said == (
        f"attentive can express no member of the space: {why}; "
        "A[head_dim=32], with qk_norm=false: attentive needs qk_norm=true"
    )
    Attentive.required = "M2"
    said = told(small("(F[act=relu2] | D[head_dim=32])*{1..6}", limits={"required": ["D"]}), Attentive())
    assert said == (
        "attentive can express no member of the space: limits.required names D; "
        "no layer is M2: attentive counts the tokens in its cache by those of mamba2 layers; "
        "D[head_dim=32]: attentive has layers for A, M2, F alone"
    )


def test_a_thousand_samples_are_all_expressed_and_various() -> None:
    space, rng = serving(OPEN, FAMILY), random.Random(0)
    found = [space.sample(rng) for _ in range(1000)]
    assert [said for member in found if (said := FAMILY.refusal(member.architecture))] == []
    assert all(space.build(member.answers) == member for member in found[:50])
    assert len({member.architecture for member in found}) > 700
    layers = {layer for member in found for layer in member.architecture.layers}
    assert layers == set(space.alphabet()), "no layer is never drawn"
    refused = [OPEN.sample(rng).architecture for _ in range(100)]
    assert sum(not FAMILY.refusal(architecture) for architecture in refused) < 5, "the rules would hold by themselves"


def test_mutants_and_children_are_expressed_and_differ() -> None:
    space, rng = serving(OPEN, FAMILY), random.Random(1)
    members = [space.sample(rng) for _ in range(60)]
    changed = set()
    for member in members:
        mutant, kind = space.mutate(member.answers, rng)
        changed.add(kind)
        child = space.cross(member.answers, rng.choice(members).answers, rng)
        for other in (mutant, child):
            assert FAMILY.refusal(other.architecture) == ""
            assert space.build(other.answers) == other
            assert space.locate(other.architecture) is not None
        assert mutant.architecture != member.architecture
    assert {"setting", "operator", "width", "blocks"} <= changed


def test_what_all_layers_share_follows_the_mutated_layer() -> None:
    """A size that six FFNs, each chosen anew, have in common can change."""
    space, rng = serving(small("F[act=relu2,ratio=1|2|3]*{6}"), FAMILY), random.Random(2)
    parent = space.sample(rng)
    mutant, kind = space.mutate(parent.answers, rng)
    assert kind == "setting"
    assert len(set(mutant.architecture.layers)) == 1
    assert mutant.architecture.layers != parent.architecture.layers


def test_the_widest_that_fits_is_one_that_is_expressed() -> None:
    class Narrow(Stacked):
        def refusal(self, architecture: Architecture) -> str:
            return super().refusal(architecture) or "the width is large: narrow is narrow" * (architecture.width > 100)

    given = {"fit": "latency", "from": (64, 96, 128)}
    space = serving(SpaceSettings(width=given, layers="F[act=relu2]{1..4}").build(100), Narrow())  # type: ignore[arg-type]
    assert space.sample(random.Random(0)).architecture.width == 96
    assert space.sample(random.Random(0), fits=lambda a: a.width < 96).architecture.width == 64


def test_what_cannot_be_expressed_is_no_member() -> None:
    space = serving(small("(F[act=relu2] | M2[head_dim=32,state=16|32])*{1..4}"), FAMILY)
    one, other = Layer.of("M2", head_dim=32, state=16), Layer.of("M2", head_dim=32, state=32)
    assert space.locate(Architecture(64, (one, one), vocab=100)) is not None
    assert space.locate(Architecture(64, (one, other), vocab=100)) is None
    assert "has one ssm_state_size for all layers" in space.refusal(Architecture(64, (one, other), vocab=100))


def test_a_space_where_drawing_is_hopeless_says_which_rule_and_what_to_do() -> None:
    layers = "(M2[head_dim=32] F[act=relu2]{0..2})*{8}"
    with pytest.raises(Unreachable) as said:
        serving(small(layers), Paired()).sample(random.Random(0))
    rule = "paired is made of pairs, a mixer and the F after it"
    assert str(said.value).startswith(f"no member within the limits in 200 tries: {rule} 200 times. Write the space so")
    assert "or leave out `serves` (such as layer " in str(said.value)
    assert serving(small(layers.replace("{0..2}", "")), Paired()).sample(random.Random(0))


def test_names_of_exporters_are_told_apart() -> None:
    with pytest.raises(ValueError, match="unknown exporter 'hff', did you mean hf"):
        find_family("hff")
    with pytest.raises(ValueError, match="yaml can write any design, so there is nothing"):
        find_family("yaml")


def test_an_exporter_of_another_package_is_asked_about_whole_models(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shallow:
        def refusal(self, architecture: Architecture) -> str:
            return "" if len(architecture.layers) < 3 else f"{len(architecture.layers)} layers: shallow has two"

    class Registry:
        def find(self, name: str) -> type:
            return Shallow

    monkeypatch.setattr("nfsearch.space.family._EXPORTERS", Registry())
    space = SpaceSettings(width=64, layers="F{1..9}", serves="shallow-one").build(100)
    assert {len(space.sample(random.Random(seed)).architecture.layers) for seed in range(20)} == {1, 2}
    assert space.locate(Architecture(64, (Layer("F"),) * 3, vocab=100)) is None

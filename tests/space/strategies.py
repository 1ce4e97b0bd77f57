"""Random expressions and architectures for hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from nfsearch.space import Layer
from nfsearch.space.notation import Choice, Node, Op, Ref, Repeat, Seq

NAMES = ("mixer", "unit")

# What a layer of flash-linear-attention may be given: anything that can be written, but 1 and true are equal in Python.
free_values = st.one_of(
    st.none(),
    st.integers(2, 2**63 - 1),
    st.floats(-1e18, 1e18).filter(lambda x: x not in (0, 1)),
    st.from_regex(r"[A-Za-z_][\w:]*", fullmatch=True).filter(lambda x: x not in ("none", "true", "false")),
    st.booleans(),
)
_names = st.from_regex(r"[a-z_][a-z0-9_]*", fullmatch=True)
fla_layers = st.builds(
    lambda name, settings: Layer(f"fla:{name}", tuple(settings.items())),
    st.sampled_from(["KimiDeltaAttention", "HGRN2Attention"]),
    st.dictionaries(_names, free_values, max_size=3),
)

layers = st.one_of(
    fla_layers,
    st.sampled_from([Layer(op) for op in ("C", "D", "M2", "A", "F", "GDN", "GLA")]),
    st.builds(lambda window: Layer.of("A", window=window), st.integers(1, 9999)),
    st.builds(lambda ratio: Layer.of("F", ratio=ratio), st.floats(0.5, 99)),
    st.just(Layer.of("A", qk_norm=True, kv_heads=2)),
    st.just(Layer.of("A", qk_norm="all", rope=0.25, gate=True)),
    st.just(Layer.of("F", act="relu2")),
)
layer_lists = st.lists(layers, max_size=6).flatmap(
    lambda block: st.builds(
        lambda before, n, after: tuple(before + block * n + after),
        st.lists(layers, max_size=4),
        st.integers(1, 5),
        st.lists(layers, max_size=4),
    )
)

_ops = st.one_of(
    st.builds(
        lambda values: Op("fla:RWKV7Attention", (("head_dim", tuple(values)),)),
        st.lists(free_values, min_size=1, max_size=3, unique=True),
    ),
    st.sampled_from([Op("D"), Op("M2"), Op("F"), Op("GLA")]),
    st.builds(
        lambda windows: Op("A", (("window", tuple(windows)),)),
        st.lists(st.one_of(st.none(), st.integers(1, 99)), min_size=2, max_size=3, unique=True),
    ),
    st.just(Op("F", (("act", ("relu2",)), ("ratio", (2.0, 3.0, 4.5))))),
)


def _choice(options: list[Node]) -> Node:
    return Choice(tuple(options)) if len(options) > 1 else options[0]


def nodes(leaves: st.SearchStrategy[Node], repeats: int = 3) -> st.SearchStrategy[Node]:
    def extend(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
        bounds = st.tuples(st.integers(0, repeats), st.integers(1, repeats)).map(sorted)
        bounds = bounds.filter(lambda pair: pair != [1, 1] and pair[1] > 0)
        return st.one_of(
            st.lists(inner, min_size=2, max_size=3).map(lambda items: Seq(tuple(items))),
            st.lists(inner, min_size=1, max_size=3, unique=True).map(_choice),
            st.builds(lambda body, pair, tied: Repeat(body, *pair, tied), inner, bounds, st.booleans()),
        )

    return st.recursive(st.one_of(leaves, st.just(Seq(()))), extend, max_leaves=8)


closed_nodes = nodes(_ops)  # no names in them
open_nodes = nodes(st.one_of(_ops, st.sampled_from([Ref(name) for name in NAMES])), repeats=20)

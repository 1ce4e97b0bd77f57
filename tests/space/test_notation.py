import pytest
from hypothesis import given, settings

from nfsearch.space import Architecture, Layer, NotationError, parse, parse_definitions, print_layers, print_node
from nfsearch.space.notation import Node, Op, Repeat, Seq, parse_layers
from tests.space.strategies import NAMES, layer_lists, open_nodes


@given(layer_lists)
@settings(max_examples=200, deadline=None)
def test_a_printed_architecture_reads_back(layers: tuple[Layer, ...]) -> None:
    text = print_layers(layers)
    assert parse_layers(text) == layers
    assert len(text) <= len(" ".join(map(str, layers)) or "()")


@given(open_nodes)
@settings(max_examples=200, deadline=None)
def test_a_printed_space_reads_back(node: Node) -> None:
    assert parse(print_node(node), NAMES) == node


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("D F M2 F A F M2 F D F M2 F A F M2 F D F M2 F D F M2 F", "(D F M2 F A F M2 F){2} (D F M2 F){2}"),
        ("F F F F F", "F{5}"),
        ("(D F D F A){3}", "(D F D F A){3}"),
        ("(D F D F D F A){3}", "((D F){3} A){3}"),
        ("attention[window=512] GatedDeltaNet D", None),
        ("deltanet m2 ATTENTION[window=none, kv_heads=2] ffn[ratio=3]", "D M2 A[kv_heads=2] F"),
        ("D{1}", "D"),
    ],
)
def test_folding_is_the_shortest_text(text: str, printed: str | None) -> None:
    if printed is None:
        with pytest.raises(NotationError, match="did you mean gated_deltanet"):
            parse_layers(text)
    else:
        assert print_layers(parse_layers(text)) == printed


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("D F Q", 5, "neither an operator nor a defined name"),
        ("deltanett", 1, "did you mean deltanet"),
        ("(D F", 5, r"expected '\)' for the '\(' at column 1, found the end"),
        ("D F)", 4, r"found '\)'"),
        ("D{4..2}", 3, "the first number is larger"),
        ("D{0}", 3, "zero times"),
        ("D{x}", 3, "expected a number of repeats"),
        ("D{99999999}", 3, "too large"),
        ("D*3", 3, r"expected '\{' after '\*'"),
        ("A[windw=512]", 3, "did you mean window"),
        ("A[window=0]", 10, "a whole number from 1 to 1,048,576 or none"),
        (f"A[window={'9' * 5000}]", 10, f"found '{'9' * 40}...'"),
        ("A[window=512", 13, r"expected '\]'"),
        ("A[window=1,window=2]", 12, "set twice"),
        ("F[act=gelu]", 7, "one of swiglu, relu2"),
        ("D | | F", 5, "expected an operator"),
        ("(D | D)", 6, "is listed twice"),
        ("D $ F", 3, "unexpected character"),
        ("", 1, "found the end"),
        ("fla:Kimi[num_heads=]", 20, r"fla:Kimi\[num_heads\]: expected a number, true, false, none or a word"),
        ("fla:Kimi[3=4]", 10, "expected a setting of fla:Kimi, found '3'"),
        ("fla:Kimi[a=1,a=2]", 14, "set twice"),
        ("fla:", 1, "neither an operator nor a defined name"),
        ("mixer[x=1]", 6, "only operators take settings"),
        ("(" * 10_000, 51, "brackets in brackets"),
    ],
)
def test_errors_point_at_the_column(text: str, column: int, message: str) -> None:
    with pytest.raises(NotationError, match=message) as caught:
        parse(text, {"mixer"})
    assert caught.value.column == column - 1
    first, quoted, caret = str(caught.value).split("\n")
    assert first.startswith(f"column {column}: ")
    at = len(caret) - 1
    assert at == len(quoted) or quoted[at : at + 1] == text[column - 1 : column]


@pytest.mark.parametrize("text", ["D | F", "D{1..2}", "A[window=512|none]"])
def test_an_architecture_leaves_nothing_open(text: str) -> None:
    with pytest.raises(NotationError, match="open"):
        parse_layers(text)


def test_an_architecture_has_a_bounded_size() -> None:
    with pytest.raises(NotationError, match="more than 2000 layers"):
        parse_layers("((D{999}){999}){999}")


def test_definitions() -> None:
    assert parse_definitions({"m": "D | A", "u": "m F{0..2}"})["u"] == Seq((parse("m", {"m"}), Repeat(Op("F"), 0, 2)))
    with pytest.raises(ValueError, match="'m' is defined through itself: m -> u -> m"):
        parse_definitions({"m": "u", "u": "m"})
    with pytest.raises(ValueError, match="'a' is an operator"):
        parse_definitions({"a": "D"})
    with pytest.raises(ValueError, match="in 'u': column 1: 'mx' is neither"):
        parse_definitions({"u": "mx"})


def test_settings_reach_the_architecture() -> None:
    architecture = Architecture.parse("A[window=512,head_dim=32] F[act=relu2,ratio=2.5]", width=128)
    assert architecture.layers == (Layer.of("A", head_dim=32, window=512), Layer.of("F", act="relu2", ratio=2.5))
    assert architecture.notation == "A[head_dim=32,window=512] F[act=relu2,ratio=2.5]"


def test_layers_of_another_library_take_any_setting() -> None:
    layer = Layer.of("fla:HGRN2Attention", expand_ratio=None, num_heads=4, use_short_conv=True, norm_eps=1e-5)
    text = "fla:HGRN2Attention[expand_ratio=none,norm_eps=1e-05,num_heads=4,use_short_conv=true]"
    assert str(layer) == text
    assert parse_layers(text) == (layer,)
    assert Layer.of("fla:X", expand_v=2.0) == Layer.of("fla:X", expand_v=2)
    digests = {Architecture(64, (Layer.of("fla:X", expand_v=value),)).digest for value in (2, 2.0)}
    assert len(digests) == 1
    with pytest.raises(ValueError, match="expected a number, true, false, none or a word"):
        Layer.of("fla:X", mode="two words")

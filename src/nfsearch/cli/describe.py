"""`nfsearch space`: what a space holds, without torch."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from nfsearch.run.config import load_config
from nfsearch.run.tables import vocabulary
from nfsearch.space import Layer, SearchSpace
from nfsearch.space.counting import in_full
from nfsearch.space.family import find_family
from nfsearch.space.notation import Node, parse, parse_definitions, parse_layers, print_layers
from nfsearch.space.serving import serving

# An expression alone leaves the width open; any that fits every operator will do, the nearest to the first is taken.
_WIDTHS = sorted(range(64, 4097, 16), key=lambda width: abs(width - 1024))


def read_space(source: str, serves: str | None = None) -> SearchSpace:
    """The space of a config file, or of an expression; `name = expression` after a `;` or on lines of their own define
    names. `serves` is a family to keep it to, in the place of the config's. Raises ValueError."""
    if Path(source).suffix in (".yaml", ".yml") or _is_file(source):
        config, _ = load_config(Path(source))
        given = config.space if serves is None else config.space.model_copy(update={"serves": serves})
        return given.build(config.proxy.vocabulary or vocabulary(config))
    where = {}
    expressions = []
    for part in re.split(r"[;\n]", source):
        if match := re.match(r"\s*(\w+)\s*=(.*)", part):
            where[match[1]] = match[2]
        elif part.strip():
            expressions.append(part)
    if len(expressions) != 1:
        raise ValueError(f"expected one expression and `name = expression` after a ';', found {len(expressions)}")
    layers, names = expressions[0], parse_definitions(where)
    space = _fitting(parse(layers, names), names)
    return space if serves is None else serving(space, find_family(serves))


def _fitting(node: Node, names: Mapping[str, Node]) -> SearchSpace:
    """Raises ValueError, as of the first width, where none fits every operator."""
    wrong = None
    for width in _WIDTHS:
        try:
            return SearchSpace(node, (width,), names)
        except ValueError as error:
            wrong = wrong or error
    assert wrong is not None
    raise wrong


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # longer than a name may be
        return False


def describe_space(space: SearchSpace) -> None:
    print(space.notation)
    print(f"widths       {', '.join(map(str, space.widths))}" + (" (the widest that fits)" if space.fit_width else ""))
    print(f"operators    {', '.join(map(str, space.alphabet()))}")
    if space.serves:
        left_out = f", without {', '.join(map(str, space.left_out))}" if space.left_out else ""
        print(f"serves       {space.serves.family}{left_out}")
    print(f"choices      {in_full(space.count())} combinations (a member that several lead to counts several times)")
    if space.limits.layers:
        print(f"             {in_full(space.count_within_depth())} of them within {space.limits.layers} layers")


def sample_members(space: SearchSpace, number: int, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(number):
        print(space.sample(rng).architecture)


def _unknown(space: SearchSpace, layers: Sequence[Layer]) -> str:
    """Which of the layers the space does not have, in words; empty where it has all."""
    known = space.alphabet()
    for number, layer in enumerate(layers, start=1):
        if layer not in known:
            alike = ", ".join(str(each) for each in known if each.op == layer.op)
            return f"layer {number} is {layer}, and the space has {alike or f'no {layer.op}'}"
    return ""


def check_member(space: SearchSpace, notation: str) -> int:
    """Prints whether the layers are a member, and the answers that lead to them; the exit status is 0 if they are."""
    layers = parse_layers(notation)
    answers = space.locate_layers(layers)
    sizes = [space.architecture(width, layers, meta) for width in space.widths for meta in space.meta_tokens]
    refused = [space.refusal(size) for size in sizes]
    if all(refused):
        print(f"not a member: {refused[0]}")
        return 1
    sizes = [size for size, refusal in zip(sizes, refused, strict=True) if not refusal]
    if answers is None:
        print(f"not a member: {_unknown(space, layers) or f'no choices lead to {print_layers(layers)}'}")
        return 1
    broken = {size.width: space.limits.broken_by([], size) for size in sizes}
    fitting = [width for width, limit in broken.items() if limit is None]
    if not fitting:
        print(f"not a member: {print_layers(layers)} breaks limits.{next(iter(broken.values()))}")
        return 1
    print(f"a member: {print_layers(layers)} @ {' | '.join(map(str, fitting))}")
    for name, answer in answers.items():
        print(f"  {name} = {answer}")
    return 0

"""The designs that a search starts from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nfsearch.search.budgets import Budgets
from nfsearch.search.strategy import Draft, KnownDesign
from nfsearch.space import SearchSpace
from nfsearch.space.notation import parse_layers


def locate(space: SearchSpace, designs: Iterable[str | KnownDesign]) -> list[list[Draft]]:
    """The members of the space that each design stands for, the widest first: one, where its width is given.

    Raises ValueError for a design that is no member of the space."""
    return [_members(space, design) for design in designs]


def fitting(located: Iterable[Sequence[Draft]], budgets: Budgets) -> tuple[tuple[Draft, ...], list[str]]:
    """Of each design the widest member within the limits; and a line about each design of which there is none."""
    chosen, left_out = [], []
    for members in located:
        member = next((member for member in members if budgets.fit(member.architecture)), None)
        if member is not None:
            chosen.append(member)
            continue
        over = budgets.limits.excess(budgets.estimate(members[-1].architecture))
        words = ", ".join(f"{name}: {words}" for name, (_, words) in over.items())
        left_out.append(f"known design {members[-1].architecture} is over the limits and left out ({words})")
    return tuple(chosen), left_out


def _members(space: SearchSpace, design: str | KnownDesign) -> list[Draft]:
    text = design if isinstance(design, str) else design.layers
    widths = sorted(space.widths, reverse=True) if isinstance(design, str) else [design.width]
    layers = parse_layers(text)
    members = []
    for width in widths:
        architecture = space.architecture(width, layers, space.meta_tokens[0])
        answers = space.locate(architecture)
        if answers is not None:
            members.append(Draft(architecture, answers, "known"))
    if not members:
        refusal = space.refusal(architecture)
        raise ValueError(
            f"seeds_known: {text!r} at width {' or '.join(map(str, widths))} is no member of the space, "
            f"or breaks its limits{refusal and f' ({refusal})'}"
        )
    return members

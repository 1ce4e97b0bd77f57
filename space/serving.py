"""Spaces kept to what a family of models can express: `space: {serves: FAMILY}`."""

from __future__ import annotations

from dataclasses import replace

from nfsearch.space.family import Family
from nfsearch.space.layer import Layer
from nfsearch.space.parts import Part
from nfsearch.space.search_space import SearchSpace


def serving(space: SearchSpace, family: Family) -> SearchSpace:
    """The members of a space that a family can express. The operators, settings, widths and numbers of meta tokens that
    it never expresses are taken out of the expressions. Raises ValueError, with the refusals, if nothing is left."""

    def part(*widths: int) -> Part:
        """What it can express at one of these widths."""

        def allowed(layer: Layer) -> bool:
            return any(not family.layer_refusal(layer, width) for width in widths)

        return Part(allowed, space.where)

    widths = tuple(width for width in space.widths if part(width).has(space.layers))
    bare = {meta: space.architecture(space.widths[0], (), meta) for meta in space.meta_tokens}
    metas = tuple(meta for meta, architecture in bare.items() if not family.model_refusal(architecture))
    if not widths or not metas:
        said = [family.model_refusal(architecture) for architecture in bare.values()] if not metas else []
        said += [family.layer_refusal(layer, width) for layer in space.alphabet() for width in space.widths]
        reasons = "; ".join(list(dict.fromkeys(filter(None, said)))[:3])
        raise ValueError(f"{family.family} can express no member of the space: {reasons}")
    left = part(*widths)
    kept = replace(
        space,
        layers=left.of(space.layers),
        where={name: left.of(node) for name, node in space.where.items() if left.has(node)},
        widths=widths,
        meta_tokens=metas,
        serves=family,
    )
    alphabet = set(kept.alphabet())
    return replace(kept, left_out=tuple(layer for layer in space.alphabet() if layer not in alphabet))

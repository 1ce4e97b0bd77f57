"""Spaces kept to what a family of models can express: `space: {serves: FAMILY}`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from nfsearch.space.family import Family
from nfsearch.space.layer import Layer
from nfsearch.space.limits import Limits
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

    def nothing(model: Iterable[str], layers: Iterable[Layer]) -> ValueError:
        said = [*model, *(family.layer_refusal(layer, width) for layer in layers for width in space.widths)]
        reasons = "; ".join(list(dict.fromkeys(filter(None, said)))[:3])
        return ValueError(f"{family.family} can express no member of the space: {reasons}")

    widths = tuple(width for width in space.widths if part(width).has(space.layers))
    refused = {meta: family.model_refusal(space.architecture(space.widths[0], (), meta)) for meta in space.meta_tokens}
    metas = tuple(meta for meta, refusal in refused.items() if not refusal)
    if not widths or not metas:
        raise nothing([] if metas else refused.values(), space.alphabet())
    left = part(*widths)
    kept = replace(
        space,
        layers=left.of(space.layers),
        where={name: left.of(node) for name, node in space.where.items() if left.has(node)},
        widths=widths,
        meta_tokens=metas,
        limits=Limits(),  # the space's own may require an operator that has been taken out
        serves=family,
    )
    alphabet = set(kept.alphabet())
    lacking = space.limits.lacking(alphabet)
    said = [f"limits.required names {', '.join(lacking)}"] if lacking else []
    if family.required not in ("", *(layer.op for layer in alphabet)):
        lacking, said = [*lacking, family.required], [*said, family.required_refusal]
    if said:
        raise nothing(said, (layer for layer in space.alphabet() if layer.op in lacking))
    left_out = tuple(layer for layer in space.alphabet() if layer not in alphabet)
    return replace(kept, limits=space.limits, left_out=left_out)

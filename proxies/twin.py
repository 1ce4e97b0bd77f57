"""The narrowed twin of a candidate: a model small enough to train here that is built the same."""

from __future__ import annotations

from dataclasses import replace

from nfsearch.space import Architecture, Layer, SearchSpace

# Settings that are sizes within a head: they shrink with the width, so heads stay as many.
_SIZES = ("head_dim", "state")


def narrowed(architecture: Architecture, by: int, vocab: int) -> Architecture:
    """The same operators in the same order, with the width and the sizes of heads and states divided by `by`, and
    another vocabulary. Raises ValueError where `by` does not divide them, or an operator cannot be that narrow."""
    twin = replace(
        architecture,
        width=_divided("width", architecture.width, by),
        layers=tuple(_narrowed(layer, by) for layer in architecture.layers),
        vocab=vocab,
    )
    twin.check()
    return twin


def check_narrowing(space: SearchSpace, by: int, setting: str = "proxy.narrow") -> None:
    """Raises ValueError, naming the setting, if some member of the space cannot be narrowed so."""
    if by == 1:
        return
    for width in space.widths:
        try:
            narrowed(Architecture(width, space.alphabet()), by, space.vocab)
        except ValueError as error:
            raise ValueError(f"{setting}: designs of width {width} cannot be narrowed {by} times: {error}") from None


def _narrowed(layer: Layer, by: int) -> Layer:
    settings = dict(layer.settings)
    for name in _SIZES:
        if name in layer.spec.settings:
            size = settings.get(name, layer.spec.settings[name].default)
            assert isinstance(size, int)
            settings[name] = _divided(f"{name} of {layer}", size, by)
    return Layer.of(layer.op, **settings)


def _divided(what: str, size: int, by: int) -> int:
    if size % by:
        raise ValueError(f"{what} {size} is not a multiple of {by}")
    return size // by

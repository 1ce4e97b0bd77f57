"""A layer, and how an operator with its settings is written."""

from __future__ import annotations

from dataclasses import dataclass

from nfsearch.space.operators import Cost, OperatorSpec, Shape, Value, find_operator, operator_names
from nfsearch.support.names import nearest


@dataclass(frozen=True, order=True)
class Layer:
    """One residual sub-layer: an operator and the settings that differ from its defaults, sorted by name.

    Built from any name of the operator and any mapping of settings; stored in one normal form, so that equal layers
    compare equal. Raises ValueError for an unknown operator, an unknown setting or a value it does not take.
    """

    op: str
    settings: tuple[tuple[str, Value], ...] = ()

    def __post_init__(self) -> None:
        spec = find_operator(self.op)
        if spec is None:
            raise ValueError(f"unknown operator {self.op!r}{nearest(self.op, operator_names())}")
        kept = []
        for name, value in sorted(dict(self.settings).items()):
            setting = spec.setting(name)
            if setting is None:
                raise ValueError(f"{spec.name} has no setting {name!r}{nearest(name, list(spec.settings))}")
            if not setting.accepts(value):
                raise ValueError(f"{spec.name}[{name}={value}]: expected {setting.expected()}")
            value = setting.normal(value)
            if value != setting.default:
                kept.append((name, value))
        object.__setattr__(self, "op", spec.name)
        object.__setattr__(self, "settings", tuple(kept))

    @classmethod
    def of(cls, op: str, /, **settings: Value) -> Layer:
        return cls(op, tuple(settings.items()))

    @property
    def spec(self) -> OperatorSpec:
        spec = find_operator(self.op)
        assert spec is not None  # as when it was made
        return spec

    @property
    def values(self) -> dict[str, Value]:
        """All settings, those at their defaults included."""
        return {name: setting.default for name, setting in self.spec.settings.items()} | dict(self.settings)

    def shape(self, width: int) -> Shape:
        """The concrete sizes at this width. Raises ValueError where the settings do not fit it."""
        try:
            return self.spec.shape(width, **self.values)
        except ValueError as error:
            raise ValueError(f"{self}: {error}") from None

    def cost(self, width: int) -> Cost:
        return self.spec.cost(width, **self.shape(width))

    def __str__(self) -> str:
        return print_operator(self.op, tuple((name, (value,)) for name, value in self.settings))


def print_operator(name: str, settings: tuple[tuple[str, tuple[Value, ...]], ...]) -> str:
    """The text of an operator; each setting has one value or several to choose from."""
    inner = ",".join(f"{key}={'|'.join(map(print_value, values))}" for key, values in settings)
    return f"{name}[{inner}]" if inner else name


def print_value(value: Value) -> str:
    """The text of a setting's value."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)

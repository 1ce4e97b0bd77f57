"""Operators by name: the entry points of the group `nfsearch.operators`, each of them an `OperatorSpec`.

nfsearch's own operators are entry points of nfsearch, as those of another package are of that package.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from nfsearch.space.operators.fla import fla_operator
from nfsearch.space.operators.spec import OperatorSpec
from nfsearch.support.registry import Registry

_REGISTRY: Registry[OperatorSpec] = Registry("nfsearch.operators", "operator")


@cache
def operators() -> Mapping[str, OperatorSpec]:
    """Every known operator by short name: the mixers, then the others, each sorted by name. Raises ValueError where
    two have a name in common, in whatever case, and where an entry point is not called as its operator is."""
    owners: dict[str, str] = {}
    specs = _REGISTRY.all()
    for entry, spec in specs.items():
        if spec.name != entry:
            raise ValueError(
                f"the entry point {entry} holds the operator {spec.name}; it must have the operator's name"
            )
        for name in (spec.name, spec.long_name):
            if owners.setdefault(name.lower(), entry) != entry:
                raise ValueError(
                    f"operators {owners[name.lower()]} and {entry} are both called {name}: "
                    "uninstall one of the two packages"
                )
    return dict(sorted(specs.items(), key=lambda item: (item[1].kind != "mixer", item[0])))


@cache
def _by_any_name() -> Mapping[str, OperatorSpec]:
    return {name.lower(): spec for spec in operators().values() for name in (spec.name, spec.long_name)}


def find_operator(name: str) -> OperatorSpec | None:
    """The operator called `name` (short or long, in any case; `fla:LAYER` as the layer is spelt), or None."""
    if re.fullmatch(r"fla:[A-Za-z_]\w*", name):
        return fla_operator(name)
    return _by_any_name().get(name.lower())


def operator_names() -> list[str]:
    """All names of all operators, short ones first."""
    specs = operators().values()
    return [spec.name for spec in specs] + [spec.long_name for spec in specs]

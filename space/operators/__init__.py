"""What each operator is called, which settings it takes, which shapes follow from them, and what it costs.

Torch is not needed here: a space can be described, counted, sampled and held to a parameter limit in an instant. The
modules that compute are named by `OperatorSpec.module` and imported by `nfsearch.ops` when a model is built.
"""

from nfsearch.space.operators.registry import find_operator, operator_names, operators
from nfsearch.space.operators.spec import LARGEST, Cost, OperatorSpec, Setting, Shape, Value

__all__ = [
    "LARGEST",
    "Cost",
    "OperatorSpec",
    "Setting",
    "Shape",
    "Value",
    "find_operator",
    "operator_names",
    "operators",
]

"""What can be built: the notation, architectures, and spaces of architectures. No torch here."""

from nfsearch.space.architecture import Architecture
from nfsearch.space.layer import Layer
from nfsearch.space.limits import Limits, Unreachable
from nfsearch.space.notation import NotationError, parse, parse_definitions, print_layers, print_node
from nfsearch.space.operators import Cost, OperatorSpec, Setting, find_operator, operators
from nfsearch.space.questions import Answerer, Question
from nfsearch.space.search_space import Member, SearchSpace
from nfsearch.space.settings import SpaceSettings

__all__ = [
    "Answerer",
    "Architecture",
    "Cost",
    "Layer",
    "Limits",
    "Member",
    "NotationError",
    "OperatorSpec",
    "Question",
    "SearchSpace",
    "Setting",
    "SpaceSettings",
    "Unreachable",
    "find_operator",
    "operators",
    "parse",
    "parse_definitions",
    "print_layers",
    "print_node",
]

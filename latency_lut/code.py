"""The code that a row of a latency table times, as a digest: of the operator's own sources and of all that they use.

A comment, a docstring, an annotation and the name of a local leave it as it is, and so does whatever another row runs.
What only decides which code runs is no part of it. No torch is needed.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from nfsearch.latency_lut.keys import ENDS, Key
from nfsearch.latency_lut.sources import Sources
from nfsearch.space.operators import find_operator

OPS = "nfsearch.ops"
# What chooses between forms of an operator and checks them, which is done before anything is timed.
_CHOOSERS = {
    f"{OPS}.{name}"
    for name in ("checks", "chooser", "forms", "parallel._form", "parallel.choice", "steps", "what_runs")
}
_NORM = f"{OPS}.operator:RMSNorm"
_DECODE = f"{OPS}.kernels.decode"


def digest_of(key: Key) -> str:
    """Of the code that a row of this key times: twelve hex digits, or nothing for an operator that is not known."""
    return _digest(key.phase, key.block.partition("[")[0])


def roots_of(phase: str, name: str) -> list[str]:
    """Where the code of a block begins, given an operator's or an end's name; see `Sources.digest`."""
    model = f"{OPS}.model:HybridLM"
    if name == ENDS:
        head = [f"{model}.next_logits", f"{model}.head", _NORM, f"{_DECODE}.projection:bind_head"]
        return [*head, f"{model}.embed_next", f"{_DECODE}.embedding:bind"] if phase == "decode" else head
    operator = find_operator(name)
    assert operator is not None
    whole = [_NORM] if phase == "decode" else [_NORM, f"{OPS}.model:Block.forward"]
    own = ("step", "fused_step") if phase == "decode" else ("forward",)
    return [*whole, *(f"{operator.module}.{member}" for member in ("__init__", "init_state", *own))]


@cache
def _digest(phase: str, name: str) -> str:
    if name == ENDS:
        return _sources(OPS).digest(roots_of(phase, name))
    operator = find_operator(name)
    if operator is None:
        return ""
    module = operator.module.partition(":")[0]
    own = OPS if f"{module}.".startswith(f"{OPS}.") else module.partition(".")[0]
    return _sources(own).digest(roots_of(phase, name))


@cache
def _sources(own: str) -> Sources:
    """Of nfsearch's operators and of the package that an operator comes from."""
    return Sources({package: folder_of(package) for package in (OPS, own)}, _CHOOSERS)


def folder_of(package: str) -> Path:
    """The folder of an installed package, or the file of one that is a module. Its parents are imported, not itself."""
    found = find_spec(package)
    if found is None:
        raise ModuleNotFoundError(f"no package {package}")
    return Path(found.submodule_search_locations[0] if found.submodule_search_locations else str(found.origin))

"""Where a latency table comes from, and the digest of the code that was timed. No torch is needed to read it."""

from __future__ import annotations

import ast
import hashlib
import io
import tokenize
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nfsearch.space.operators import operators

# Rows may stand in one table only if all of these are equal; on a GPU its host's processor is no part of the bargain.
IDENTITY = ("device", "device_name", "driver", "cuda", "torch", "triton", "fla", "python", "nfsearch", "kernels")
CPU_IDENTITY = ("cpu", "threads", "os")


@dataclass(frozen=True)
class Provenance:
    """What was measured, on what, with which versions. `None` where it does not apply or could not be found out."""

    device: str  # short name: "nvidia-h200", or of the processor: "amd-epyc-9654"
    device_name: str  # as the driver or the system gives it
    kind: str  # "cuda" or "cpu"
    driver: str | None
    cuda: str | None
    torch: str
    triton: str | None
    fla: str | None  # fla-core, whose kernels serve prefill where it is installed
    python: str
    nfsearch: str
    kernels: str  # `kernel_digest` of the operators' sources
    os: str
    cpu: str
    threads: int  # torch's threads
    memory_gb: float | None  # of the GPU, 1e9 bytes
    clock_mhz: float | None  # SM clock under load, after the warm-up
    date: str  # of the first row, UTC
    command: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Provenance:
        """The inverse of `to_dict`. Raises KeyError for a missing field."""
        return cls(**{field.name: values[field.name] for field in fields(cls)})

    def differences(self, other: Provenance) -> dict[str, str]:
        """Why rows of `other` may not join rows of this one, by field: `torch 2.11, now 2.12`; empty where they may.

        Of another device only the kernels are compared: its driver and versions say nothing about this one.
        """
        names = IDENTITY + (CPU_IDENTITY if self.kind == "cpu" else ())
        if self.device != other.device:
            names = ("device", "kernels")
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in names]
        return {name: f"{name} {old}, now {new}" for name, old, new in pairs if old != new}


def kernel_digest() -> str:
    """Twelve hex digits over the code of all operators: nfsearch.ops and the modules of operators added to it.

    Comments, docstrings and blank lines do not count, so that what they say can be mended without new measurements.
    """
    package = find_spec("nfsearch.ops")
    assert package is not None
    root = Path((package.submodule_search_locations or ["."])[0])
    sources = {f"nfsearch.ops/{path.relative_to(root)}": path for path in root.rglob("*.py")}
    for spec in operators().values():
        module = spec.module.partition(":")[0]
        if not module.startswith("nfsearch.ops.") and (found := find_spec(module)) and found.origin:
            sources[module] = Path(found.origin)
    digest = hashlib.blake2b(digest_size=6)
    for name, path in sorted(sources.items()):
        digest.update(f"{name}\0{_code(path.read_text(encoding='utf-8'))}\0".encode())
    return digest.hexdigest()


@cache
def _code(source: str) -> str:
    """The lines of Python source that compute something: positions of the syntax tree and of comments are the same in
    every version of Python, which the tree's own text is not."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.body:
            match node.body[0]:
                case ast.Expr(ast.Constant(str()), lineno=first, end_lineno=int(last)):
                    if lines[first - 1].lstrip()[0] in "\"'r":  # on a line of its own
                        lines[first - 1 : last] = [""] * (last - first + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())

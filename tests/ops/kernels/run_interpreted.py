"""Runs all that is interpreted, group by group, and prints what it found as JSON.

A process of its own, because Triton decides at import whether it interprets; one process for all groups, because it
takes seconds to start.
"""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
from triton import language
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterOptions

from tests.ops.kernels import chunk_linear_cases, fused_interpreted, glue_interpreted, interpreted, interpreted_delta


def keep_what_is_patched() -> None:
    """The interpreter exchanges the functions of triton.language at every call of every jitted function and puts the
    old ones back after it, and builds a table of types at every operation: half of its time. Nothing is compiled in
    this process, so that they may stay. What it makes anew at every operation from a type of a block, the type itself
    and its shape as constants, is kept as well; and it looks for integers that overflow, which small shapes have not:
    half of the rest."""
    patch, find_numpy_type = interpreter._patch_lang, interpreter._get_np_dtype
    numpy_types: dict[str, Any] = {}
    patched: dict[int, dict[str, Any]] = {}  # the modules are kept, so that no other takes their place in memory

    def patch_once(fn: Any) -> Any:
        if id(fn.__globals__) not in patched:
            patch(fn)
            patched[id(fn.__globals__)] = fn.__globals__
        return SimpleNamespace(restore=lambda: None)

    def numpy_type(dtype: Any) -> Any:
        scalar = dtype.scalar
        if scalar.name not in numpy_types:
            numpy_types[scalar.name] = find_numpy_type(scalar)
        return numpy_types[scalar.name]

    make_block, make_tensor = language.block_type.__init__, language.tensor.__init__
    blocks: dict[Any, dict[str, Any]] = {}
    shapes: dict[Any, dict[str, Any]] = {}

    def block(self: Any, element_ty: Any, shape: Any) -> None:
        key = element_ty.name, tuple(shape)
        if key not in blocks:
            make_block(self, element_ty, shape)
            blocks[key] = dict(vars(self))
        else:
            vars(self).update(blocks[key])

    def tensor(self: Any, handle: Any, type: Any) -> None:
        key = type.name
        if key not in shapes:
            make_tensor(self, handle, type)
            shapes[key] = dict(vars(self))
        else:
            vars(self).update(shapes[key], handle=handle, type=type)

    interpreter._patch_lang = patch_once
    interpreter._get_np_dtype = numpy_type
    interpreter.interpreter_builder.options = InterpreterOptions(sanitize_overflow=False)
    language.block_type.__init__ = block
    language.tensor.__init__ = tensor


if __name__ == "__main__":
    torch.set_num_threads(1)
    keep_what_is_patched()
    groups = {
        "blocks": interpreted,
        "delta": interpreted_delta,
        "linear": chunk_linear_cases,
        "glue": glue_interpreted,
        "fused": fused_interpreted,
    }
    print(json.dumps({name: group.report() for name, group in groups.items()}))

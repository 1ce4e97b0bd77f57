"""Compiles for a Hopper GPU what a call of the kernels would launch, without a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TYPES = {
    torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64", torch.int64: "i64",
    torch.int32: "i32",
}  # fmt: skip


class Usage(NamedTuple):
    """What one launch needs."""

    kernel: str
    grid: tuple[int, ...]
    threads: int
    registers: int  # per thread
    shared: int  # bytes
    stack: int  # bytes per thread; spilled registers lie there
    ptx: str


class _Recorder:
    """Stands in for a kernel and keeps what it was launched with."""

    def __init__(self, kernel: Any, launches: list[tuple[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]]]):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args, **kwargs: self.launches.append((self.kernel, grid, args, kwargs))


def launches(monkeypatch: Any, modules: dict[Any, tuple[str, ...]], call: Callable[[], Any]) -> list[Usage]:
    """Resource usage of each kernel that `call` launches; `modules` maps modules to the names of their kernels."""
    found: list[tuple[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]]] = []
    with monkeypatch.context() as patch:
        for module, names in modules.items():
            for name in names:
                patch.setattr(module, name, _Recorder(getattr(module, name), found))
            patch.setattr(module, "dependent", lambda _: {"PDL": True, "launch_pdl": True}, raising=False)
        call()
    return [compile_launch(*launch) for launch in found]


def compile_launch(kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Usage:
    options = {
        name: kwargs.pop(name) for name in ("num_warps", "num_stages", "maxnreg", "launch_pdl") if name in kwargs
    }
    values = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
    signature, constants, attributes = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        value = values[name]
        if name in kwargs:
            signature[name], constants[(i,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name], attributes[(i,)] = "*" + TYPES[value.dtype], [["tt.divisibility", 16]]
        elif value == 1 and not kernel.params[i].do_not_specialize:
            signature[name], constants[(i,)] = "constexpr", value
        else:
            signature[name] = "i32"
            if value % 16 == 0 and not kernel.params[i].do_not_specialize:
                attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(built.asm["cubin"])
        report = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
        if "SASS" in os.environ:
            sass = subprocess.run([tool, "-sass", cubin], capture_output=True, text=True, check=True).stdout
            Path(os.environ["SASS"]).write_text(sass)
    usage = {key: int(n) for key, n in re.findall(r"(REG|STACK|SHARED):(\d+)", report)}
    return Usage(
        kernel.__name__, grid, 32 * options.get("num_warps", 4), usage["REG"], built.metadata.shared, usage["STACK"],
        built.asm["ptx"],
    )  # fmt: skip

"""`nfsearch doctor`: what this machine has, what will run on it and why, what is missing."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires

from rich.table import Table

from nfsearch.space import Layer, operators
from nfsearch.support.errors import typed_line
from nfsearch.support.terminal import stdout
from nfsearch.support.versions import installed, to_install

WIDTH = 1024  # of the layers that are asked for, which all defaults fit
GIVES = {
    "fla": "fla-core's kernels, baselines of `nfsearch bench`",
    "fla-layers": "the layers of flash-linear-attention as operators, fla:KimiDeltaAttention and others, on CUDA",
    "hf": "opening exports as Hugging Face models, data sets from the hub",
    "eval": "evaluation of an exported model",
    "dashboard": "looking into a running study in the browser",
    "dev": "the project's tests, and those that nfsearch.testing.operators has for your own operators",
}


def diagnose() -> int:
    """Prints the findings; 1 if this installation cannot run at all, else 0."""
    console = stdout()
    problems = []
    if absent := [package for package in _requirements().get("", []) if installed(package) is None]:
        problems.append(f"needed, but not installed: {', '.join(absent)} ({to_install()})")
    try:
        import torch  # noqa: F401
    except Exception as error:  # whatever a broken installation raises
        problems.append(f"torch cannot be imported: {typed_line(error)}")
    console.print(_machine(not problems))
    if not problems:
        console.print(_choices())
    console.print(_extras())
    for problem in problems:
        console.print(f"Nothing will run: {problem}", soft_wrap=True)
    return 1 if problems else 0


def _machine(runs: bool) -> Table:
    table = Table("what", "found", title="This machine", title_justify="left")
    for name, found in _host() + (_compute() if runs else []):
        table.add_row(name, found)
    return table


def _host() -> list[tuple[str, str]]:
    """What can be said without torch."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    return [
        ("nfsearch", installed("nfsearch") or "not installed: run from its sources"),
        ("python", f"{platform.python_version()}, {sys.executable}"),
        ("system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        ("cores", f"{cores} that this process may use"),
        ("memory", f"{memory / 2**30:.1f} GiB"),
        ("C compiler", compiler or "none, and triton needs one to launch kernels"),
        ("triton", installed("triton") or "not installed: no fused decode kernels"),
    ]


def _compute() -> list[tuple[str, str]]:
    """Processor, torch and GPUs."""
    import torch

    from nfsearch.latency_lut.device import provenance, resolve

    here = provenance(resolve("auto"))
    rows = [("processor", here.cpu), ("torch", f"{here.torch}, {here.threads} threads")]
    if here.kind == "cpu":
        built = f"built for CUDA {torch.version.cuda}, but sees no device" if torch.version.cuda else "built without it"
        return [*rows, ("CUDA", f"none: torch is {built}")]
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        capability = f"compute capability {device.major}.{device.minor}"
        rows.append((f"GPU {index}", f"{device.name}, {device.total_memory / 2**30:.1f} GiB, {capability}"))
    return [*rows, ("driver", f"{here.driver or 'unknown'}, CUDA {here.cuda}")]


def _choices() -> Table:
    """Each operator with its default settings."""
    from nfsearch.latency_lut.device import resolve
    from nfsearch.ops.what_runs import what_runs

    device = resolve("auto")
    table = Table(title=f"What will run on {device} (defaults, width {WIDTH}, batch 1)", title_justify="left")
    for name in ("operator", "training", "because", "decoding", "because"):
        table.add_column(name, overflow="fold")
    for name, spec in operators().items():
        operator = f"{name} ({spec.long_name})"
        try:
            found = what_runs(Layer.of(name), WIDTH, device)
        except Exception as error:  # an operator of another package must not hide the others
            table.add_row(operator, "fails", typed_line(error), "", "")
        else:
            cells = (cell for choice in found for cell in (choice.runs, choice.reason))
            table.add_row(operator, *cells)
    return table


def _extras() -> Table:
    table = Table(title="Extras", title_justify="left")
    for name in ("extra", "gives", "packages", "to install"):
        table.add_column(name, overflow="fold")
    for extra, packages in _requirements().items():
        if extra:
            versions = {package: installed(package) for package in packages}
            listed = ", ".join(f"{package} {found or 'missing'}" for package, found in versions.items())
            command = "" if all(versions.values()) else to_install(extra)
            table.add_row(extra, GIVES.get(extra, ""), listed, command)
    return table


def _requirements() -> dict[str, list[str]]:
    """Names of the packages that each extra asks for; those that nfsearch cannot do without under "".

    Requirements for some platforms only (triton) are in none: without them the plain forms serve.
    """
    found: dict[str, list[str]] = {}
    try:
        declared = requires("nfsearch") or []
    except PackageNotFoundError:
        return found
    for requirement in declared:
        package, marker = re.match(r"([\w.-]+)[^;]*;?\s*(.*)", requirement).groups()  # type: ignore[union-attr]
        extra = re.fullmatch(r"extra == [\"']([\w-]+)[\"']", marker)
        if extra or not marker:
            found.setdefault(extra[1] if extra else "", []).append(package)
    return found

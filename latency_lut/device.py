"""Which device this is, and the provenance that a table measured on it carries."""

from __future__ import annotations

import datetime
import math
import platform
import re
import shlex
import sys
from functools import cache
from pathlib import Path

import torch

from nfsearch.latency_lut.nvml import Monitor
from nfsearch.latency_lut.provenance import Provenance
from nfsearch.support.versions import installed


def resolve(setting: str) -> str:
    """The kind of device, "cpu" or "cuda", that `auto`, `cpu`, `cuda` or a device's short name means here.

    Raises ValueError for a GPU that is not there and for the name of another machine's device.
    """
    cuda = torch.cuda.is_available()
    if setting == "auto":
        return "cuda" if cuda else "cpu"
    kinds = {"cpu": "cpu", device_slug("cpu"): "cpu"}
    if cuda:
        kinds |= {"cuda": "cuda", device_slug("cuda"): "cuda"}
    if setting not in kinds:
        raise ValueError(f"device {setting!r} is not here; this machine has {', '.join(sorted(kinds))}")
    return kinds[setting]


def is_here(setting: str) -> bool:
    """Whether `resolve` finds it."""
    try:
        resolve(setting)
    except ValueError:
        return False
    return True


def device_name(kind: str) -> str:
    """As the driver names the GPU, or the system the processor."""
    return torch.cuda.get_device_name() if kind == "cuda" else cpu_name()


def device_slug(kind: str) -> str:
    """The short name that tables go by: `NVIDIA H200` is nvidia-h200."""
    name = re.sub(r"\((r|tm)\)|\bcpu\b|\bprocessor\b|\d+-core|@.*", " ", device_name(kind).lower())
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-") or kind


def cpu_name() -> str:
    """The model name of the processor, or its architecture where the system tells no more."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def provenance(kind: str) -> Provenance:
    """What a table measured here and now carries. On a GPU, call it after the warm-up: it reads the clock."""
    seen = monitor() if kind == "cuda" else None
    return Provenance(
        device=device_slug(kind),
        device_name=device_name(kind),
        kind=kind,
        driver=seen.driver if seen else None,
        cuda=torch.version.cuda if kind == "cuda" else None,
        torch=torch.__version__,
        triton=installed("triton"),
        fla=installed("fla-core"),
        python=platform.python_version(),
        nfsearch=installed("nfsearch") or "unknown",
        os=f"{platform.system()} {platform.release()}",
        cpu=cpu_name(),
        threads=torch.get_num_threads(),
        memory_gb=torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory / 1e9 if seen else None,
        clock_mhz=seen.read().clock_mhz if seen else None,
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    )


@cache
def monitor() -> Monitor:
    """The driver's view of the current GPU."""
    return Monitor(str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid))


def cache_bytes(kind: str) -> float:
    """Of a GPU's last cache, as the driver tells. Of a processor always the same, between what a core has for itself
    and what it shares: how much of the latter a program gets no system knows, least of all a virtual machine's."""
    if kind == "cpu":
        return 5.0 * 1024**2
    return float(torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size)


def free_memory(kind: str) -> float:
    """Bytes that a measurement may take: most of a GPU's free memory, a quarter of what the host has to spare."""
    if kind == "cuda":
        torch.cuda.empty_cache()
        return 0.8 * torch.cuda.mem_get_info()[0]
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return 0.25 * 1024 * int(found.group(1)) if found else math.inf

"""What the driver tells about a GPU while it works: clock, power, and what holds the clock down.

Needs the package nvidia-ml-py; without it, or without a driver that answers, everything is unknown.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

_REASONS = {  # of a clock below the highest, by the name of NVML's constant; idleness and users' settings are no fault
    "SwPowerCap": "power",
    "HwSlowdown": "slowdown",
    "HwPowerBrakeSlowdown": "power brake",
    "SwThermalSlowdown": "heat",
    "HwThermalSlowdown": "heat",
}


@dataclass(frozen=True)
class Reading:
    """What is unknown is None."""

    clock_mhz: float | None = None  # of the SMs
    power_w: float | None = None  # of the board
    throttle: str | None = None  # reasons, or nothing


class Monitor:
    """One GPU as the driver sees it."""

    def __init__(self, uuid: str) -> None:
        """`uuid` as CUDA gives it, without the leading `GPU-`."""
        self._nvml: Any = None
        self._gpu: Any = None
        try:
            import pynvml

            pynvml.nvmlInit()
            self._gpu = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            self._nvml = pynvml
        except Exception:  # no package, no driver, no permission: all the same to the caller
            return

    @property
    def driver(self) -> str | None:
        """The driver's version."""
        return str(self._nvml.nvmlSystemGetDriverVersion()) if self._nvml else None

    def read(self) -> Reading:
        """The state right now. Takes a millisecond; the GPU goes on working."""
        nvml, gpu = self._nvml, self._gpu
        if nvml is None:
            return Reading()
        clock = power = throttle = None
        with contextlib.suppress(nvml.NVMLError):
            clock = float(nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM))
        with contextlib.suppress(nvml.NVMLError):
            (now,) = nvml.nvmlDeviceGetFieldValues(gpu, [nvml.NVML_FI_DEV_POWER_INSTANT])
            power = (now.value.uiVal if now.nvmlReturn == 0 else nvml.nvmlDeviceGetPowerUsage(gpu)) / 1e3
        with contextlib.suppress(nvml.NVMLError):
            bits = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu)
            found = (text for name, text in _REASONS.items() if bits & getattr(nvml, f"nvmlClocksThrottleReason{name}"))
            throttle = ", ".join(dict.fromkeys(found))
        return Reading(clock, power, throttle)

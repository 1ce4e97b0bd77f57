from __future__ import annotations

import dataclasses
import sys
import types

import pytest
import torch

from nfsearch.latency_lut import LatencySettings, Provenance, Workload, device
from nfsearch.latency_lut.nvml import Monitor, Reading

from .helpers import PROVENANCE


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("NVIDIA H200", "nvidia-h200"),
        ("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3"),
        ("Intel(R) Xeon(R) Platinum 8480+ CPU @ 2.00GHz", "intel-xeon-platinum-8480"),
        ("AMD EPYC 9654 96-Core Processor", "amd-epyc-9654"),
        ("", "cpu"),
    ],
)
def test_slug(monkeypatch: pytest.MonkeyPatch, name: str, slug: str) -> None:
    monkeypatch.setattr(device, "device_name", lambda kind: name)
    assert device.device_slug("cpu") == slug


def test_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"cpu": "Some CPU", "cuda": "NVIDIA H200"}
    monkeypatch.setattr(device, "device_name", names.__getitem__)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [device.resolve(name) for name in ("auto", "cpu", "cuda", "nvidia-h200", "some")] == [
        "cuda",
        "cpu",
        "cuda",
        "cuda",
        "cpu",
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.resolve("auto") == "cpu"
    with pytest.raises(ValueError, match="device 'nvidia-h200' is not here; this machine has cpu, some"):
        device.resolve("nvidia-h200")
    with pytest.raises(ValueError, match="device 'cuda' is not here"):
        device.resolve("cuda")
    assert [device.is_here(name) for name in ("auto", "some", "nvidia-h200")] == [True, True, False]


def test_provenance_of_this_machine() -> None:
    here = device.provenance("cpu")
    assert Provenance.from_dict(here.to_dict()) == here
    assert here.differences(device.provenance("cpu")) == {}
    assert (here.torch, here.driver, here.kind) == (torch.__version__, None, "cpu")
    assert here.device == device.device_slug("cpu")


def test_host_matters_only_on_a_cpu() -> None:
    moved = dataclasses.replace(PROVENANCE, cpu="Other", threads=8)
    assert PROVENANCE.differences(moved) == {"cpu": "cpu Test CPU, now Other", "threads": "threads 1, now 8"}
    gpu = dataclasses.replace(PROVENANCE, kind="cuda")
    assert gpu.differences(dataclasses.replace(moved, kind="cuda")) == {}
    assert gpu.differences(dataclasses.replace(gpu, driver="570")) == {"driver": "driver None, now 570"}


def test_of_another_device_nothing_else_matters() -> None:
    gpu = dataclasses.replace(
        PROVENANCE, device="nvidia-h200", kind="cuda", torch="2.11.0", driver="570", python="3.12"
    )
    assert list(gpu.differences(PROVENANCE)) == ["device"]


def test_settings() -> None:
    settings = LatencySettings()
    assert (settings.dtype_on("cpu"), settings.dtype_on("cuda")) == ("float32", "bfloat16")
    assert LatencySettings(dtype="float16").dtype_on("cpu") == "float16"
    assert settings.workloads == {"tpot": Workload(phase="decode", batch=1, context=8192)}
    for wrong in (
        {"workloads": {"a b": {}}},
        {"workloads": {}},
        {"verify": -1},
        {"dtype": "int8"},
        {"tabel": "x"},
        {"accept": ["colour"]},
    ):
        with pytest.raises(ValueError, match="validation error"):
            LatencySettings(**wrong)  # type: ignore[arg-type]


class FakeNvml(types.ModuleType):
    """A driver that knows one GPU; `broken` names calls that fail."""

    NVML_CLOCK_SM, NVML_FI_DEV_POWER_INSTANT = 1, 186
    nvmlClocksThrottleReasonSwPowerCap = 4
    nvmlClocksThrottleReasonHwSlowdown = 8
    nvmlClocksThrottleReasonHwPowerBrakeSlowdown = 128
    nvmlClocksThrottleReasonSwThermalSlowdown = 32
    nvmlClocksThrottleReasonHwThermalSlowdown = 64

    class NVMLError(Exception):
        pass

    def __init__(self, *broken: str) -> None:
        super().__init__("pynvml")
        self.broken = broken

    def _answer(self, name: str, value: object) -> object:
        if name in self.broken:
            raise self.NVMLError(name)
        return value

    def nvmlInit(self) -> object:
        return self._answer("init", None)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> object:
        assert uuid == "GPU-1234"
        return self._answer("handle", object())

    def nvmlSystemGetDriverVersion(self) -> str:
        return "570.86.15"

    def nvmlDeviceGetClockInfo(self, gpu: object, which: int) -> object:
        return self._answer("clock", 1980)

    def nvmlDeviceGetFieldValues(self, gpu: object, fields: list[int]) -> object:
        value = types.SimpleNamespace(uiVal=412_500)
        return [types.SimpleNamespace(value=value, nvmlReturn=3 if "instant" in self.broken else 0)]

    def nvmlDeviceGetPowerUsage(self, gpu: object) -> object:
        return self._answer("power", 400_000)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu: object) -> object:
        return self._answer("throttle", 1 | 4 | 32 | 64)


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        ((), Reading(1980.0, 412.5, "power, heat")),
        (("instant",), Reading(1980.0, 400.0, "power, heat")),
        (("instant", "power"), Reading(1980.0, None, "power, heat")),
        (("clock", "throttle"), Reading(None, 412.5, None)),
        (("init",), Reading()),
        (("handle",), Reading()),
    ],
)
def test_what_the_driver_says(monkeypatch: pytest.MonkeyPatch, broken: tuple[str, ...], expected: Reading) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(*broken))
    monitor = Monitor("1234")
    assert monitor.read() == expected
    assert monitor.driver == (None if {"init", "handle"} & set(broken) else "570.86.15")


def test_without_the_package_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert (Monitor("1234").read(), Monitor("1234").driver) == (Reading(), None)

from __future__ import annotations

import dataclasses
import subprocess

import pytest
import torch

from nfsearch.latency_lut import LatencySettings, Provenance, Workload, device, kernel_digest, provenance

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


def test_provenance_of_this_machine() -> None:
    here = device.provenance("cpu")
    assert Provenance.from_dict(here.to_dict()) == here
    assert here.differences(device.provenance("cpu")) == []
    assert (here.torch, here.driver, here.kind) == (torch.__version__, None, "cpu")
    assert here.device == device.device_slug("cpu")


def test_host_matters_only_on_a_cpu() -> None:
    moved = dataclasses.replace(PROVENANCE, cpu="Other", threads=8)
    assert PROVENANCE.differences(moved) == ["cpu Test CPU, now Other", "threads 1, now 8"]
    gpu = dataclasses.replace(PROVENANCE, kind="cuda")
    assert gpu.differences(dataclasses.replace(moved, kind="cuda")) == []
    assert gpu.differences(dataclasses.replace(gpu, driver="570")) == ["driver None, now 570"]


def test_kernel_digest_is_over_the_sources(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    assert kernel_digest() == kernel_digest()

    class Found:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(provenance, "find_spec", lambda name: Found)
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "a.py").write_text("x = 1\n")
    first = kernel_digest()
    (tmp_path / "notes.txt").write_text("not a source")
    assert kernel_digest() == first
    (tmp_path / "kernels" / "a.py").write_text("x = 2\n")
    assert kernel_digest() != first
    (tmp_path / "kernels" / "a.py").rename(tmp_path / "b.py")
    assert kernel_digest() != first


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("570.86.15, 1980\n", ("570.86.15", 1980.0)),
        ("570.86.15, [N/A]\n", ("570.86.15", None)),
        ("no devices were found\n", (None, None)),
        (FileNotFoundError("nvidia-smi"), (None, None)),
        (subprocess.CalledProcessError(9, "nvidia-smi"), (None, None)),
    ],
)
def test_driver_and_clock(monkeypatch: pytest.MonkeyPatch, answer: str | Exception, expected: tuple) -> None:
    def run(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        if isinstance(answer, Exception):
            raise answer
        return subprocess.CompletedProcess([], 0, stdout=answer)

    class Properties:
        uuid = "1234"

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    monkeypatch.setattr(subprocess, "run", run)
    assert device._nvidia_smi() == expected


def test_settings() -> None:
    settings = LatencySettings()
    assert (settings.dtype_on("cpu"), settings.dtype_on("cuda")) == ("float32", "bfloat16")
    assert LatencySettings(dtype="float16").dtype_on("cpu") == "float16"
    assert settings.workloads == {"tpot": Workload(phase="decode", batch=1, context=8192)}
    for wrong in ({"workloads": {"a b": {}}}, {"workloads": {}}, {"verify": -1}, {"dtype": "int8"}, {"tabel": "x"}):
        with pytest.raises(ValueError, match="validation error"):
            LatencySettings(**wrong)  # type: ignore[arg-type]

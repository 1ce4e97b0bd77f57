"""The arithmetic of training, and how much of it a device can do."""

from __future__ import annotations

from nfsearch.proxies.zero_cost import flops_per_token
from nfsearch.space import Architecture

# Dense bf16 products of the tensor cores as the vendor states them, in 1e12 a second, by what the driver's name holds;
# the first that fits counts.
_PEAKS = {
    "B200": 2250,
    "GH200": 989,
    "H200 NVL": 836,
    "H200": 989,
    "H100 PCIe": 756,
    "H100 NVL": 836,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "RTX 4090": 165,
}


def bf16_peak(device_name: str) -> float | None:
    """FLOPs a second of a device's bf16 matrix products, or None where it is not known."""
    return next((1e12 * peak for name, peak in _PEAKS.items() if name in device_name), None)


def training_flops(architecture: Architecture, sequence: int) -> float:
    """FLOPs of forward and backward for one token of a sequence: three times those of the forward pass, at the mean
    position. What a backward pass computes again is not counted, as is usual for MFU (Chowdhery et al., PaLM, arXiv
    2204.02311, appendix B)."""
    return 3 * sum(flops_per_token(architecture, past) for past in range(sequence)) / sequence

"""torchtitan's command line on a CPU: `python titan_on_cpu.py ARGUMENTS` in place of `-m torchtitan.train ARGUMENTS`.

It asks the device about its name and memory, as only GPUs can be asked, and sums gradients in a way that only NCCL can.
And PyTorch 2.13 lacks `torch.distributed.set_timeout`, which it calls.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule


def pretend(cpu: Any = torch.cpu) -> None:
    torch._utils._get_available_device_type = lambda: "cpu"  # type: ignore[assignment]
    cpu.get_device_name = lambda *_: "CPU"
    cpu.get_device_properties = lambda *_: SimpleNamespace(total_memory=2**34)
    cpu.memory_stats = lambda *_: {}
    cpu.reset_peak_memory_stats = cpu.empty_cache = lambda *_: None
    set_factor = FSDPModule.set_gradient_divide_factor

    def set_factor_and_sum(self: FSDPModule, factor: float) -> None:
        set_factor(self, factor)
        self.set_force_sum_reduction_for_comms(True)

    FSDPModule.set_gradient_divide_factor = set_factor_and_sum  # type: ignore[method-assign]


if __name__ == "__main__":
    pretend()
    from torchtitan.distributed import utils

    utils.set_pg_timeouts = lambda **_: None
    from torchtitan.train import main

    main()

"""Libraries whose kernels tune themselves, in a bearable time.

Triton's autotuner compiles what it tries one after the other and times each for a third of a second. A model of
fla-core's kernels has hundreds of such tries, and its first step takes many minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

_WARM_UP, _TIMED = 4, 15  # milliseconds that a try is run for, and then timed for


@contextmanager
def tuned_together(device: torch.device) -> Iterator[None]:
    """Inside, what a kernel's autotuner tries is compiled side by side, and timed in a tenth of the usual time."""
    if device.type != "cuda":
        yield
        return
    from triton.runtime.autotuner import Autotuner

    choose: Callable[[Any, Mapping[str, Any]], list[Any]] = Autotuner.prune_configs

    def chosen(tuner: Any, named: Mapping[str, Any]) -> list[Any]:
        """What is tried next, compiled."""
        tries, given = choose(tuner, named), list(tuner.nargs.values())
        kernel = tuner.fn
        while not hasattr(kernel, "device_caches"):  # what decorators have put around it
            kernel = kernel.fn
        kernel.device_caches[torch.cuda.current_device()]  # made at its first use, which threads must not do at once

        def compile(one: Any) -> None:
            with torch.cuda.device(device):
                tuner.fn.run(*given, **{**named, **one.all_kwargs(), "warmup": True})  # which launches nothing

        with ThreadPoolExecutor() as threads:
            for one in tries:
                threads.submit(compile, one)  # one that does not compile is dropped by the tuner, which meets it again
        if getattr(tuner, "_do_bench", tuner) is None:
            tuner._do_bench = _briefly
        return tries

    Autotuner.prune_configs = chosen
    try:
        yield
    finally:
        Autotuner.prune_configs = choose


def _briefly(call: Callable[[], object], quantiles: tuple[float, ...]) -> Any:
    from triton.testing import do_bench

    return do_bench(call, warmup=_WARM_UP, rep=_TIMED, quantiles=quantiles)

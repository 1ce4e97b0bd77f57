"""How Ray is started, and ended, without noise; and the settings of its workers."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from pydantic import Field, field_validator

from nfsearch.search.executor import WorkerSettings
from nfsearch.support.errors import typed_line

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no telemetry
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the behaviour to come, and no warning about it
    "RAY_AUTH_MODE": "token",  # Ray's own default here; said aloud it writes no message
    "RAY_worker_niceness": "0",  # workers are the work: at Ray's 15, whatever else runs there starves them
}
OBJECT_STORE_BYTES = 80 * 2**20  # nothing large travels through it; Ray's least is 75 MB


class RaySettings(WorkerSettings):
    """The processes that train candidates."""

    count: int | Literal["auto"] = Field(
        default="auto", description="worker processes; auto = as many as the machine has room for"
    )
    gpus: float = Field(
        default=1, ge=0, description="GPUs of each worker where training runs on CUDA; 0.5 lets two share one"
    )
    cpus: int = Field(default=1, gt=0, description="CPU cores, and threads, of each worker")
    address: str | None = Field(default=None, description="a running Ray cluster; null starts Ray on this machine")
    timeout_s: float = Field(default=600, gt=0, description="longest time for one candidate, in seconds")
    retries: int = Field(default=1, ge=0, description="fresh attempts after a worker died or ran out of time")
    max_memory_gb: float | None = Field(
        default=None, gt=0, description="a worker above this much memory is replaced; null = its share of the machine's"
    )

    @field_validator("count")
    @classmethod
    def _positive(cls, count: int | str) -> int | str:
        if isinstance(count, int) and count < 1:
            raise ValueError(f"expected auto or a number of at least 1, found {count}")
        return count

    @field_validator("gpus")
    @classmethod
    def _whole_above_one(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError(f"expected a whole number or a part of one GPU, found {gpus}")
        return gpus


@contextmanager
def cluster(settings: RaySettings, cuda: bool) -> Iterator[int]:
    """Connects to Ray and gives the number of workers there is room for; disconnects at the end.

    A Ray that this process has already connected to is used as it is, and left running. Raises ValueError if the
    settings ask for more than there is, and RuntimeError if Ray does not start.
    """
    if not settings.address:
        os.environ.update({key: value for key, value in ENVIRONMENT.items() if key not in os.environ})
        # A token of its own: Ray would write one to the home folder
        os.environ.setdefault("RAY_AUTH_TOKEN", uuid.uuid4().hex)
    import ray  # after the environment, which it reads when imported

    if ray.is_initialized():
        yield worker_count(settings, cuda, ray.cluster_resources())
        return
    # Not /tmp/ray: on a shared machine that may belong to somebody else. Socket paths limit its length.
    folder = tempfile.mkdtemp(prefix="nfsearch-", dir=os.environ.get("RAY_TMPDIR", "/tmp"))
    try:
        _connect(settings, folder)
        yield worker_count(settings, cuda, ray.cluster_resources())
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _connect(settings: RaySettings, folder: str) -> None:
    import ray

    cpus = settings.count * settings.cpus if isinstance(settings.count, int) else None  # None: Ray counts them
    try:
        if settings.address:
            ray.init(settings.address, log_to_driver=False, logging_level=logging.ERROR)
            return
        ray.init(
            "local",
            num_cpus=cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=folder,
        )
    except ConnectionError as error:
        raise ValueError(f"workers.address: no Ray cluster answers at {settings.address!r}") from error
    except Exception as error:
        raise RuntimeError(f"Ray did not start: {typed_line(error)}") from error


def worker_count(settings: RaySettings, cuda: bool, resources: dict[str, float]) -> int:
    """How many workers to run. Raises ValueError if there is no room for them."""
    room = int(resources.get("CPU", 0) // settings.cpus)
    gpus = settings.gpus if cuda else 0
    if gpus:
        room = min(room, int(resources.get("GPU", 0) // gpus))
    wanted = settings.count if isinstance(settings.count, int) else max(room, 1)
    if room < wanted:
        have = ", ".join(f"{resources.get(name, 0):g} {name}s" for name in ("CPU", "GPU"))
        raise ValueError(
            f"workers: {wanted} with {settings.cpus} CPUs and {gpus:g} GPUs each were asked for; Ray has {have}"
        )
    return wanted

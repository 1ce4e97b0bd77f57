"""How Ray is started or joined, and left, without noise; and the settings of its workers."""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Literal

from pydantic import Field, field_validator

from nfsearch.search.executor import WorkerSettings
from nfsearch.search.executors.scratch import scratch_folder
from nfsearch.support.errors import typed_line
from nfsearch.support.interrupt import handlers_kept, interrupts_raise

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no telemetry
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the behaviour to come, and no warning about it
    "RAY_AUTH_MODE": "token",  # Ray's own default here; said aloud it writes no message
    "RAY_worker_niceness": "0",  # workers are the work: at Ray's 15, whatever else runs there starves them
    # No clusters: all of its processes then listen on the loopback interface alone, as on the systems it is named after
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
OBJECT_STORE_BYTES = 80 * 2**20  # nothing large travels through it; Ray's least is 75 MB
JOIN = 30.0  # seconds that joining a cluster may take
SILENCE = 10.0  # seconds without an answer after which Ray is taken for dead; it would end this process after 60


class RaySettings(WorkerSettings):
    """The processes that train candidates."""

    count: int | Literal["auto"] = Field(
        default="auto",
        description="worker processes; auto = as many as the machines have room for, those that join included",
    )
    gpus: float = Field(
        default=1, ge=0, description="GPUs of each worker where training runs on CUDA; 0.5 lets two share one"
    )
    cpus: int = Field(default=1, gt=0, description="CPU cores, and threads, of each worker")
    address: str | None = Field(default=None, description="a running Ray cluster; null starts Ray on this machine")
    timeout_s: float = Field(default=600, gt=0, description="longest time for one candidate, in seconds")
    retries: int = Field(default=1, ge=0, description="fresh attempts after a worker died or ran out of time")
    max_memory_gb: float | None = Field(
        default=None,
        gt=0,
        description="a worker that takes more memory is ended, also in the middle of a candidate; null = one that "
        "holds more than its share of the machine's is replaced between two candidates",
    )

    @property
    def longest(self) -> float:
        return self.timeout_s

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


# --- room -------------------------------------------------------------------------------------------------------------


def room_for(settings: RaySettings, cuda: bool, resources: Mapping[str, float]) -> int:
    """How many workers a machine has room for."""
    room = int(resources.get("CPU", 0) // settings.cpus)
    if cuda and settings.gpus:
        room = min(room, math.floor(resources.get("GPU", 0) / settings.gpus + 1e-6))
    return room


def require_room(settings: RaySettings, cuda: bool, machines: Sequence[Mapping[str, float]], who: str) -> None:
    """Raises ValueError if these machines have no room for the workers that are asked for. `who` begins what they
    have: "this machine has"."""
    wanted = settings.count if isinstance(settings.count, int) else 1
    if sum(room_for(settings, cuda, each) for each in machines) >= wanted:
        return
    have = ", ".join(f"{sum(each.get(name, 0) for each in machines):g} {name}s" for name in ("CPU", "GPU"))
    spread = f" on {len(machines)} machines" if len(machines) > 1 else ""
    raise ValueError(
        f"workers: {wanted} with {settings.cpus} CPUs and {settings.gpus if cuda else 0:g} GPUs each were asked for; "
        f"{who} {have}{spread}"
    )


def this_machine(cuda: bool) -> Mapping[str, float]:
    """The CPU cores and GPUs that this process may use."""
    if not cuda:
        return {"CPU": len(os.sched_getaffinity(0))}
    import torch

    return {"CPU": len(os.sched_getaffinity(0)), "GPU": torch.cuda.device_count()}


# --- connecting -------------------------------------------------------------------------------------------------------


class Lifelines:
    """Whether the Ray that this process is connected to still answers: its head, and the node that serves this process.
    Where one is killed, Ray itself says nothing for a minute or for good."""

    def __init__(self, address: str | None) -> None:
        import ray

        self._silent: dict[str, float] = {}  # since when
        if address and "://" in address:  # through a proxy, which is all that can be reached
            self._lines = {"the Ray cluster": address.split("://")[1]}
            return
        here = ray.get_runtime_context()
        self._lines = {"Ray's head (gcs_server)": here.gcs_address}
        for node in ray.nodes():
            if node["NodeID"] == here.get_node_id():
                place = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
                self._lines["Ray's node on this machine (raylet)"] = place

    def answer(self) -> bool:
        """Whether all answer now. Raises RuntimeError when one has been silent for too long."""
        now = time.monotonic()
        for name, place in self._lines.items():
            if answers(place):
                self._silent.pop(name, None)
            elif now - self._silent.setdefault(name, now) > SILENCE:
                raise RuntimeError(
                    f"{name} at {place} has not answered for {SILENCE:g} s: it was ended, or its machine is gone"
                )
        return not self._silent


def answers(place: str) -> bool:
    """Whether somebody listens at HOST:PORT."""
    host, _, port = place.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=1):
            return True
    except OSError:
        return False


@contextmanager
def cluster(settings: RaySettings) -> Iterator[Lifelines]:
    """Starts Ray on this machine, or joins a cluster; ends it, or leaves, at the end.

    A Ray that this process has already connected to is used as it is, and left running. Raises ValueError if the
    cluster cannot be joined, and RuntimeError if Ray does not start.
    """
    if not settings.address:
        set_environment()
    import ray  # after the environment, which it reads when imported

    if ray.is_initialized():
        yield Lifelines(settings.address)
        return
    _silence_errors_of_nodes()
    with ExitStack() as stack:
        folder = None if settings.address else stack.enter_context(scratch_folder()) / "ray"  # Ray opens it to all
        stack.callback(_leave)
        with handlers_kept():  # Ray handles SIGTERM its own way
            if folder is None:
                _join(str(settings.address))
            else:
                _start(settings, str(folder))
        yield Lifelines(settings.address)


def set_environment() -> None:
    """What a Ray that is started here is told by its environment."""
    os.environ.update({key: value for key, value in ENVIRONMENT.items() if key not in os.environ})
    os.environ.setdefault("RAY_AUTH_TOKEN", uuid.uuid4().hex)  # Ray would write one to the home folder


def _start(settings: RaySettings, folder: str) -> None:
    import ray

    cpus = settings.count * settings.cpus if isinstance(settings.count, int) else None  # None: Ray counts them
    try:
        ray.init("local", num_cpus=cpus, object_store_memory=OBJECT_STORE_BYTES, _temp_dir=folder, **_QUIET)
    except Exception as error:
        raise RuntimeError(f"Ray did not start: {typed_line(error)}") from error


def _join(address: str) -> None:
    """Joins a cluster from a thread that is not waited for: Ray tries for a quarter of an hour, deaf to Ctrl-C."""
    import ray

    errors: list[Exception] = []

    def join() -> None:
        try:
            ray.init(address, **_QUIET)
        except Exception as error:
            errors.append(error)

    place = address.rpartition("://")[2].strip("/")
    if place.rpartition(":")[2].isdigit() and not answers(place):
        raise ValueError(f"workers.address: nobody listens at {address!r}")
    thread = threading.Thread(target=join, daemon=True)
    with interrupts_raise():
        thread.start()
        thread.join(JOIN)
    if errors:
        raise ValueError(
            f"workers.address: the Ray cluster at {address!r} cannot be joined: {typed_line(errors[0])}"
        ) from errors[0]
    if not ray.is_initialized():
        raise ValueError(f"workers.address: no Ray cluster answers at {address!r} within {JOIN:g} s")


_QUIET: Any = {"log_to_driver": False, "logging_level": logging.ERROR}


def _silence_errors_of_nodes() -> None:
    """Ray prints the last lines of the log of a node that died, whatever it is told about logs."""
    from ray._private import worker

    with suppress(AttributeError):
        worker.print_to_stdstream = lambda *_, **__: None


def _leave() -> None:
    import ray

    with handlers_kept():
        ray.shutdown()

"""Where workers run, and whether Ray answers; with a Ray of a few lines, so that no process is started."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nfsearch.search.executors import cluster, places
from nfsearch.search.executors.cluster import Lifelines, RaySettings, require_room, room_for
from nfsearch.search.executors.places import Places
from nfsearch.search.executors.scratch import PREFIX, scratch_folder
from nfsearch.search.executors.worker import StartError


class FakeRay:
    """Knows nodes by a letter."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, Any]] = {}

    def add(self, name: str, **resources: float) -> None:
        where = {"NodeManagerHostname": f"host-{name}", "NodeManagerAddress": "127.0.0.1", "NodeManagerPort": 1}
        self.found[name] = {"NodeID": name, "Alive": True, "Resources": {"memory": 8e9, **resources}, **where}

    def lose(self, name: str) -> None:
        self.found[name] |= {"Alive": False, "Resources": {}}

    def nodes(self) -> list[dict[str, Any]]:
        return list(self.found.values())


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)  # type: ignore[arg-type]
    return fake


def test_machines_come_and_go(ray: FakeRay, capsys: pytest.CaptureFixture[str]) -> None:
    ray.add("a", CPU=2)
    ray.add("b", CPU=1)
    found = Places(RaySettings(cpus=1), cuda=False)
    assert found.room == 3
    assert found.nodes["a"].memory == 4e9
    assert [found.choose(used) for used in ("", "a", "ab", "aab")] == ["a", "a", "a", None]
    ray.lose("b")
    found.look()
    assert found.room == 3  # it has just looked
    found.look(now=True)
    assert (found.room, found.choose("aa")) == (2, None)
    ray.add("c", CPU=4)
    found.look(now=True)
    assert (found.room, found.choose("aa")) == (6, "c")
    assert found.choose("aa", but="c") is None
    said = capsys.readouterr().err
    assert "host-b (127.0.0.1) is lost" in said
    assert "host-c (127.0.0.1) has joined; room for workers: 4" in said


def test_a_number_of_workers_is_kept_to_where_there_is_room(ray: FakeRay) -> None:
    ray.add("a", CPU=2)
    ray.add("b", CPU=2)
    found = Places(RaySettings(count=3, cpus=1), cuda=False)
    assert found.room == 3
    ray.lose("b")
    found.look(now=True)
    assert found.room == 2


def test_a_machine_that_lacks_something_gets_no_more_workers(ray: FakeRay, capsys: pytest.CaptureFixture[str]) -> None:
    ray.add("a", CPU=2)
    ray.add("b", CPU=2)
    found = Places(RaySettings(), cuda=False)
    found.failed("a", StartError("FileNotFoundError: no tokens", missing=True))
    found.failed("a", StartError("FileNotFoundError: no tokens", missing=True))  # it started beside the first
    assert (found.room, found.choose("")) == (2, "b")
    assert capsys.readouterr().err.count("host-a (127.0.0.1) is left out") == 1
    found.failed("b", StartError("RuntimeError: a bad GPU", missing=False))
    assert (found.room, found.choose(""), found.choose("b")) == (1, "b", None)
    assert found.trouble == "a worker could not start: RuntimeError: a bad GPU"


def test_starting_workers_may_die_but_not_three_in_a_row(ray: FakeRay) -> None:
    ray.add("a", CPU=2)
    found = Places(RaySettings(), cuda=False)
    for _ in range(3):
        found.died("a", "it died")
        found.died("a", "it died")
        assert found.room == 2
        found.started("a")
    for _ in range(3):
        found.died("a", "it died")
    assert found.room == 0
    assert found.trouble == "3 workers in a row did not start: it died"


def test_a_machine_full_of_the_work_of_others_is_passed_over_for_a_while(
    ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray.add("a", CPU=4)
    ray.add("b", CPU=2)
    found = Places(RaySettings(), cuda=False)
    found.nodes["a"].occupied = time.monotonic()
    assert found.choose("") == "b"
    monkeypatch.setattr(places, "OCCUPIED", 0.0)
    assert found.choose("") == "a"


def test_what_is_more_than_there_is_is_refused(ray: FakeRay) -> None:
    one = {"CPU": 4.0, "GPU": 1.0}
    assert [room_for(RaySettings(gpus=gpus), True, one) for gpus in (0, 0.1, 0.5, 1, 2)] == [4, 4, 2, 1, 0]
    assert room_for(RaySettings(gpus=0.1, cpus=1), True, {"CPU": 16, "GPU": 1}) == 10
    assert room_for(RaySettings(gpus=2, cpus=3), False, one) == 1
    require_room(RaySettings(count=2, gpus=0.5), True, [one], "there are")
    for settings, message in (
        ({"cpus": 1000}, "workers: 1 with 1000 CPUs and 1 GPUs each were asked for; there are 4 CPUs, 1 GPUs"),
        ({"count": 3, "gpus": 0.5}, "workers: 3 with 1 CPUs and 0.5 GPUs each"),
        ({"gpus": 2}, "workers: 1 with 1 CPUs and 2 GPUs each"),
    ):
        with pytest.raises(ValueError, match=message):
            require_room(RaySettings(**settings), True, [one], "there are")  # type: ignore[arg-type]
    ray.add("a", CPU=1)
    ray.add("b", CPU=1)
    with pytest.raises(ValueError, match="the Ray cluster has 2 CPUs, 0 GPUs on 2 machines"):
        Places(RaySettings(cpus=2), cuda=False)  # none of which is enough for a worker


# --- does Ray answer? -------------------------------------------------------------------------------------------------


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Listens, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def place(server: socket.socket) -> str:
    return f"127.0.0.1:{server.getsockname()[1]}"


def test_a_ray_that_is_killed_is_noticed(
    ray: FakeRay, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = socket.create_server(("127.0.0.1", 0))
    ray.add("a", CPU=1)
    ray.found["a"]["NodeManagerPort"] = node.getsockname()[1]
    here = SimpleNamespace(gcs_address=place(listener), get_node_id=lambda: "a")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: here, raising=False)
    lines = Lifelines(None)
    assert lines.answer()
    where = place(node)
    node.close()
    assert not lines.answer()
    monkeypatch.setattr(cluster, "SILENCE", 0.0)
    with pytest.raises(RuntimeError, match=rf"Ray's node on this machine \(raylet\) at {where} has not answered"):
        lines.answer()
    through_a_proxy = Lifelines(f"ray://{place(listener)}")
    assert through_a_proxy.answer()


def test_a_cluster_that_does_not_answer_is_told_at_once(
    ray: FakeRay, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    forever = threading.Event()
    monkeypatch.setattr(ray, "init", lambda *_, **__: forever.wait(), raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False, raising=False)
    monkeypatch.setattr(cluster, "JOIN", 0.1)
    with pytest.raises(ValueError, match=r"workers.address: no Ray cluster answers at '127.0.0.1:\d+' within 0.1 s"):
        cluster._join(place(listener))
    monkeypatch.setattr(cluster, "JOIN", 60.0)
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(KeyboardInterrupt):
        cluster._join(place(listener))
    forever.set()
    gone = place(listener)
    listener.close()
    for address in (gone, f"ray://{gone}"):
        with pytest.raises(ValueError, match=f"workers.address: nobody listens at '{address}'"):
            cluster._join(address)

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("Version mismatch\nsecond line")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(ValueError, match="the Ray cluster at 'auto' cannot be joined: RuntimeError: Version mismatch"):
        cluster._join("auto")


# --- Ray's folder -----------------------------------------------------------------------------------------------------


def test_the_folder_is_private_and_what_killed_ones_left_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    script = (
        "import os; from nfsearch.search.executors.scratch import scratch_folder\n"
        "with scratch_folder() as folder: (folder / 'ray').mkdir(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script], check=False)
    (left,) = tmp_path.glob(f"{PREFIX}*")
    (tmp_path / f"{PREFIX}of-another").mkdir()
    with scratch_folder() as first:
        assert not left.exists()
        assert stat.S_IMODE(first.stat().st_mode) == 0o700
        with scratch_folder() as second:
            assert {first.name, second.name, f"{PREFIX}of-another"} == {each.name for each in tmp_path.iterdir()}
    assert [each.name for each in tmp_path.iterdir()] == [f"{PREFIX}of-another"]

"""A run says at its start how long it will take at least, and refuses what cannot be done."""

from __future__ import annotations

from typing import Any

import pytest

from nfsearch.run.config import Config, validated
from nfsearch.run.hours import tell_hours

SIZES = {"10M": 10**7, "10B": 10**10}
LATENCY = {"latency": {"workloads": {"tpot": {"phase": "decode", "batch": 1, "context": 512}}}}


def config(tokens: str = "10B", **workers: Any) -> Config:
    space = {"width": {"fit": "latency", "from": [1024, 2048]}, "layers": "(A F){12}"}
    proxy = {"data": "no-such-file", "tokenizer": "bpe:32000", "tokens": SIZES[tokens]}
    search = {"evaluations": 240, "population": 40}
    given = {"space": space, "proxy": proxy, "limits": {"tpot_ms": 1}, "search": search, "workers": workers}
    return validated({**given, **LATENCY})


def test_the_hours_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    """The narrowest has 12 x (2.6M to 4.2M + 8M to 13M) + 33M parameters."""
    asked = config(timeout_s=1e6)
    tell_hours(asked, "cuda")
    (line,) = capsys.readouterr().err.splitlines()
    assert "A candidate takes at least 2 h " in line or "A candidate takes at least 3 h " in line
    assert "all 240 " in line
    assert "(at 1e+15 FLOP/s, the most that a GPU does)" in line
    tell_hours(config("10M"), "cuda")
    assert not capsys.readouterr().err


def test_what_cannot_be_done_in_time_is_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match=r"workers\.timeout_s: 600 s is too short for any of 32 .* at least [23] h "):
        tell_hours(config(), "cuda")
    tell_hours(config(executor="local"), "cuda")  # it waits for as long as it takes

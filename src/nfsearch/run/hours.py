"""What is said at the start of a search about the hours that it takes."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from nfsearch.proxies.bounds import PEAK
from nfsearch.run.config import Config
from nfsearch.support.terminal import duration, say

_SAMPLE = 32  # random members of the space


def tell_hours(config: Config, kind: str) -> None:
    """Says how long a candidate and the whole search take at least, where that is an hour or more. Raises ValueError
    where none of some random candidates can be done in the time that `workers` allows one.

    It is a bound, from parameters, tokens and a rate that no such device exceeds; an expectation follows from the first
    reports of the first candidate.
    """
    seconds = _least_seconds(config, kind)
    if not seconds:
        return
    rate = f"at {PEAK[kind]:.0e} FLOP/s, the most that {'a GPU' if kind == 'cuda' else 'this CPU'} does"
    longest = config.workers.longest
    if min(seconds) > longest:
        least = duration(min(seconds)) if min(seconds) >= 1 else f"{min(seconds):.2g} s"
        raise ValueError(
            f"workers.timeout_s: {longest:g} s is too short for any of {len(seconds)} random candidates, which take at "
            f"least {least} each ({rate}): raise it, or set fewer proxy.tokens"
        )
    usual, count = statistics.median(seconds), config.search.evaluations
    if (whole := usual * count) >= 3600:
        say(f"A candidate takes at least {duration(usual)}, all {count} {duration(whole)} of one device ({rate})")


def _least_seconds(config: Config, kind: str) -> Sequence[float]:
    """Those of random members of the space: none where it has none within its limits, which is told later."""
    vocabulary = config.proxy.vocabulary
    if vocabulary is None:
        return ()
    space, rng = config.space.build(vocabulary), random.Random(config.search.seed)
    found = []
    with suppress(ValueError):
        for _ in range(_SAMPLE):
            architecture = space.sample(rng).architecture
            if config.space.fit_width:
                architecture = replace(architecture, width=min(space.widths))  # which it is follows from a table
            found.append(config.proxy.least_seconds(architecture, kind))
    return found

"""Which candidate leaves a search, and where to."""

from __future__ import annotations

import math
from pathlib import Path

from nfsearch.report.result import CandidateRecord, RunResult


def choose(result: RunResult, *, pick: int | None = None, max_latency_ms: float | None = None) -> CandidateRecord:
    """The candidate to export: number `pick`, or, of those within the limits, the one with the lowest first objective:
    its mean over seeds, of those that were confirmed, where there are any.

    `max_latency_ms` admits only candidates whose latency is at most that: of the first objective that is a latency,
    else of the first workload. Raises ValueError if nothing is left or the candidate picked has failed.
    """
    if pick is not None:
        record = result.candidate(pick)
        if record.state != "done":
            reason = f"has failed ({record.error})" if record.state == "failed" else "was stopped early"
            raise ValueError(f"candidate {pick} {reason}, so there is nothing to export")
        return record
    able, first, means = _able(result, max_latency_ms), result.objectives[0], _means(result)
    sure = [record for record in able if record.number in means]
    if sure:
        return min(sure, key=lambda record: means[record.number])
    return min(able, key=lambda record: record.metrics[first].value)


def passed_over(result: RunResult, chosen: CandidateRecord, max_latency_ms: float | None = None) -> list[int]:
    """Members of the search's front that `choose` left for one that was confirmed, though in the search their first
    objective was lower: nobody confirmed them."""
    able, first, means = _able(result, max_latency_ms), result.objectives[0], _means(result)
    left = [each for each in able if each.number in result.front and each.number not in means]
    least = chosen.metrics[first].value if chosen.number in means else -math.inf
    return [each.number for each in left if each.metrics[first].value < least]


def _means(result: RunResult) -> dict[int, float]:
    """Of the first objective over seeds, by number, of those that were confirmed."""
    confirmed = result.confirmed[0].finalists if result.confirmed else []
    return {each.number: each.metrics[result.objectives[0]].value for each in confirmed}


def _able(result: RunResult, max_latency_ms: float | None) -> list[CandidateRecord]:
    """See `choose`."""
    if not result.in_state("done"):
        raise ValueError("no candidate of this run has finished, so there is nothing to export")
    able = result.contenders()
    if not able:
        raise ValueError("no candidate of this run keeps its limits; --pick exports one all the same")
    if max_latency_ms is not None:
        if not max_latency_ms > 0:
            raise ValueError(f"--max-latency-ms: expected more than 0, found {max_latency_ms:g}")
        times = result.timed()
        if not times:
            raise ValueError("this run measured no latency, so none can be the limit")
        name = times[0]
        fastest = min(record.metrics[name].value for record in able) * 1e3
        able = [record for record in able if record.metrics[name].value * 1e3 <= max_latency_ms]
        if not able:
            raise ValueError(
                f"no candidate has a {name} of at most {max_latency_ms:g} ms: the fastest takes {fastest:.5g} ms"
            )
    return able


def require_free(path: str | Path) -> None:
    """Raises FileExistsError unless nothing, or an empty folder, is at `path`: an export never writes over anything."""
    path = Path(path)
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists() or path.is_symlink():
        raise FileExistsError(f"{path} exists already: name a new one for the export, or remove it first")


def require_free_file(path: Path) -> None:
    """The same for an export that is one file, which no folder can become."""
    if path.is_dir():
        raise FileExistsError(f"{path} is a folder: this export is one file")
    require_free(path)

"""What a run tells at its end, on one screen: the front, whether to believe it, and where the report is."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from rich.table import Table

from nfsearch.proxies import Fidelity
from nfsearch.report.confirmation import Confirmed
from nfsearch.report.favourites import sentence
from nfsearch.report.result import CandidateRecord, RunResult
from nfsearch.run.metrics import PARAMETERS
from nfsearch.support.metrics import Measurement, Metric
from nfsearch.support.terminal import alarm, counted, say, stdout


def print_summary(result: RunResult, folder: Path, fidelity: Fidelity | None = None) -> None:
    """The front as a table on stdout, confirmed where it was (at `fidelity`, if it was at several); what workers had to
    say, which operators the proxy favours and what is wrong with the latency table on stderr; and where the report
    is."""
    asked = [each for each in result.confirmed if each.fidelity == fidelity]
    confirmed = next(iter(asked or result.confirmed), None)
    stdout().print(_front(result, confirmed))
    if confirmed:
        _tell_confirmed(result, folder, confirmed)
    elif result.front:
        say(f"One seed each. Which order holds: nfsearch confirm {shlex.quote(str(folder))}")
    for note, numbers in result.notes().items():
        say(f"Beware, of {len(numbers)} of {len(result.candidates)} candidates: {note}")
    if result.favourites and result.favourites.told():
        say(sentence(result.favourites))
    if words := distrust(result):
        alarm(words)
    print(f"Report: {(folder / 'report.html').resolve()}")


def _tell_confirmed(result: RunResult, folder: Path, confirmed: Confirmed) -> None:
    """The order that holds, who leaves the front, and what is not told by that."""
    for line in (f"By {confirmed.metric}: {confirmed.order()}", *confirmed.fallen(result.objectives, result.front)):
        print(line)
    if left := [number for number in result.front if confirmed.finalist(number) is None]:
        say(f"Not confirmed of the search's front: {numbered(left)}; {confirm_command(result, folder, confirmed)}")
    for each in result.confirmed:
        if each is not confirmed:
            also = numbered(finalist.number for finalist in each.finalists)
            say(f"Confirmed on {each.fidelity.tokens:,} tokens, as the report tells: {also}")


def confirm_command(result: RunResult, folder: Path, at: Confirmed | None = None) -> str:
    """What confirms the whole front of a search; on as many tokens as others were confirmed on."""
    at = at or next(iter(result.confirmed), None)
    command = ["nfsearch", "confirm", str(folder), "--top", str(len(result.front))]
    if at and at.fidelity != result.candidate(result.front[0]).fidelity:
        command += ["--tokens", str(at.fidelity.tokens)]
    return shlex.join(command)


def numbered(candidates: Iterable[int]) -> str:
    """Their numbers in words."""
    return ", ".join(f"#{number}" for number in candidates)


def distrust(result: RunResult) -> str:
    """Why the latencies are not to be trusted; empty where they are, or where nobody checked."""
    complaints = result.table.complaints if result.table else []
    if not complaints:
        return ""
    timed = "; those of the front were measured" if any(each.estimates for each in result.candidates) else ""
    return f"DO NOT TRUST estimated latencies{timed}: {'; '.join(complaints)}"


def _front(result: RunResult, confirmed: Confirmed | None) -> Table:
    shown = [*map(result.metric, dict.fromkeys((*result.objectives, PARAMETERS.name)))]
    measured = {name for number in result.front for name in result.candidate(number).estimates}
    if confirmed:
        title = f"Confirmed front: {len(confirmed.front)} of {len(confirmed.finalists)} finalists"
        seeds = counted(min(each.seeds for each in confirmed.finalists), "seed")
        title += f", {seeds} each, {confirmed.fidelity.tokens:,} tokens"
        numbers = [each.number for each in confirmed.placed]
    else:
        title = f"Pareto front: {len(result.front)} of {len(result.candidates)} candidates"
        numbers = result.front
    table = Table(title=title)
    table.add_column("#", justify="right", no_wrap=True)
    for metric in shown:
        table.add_column(metric.label, justify="right", no_wrap=True)
        if metric.name in measured:
            table.add_column("estimated", justify="right", no_wrap=True)
    table.add_column("width", justify="right", no_wrap=True)
    table.add_column("architecture", overflow="fold")
    for number in numbers:
        record = result.candidate(number)
        finalist = confirmed.finalist(number) if confirmed else None
        metrics = finalist.metrics if finalist else record.metrics
        cells = [cell for metric in shown for cell in _cells(record, metric, metrics[metric.name], measured)]
        dropped = confirmed is not None and number not in confirmed.front
        table.add_row(str(number), *cells, str(record.width), record.notation, style="dim" if dropped else None)
    return table


def _cells(record: CandidateRecord, metric: Metric, found: Measurement, measured: set[str]) -> list[str]:
    error = f" ± {metric.unit.text(found.error, 2)}" if found.error else ""
    cells = [metric.unit.text(found.value) + error]
    if metric.name in measured:
        guess = record.estimates.get(metric.name)
        cells.append(metric.unit.text(guess.value, 3) if guess else "")
    return cells

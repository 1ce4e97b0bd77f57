"""`nfsearch report` and `nfsearch export`: what is done with the folder of a run."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from nfsearch.export import EXPORTERS, Winner, choose, passed_over
from nfsearch.proxies import Job, Keeps, Proxy, Trains
from nfsearch.report.outputs import write_outputs
from nfsearch.report.result import CandidateRecord, RunResult
from nfsearch.run.config import read_config, validated
from nfsearch.run.records import CONFIG, JOURNAL, STUDY, result_of, study_place
from nfsearch.run.summary import confirm_command, numbered
from nfsearch.run.tables import proxy_of
from nfsearch.run.weights import WEIGHTS
from nfsearch.run.yaml_file import read_yaml
from nfsearch.search.study import Store, load_store
from nfsearch.space import Architecture
from nfsearch.support.errors import WorkFailed
from nfsearch.support.terminal import duration, say

if TYPE_CHECKING:
    from nfsearch.ops.model import HybridLM


def open_run(folder: Path) -> Store:
    """The study of a run's folder. Raises ValueError if it is none."""
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} is not the folder of a run: it has no {CONFIG}")
    if not any((folder / name).is_file() for name in (JOURNAL, STUDY)):
        raise ValueError(f"{folder} is not the folder of a run: it has no {JOURNAL}")
    config = read_config(read_yaml(path))
    return load_store(*study_place(config, folder))


def rebuild_report(folder: Path) -> list[Path]:
    """Writes everything that is derived from a run's study once more. Raises ValueError or OSError."""
    return write_outputs(result_of(open_run(folder)), folder)


def export_candidate(folder: Path, to: str, output: Path, *, pick: int | None, max_latency_ms: float | None) -> Path:
    """Writes a candidate of a run in another form and returns the path. Raises ValueError or OSError."""
    exporter = EXPORTERS.find(to)()
    result = result_of(open_run(folder))
    config = validated(result.config.resolved)
    record = choose(result, pick=pick, max_latency_ms=max_latency_ms)
    if pick is None and (others := passed_over(result, record, max_latency_ms)):
        say(
            f"Candidate {record.number} is the best of those confirmed. In the search {numbered(others)} had a lower "
            f"{result.objectives[0]}, with one seed: {confirm_command(result, folder)}, or --pick"
        )
    proxy = cache(partial(proxy_of, config))
    return exporter.export(Winner(result, record, proxy, lambda: _trained(folder, proxy(), result, record)), output)


def _trained(folder: Path, proxy: Proxy, result: RunResult, record: CandidateRecord) -> HybridLM:
    """The weights of a candidate, as the search kept them, or trained again as the search trained it."""
    job = Job(Architecture.from_dict(record.architecture), record.fidelity, record.seed)
    if record.fidelity.twin > 1:
        raise ValueError(
            f"the candidates of this run were trained as twins narrowed {record.fidelity.twin} times, so there are no "
            "weights of theirs to export; --to yaml writes the design with its training recipe"
        )
    if not isinstance(proxy, Trains):
        raise ValueError("this run's proxy gives no weights; --to yaml writes the design with its training recipe")
    if record.fidelity != proxy.fidelity:
        raise ValueError(
            f"the data has changed since the search, or the device: candidate {record.number} cannot be trained again "
            f"({record.fidelity}, data {record.fidelity.data}; now {proxy.fidelity}, data {proxy.fidelity.data})"
        )
    if isinstance(proxy, Keeps):
        proxy.keep_in(folder / WEIGHTS)
        model = proxy.weights(job)
        if model is not None:
            say(f"The weights of candidate {record.number} are those that the search kept")
            return model
    say(f"Training candidate {record.number} as the search did ({duration(record.seconds)} there)")
    try:
        model, found = proxy.train(job)
    except (RuntimeError, ArithmeticError) as error:
        raise WorkFailed(f"candidate {record.number} could not be trained again: {error}") from error
    first = next(iter(found.metrics))
    unit = result.metric(first).unit
    say(f"{first} {unit.text(found.metrics[first].value)}, in the search {unit.text(record.metrics[first].value)}")
    return model

"""`nfsearch report` and `nfsearch export`: what is done with the folder of a run."""

from __future__ import annotations

from pathlib import Path

from nfsearch.report.outputs import write_outputs
from nfsearch.run.config import Config
from nfsearch.run.records import CONFIG, result_of, study_place
from nfsearch.run.yaml_file import read_yaml
from nfsearch.search.study import Store, load_store
from nfsearch.space import Architecture
from nfsearch.support.errors import WorkFailed
from nfsearch.support.terminal import duration, say


def open_run(folder: Path) -> Store:
    """The study of a run's folder. Raises ValueError if it is none."""
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} is not the folder of a run: it has no {CONFIG}")
    config = read_yaml(path).validate(Config)
    return load_store(*study_place(config, folder))


def rebuild_report(folder: Path) -> list[Path]:
    """Writes everything that is derived from a run's study once more. Raises ValueError or OSError."""
    return write_outputs(result_of(open_run(folder)), folder)


def export_candidate(folder: Path, to: str, output: Path, *, pick: int | None, max_latency_ms: float | None) -> Path:
    """Writes a candidate of a run in another form and returns the path. Raises ValueError or OSError."""
    from nfsearch.export.export import choose, export_hf, export_yaml, require_free

    store = open_run(folder)
    result = result_of(store)
    config = Config.model_validate(result.config.resolved)
    record = choose(result, pick=pick, max_latency_ms=max_latency_ms)
    if to == "yaml":
        return export_yaml(result, record, output)
    from nfsearch.proxies.data import prepare
    from nfsearch.proxies.training import train_model
    from nfsearch.run.tables import training_kind

    if config.proxy.narrow > 1:
        raise ValueError(
            f"the candidates of this run were trained as twins narrowed {config.proxy.narrow} times, so there are no "
            "weights of theirs to export; --to yaml writes the design with its training recipe"
        )

    require_free(output)
    try:
        import nfsearch.hf  # noqa: F401  (before the training: it may be missing)
    except ImportError as error:
        raise ValueError(f"an export to hf needs transformers (pip install 'nfsearch[hf]'): {error}") from None
    corpus = prepare(config.proxy)
    if corpus.digest != store.meta["fingerprint"]["data"]:
        raise ValueError(
            f"{corpus.name} has changed since the search: candidate {record.number} cannot be trained again"
        )
    kind = training_kind(config)
    architecture = Architecture.from_dict(record.architecture)
    say(f"Training candidate {record.number} as the search did ({duration(record.seconds)} there)")
    try:
        model, score = train_model(architecture, corpus, config.proxy, seed=config.search.seed, device=kind)
    except (RuntimeError, ArithmeticError) as error:
        raise WorkFailed(f"candidate {record.number} could not be trained again: {error}") from error
    say(f"loss {score.loss:.4f}, in the search {record.loss:.4f}")
    return export_hf(model.cpu(), output, tokenizer=corpus.tokenizer, result=result, record=record)

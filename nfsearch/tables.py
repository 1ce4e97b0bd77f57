"""Latency tables for the command line and for a run: build, show, check, ask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.table import Table

from nfsearch.config import Config, load_config
from nfsearch.display import say, stdout, steps
from nfsearch.latency_lut import LatencyTable, Workload, keys_for
from nfsearch.latency_lut.table import Row
from nfsearch.proxies.data import prepare
from nfsearch.space import Architecture, SearchSpace
from nfsearch.space.search_space import Fits

if TYPE_CHECKING:
    from nfsearch.latency_lut.verify import Verification

SUFFIX = ".parquet"


def vocabulary(config: Config) -> int:
    """The space's vocabulary where it says one; else the tokenizer's, which may have to be trained."""
    return config.space.vocab if isinstance(config.space.vocab, int) else prepare(config.proxy).vocab


def check_layers(config: Config, space: SearchSpace, kind: str) -> None:
    """Raises ValueError unless everything in the space can be built and run on "cuda" or "cpu"."""
    from nfsearch.ops.paths import check as check_paths

    decode = any(workload.phase == "decode" for workload in config.latency.workloads.values())
    check_paths(space.alphabet(), space.widths, kind, decode=decode)


def measure(config: Config, space: SearchSpace, path: Path) -> LatencyTable:
    """Builds, or completes, the table that a config needs."""
    from nfsearch.latency_lut import device, profiler

    kind = device.resolve(config.latency.device)
    keys = keys_for(space, config.latency.workloads, config.latency.dtype_on(kind))
    with steps(f"latency table on {device.device_name(kind)}") as step:

        def progress(done: int, total: int, row: Row | None) -> None:
            step(done, total)

        return profiler.build(keys, path, device=config.latency.device, progress=progress)


def check(
    config: Config, space: SearchSpace, table: LatencyTable, number: int, seed: int, fits: Fits | None = None
) -> Verification:
    """Whole random models measured against the table's estimates."""
    from nfsearch.latency_lut import device, verify

    dtype = config.latency.dtype_on(device.resolve(config.latency.device))
    with steps("checking the table on whole models") as step:

        def progress(done: int, total: int, made: verify.Check) -> None:
            step(done, total)

        return verify.verify(
            table, space, config.latency.workloads, dtype=dtype, n=number, seed=seed, fits=fits, progress=progress
        )


def build_table(config_path: Path, output: Path, assignments: Sequence[str]) -> None:
    from nfsearch.latency_lut import device

    config, _ = load_config(config_path, assignments)
    if output.suffix != SUFFIX:
        raise ValueError(f"{output}: a latency table's name ends in {SUFFIX}")
    if not output.parent.is_dir():
        raise ValueError(f"{output.parent} is not a folder")
    space = config.space.build(vocabulary(config))
    check_layers(config, space, device.resolve(config.latency.device))
    table = measure(config, space, output)
    say(f"{output}: {len(table.rows)} rows")


def show_table(path: Path) -> None:
    table = LatencyTable.load(path)
    stdout().print(table.render())


def verify_table(path: Path, config_path: Path, number: int, seed: int) -> None:
    from nfsearch.latency_lut import device

    config, _ = load_config(config_path)
    table = LatencyTable.load(path)
    kind = device.resolve(config.latency.device)
    table.require_device(device.device_slug(kind))
    space = config.space.build(vocabulary(config))
    table.require(keys_for(space, config.latency.workloads, config.latency.dtype_on(kind)))
    found = check(config, space, table, number, seed)
    shown = Table(title=f"{path} against {found.device}, {found.dtype}")
    for name in ("workload", "architecture", "estimated ms", "measured ms", "error"):
        shown.add_column(name, justify="left" if name in ("workload", "architecture") else "right", overflow="fold")
    for each in found.checks:
        estimated = f"{each.estimated_ms:.4g} ± {each.error_ms:.2g}"
        architecture = each.architecture.replace("[", r"\[")
        shown.add_row(each.workload, architecture, estimated, f"{each.measured_ms:.4g}", f"{each.relative:+.1%}")
    stdout().print(shown)
    for name, agreement in found.agreement.items():
        ranks = ", ".join(
            f"{label} {value:.3f}"
            for label, value in (("Spearman", agreement.spearman), ("Kendall", agreement.kendall))
            if value is not None
        )
        print(
            f"{name}: {agreement.models} models, MAPE {agreement.mape:.1%}, bias {agreement.bias:+.1%}, "
            f"worst {agreement.worst:+.1%}{', ' + ranks if ranks else ''}"
        )


def estimate_from_table(
    path: Path,
    notation: str,
    width: int,
    vocab: int | None,
    meta_tokens: int,
    phase: Literal["decode", "prefill"],
    batch: int,
    context: int | None,
) -> None:
    """Prints the estimate and its parts. What is None is the table's own: its only vocabulary, its longest context."""
    table = LatencyTable.load(path)
    if vocab is None:
        vocabs = sorted({int(key.end_settings["vocab"]) for key in table.rows if key.end})
        if len(vocabs) != 1:
            raise ValueError(f"{path} has rows of vocabularies {', '.join(map(str, vocabs))}: say --vocab")
        vocab = vocabs[0]
    if context is None:
        context = max((key.context for key in table.rows if key.phase == phase), default=0) - meta_tokens
    architecture = Architecture.parse(notation, width=width, vocab=vocab, meta_tokens=meta_tokens)
    workload = Workload(phase=phase, batch=batch, context=context)
    estimate = table.estimate(architecture, workload)
    print(f"{estimate.seconds * 1e3:.4g} ms ± {estimate.error * 1e3:.2g} ms  {architecture}, {table.provenance.device}")
    print(f"  {phase}, batch {batch}, context {context}, vocabulary {vocab}")
    for part, seconds in table.breakdown(architecture, workload).items():
        print(f"  {seconds * 1e3:10.4g} ms  {part}")

"""`nfsearch lut`: build latency tables, show, check and ask them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.table import Table

from nfsearch.latency_lut import LatencyTable, Workload, load_table
from nfsearch.latency_lut.agreement import Agreement
from nfsearch.latency_lut.bundled import SUFFIX, bundled_table
from nfsearch.latency_lut.keys import Key
from nfsearch.latency_lut.render import render
from nfsearch.latency_lut.transfer import compare, sample_keys
from nfsearch.latency_lut.verification import Verification, keep_verification, known_verification, verification_path
from nfsearch.run.config import Config, load_config
from nfsearch.run.tables import check, check_layers, measure, vocabulary
from nfsearch.space import Architecture
from nfsearch.support.files import write_atomically
from nfsearch.support.terminal import alarm, say, stdout


def build_table(config_path: Path, output: Path, assignments: Sequence[str], calibrate: Path | None, rows: int) -> None:
    """Measures all that a config asks for; or, to calibrate another device's table, a few rows that it has too."""
    config, keys = _asked(config_path, output, assignments)
    if calibrate is None:
        table = measure(config, keys, output)
        say(f"{output}: {len(table.rows)} rows")
        return
    other = load_table(calibrate)
    chosen = sample_keys(keys, other, rows)
    table = measure(config, chosen, output)
    found = compare(chosen, table, other)
    print(
        f"{table.provenance.device} takes {found.factor:.4g} times as long as {other.provenance.device} "
        f"(median of {found.fitted} rows). So scaled, the other rows of {calibrate} are wrong here by:"
    )
    for name, agreement in {"all": found.overall, **found.by_operator}.items():
        print(f"  {name}: {_in_words(agreement, 'rows')}")
    print("This holds for these two devices and these rows; estimates still come from a table of the device itself.")


def _asked(config_path: Path, output: Path, assignments: Sequence[str]) -> tuple[Config, list[Key]]:
    from nfsearch.latency_lut import device
    from nfsearch.latency_lut.profiler import rows_of

    config, _ = load_config(config_path, assignments)
    if output.suffix != SUFFIX:
        raise ValueError(f"{output}: a latency table's name ends in {SUFFIX}")
    if not output.parent.is_dir():
        raise ValueError(f"{output.parent} is not a folder")
    space = config.space.build(vocabulary(config))
    check_layers(config, space)
    kind = device.resolve(config.latency.device)
    return config, rows_of(space, config.latency.workloads, config.latency.dtype_on(kind), kind)


def show_table(path: Path, device: str | None) -> None:
    """Prints the table, the widths in as many parts as are needed for them to fit side by side."""
    table, console = _load(path, device), stdout()
    for size in range(len(table.widths), 0, -1):
        parts = [render(table, table.widths[i : i + size]) for i in range(0, len(table.widths), size)]
        if all(_broad(part) <= console.width for part in parts):
            break
    for part in parts:
        console.print(part)


def _broad(table: Table) -> int:
    """How many characters a line of it has where nothing is folded; rich, which could be asked, takes seconds."""
    cells = ((column.header, *column.cells) for column in table.columns)
    return 1 + sum(3 + max(len(str(cell)) for cell in column) for column in cells)  # a space either side, and a line


def verify_table(path: Path, config_path: Path, number: int, seed: int, assignments: Sequence[str]) -> None:
    """Checks a table on its device, prints the result and keeps it, with a plot, beside the table."""
    from nfsearch.latency_lut import device
    from nfsearch.report.check_figure import check_png

    config, _ = load_config(config_path, assignments)
    kind = device.resolve(config.latency.device)
    table = load_table(path, device.device_slug(kind))
    space = config.space.build(vocabulary(config))
    kept = verification_path(path)
    found = check(config, space, table, number, seed, known_verification(table), partial(keep_verification, table))
    stdout().print(_checks(found, path))
    _tell(found)
    for complaint in found.complaints(config.latency.trust):
        alarm(f"DO NOT TRUST {path}: {complaint}")
    together = known_verification(table) or found
    if len(together.checks) > len(found.checks):
        print("Together with earlier checks of this table:")
        _tell(together)
    plot = kept.with_suffix(".png")
    write_atomically(plot, check_png(together))
    say(f"Kept in {kept}, with a plot in {plot.name}; delete it to check anew")


def _tell(found: Verification) -> None:
    """How well the estimates agree, for each workload."""
    for name, agreement in found.agreement.items():
        print(f"{name}: {_in_words(agreement)}")
        for label, part in found.by_depth[name].items():
            print(f"  {label}: {_in_words(part)}")
        if memory := found.memory.get(name):
            print(f"  peak memory: {_in_words(memory)}")


def _checks(found: Verification, path: Path) -> Table:
    shown = Table(title=f"{path} against {found.device}, {found.dtype}")
    for name in ("workload", "architecture", "estimated ms", "measured ms", "error"):
        shown.add_column(name, justify="left" if name in ("workload", "architecture") else "right", overflow="fold")
    for each in found.checks:
        estimated = f"{each.estimated_ms:.4g} ± {each.error_ms:.2g}"
        shown.add_row(each.workload, each.architecture, estimated, f"{each.measured_ms:.4g}", f"{each.relative:+.1%}")
    return shown


def _in_words(agreement: Agreement, what: str = "models") -> str:
    ranks = (("Spearman", agreement.spearman), ("Kendall", agreement.kendall))
    parts = [
        f"{agreement.models} {what}",
        f"MAPE {agreement.mape:.1%}",
        f"bias {agreement.bias:+.1%}",
        f"worst {agreement.worst:+.1%}",
        *(f"{label} {value:.3f}" for label, value in ranks if value is not None),
    ]
    return ", ".join(parts)


def estimate_from_table(
    path: Path,
    device: str | None,
    notation: str,
    width: int,
    vocab: int | None,
    head_norm: bool | None,
    meta_tokens: int,
    **workload: Any,
) -> None:
    """Prints the estimate and its parts. What is None is the table's own: its only head, its longest context."""
    table = _load(path, device)
    Architecture.parse(notation, width=width, vocab=1)  # what is wrong with it comes before what is wrong with the ends
    vocab, head_norm = _head(table, vocab, head_norm)
    asked = {name: value for name, value in workload.items() if value is not None}
    architecture = Architecture.parse(notation, width=width, vocab=vocab, meta_tokens=meta_tokens, head_norm=head_norm)
    if at_longest := "context" not in asked and asked["phase"] != "generation":
        asked["context"] = max(0, _longest(table, architecture, asked["phase"]) - meta_tokens)
    try:
        work = Workload(**asked)
    except ValidationError as error:
        raise ValueError("; ".join(problem["msg"] for problem in error.errors())) from None
    estimate, checked = table.estimate(architecture, work), known_verification(table)
    if stale := table.staleness():
        say(f"BEWARE: `nfsearch run` refuses {table.name}: {stale}")
    bar = checked.doubt().bar(estimate.seconds, estimate.error) if checked else estimate.error
    print(f"{estimate.seconds * 1e3:.4g} ms ± {bar * 1e3:.2g} ms  {architecture}, {table.provenance.device}")
    if checked:
        print("  ±: the noise of the rows, and bias and spread of the table's check on whole models; about 95 %")
    else:
        print("  ±: the noise of the rows alone; this table was never checked on whole models")
    names = ("batch", "prompt", "tokens") if work.phase == "generation" else ("batch", "context")
    words = ", ".join(f"{name} {getattr(work, name)}" for name in names)
    if at_longest:
        words += " (the longest that was measured; --context asks for another)"
    head = f"vocabulary {vocab}{', normalised head' if head_norm else ''}"
    print(f"  {work.phase}, {words}, {head}; {table.memory(architecture, work) / 1e9:.4g} GB at its peak")
    for part, seconds in table.breakdown(architecture, work).items():
        print(f"  {seconds * 1e3:10.4g} ms  {part}")


def _longest(table: LatencyTable, architecture: Architecture, phase: str) -> int:
    """The longest context of a phase that the table knows of every layer whose cost grows with it; 1 where of none."""
    longest: dict[str, int] = {}
    for key in table.rows:
        if key.phase == phase and key.width == architecture.width:
            longest[key.block] = max(longest.get(key.block, 0), key.context)
    costs = {str(layer): layer.cost(architecture.width) for layer in architecture.layers}
    growing = {name for name, cost in costs.items() if phase == "prefill" or (cost.cache_per_token and not cost.window)}
    return min((longest[name] for name in growing & longest.keys()), default=max(1, *longest.values(), 0))


def _load(path: Path, device: str | None) -> LatencyTable:
    """Of a file, or of a device whose table comes with nfsearch."""
    return load_table(path if path.suffix or path.exists() else bundled_table(str(path)), device)


def _head(table: LatencyTable, vocab: int | None, head_norm: bool | None) -> tuple[int, bool]:
    """Vocabulary and head norm, the table's own where they are None. Raises ValueError where it has several."""
    ends = [key.end_settings for key in table.rows if key.is_end]
    known = {(int(end["vocab"]), "head_norm" in end) for end in ends}
    fitting = {end for end in known if vocab in (None, end[0]) and head_norm in (None, end[1])}
    if len(fitting) == 1:
        return fitting.pop()
    if vocab is not None and (head_norm is not None or not fitting):
        return vocab, bool(head_norm)  # the estimate will say what is missing
    words = (f"--vocab {size} {'--head-norm' if norm else '--no-head-norm'}" for size, norm in sorted(known))
    raise ValueError(f"{table.path} has rows of {' and '.join(words)}: say which")

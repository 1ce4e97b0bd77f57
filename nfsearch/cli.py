"""The command line. Everything heavy is imported by the command that needs it, so that help is instant.

Exit status: 0 done; 2 the input is wrong, nothing was written; 1 the work failed, what finished is kept;
130 interrupted, kept and resumable. Messages go to stderr, results to stdout.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from nfsearch.bench.cli import bench
from nfsearch.errors import WorkFailed

app = typer.Typer(
    name="nfsearch",
    help="Evolutionary search for small hybrid language models that are fast on your device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
lut = typer.Typer(name="lut", help="Latency tables: measure, look at, check, ask.", no_args_is_help=True)
app.add_typer(lut)
app.add_typer(bench)

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="A config file (nfsearch init writes one).")]
OfDevice = Annotated[
    str | None, typer.Option(metavar="NAME", help="The device that is meant, where the file has tables of several.")
]
TableFile = Annotated[Path, typer.Argument(metavar="TABLE", help="A latency table (Parquet).")]
AnyTable = Annotated[
    Path, typer.Argument(metavar="TABLE", help="A latency table (Parquet), or the device of one that nfsearch brings.")
]
RunFolder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the config; repeatable.")
]


def main() -> None:
    """Runs the command line and turns errors into one message and an exit status."""
    try:
        status = app(standalone_mode=False)
    except typer.Abort:
        status = 130
    except KeyboardInterrupt:
        print("nfsearch: interrupted", file=sys.stderr)
        status = 130
    except WorkFailed as error:
        print(f"nfsearch: {error}", file=sys.stderr)
        status = 1
    except (ValueError, OSError) as error:
        print(f"nfsearch: {error}", file=sys.stderr)
        status = 2
    except Exception as error:
        if not hasattr(error, "exit_code"):  # of click: a wrong use of the command line
            raise
        error.show()  # type: ignore[attr-defined]
        status = error.exit_code
    sys.exit(status if isinstance(status, int) else 0)


@app.command()
def run(
    config: ConfigFile,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write; by default runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in DIR.")] = False,
    assignments: Set = None,
) -> int:
    """Search: measure latencies, train candidates, write the Pareto front and a report."""
    from nfsearch.run import search

    return search(config, out, resume=resume, assignments=assignments or [])


@app.command()
def report(folder: RunFolder) -> None:
    """Rebuild the report and tables of a run from its study."""
    from nfsearch.finished import rebuild_report

    for path in rebuild_report(folder):
        print(path)


@app.command()
def export(
    folder: RunFolder,
    to: Annotated[Literal["yaml", "hf"], typer.Option(help="yaml: design and training recipe; hf: a model folder.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file (yaml) or folder (hf) to write.")],
    best: Annotated[bool, typer.Option("--best", help="The candidate with the lowest loss (the default).")] = False,
    pick: Annotated[int | None, typer.Option(metavar="ID", help="The candidate of this number.")] = None,
    max_latency_ms: Annotated[
        float | None, typer.Option(metavar="X", help="The lowest loss among those this fast (first latency objective).")
    ] = None,
) -> None:
    """Write a candidate as a training recipe, or as a Hugging Face model trained as the search trained it."""
    from nfsearch.finished import export_candidate

    if sum([best, pick is not None, max_latency_ms is not None]) > 1:
        raise ValueError("--best, --pick and --max-latency-ms exclude each other")
    print(export_candidate(folder, to, output, pick=pick, max_latency_ms=max_latency_ms))


@app.command()
def space(
    source: Annotated[str, typer.Argument(metavar="CONFIG|EXPRESSION", help="A config, or an expression.")],
    count: Annotated[bool, typer.Option("--count", help="Print only the number of answer sets.")] = False,
    sample: Annotated[int, typer.Option(metavar="N", help="Print N random members.", min=0)] = 0,
    seed: Annotated[int, typer.Option(help="Of the random members.")] = 0,
    check: Annotated[str | None, typer.Option(metavar="NOTATION", help="Is this architecture a member?")] = None,
) -> int:
    """Describe a search space: its size, random members, membership."""
    from nfsearch.describe import check_member, describe_space, read_space, sample_members

    described = read_space(source)
    if check is not None:
        return check_member(described, check)
    if count:
        print(described.count())
    elif sample:
        sample_members(described, sample, seed)
    else:
        describe_space(described)
    return 0


@lut.command("build")
def lut_build(
    config: ConfigFile,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="TABLE", help="The table to write or go on with.")],
    calibrate: Annotated[
        Path | None,
        typer.Option(metavar="TABLE", help="Measure a few rows only, and tell how wrong this table, scaled, is here."),
    ] = None,
    rows: Annotated[int, typer.Option(metavar="N", min=4, help="How many rows --calibrate measures.")] = 24,
    assignments: Set = None,
) -> None:
    """Measure everything that the config's space and workloads can ask for. Resumes."""
    from nfsearch.tables import build_table

    build_table(config, output, assignments or [], calibrate, rows)


@lut.command("show")
def lut_show(table: AnyTable, device: OfDevice = None) -> None:
    """Print a table and where its figures come from."""
    from nfsearch.tables import show_table

    show_table(table, device)


@lut.command("verify")
def lut_verify(
    table: TableFile,
    config: Annotated[Path, typer.Option("--config", metavar="CONFIG", help="Whose space and workloads to check.")],
    number: Annotated[int, typer.Option("-n", metavar="N", min=2, help="Random whole models to measure.")] = 30,
    seed: Annotated[int, typer.Option(help="Of the random models.")] = 0,
    assignments: Set = None,
) -> None:
    """Measure random whole models end to end, compare with the table's estimates, and keep the result beside it."""
    from nfsearch.tables import verify_table

    verify_table(table, config, number, seed, assignments or [])


@lut.command("estimate")
def lut_estimate(
    table: AnyTable,
    notation: Annotated[str, typer.Argument(help="An architecture in the notation.")],
    width: Annotated[int, typer.Option(min=1, help="Hidden size.")],
    vocab: Annotated[int | None, typer.Option(min=1, help="Size of the vocabulary; by default the table's.")] = None,
    head_norm: Annotated[
        bool | None,
        typer.Option("--head-norm/--no-head-norm", help="Logits over the head's row lengths? Default: the table's."),
    ] = None,
    meta_tokens: Annotated[int, typer.Option(min=0, help="Learned vectors before every sequence.")] = 0,
    phase: Annotated[Literal["decode", "prefill", "generation"], typer.Option()] = "decode",
    batch: Annotated[int, typer.Option(min=1, help="Sequences.")] = 1,
    context: Annotated[
        int | None, typer.Option(min=0, help="Tokens held (decode) or read (prefill); by default the table's longest.")
    ] = None,
    prompt: Annotated[int | None, typer.Option(min=0, help="Tokens read before a generation.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Tokens that a generation decodes.")] = None,
    device: OfDevice = None,
) -> None:
    """Estimate one architecture from a table."""
    from nfsearch.tables import estimate_from_table

    asked = {"phase": phase, "batch": batch, "context": context, "prompt": prompt, "tokens": tokens}
    estimate_from_table(table, device, notation, width, vocab, head_norm, meta_tokens, **asked)


@app.command()
def init(
    template: Annotated[Literal["quickstart", "paper"], typer.Argument(help="Which starter config.")] = "quickstart",
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write.")] = Path("config.yaml"),
) -> None:
    """Write a commented starter config."""
    from importlib.resources import files

    text = files("nfsearch").joinpath("templates", f"{template}.yaml").read_text(encoding="utf-8")
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ValueError(f"{output} is there already; give another name with -o") from None
    print(f"Wrote {output}. Next: nfsearch run {output}")


@app.command()
def doctor() -> int:
    """What this machine has, what will run on it and why, and what is missing."""
    from nfsearch.doctor import diagnose

    return diagnose()

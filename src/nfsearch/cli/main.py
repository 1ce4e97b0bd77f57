"""The command line. Everything heavy is imported by the command that needs it, so that help is instant.

Exit status: 0 done; 2 the input is wrong, nothing was written; 1 the work failed, what finished is kept;
130 interrupted, kept and resumable. Messages go to stderr, results to stdout.
"""

from __future__ import annotations

import platform
import sys
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

import typer

from nfsearch import __version__
from nfsearch.cli.bench import bench
from nfsearch.cli.lut import Set, lut
from nfsearch.cli.study import study
from nfsearch.support.errors import WorkFailed, of_the_disk
from nfsearch.support.interrupt import interrupts_raise

app = typer.Typer(
    name="nfsearch",
    help="Evolutionary search for small hybrid language models that are fast on your device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(lut)
app.add_typer(bench)
app.add_typer(study)

RunFolder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run.")]


def main() -> None:
    """Runs the command line and turns errors into one message and an exit status."""
    try:
        if platform.system() != "Linux":
            raise ValueError(f"this runs on Linux alone (on Windows: in WSL), and this machine has {platform.system()}")
        with interrupts_raise():
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
        status = 1 if of_the_disk(error) else 2
    except Exception as error:
        if not hasattr(error, "exit_code"):  # of click: a wrong use of the command line
            raise
        error.show()  # type: ignore[attr-defined]
        status = error.exit_code
    sys.exit(status if isinstance(status, int) else 0)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"nfsearch {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """What holds for all commands."""


@app.command()
def run(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="A config file (nfsearch init writes one).")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write; by default runs/NAME.")] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="DIR", help="Go on with the run in DIR, by its own config.")
    ] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Exit with 1, at the end, unless the latency table was checked and is good."),
    ] = False,
    assignments: Set = None,
) -> int:
    """Search: measure latencies, train candidates, write the Pareto front and a report."""
    from nfsearch.run.search import search

    return search(config, out, resume=resume, assignments=assignments or [], strict=strict)


@app.command()
def confirm(
    folder: RunFolder,
    top: Annotated[
        int, typer.Option(metavar="N", min=1, help="How many finalists: the front, then the next best.")
    ] = 5,
    seeds: Annotated[int, typer.Option(metavar="N", min=1, help="With how many other seeds each is trained.")] = 3,
    tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="On how many tokens; by default as the search did.")
    ] = None,
) -> int:
    """Train the finalists of a run again with other seeds, and say which order holds. Called again it goes on."""
    from nfsearch.run.confirm import confirm as confirm_run

    return confirm_run(folder, top=top, seeds=seeds, tokens=tokens)


@app.command()
def report(folder: RunFolder) -> None:
    """Rebuild the report and tables of a run from its study."""
    from nfsearch.run.finished import rebuild_report

    for path in rebuild_report(folder):
        print(path)


@app.command()
def export(
    folder: RunFolder,
    to: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="yaml: the design; hf: a model folder; or another exporter, such as nemotron_h."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file or folder to write.")],
    best: Annotated[
        bool, typer.Option("--best", help="The one with the lowest first objective (the default).")
    ] = False,
    pick: Annotated[int | None, typer.Option(metavar="ID", help="The candidate of this number.")] = None,
    max_latency_ms: Annotated[
        float | None, typer.Option(metavar="X", help="The best of those this fast (first latency objective).")
    ] = None,
) -> None:
    """Write a candidate in another form: a recipe, arguments of a trainer, a model with the weights of the search."""
    from nfsearch.run.finished import export_candidate

    if sum([best, pick is not None, max_latency_ms is not None]) > 1:
        raise ValueError("--best, --pick and --max-latency-ms exclude each other")
    print(export_candidate(folder, to, output, pick=pick, max_latency_ms=max_latency_ms))


@app.command()
def space(
    source: Annotated[str, typer.Argument(metavar="CONFIG|EXPRESSION", help="A config, or an expression.")],
    count: Annotated[bool, typer.Option("--count", help="Print only the number of combinations of choices.")] = False,
    sample: Annotated[int, typer.Option(metavar="N", help="Print N random members.", min=0)] = 0,
    seed: Annotated[int, typer.Option(help="Of the random members.")] = 0,
    check: Annotated[str | None, typer.Option(metavar="NOTATION", help="Is this architecture a member?")] = None,
    serves: Annotated[
        str | None, typer.Option(metavar="FAMILY", help="Leave out what this exporter cannot express.")
    ] = None,
) -> int:
    """Describe a search space: its size, random members, membership."""
    from nfsearch.cli.describe import check_member, describe_space, read_space, sample_members

    described = read_space(source, serves)
    if check is not None:
        return check_member(described, check)
    if count:
        print(f"{Decimal(described.count()):f}")  # an int of more than 4,300 digits is not written
    elif sample:
        sample_members(described, sample, seed)
    else:
        describe_space(described)
    return 0


@app.command()
def init(
    template: Annotated[Literal["quickstart", "paper"], typer.Argument(help="Which starter config.")] = "quickstart",
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write.")] = Path("config.yaml"),
) -> None:
    """Write a commented starter config."""
    from importlib.resources import files

    text = files("nfsearch.cli").joinpath("templates", f"{template}.yaml").read_text(encoding="utf-8")
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ValueError(f"{output} is there already; give another name with -o") from None
    print(f"Wrote {output}. Next: nfsearch run {output}")


@app.command()
def doctor() -> int:
    """What this machine has, what will run on it and why, and what is missing."""
    from nfsearch.cli.doctor import diagnose

    return diagnose()

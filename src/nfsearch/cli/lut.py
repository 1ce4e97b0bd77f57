"""The commands of `nfsearch lut`. What they run is imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

lut = typer.Typer(name="lut", help="Latency tables: measure, look at, check, ask.", no_args_is_help=True)

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="A config file (nfsearch init writes one).")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the config; repeatable.")
]
OfDevice = Annotated[
    str | None, typer.Option(metavar="NAME", help="The device that is meant, where the file has tables of several.")
]
TableFile = Annotated[Path, typer.Argument(metavar="TABLE", help="A latency table (Parquet).")]
AnyTable = Annotated[
    Path, typer.Argument(metavar="TABLE", help="A latency table (Parquet), or the device of one that nfsearch brings.")
]


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
    from nfsearch.cli.tables import build_table

    build_table(config, output, assignments or [], calibrate, rows)


@lut.command("show")
def lut_show(table: AnyTable, device: OfDevice = None) -> None:
    """Print a table and where its figures come from."""
    from nfsearch.cli.tables import show_table

    show_table(table, device)


@lut.command("verify")
def lut_verify(
    table: TableFile,
    config: Annotated[Path, typer.Option("--config", metavar="CONFIG", help="Whose space and workloads to check.")],
    number: Annotated[int, typer.Option("-n", metavar="N", min=2, help="Random whole models to measure.")] = 30,
    seed: Annotated[int, typer.Option(help="Of the random models.")] = 0,
    assignments: Set = None,
) -> None:
    """Measure random whole models end to end, compare with the table's estimates, and keep the result beside it.

    What earlier calls checked of the same table stays, and is not measured again: killed, the same command goes on;
    another seed or another space adds to it.
    """
    from nfsearch.cli.tables import verify_table

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
    from nfsearch.cli.tables import estimate_from_table

    asked = {"phase": phase, "batch": batch, "context": context, "prompt": prompt, "tokens": tokens}
    estimate_from_table(table, device, notation, width, vocab, head_norm, meta_tokens, **asked)

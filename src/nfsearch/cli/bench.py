"""The commands of `nfsearch bench`. What they run is imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

bench = typer.Typer(
    name="bench",
    help="Measure against baselines and the memory's floor; results are checked first.",
    no_args_is_help=True,
)

Output = Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write the result as JSON.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or the short name of this machine's device.")]
Dtype = Annotated[str, typer.Option(help="auto (bfloat16 on CUDA), bfloat16, float16 or float32.")]
Compile = Annotated[
    Literal["none", "default", "max-autotune"],
    typer.Option(
        "--compile", help="How torch.compile makes its baselines (max-autotune takes minutes); none: without."
    ),
]
Operators = Annotated[
    list[str] | None,
    typer.Option("--op", metavar="OPERATOR", help="One operator in the notation; repeatable. All, if none is given."),
]


@bench.command("ops")
def ops(
    operators: Operators = None,
    width: Annotated[list[int], typer.Option(min=1, help="Hidden size; repeatable.")] = [2048],  # noqa: B006
    context: Annotated[list[int], typer.Option(min=1, help="Tokens held, for attention; repeatable.")] = [8192],  # noqa: B006
    batch: Annotated[list[int], typer.Option(min=1, help="Sequences; repeatable.")] = [1],  # noqa: B006
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="PART", help="blocks, attention or projections; repeatable. All, if none is given."),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    compile: Compile = "default",
    output: Output = None,
) -> None:
    """Time one decode step of each residual block (norm, operator, residual), of projections, of attention alone."""
    from nfsearch.bench.session import OPERATORS, run_ops

    where = dict(device=device, dtype=dtype, compile=compile, output=output)
    run_ops(operators or OPERATORS, width, context, batch, only or [], **where)


@bench.command("model")
def model(
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="nemotron-flash-1b, nemotron-flash-3b, qwen3-0.6b, qwen3-1.7b, an architecture's YAML file, or "
            "notation; repeatable: the first is compared with the others.",
        ),
    ] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Hidden size of models given as notation.")] = None,
    context: Annotated[int, typer.Option(min=1, help="Tokens held.")] = 8192,
    batch: Annotated[
        str, typer.Option(metavar="N|max", help="Sequences; max: as many as fit (no baselines, models in a row).")
    ] = "1",
    device: Device = "auto",
    dtype: Dtype = "auto",
    compile: Compile = "max-autotune",
    output: Output = None,
) -> None:
    """Time one token of whole models with random weights, each in one CUDA graph."""
    from nfsearch.bench.session import run_model

    if batch != "max" and not (batch.isdecimal() and int(batch)):
        raise ValueError(f"--batch {batch}: expected a whole number of at least 1, or max")
    chosen = models or ["nemotron-flash-1b", "qwen3-0.6b"]
    sequences = None if batch == "max" else int(batch)
    run_model(chosen, width, context, sequences, device=device, dtype=dtype, compile=compile, output=output)


@bench.command("training")
def training(
    operators: Operators = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="NOTATION", help="A whole model instead of operators; repeatable."),
    ] = None,
    width: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Hidden size; repeatable. 512 and 1024 if none is given; of models, one or one each."),
    ] = None,
    head_dim: Annotated[list[int], typer.Option(min=1, help="Key size of a head; repeatable.")] = [64, 128],  # noqa: B006
    vocab: Annotated[int, typer.Option(min=1, help="Vocabulary of models.")] = 16384,
    sequence: Annotated[list[int], typer.Option(min=1, help="Tokens; repeatable.")] = [1024, 4096],  # noqa: B006
    batch: Annotated[int, typer.Option(min=1, help="Sequences.")] = 8,
    device: Device = "auto",
    dtype: Dtype = "auto",
    compile: Compile = "default",
    output: Output = None,
) -> None:
    """Time forward and backward of each mixer, gradients checked against float64. `--op` takes names alone.

    With --model: one training step of a whole model as the search trains it, beside one of library parts.
    """
    from nfsearch.bench.session import MIXERS, run_training, run_whole_training

    where = dict(device=device, dtype=dtype, compile=compile, output=output)
    if models and operators:
        raise ValueError("--model and --op: expected one of them")
    if models:
        if not width:
            raise ValueError("--model needs --width")
        run_whole_training(models, width, vocab, sequence, batch, **where)
    else:
        run_training(operators or MIXERS, width or [512, 1024], head_dim, sequence, batch, **where)


@bench.command("candidate")
def candidate(
    notation: Annotated[str, typer.Argument(metavar="NOTATION", help="The architecture's layers.")],
    width: Annotated[int, typer.Option(min=1, help="Hidden size.")],
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the training proxy; repeatable."),
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Also list the kernels of a step by their time.")] = False,
    device: Device = "auto",
    output: Output = None,
) -> None:
    """Break one candidate of the training proxy down, from job to score: cold, and again in the warm process."""
    from nfsearch.bench.session import run_candidate

    run_candidate(notation, width, assignments or [], profile, device, output)


@bench.command("show")
def show(
    result: Annotated[Path, typer.Argument(metavar="RESULT.json", help="What one of the others wrote.")],
    table: Annotated[Path | None, typer.Option(metavar="FILE.md", help="Write it as a Markdown table.")] = None,
    figure: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw the layers of `bench ops`.")] = None,
) -> None:
    """Print a result again; write it as a table or a picture."""
    from nfsearch.bench.session import show_result

    show_result(result, table, figure)

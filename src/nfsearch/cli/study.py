"""The commands of `nfsearch study`. What they run is imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nfsearch.cli.lut import ConfigFile, Set

study = typer.Typer(name="study", help="Studies of the method itself, from many trainings.", no_args_is_help=True)

StudyFolder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a study.")]


@study.command("fidelity")
def fidelity(
    config: ConfigFile,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The folder to write or go on with.")],
    share: Annotated[
        str,
        typer.Option(
            metavar="K/N",
            help="Train every N-th architecture alone, from the K-th on: for several GPUs (each in a process of its "
            "own, with CUDA_VISIBLE_DEVICES) or machines. On a CPU each takes an N-th of the cores.",
        ),
    ] = "1/1",
    assignments: Set = None,
) -> int:
    """Train architectures of one latency short and long: does the short order agree with the long one? Resumes."""
    from nfsearch.studies.fidelity import study_fidelity

    return study_fidelity(config, output, share, assignments or [])


@study.command("report")
def report(folder: StudyFolder) -> None:
    """Tell what a study has found so far: tables, a figure, and which budget to use."""
    from nfsearch.studies.report import print_report

    print_report(folder)


@study.command("tasks")
def tasks(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Models and tasks: see experiments/recall.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The folder to write or go on with.")],
    assignments: Set = None,
) -> int:
    """Have models learn recall, copying and compression: what can each operator do? Resumes."""
    from nfsearch.studies.tasks import study_tasks

    return study_tasks(config, output, assignments or [])

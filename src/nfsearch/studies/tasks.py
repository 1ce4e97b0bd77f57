"""`nfsearch study tasks`: what can each operator do? Every model by every task, as a table and a picture.

    DIR/ config.yaml   results.csv   table.md   figure.png

`results.csv` is the truth and gets a row whenever a model has learned a task, so the study goes on where it stopped.
The config:

width: 128
models: {attention: "(A F){2}", DeltaNet: "(D F){2}"}
tasks: {recall of 64: {kind: mqar, pairs: 64}, compression: {kind: compression}}
"""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import Field, create_model, model_validator

from nfsearch.latency_lut import device
from nfsearch.proxies import PROXIES, Evaluation, Job, Proxy, ProxySettings
from nfsearch.proxies.tasks import TaskSettings
from nfsearch.proxies.twin import narrowed
from nfsearch.report.pictures import png
from nfsearch.run.log import logged
from nfsearch.run.records import CONFIG, config_text
from nfsearch.run.yaml_file import YamlFile, read_yaml
from nfsearch.search.executor import attempt
from nfsearch.space import Architecture
from nfsearch.support.errors import WorkFailed
from nfsearch.support.files import write_atomically
from nfsearch.support.interrupt import interruptible
from nfsearch.support.settings import SettingError, Settings
from nfsearch.support.terminal import say, steps

RESULTS, TABLE, FIGURE = "results.csv", "table.md", "figure.png"


class TasksSettings(Settings):
    """The config of the study; `_model` gives the one whose tasks have the settings of their kinds."""

    width: int = Field(default=128, gt=0, le=2**20, description="hidden size of all models")
    models: dict[str, str] = Field(min_length=1, description="layers in the notation, by name")
    tasks: Any = Field(description="proxies, each with its kind and settings, by name")
    seeds: int = Field(default=1, gt=0, le=1000, description="trainings of each model by each task")
    device: str = Field(default="auto", pattern="^(auto|cpu|cuda)$", description="what they run on")

    @model_validator(mode="after")
    def _can_be_built(self) -> TasksSettings:
        for name in self.models:
            try:
                self.architecture(name, 2)
            except ValueError as error:
                raise SettingError(str(error), "models", name) from None
        return self

    def architecture(self, name: str, vocab: int) -> Architecture:
        """The model of that name."""
        return Architecture.parse(self.models[name], width=self.width, vocab=vocab)

    @property
    def proxies(self) -> dict[str, TaskSettings]:
        """The settings of the tasks, by name."""
        return {str(field.alias): getattr(self.tasks, name) for name, field in type(self.tasks).model_fields.items()}


@dataclass(frozen=True)
class Row:
    """What came of one model by one task with one seed; `fidelity` is the digest of what it was measured with."""

    layers: str
    width: int
    parameters: int
    metric: str
    value: float
    error: float
    seconds: float
    tokens: int
    seed: int
    fidelity: str
    device: str

    @property
    def key(self) -> tuple[str, int, str, int]:
        """What it is the result of."""
        return self.layers, self.width, self.fidelity, self.seed


@dataclass(frozen=True)
class Work:
    """One row to be."""

    model: str
    task: str
    proxy: Proxy
    job: Job

    @property
    def key(self) -> tuple[str, int, str, int]:
        """As that of its row."""
        job = self.job
        return job.architecture.notation, job.architecture.width, job.fidelity.digest, job.seed

    def row(self, found: Evaluation, on: str) -> Row:
        """Of the first metric of the task, measured on a device of the config."""
        metric, architecture = self.proxy.metrics[0].name, self.job.architecture
        return Row(
            layers=architecture.notation,
            width=architecture.width,
            parameters=architecture.parameters,
            metric=metric,
            value=found.metrics[metric].value,
            error=found.metrics[metric].error,
            seconds=round(found.seconds, 3),
            tokens=found.tokens,
            seed=self.job.seed,
            fidelity=self.job.fidelity.digest,
            device=device.device_slug(device.resolve(on)),
        )


def study_tasks(config_path: Path, folder: Path, assignments: Sequence[str]) -> int:
    """Has every model learn every task, and writes the table and the picture. Returns the exit status. Raises
    ValueError or OSError for wrong input, before anything is written, and WorkFailed where something failed."""
    settings, file = load_tasks(config_path, assignments)
    work = _work(settings, file)
    known = {row.key: row for row in _read(folder)}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / CONFIG, config_text(file, config_path, assignments))
    failures: list[str] = []
    with logged(folder), interruptible() as interrupted, steps("models by tasks") as step:

        def report(tokens: int, loss: float) -> None:
            if interrupted.is_set():
                raise KeyboardInterrupt

        step.before = sum(each.key in known for each in work)
        try:
            for number, each in enumerate(work, start=1):
                if each.key not in known:
                    each.proxy.start()
                    outcome = attempt(each.proxy, each.job, report)
                    if outcome.evaluation is None:
                        failures.append(f"{each.model} by {each.task}: {outcome.error}")
                        say(failures[-1])
                        continue
                    known[each.key] = each.row(outcome.evaluation, settings.device)
                    _write(folder, list(known.values()))
                step(number, len(work))
        except KeyboardInterrupt:
            again = shlex.join(["nfsearch", "study", "tasks", str(config_path), "-o", str(folder)])
            say(f"Interrupted. What finished is kept; the same command goes on: {again}")
            raise
    table = _table(work, known)
    write_atomically(folder / TABLE, _markdown(settings, work, known, table))
    write_atomically(folder / FIGURE, _picture(settings, table))
    print((folder / TABLE).read_text(encoding="utf-8"))
    if failures:
        raise WorkFailed(f"{len(failures)} of {len(work)} failed, the first: {failures[0]}")
    return 0


def load_tasks(path: Path, assignments: Sequence[str] = ()) -> tuple[TasksSettings, YamlFile]:
    """The study in a file, with `--set` assignments applied. Raises ValueError naming file, line and key."""
    file = read_yaml(path)
    for assignment in assignments:
        file.set(assignment)
    kinds: dict[str, Any] = {}
    tasks = file.values.get("tasks")
    for name, task in tasks.items() if isinstance(tasks, Mapping) else ():
        kind = task.get("kind") if isinstance(task, Mapping) else None
        try:
            settings = PROXIES.find(str(kind)).Settings if kind else ProxySettings
        except ValueError as error:
            raise ValueError(file.complaint(["tasks", str(name), "kind"], str(error))) from None
        if not issubclass(settings, TaskSettings):
            able = [each for each in PROXIES.names if issubclass(PROXIES.find(each).Settings, TaskSettings)]
            raise ValueError(file.complaint(["tasks", str(name)], f"expected a kind: {', '.join(able)}"))
        kinds[str(name)] = settings
    if not kinds:
        raise ValueError(file.complaint(["tasks"], "expected tasks by name, such as {recall: {kind: mqar}}"))
    # A field of pydantic's cannot have every name; its alias can.
    declared: dict[str, Any] = {f"task{i}": (kinds[name], Field(alias=name)) for i, name in enumerate(kinds)}
    model = create_model("Tasks", __base__=Settings, **declared)
    return file.validate(create_model("TasksStudy", __base__=TasksSettings, tasks=(model, ...))), file


def _work(settings: TasksSettings, file: YamlFile) -> list[Work]:
    """All that the study asks for, seed after seed. Raises ValueError for a model that a task cannot narrow."""
    kind = device.resolve(settings.device)
    proxies = {name: PROXIES.find(each.kind)(each, kind) for name, each in settings.proxies.items()}
    found = []
    for seed in range(settings.seeds):
        for model in settings.models:
            for task, proxy in proxies.items():
                job = Job(settings.architecture(model, proxy.vocab), proxy.fidelity, seed)
                try:
                    narrowed(job.architecture, settings.proxies[task].narrow, proxy.vocab)
                except ValueError as error:
                    raise ValueError(file.complaint(["tasks", task, "narrow"], f"{model}: {error}")) from None
                found.append(Work(model, task, proxy, job))
    return found


def _read(folder: Path) -> list[Row]:
    """The rows that are there already. Raises ValueError, naming the line, for a file that is none of a study's."""
    path = folder / RESULTS
    if not path.exists():
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty, and holds no study of tasks: write to another folder (-o)")
        return []
    kinds = {"int": int, "float": float, "str": str}
    rows = []
    for number, row in enumerate(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))), start=2):
        try:
            rows.append(Row(**{each.name: kinds[str(each.type)](row[each.name]) for each in fields(Row)}))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}:{number}: no result of a study of tasks ({error!r})") from None
    return rows


def _write(folder: Path, rows: Sequence[Row]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, [each.name for each in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_atomically(folder / RESULTS, text.getvalue())


def _table(work: Sequence[Work], known: Mapping[Any, Row]) -> dict[tuple[str, str], list[Row]]:
    """The rows of each model and task, one for each seed."""
    found: dict[tuple[str, str], list[Row]] = {}
    for each in work:
        found.setdefault((each.model, each.task), []).extend([known[each.key]] if each.key in known else [])
    return found


def _mean(rows: Sequence[Row]) -> float:
    return sum(row.value for row in rows) / len(rows) if rows else float("nan")


def _markdown(
    settings: TasksSettings, work: Sequence[Work], known: Mapping[Any, Row], table: Mapping[Any, Sequence[Row]]
) -> str:
    done = [known[each.key] for each in work if each.key in known]
    names = list(settings.proxies)
    told = "mean over seeds (least to most)" if settings.seeds > 1 else "± half the width of a 95 % interval"
    lines = [
        f"Width {settings.width}, {settings.seeds} seed(s), {', '.join(sorted({row.device for row in done}))}. "
        f"Share of wrong answers, {told}; the slowest took {max((row.seconds for row in done), default=0):.1f} s.",
        "",
        f"| model | layers | {' | '.join(names)} |",
        f"|---|---|{'---:|' * len(names)}",
    ]
    for model, layers in settings.models.items():
        cells = [_cell(table[model, name]) for name in names]
        lines.append(f"| {model} | `{layers.replace('|', chr(92) + '|')}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(rows: Sequence[Row]) -> str:
    """What came of a model by a task. Seeds tell of themselves: some begin to recall in time and some do not."""
    if len(rows) < 2:
        return f"{rows[0].value:.3f} ± {rows[0].error:.3f}" if rows else "failed"
    values = [row.value for row in rows]
    return f"{_mean(rows):.3f} ({min(values):.3f} to {max(values):.3f})"


def _picture(settings: TasksSettings, table: Mapping[tuple[str, str], Sequence[Row]]) -> bytes:
    """The table in colours: green is right, red is wrong."""
    from matplotlib.figure import Figure  # only now: it takes a second to import

    models, names = list(settings.models), list(settings.proxies)
    values = [[_mean(table[model, name]) for name in names] for model in models]
    figure = Figure(figsize=(2.4 + 0.9 * len(names), 1.4 + 0.36 * len(models)), dpi=144, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(values, vmin=0, vmax=1, cmap="RdYlGn_r", aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(len(models)), models, fontsize=8)
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=8)
    axes.set_title("Share of wrong answers", fontsize=9)
    return png(figure)

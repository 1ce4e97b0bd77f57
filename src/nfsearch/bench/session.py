"""One run of a suite: the device warmed up and its bandwidth taken, results shown and saved as they come."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from nfsearch.bench.candidate import bench_candidate, process_age
from nfsearch.bench.figure import draw, markdown
from nfsearch.bench.model import bench_model, read_model
from nfsearch.bench.ops import PARTS, bench_ops
from nfsearch.bench.race import CompileMode, Setup, copy_bandwidth
from nfsearch.bench.schema import BenchResult, Candidate, Comparison, Ratio
from nfsearch.bench.show import show_comparison, show_summary
from nfsearch.bench.training import bench_training, mixer
from nfsearch.bench.whole import bench_whole
from nfsearch.latency_lut.device import provenance, resolve
from nfsearch.latency_lut.timing import warm_up
from nfsearch.proxies.settings import TrainingSettings
from nfsearch.proxies.training import TrainingProxy
from nfsearch.run.yaml_file import YamlFile
from nfsearch.space import Architecture, Layer
from nfsearch.space.notation import parse_layers
from nfsearch.support.files import write_atomically
from nfsearch.support.terminal import stdout
from nfsearch.support.versions import installed

_PACKAGES = ("fla-core", "mamba-ssm", "transformers", "numpy", "nvidia-cudnn-cu13", "nvidia-cublas")
_DTYPES = ("bfloat16", "float16", "float32")
MIXERS = ("D", "GDN", "GLA", "M2", "A")  # that there are baselines of training for
OPERATORS = ("F", *MIXERS, "C")


class Session:
    """Raises ValueError for a device or dtype that is not there, OSError where `output` cannot be written."""

    def __init__(
        self,
        suite: Literal["ops", "model", "training", "candidate"],
        settings: dict[str, Any],
        device: str,
        dtype: str,
        compile: CompileMode,
        output: Path | None,
    ) -> None:
        kind = resolve(device)
        if dtype not in ("auto", *_DTYPES):
            raise ValueError(f"dtype {dtype!r}: expected auto, {', '.join(_DTYPES)}")
        chosen = dtype if dtype != "auto" else "bfloat16" if kind == "cuda" else "float32"
        self.setup = Setup(kind, getattr(torch, chosen), compile)
        self.began, self.output, self.console = time.monotonic(), output, stdout()
        warm_up(kind)
        self.result = BenchResult(
            suite=suite,
            provenance=provenance(kind).to_dict(),
            packages={name: installed(name) for name in _PACKAGES},
            settings={**settings, "dtype": chosen, "compile": compile},
            bandwidth=copy_bandwidth(kind),
            seconds=0.0,
            comparisons=[],
        )
        self._save([], [])

    def take(self, found: Iterable[Comparison], ratios: Sequence[Ratio] = ()) -> None:
        for comparison in found:
            self._save([comparison], [])
            show_comparison(comparison, self.console)
        self._save([], ratios)

    def take_candidate(self, found: Candidate) -> None:
        self.result = self.result.model_copy(update={"candidate": found})
        self._save([], [])

    def end(self) -> None:
        show_summary(self.result, self.console)

    def _save(self, found: Sequence[Comparison], ratios: Sequence[Ratio]) -> None:
        self.result = self.result.model_copy(
            update={
                "comparisons": [*self.result.comparisons, *found],
                "ratios": [*self.result.ratios, *ratios],
                "seconds": time.monotonic() - self.began,
            }
        )
        if self.output:
            write_atomically(self.output, self.result.to_json())


def run_ops(
    operators: Sequence[str],
    widths: Sequence[int],
    contexts: Sequence[int],
    batches: Sequence[int],
    parts: Sequence[str],
    **where: Any,
) -> None:
    layers, parts = [_one(text) for text in operators], parts or PARTS
    if unknown := set(parts) - set(PARTS):
        raise ValueError(f"--only {unknown.pop()}: expected {', '.join(PARTS)}")
    for layer in layers:
        for width in widths:
            layer.shape(width)  # ValueError before anything is measured
    settings = {"layers": [str(layer) for layer in layers], "widths": list(widths), "contexts": list(contexts)}
    session = Session("ops", settings | {"batches": list(batches), "parts": list(parts)}, **where)
    session.take(bench_ops(layers, widths, contexts, batches, parts, session.setup, session.result.bandwidth))
    session.end()


def run_model(sources: Sequence[str], width: int | None, context: int, batch: int | None, **where: Any) -> None:
    settings = {"models": list(sources), "width": width, "context": context, "batch": batch or "max"}
    with torch.device("meta"):
        for source in sources:
            read_model(source, width)  # ValueError before anything is measured
    session = Session("model", settings, **where)
    session.take(*bench_model(sources, width, context, batch, session.setup, session.result.bandwidth))
    session.end()


def run_training(
    operators: Sequence[str],
    widths: Sequence[int],
    head_dims: Sequence[int],
    sequences: Sequence[int],
    batch: int,
    **where: Any,
) -> None:
    layers = [_one(text) for text in operators]
    if set_ := next((layer for layer in layers if layer.settings), None):
        raise ValueError(f"--op {set_}: expected a name alone, such as {set_.op}; --head-dim sets the size of heads")
    names = [layer.op for layer in layers]
    rounds = [(width, [mixer(name, width, size) for name in names]) for width in widths for size in head_dims]
    settings = {"operators": names, "widths": list(widths), "head_dims": list(head_dims), "sequences": list(sequences)}
    session = Session("training", settings | {"batch": batch}, **where)
    for width, layers in rounds:
        session.take(bench_training(layers, width, sequences, batch, session.setup, session.result.bandwidth))
    session.end()


def run_whole_training(
    models: Sequence[str], widths: Sequence[int], vocab: int, sequences: Sequence[int], batch: int, **where: Any
) -> None:
    if len(widths) not in (1, len(models)):
        raise ValueError(f"--width is given {len(widths)} times for {len(models)} models: expected one, or one each")
    widths = list(widths) * (len(models) // len(widths))
    architectures = [Architecture.parse(m, width=w, vocab=vocab) for m, w in zip(models, widths, strict=True)]
    settings = {"models": list(models), "widths": widths, "vocab": vocab, "sequences": list(sequences), "batch": batch}
    session = Session("training", settings, **where)
    for architecture in architectures:
        for sequence in sequences:
            session.take(*bench_whole(architecture, batch, sequence, session.setup, session.result.bandwidth))
    session.end()


def run_candidate(
    notation: str, width: int, assignments: Sequence[str], profiled: bool, device: str, output: Path | None
) -> None:
    file = YamlFile("{}", "the proxy")
    for assignment in assignments:
        file.set(assignment)
    settings = file.validate(TrainingSettings)
    kind = resolve(device)
    torch.zeros((), device=kind)
    before = {"start": process_age()}
    started = time.perf_counter()
    proxy = TrainingProxy(settings, kind)
    architecture = Architecture.parse(notation, width=width, vocab=proxy.vocab)
    before["data"] = time.perf_counter() - started
    session = Session("candidate", settings.model_dump(mode="json"), device, "auto", "none", output)
    session.take_candidate(bench_candidate(architecture, proxy, before, profiled))
    session.end()


def show_result(path: Path, table: Path | None, figure: Path | None) -> None:
    """Raises ValueError if the file is no result, or has nothing to draw."""
    result, console = BenchResult.load(path), stdout()
    if figure:
        write_atomically(figure, draw(result))
    if table:
        write_atomically(table, markdown(result))
    if not (table or figure):
        for comparison in result.comparisons:
            show_comparison(comparison, console)
        show_summary(result, console)


def _one(text: str) -> Layer:
    layers = parse_layers(text)
    if len(layers) != 1:
        raise ValueError(f"{text!r} is {len(layers)} layers: expected one operator, such as A[kv_heads=8]")
    return layers[0]

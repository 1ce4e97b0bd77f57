"""What trainings need against what was predicted before they started: 20 architectures from 5M to 1B parameters.

    python -m tests.proxies.needs [-o needs.csv] [--models 20]

Prints a line for each as it is measured, with the errors of memory and time, and writes all of them as CSV. The steps
have 64 sequences of 1024 tokens, so the largest models are trained on a part of them at a time; small ones are trained
longer.
"""

from __future__ import annotations

import argparse
import csv
import gc
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from nfsearch.proxies import Bounds, needs
from nfsearch.proxies.data import Corpus, prepare
from nfsearch.proxies.settings import TrainingSettings
from nfsearch.proxies.trainer import train_model
from nfsearch.space import Architecture
from nfsearch.support.files import write_atomically

WIDTHS = (128, 256, 256, 256, 384, 384, 512, 512, 640, 640, 768, 768, 896, 1024, 1152, 1280, 1408, 1536, 1792, 2304)
PATTERNS = ("(D F M2 F A F){%d}", "(A F){%d}", "(M2 F GLA F){%d}", "(GDN F A[window=512] F){%d}", "(D F F M2 F F){%d}")
FLOPS = 1e15  # of each training, within the fewest and the most steps
FEWEST, MOST = 12, 60
SETTINGS = TrainingSettings(batch=64, sequence=1024)


def architectures() -> Iterator[Architecture]:
    for number, width in enumerate(WIDTHS):
        pattern = PATTERNS[number % len(PATTERNS)]
        length = len(pattern.split())
        yield Architecture.parse(pattern % max(1, (8 + number) // length), width=width, vocab=32000)


def compare(architecture: Architecture, corpus: Corpus, settings: TrainingSettings) -> tuple[needs.Needs, needs.Needs]:
    """What a training on the GPU, if there is one, was predicted to need, and what it needed from then on."""
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    found: list[tuple[needs.Needs, float]] = []
    honest = needs.predict

    def predict(*arguments: Any, **named: Any) -> needs.Needs:
        predicted = honest(*arguments, **named)
        needs._empty(torch.device(kind))  # from here on the peak is the training's
        found.append((predicted, time.perf_counter()))
        return predicted

    with patch.object(needs, "predict", predict), patch.object(needs, "_small", return_value=False):
        train_model(architecture, corpus, settings, seed=0, device=kind, bounds=Bounds())
    predicted, began = found[0]
    seconds = time.perf_counter() - began
    return predicted, needs.Needs(predicted.micro_batch, needs._peak(torch.device(kind)), seconds)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("-o", "--output", type=Path, default=Path("needs.csv"))
    options.add_argument("--models", type=int, default=len(WIDTHS), help="so many, spread over the sizes")
    chosen = options.parse_args()
    corpus = prepare(SETTINGS)
    each = list(architectures())
    rows: list[dict[str, Any]] = []
    for number in range(chosen.models):
        architecture = each[number * len(each) // chosen.models]
        step = SETTINGS.batch * SETTINGS.sequence
        steps = int(min(MOST, max(FEWEST, FLOPS / (6 * architecture.parameters * step))))
        began = time.perf_counter()
        predicted, real = compare(architecture, corpus, SETTINGS.model_copy(update={"tokens": steps * step}))
        rows.append(
            {
                "architecture": str(architecture),
                "parameters_m": architecture.parameters / 1e6,
                "micro_batch": real.micro_batch,
                "steps": steps,
                "memory_gb_predicted": predicted.memory / 1e9,
                "memory_gb": real.memory / 1e9,
                "memory_error": predicted.memory / real.memory - 1 if real.memory else 0.0,
                "seconds_predicted": predicted.seconds,
                "seconds": real.seconds,
                "seconds_error": predicted.seconds / real.seconds - 1,
                "seconds_in_all": time.perf_counter() - began,
            }
        )
        _show(rows[-1])
        _write(rows, chosen.output)
        gc.collect()
    for name in ("memory_error", "seconds_error"):
        errors = sorted(abs(row[name]) for row in rows)
        print(f"{name}: largest {errors[-1]:.1%}, median {errors[len(errors) // 2]:.1%}")


def _show(row: dict[str, Any]) -> None:
    print(
        f"{row['parameters_m']:7.1f}M  {row['micro_batch']:3} at a time  memory {row['memory_gb_predicted']:6.2f} GB, "
        f"was {row['memory_gb']:6.2f} ({row['memory_error']:+.1%})  time {row['seconds_predicted']:6.2f} s, "
        f"was {row['seconds']:6.2f} ({row['seconds_error']:+.1%})  {row['architecture']}",
        flush=True,
    )


def _write(rows: list[dict[str, Any]], path: Path) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(
        {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()} for row in rows
    )
    write_atomically(path, text.getvalue())


if __name__ == "__main__":
    main()

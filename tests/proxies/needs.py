"""What trainings need against what was predicted before they started: 20 architectures from 5M to 1B parameters.

    python -m tests.proxies.needs [-o needs.csv] [--models 20] [--prove]

Prints a line for each as it is measured, with the errors of memory and time, and writes all of them as CSV. The steps
have 64 sequences of 1024 tokens, so the largest models are trained on a part of them at a time; small ones are trained
longer. `--prove` trains each twice more, where PyTorch is given a tenth more and a tenth less memory than predicted: a
training fits into the one, and not as one CUDA graph into the other.
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
from nfsearch.proxies.step import Step
from nfsearch.proxies.trainer import train_model
from nfsearch.space import Architecture
from nfsearch.support.files import write_atomically
from nfsearch.support.notes import listening

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


def compare(
    architecture: Architecture, corpus: Corpus, settings: TrainingSettings, after: needs.Afterwards | None = None
) -> tuple[needs.Needs, needs.Needs]:
    """What a training on the GPU, if there is one, and what follows it was predicted to need, and what it needed from
    then on."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: list[tuple[needs.Needs, float]] = []
    taken: list[float] = []
    honest, closing = needs.predict, Step.close

    def predict(*arguments: Any, **named: Any) -> needs.Needs:
        predicted = honest(*arguments, **named)
        needs._empty(device)  # from here on the peak is the training's
        found.append((predicted, time.perf_counter()))
        return predicted

    def close(step: Step) -> None:
        taken.append(needs.taken(device))  # while there is the graph
        needs._empty(device)
        closing(step)

    with (
        patch.object(needs, "predict", predict),
        patch.object(needs, "_small", return_value=False),
        patch.object(Step, "close", close),
    ):
        train_model(architecture, corpus, settings, seed=0, device=device, bounds=Bounds(), after=after)
    predicted, began = found[0]
    seconds = time.perf_counter() - began
    return predicted, needs.Needs(predicted.micro_batch, max(taken[-1], needs.taken(device)), seconds)


def fits(architecture: Architecture, corpus: Corpus, settings: TrainingSettings, memory: float) -> bool:
    """Whether a training runs as one CUDA graph where PyTorch may take so many bytes of the GPU's memory."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(memory / torch.cuda.mem_get_info()[1])
    try:
        with patch.object(needs, "_small", return_value=True), listening() as said:
            train_model(architecture, corpus, settings, seed=0, device="cuda")
        return not any("could not be one CUDA graph" in note for note in said)
    except torch.OutOfMemoryError:
        return False
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("-o", "--output", type=Path, default=Path("needs.csv"))
    options.add_argument("--models", type=int, default=len(WIDTHS), help="so many, spread over the sizes")
    options.add_argument("--prove", action="store_true", help="train again with a tenth more and a tenth less memory")
    chosen = options.parse_args()
    corpus = prepare(SETTINGS)
    each = list(architectures())
    rows: list[dict[str, Any]] = []
    for number in range(chosen.models):
        architecture = each[number * len(each) // chosen.models]
        step = SETTINGS.batch * SETTINGS.sequence
        steps = int(min(MOST, max(FEWEST, FLOPS / (6 * architecture.parameters * step))))
        began = time.perf_counter()
        settings = SETTINGS.model_copy(update={"tokens": steps * step})
        predicted, real = compare(architecture, corpus, settings)
        settings = settings.model_copy(update={"micro_batch": predicted.micro_batch, "tokens": FEWEST * step})
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
                **{
                    f"fits_in_{share:g}_of_it": fits(architecture, corpus, settings, share * predicted.memory)
                    for share in (0.9, 1.1)
                    if chosen.prove
                },
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
        f"was {row['seconds']:6.2f} ({row['seconds_error']:+.1%})  {row['architecture']}"
        + "".join(f"  {name}: {row[name]}" for name in row if name.startswith("fits")),
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

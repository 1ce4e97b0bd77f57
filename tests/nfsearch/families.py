"""Holds the folders that a native family's exporter writes against transformers, which opens them without our code.

A family's test says how a tiny member is drawn, and that is all:

    def member(rng: random.Random) -> Architecture:
        ...  # width 32 to 64, two to six layers, a vocabulary of about 100; every setting that the family expresses

    @pytest.mark.slow
    def test_random_members_are_the_same_models_in_transformers(tmp_path: Path) -> None:
        check_members(LlamaExporter(), member, tmp_path)

What the exporter refuses is its own test: `refusal(exporter, layers)` gives the sentence.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nfsearch.export.native import NativeExporter
from nfsearch.ops.model import HybridLM
from nfsearch.space import Architecture
from tests.nfsearch import open_folders

LENGTHS = (1, 2, 63, 64, 65, 300)
PROMPTS = (1, 6, 70)


def refusal(exporter: NativeExporter, layers: str, **rest: object) -> str:
    """What the exporter says of a small model with these layers."""
    return exporter.refusal(Architecture.from_dict({"layers": layers, "width": 64, "vocab": 97, **rest}))


def drawn(architecture: Architecture, seed: int = 0, scale: float = 1.0) -> HybridLM:
    """A model whose layers all matter, none of whose weights is zero or one or the same as another. Products of several
    activations, and what float32 loses of them, are large unless the `scale` of the matrices is less than one."""
    torch.manual_seed(seed)
    model = HybridLM(architecture)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(0.2 * torch.randn_like(weight))
            else:
                weight.normal_(std=scale * weight.shape[-1] ** -0.5)
    return model.eval()


@torch.no_grad()
def check_members(
    exporter: NativeExporter,
    member: Callable[[random.Random], Architecture],
    folder: Path,
    count: int = 12,
    scale: float = 1.0,
) -> None:
    """Draws `count` members, exports them with random weights, opens all in one process that has no nfsearch, and
    requires of each: the family's class, every weight known, as many parameters; logits equal to 1e-5 in float32; what
    is generated greedily the same with a cache, without, and in a batch; padding on either side without effect."""
    models = []
    for number in range(count):
        architecture = member(random.Random(number))
        assert exporter.refusal(architecture) == "", architecture
        models.append(drawn(architecture, number, scale))
        exporter.write(models[-1], folder / str(number))
        save_file(_asked(architecture.vocab, number), folder / f"{number}.asked")
    _open(folder, count)
    for number, model in enumerate(models):
        compare(exporter, model, folder, number)


def _asked(vocab: int, seed: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    tokens = {f"tokens/{time}": torch.randint(vocab, (2, time), generator=rng) for time in LENGTHS}
    return tokens | {f"prompt/{time}": torch.randint(vocab, (time,), generator=rng) for time in PROMPTS}


def _open(folder: Path, count: int) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    said = subprocess.run(
        [sys.executable, open_folders.__file__, folder, str(count)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr


@torch.no_grad()
def compare(exporter: NativeExporter, model: HybridLM, folder: Path, number: int) -> None:
    """Requires of the member of this number in `folder`, which was opened, that it is this model."""
    asked, found = load_file(folder / f"{number}.asked"), load_file(folder / f"{number}.found")
    said, where = json.loads((folder / f"{number}.json").read_text()), f"member {number}, {model.architecture}"
    written = replace(model.architecture, tied_head=exporter.ties and model.architecture.tied_head)
    expected = {"class": exporter.model_class, "parameters": written.parameters, "odd": []}
    assert said == expected, where

    def near(name: str, wanted: Tensor) -> None:
        torch.testing.assert_close(found[name], wanted, atol=1e-5, rtol=0, msg=lambda text: f"{where}, {name}: {text}")

    for time in LENGTHS:
        near(f"logits/{time}", model(asked[f"tokens/{time}"]))
    for time in PROMPTS:
        prompt = asked[f"prompt/{time}"]
        for how in ("alone", "left", "right"):
            near(f"{how}/{time}", model(prompt[None])[0])
        new = _generated(model, prompt)
        for how in ("cached", "plain", "batched"):
            assert found[f"{how}/{time}"].tolist() == new, f"{where}, {how}/{time}"


def _generated(model: HybridLM, prompt: Tensor) -> list[int]:
    """The likeliest tokens after a prompt, one after the other."""
    tokens = prompt[None]
    for _ in range(open_folders.NEW):
        tokens = torch.cat((tokens, model(tokens)[:, -1:].argmax(-1)), dim=1)
    return tokens[0, len(prompt) :].tolist()

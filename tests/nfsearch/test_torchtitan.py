"""Candidates in torchtitan, which is no requirement of the tests: install torchtitan==0.3.0 to run the last."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nfsearch import hf
from nfsearch.export.torchtitan import SPEC, TorchtitanExporter
from nfsearch.ops.model import HybridLM
from nfsearch.space import Architecture
from tests.nfsearch import titan_on_cpu

LAYERS = "A[head_dim=16,window=8] F[ratio=1] D[head_dim=16] C M2[head_dim=16,state=16] GDN[head_dim=16] GLA"


def export(folder: Path, **rest: object) -> HybridLM:
    torch.manual_seed(0)
    model = HybridLM(Architecture.from_dict({"layers": LAYERS, "width": 32, "vocab": 257, **rest})).requires_grad_(
        False
    )
    for weight in model.parameters():
        weight.mul_(1.5)  # other weights than those that are drawn
    TorchtitanExporter().write(model, folder, tokenizer="bytes")
    return model


def test_the_folder_is_that_of_transformers_with_a_spec(tmp_path: Path) -> None:
    model = export(tmp_path / "winner")
    assert (tmp_path / "winner" / SPEC.name).read_text() == SPEC.read_text()
    tokens = torch.arange(20)[None]
    assert torch.equal(hf.load(tmp_path / "winner")(tokens), model(tokens))
    said = re.findall(
        r"-m torchtitan\.train --module (\w+) --config (\w+)", (tmp_path / "winner/README.md").read_text()
    )
    assert set(said) == {(SPEC.stem, "train")}
    assert "def train() -> Trainer.Config:" in SPEC.read_text()


def test_layers_that_other_packages_draw_are_refused() -> None:
    architecture = Architecture.parse("F fla:GatedMemory[num_heads=2]", width=32)
    assert TorchtitanExporter().refusal(architecture).startswith("layer 1 is fla:GatedMemory[num_heads=2]: torchtitan")


def first_batch(texts: list[str], processes: int) -> tuple[Tensor, Tensor]:
    """What torchtitan's processes read first: four rows each, of a share of the texts each, packed without a token that
    would follow from the text before."""
    rows: list[list[int]] = [[], []]
    for share in range(processes):
        own = texts[share * len(texts) // processes : (share + 1) * len(texts) // processes]
        encoded = [[*text.encode(), 256] for text in own]
        for row, part in zip(rows, (slice(0, -1), slice(1, None)), strict=True):
            row += [token for tokens in encoded for token in tokens[part]][: 4 * 64]
    tokens, targets = (torch.tensor(row).view(-1, 64) for row in rows)
    return tokens, targets


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torchtitan") is None, reason="needs torchtitan")
@pytest.mark.parametrize(
    ("rest", "processes"), [({"meta_tokens": 3, "head_norm": True}, 1), ({"tied_head": False}, 2)], ids=str
)
def test_torchtitan_trains_it(rest: dict[str, object], processes: int, tmp_path: Path) -> None:
    """By its own command line, from the folder's weights to such as the folder holds."""
    folder, texts = tmp_path / "winner", [f"{i} quick brown foxes jump over the lazy dog. " * 8 for i in range(200)]
    model = export(folder, **rest)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "texts.json").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [
        sys.executable, titan_on_cpu.__file__, "--module", SPEC.stem, "--config", "train", "--dump-folder", "out",
        "--dataloader.dataset", "c4_test", "--dataloader.dataset-path", str(tmp_path / "data"), "--training.steps", "5",
        "--training.seq-len", "64", "--training.local-batch-size", "4", "--training.mixed-precision-param", "float32",
        "--metrics.log-freq", "1", "--metrics.disable-color-printing", "--checkpoint.enable",
        "--checkpoint.initial-load-in-hf", "--checkpoint.last-save-in-hf", "--checkpoint.last-save-model-only",
    ]  # fmt: skip
    world = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "HF_HUB_OFFLINE": "1"}
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    running = [
        subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]
    said = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0] * processes, said
    losses = [float(loss) for loss in re.findall(r"step: +\d+ +loss: +([\d.]+)", said[0])]
    assert len(losses) == 5
    tokens, targets = first_batch(texts, processes)
    assert losses[0] == pytest.approx(float(model.loss(tokens, targets)), abs=1e-3)
    assert losses[-1] < losses[0] - 0.1
    (trained,) = (folder / "out" / "checkpoint").glob("step-5/*.safetensors")
    shutil.copyfile(trained, folder / "model.safetensors")
    assert float(hf.load(folder).requires_grad_(False).loss(tokens, targets)) < losses[0] - 0.1

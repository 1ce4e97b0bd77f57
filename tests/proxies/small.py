"""A small run of training: its settings, models that are built and trained in a moment."""

from __future__ import annotations

from typing import Any

from nfsearch.proxies import Evaluation
from nfsearch.proxies.settings import TrainingSettings
from nfsearch.proxies.trainer import train_model
from nfsearch.space import Architecture

SMALL = TrainingSettings(tokens=64 * 64, sequence=32, batch=2, learning_rate=1e-2, validation_tokens=1000)
EVERY_MIXER = "A[head_dim=16] F[act=relu2] D[head_dim=16] F GDN[head_dim=16] GLA M2[head_dim=16, state=16]"


def architecture(
    layers: str = "A[head_dim=16] F", width: int = 32, vocab: int = 257, meta_tokens: int = 0
) -> Architecture:
    return Architecture.parse(layers, width=width, vocab=vocab, meta_tokens=meta_tokens)


def evaluated(*arguments: Any, **named: Any) -> Evaluation:
    return train_model(*arguments, **named)[1]


def loss_of(found: Evaluation) -> float:
    return found.metrics["loss"].value

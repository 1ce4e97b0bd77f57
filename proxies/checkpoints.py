"""Trained weights on disk: where a trunk was left, so that a longer training goes on from there, and what it came to.

A folder for each training holds `trunk.safetensors`, the weights and what the optimizers keep at the last branch, or
some seconds ago while it is at work; `decay-TOKENS.safetensors`, the same within the decay of a budget that is at work;
`losses.json`, the validation loss at each budget that is done; and `weights-TOKENS.safetensors`, a model at the end of
a budget. Each file appears whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfsearch.proxies.cache import digest
from nfsearch.proxies.job import Job
from nfsearch.support.errors import first_line
from nfsearch.support.files import whole, write_atomically
from nfsearch.support.notes import note

if TYPE_CHECKING:
    from torch import Tensor, nn

_TRUNK, _LOSSES = "trunk.safetensors", "losses.json"
_ABOUT = "about"  # in a file's metadata, as JSON


@dataclass
class Trunk:
    """A training as it was after `step` steps: its tensors by name, and the training loss of each step."""

    step: int
    tensors: dict[str, Tensor]
    losses: list[float]


class Checkpoints:
    """Those of one training."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of(cls, folder: Path, job: Job) -> Checkpoints:
        """The training that a job is a budget of: all jobs that differ in their tokens alone share it."""
        fidelity = replace(job.fidelity, tokens=0)
        return cls(folder / digest([job.architecture.digest, fidelity.digest, job.seed]))

    def save(self, trunk: Trunk, decay: int | None = None) -> None:
        """Of the decay of a budget of so many tokens, where it is in one."""
        with _if_there_is_room():
            self._write(self._place(decay).name, trunk.tensors, {"step": trunk.step, "losses": trunk.losses})

    def load(self, most: int, decay: int | None = None) -> Trunk | None:
        """The trunk, or a training in the decay of a budget, if it was left after at most so many steps. Raises OSError
        for a file that is damaged."""
        path = self._place(decay)
        if not path.is_file():
            return None
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                about = json.loads(file.metadata()[_ABOUT])
                if about["step"] > most:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise OSError(f"{path} is damaged ({error}); delete it to train from the beginning") from None
        return Trunk(about["step"], tensors, about["losses"])

    @property
    def losses(self) -> dict[int, float]:
        """The validation loss by budget, in tokens."""
        path = self.folder / _LOSSES
        return {int(tokens): loss for tokens, loss in json.loads(path.read_text()).items()} if path.is_file() else {}

    def save_loss(self, tokens: int, loss: float) -> None:
        """The validation loss at the end of a budget, whose decay is over."""
        with _if_there_is_room():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / _LOSSES, json.dumps(self.losses | {tokens: loss}))
            self._place(tokens).unlink(missing_ok=True)

    def save_weights(self, tokens: int, model: nn.Module) -> None:
        """A model at the end of a budget."""
        with _if_there_is_room():
            self._write(self._weights(tokens).name, dict(model.named_parameters()), {"tokens": tokens})

    def load_weights(self, tokens: int, model: nn.Module) -> bool:
        """Fills a model in, if its weights at the end of a budget are here. Raises OSError for a file that is
        damaged."""
        path = self._weights(tokens)
        if not path.is_file():
            return False
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            found = load_file(path)
            if odd := found.keys() ^ dict(model.named_parameters()).keys():
                raise RuntimeError(f"it and the model do not both have {', '.join(sorted(odd)[:3])}")
            model.load_state_dict(found, strict=False)  # there are buffers too
        except (SafetensorError, RuntimeError) as error:
            raise OSError(f"{path} is damaged ({error}); delete it, and the candidate is trained again") from None
        return True

    def _place(self, decay: int | None) -> Path:
        return self.folder / (_TRUNK if decay is None else f"decay-{decay}.safetensors")

    def _weights(self, tokens: int) -> Path:
        return self.folder / f"weights-{tokens}.safetensors"

    def _write(self, name: str, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        with whole(self.folder / name) as scratch:
            save_file({n: t.detach().contiguous() for n, t in tensors.items()}, scratch, {_ABOUT: json.dumps(about)})


@contextmanager
def _if_there_is_room() -> Iterator[None]:
    """Notes what cannot be written inside: a loss is worth having without weights, and a search without a trunk."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        note(f"what was trained could not be kept ({getattr(error, 'strerror', None) or first_line(error)})")

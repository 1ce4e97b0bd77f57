"""The layers of flash-linear-attention as operators, such as `fla:KimiDeltaAttention[num_heads=4]`.

The layer computes, in its own kernels; what is here builds it and keeps its state in tensors that are written in place.
Nothing is known of a layer beforehand: its settings are what its constructor takes, its parameters are counted on a
module without memory, and the sizes of its state are found by running it for one token.

A layer whose state grows with the sequence (keys and values) can be trained, but has neither prefill into a state nor
decode here.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nfsearch.ops.forms import Choice
from nfsearch.ops.operator import Operator, State
from nfsearch.space import Cost
from nfsearch.space.operators import Value
from nfsearch.support.names import nearest
from nfsearch.support.versions import to_install

Settings = tuple[tuple[str, Value], ...]  # as a layer holds them: sorted by name

# What the constructor is told by the adapter. An operator stands alone, so each is the first layer of its kind: RWKV7
# wants to know of how many, and scales its first norm by it.
_TOLD = {"layer_idx": 0, "num_hidden_layers": 2}
_NO_SETTINGS = {"hidden_size", "d_model", "layer_idx", "device", "dtype"}

# Projections that are what their names say wherever they are plain matrices at the model's width.
_READ = ("q_proj", "k_proj", "v_proj", "g_proj")
_WRITE = ("o_proj",)


class Refused(ValueError):
    """The layer does not run here, or keeps nothing of a fixed size between calls."""


class FlaLayer(Operator):
    """A layer of flash-linear-attention that needs no more than the hidden features.

    `layer` is the class's name in `fla.layers`, `settings` are arguments of its constructor. Initial weights are as the
    constructor draws them. Precision and dtypes are those of the layer's kernels, most of which run on CUDA alone.

    State: what the layer puts into its cache, under the cache's names (`recurrent_state`, `conv_state.0`, ...), each
    [batch, ...] in the dtype that the layer gives it.

    Raises ValueError, with the layer's name, where the package or the layer is missing, a setting is none of its
    constructor's arguments, or the constructor refuses the settings at this width.
    """

    def __init__(self, width: int, *, layer: str, settings: Mapping[str, Value]) -> None:
        super().__init__(width)
        self.name = f"fla:{layer}"
        self.layer = _construct(width, layer, settings)
        self._key = (width, layer, tuple(settings.items()))
        self._kept: _Kept | None = None
        plain = {name: module for name, module in self.layer.named_children() if type(module) is nn.Linear}
        self.row_normalised = tuple(f"layer.{n}.weight" for n in _READ if n in plain and plain[n].in_features == width)
        self.column_normalised = tuple(
            f"layer.{n}.weight" for n in _WRITE if n in plain and plain[n].out_features == width
        )

    def reset_parameters(self) -> None:
        """Leaves the weights as the layer's constructor drew them, which knows its gates."""

    def init_state(self, batch: int, max_length: int, *, device: torch.device | str, dtype: torch.dtype) -> State:
        """Raises ValueError where the layer keeps no state of a fixed size, and where its kernels do not run."""
        self._kept = _run_once(*self._key, torch.device(device), dtype)
        tensors = self._kept.tensors.items()
        return {name: torch.zeros(batch, *t.shape[1:], device=device, dtype=t.dtype) for name, t in tensors}

    def parallel_choice(self, like: Tensor) -> Choice:
        return Choice("torch", f"{type(self.layer).__name__}'s own forward, in kernels of its library")

    def step_choice(self, like: Tensor) -> Choice:
        try:
            self.init_state(1, 1, device=like.device, dtype=like.dtype)
        except ValueError as error:
            return Choice("torch", f"none: {error}")
        copied = f"{type(self.layer).__name__}'s own forward of one token, its new state copied in place"
        return Choice("torch", f"{copied}; {reason}" if (reason := self.prevents_capture(like)) else copied)

    def prevents_capture(self, like: Tensor) -> str:
        if not self._known(like).asks_position:
            return ""
        return f"{self.name} asks for its position on the host in every step: it cannot be captured in a CUDA graph"

    def forward(self, x: Tensor, state: State | None = None, position: int = 0) -> Tensor:
        if state is None:
            return self._run(x, None)
        return self._continue(x, state, position, empty=position == 0)

    def step(self, x: Tensor, state: State, position: Tensor) -> Tensor:
        """Waits for the device where the layer asks for its position, as those with rotary embeddings do; such a step
        raises ValueError when it is captured."""
        if x.is_cuda and torch.cuda.is_current_stream_capturing() and (reason := self.prevents_capture(x)):
            raise ValueError(reason)
        return self._continue(x[:, None], state, position, empty=False)[:, 0]

    @torch.no_grad()
    def reference(self, x: Tensor) -> Tensor:
        """The layer itself, token by token, with a cache that nobody else touches. It has no gradient: the kernels
        for one token have none."""
        held = _Cache(self.name, None, 0)
        outputs = []
        for t in range(x.shape[1]):
            outputs.append(self._run(x[:, t : t + 1], held))
            held.position = t + 1
        return torch.cat(outputs, dim=1)

    def _known(self, like: Tensor) -> _Kept:
        """What the layer keeps; where a state was made, nothing is run for it (a graph may be being captured)."""
        return self._kept or _run_once(*self._key, like.device, like.dtype)

    def _continue(self, x: Tensor, state: State, position: int | Tensor, empty: bool) -> Tensor:
        held = _Cache(self.name, None if empty else _filled(self._known(x).structure, state), position)
        y = self._run(x, held)
        for name, new in _tensors(held.state, self.name).items():
            if new.shape != state[name].shape:
                raise ValueError(f"{self.name}: {name} became {list(new.shape)}, after {list(state[name].shape)}")
            if new is not state[name]:  # some kernels write it in place
                state[name].copy_(new.detach())
        return y

    def _run(self, x: Tensor, held: _Cache | None) -> Tensor:
        """x [batch, time, width] through the layer, whose kernels for training follow autograd: those for inference,
        which it takes in its evaluation mode, may have no backward."""
        if self.layer.training != torch.is_grad_enabled():
            self.layer.train(torch.is_grad_enabled())
        try:
            out = self.layer(x, attention_mask=None, past_key_values=held, use_cache=held is not None)
        except Refused:
            raise
        except Exception as error:
            if x.is_cuda:
                raise
            raise Refused(
                f"{self.name} does not run on {x.device.type}: flash-linear-attention's kernels need a CUDA device "
                f"({type(error).__name__}: {error})"
            ) from error
        return out[0] if isinstance(out, tuple) else out


class _Cache:
    """What one layer keeps between calls, with the methods that fla's layers call on a cache of theirs."""

    def __init__(self, name: str, state: dict[str, Any] | None, position: int | Tensor) -> None:
        self.name, self.state, self.position = name, state, position
        self.asked = False  # for the position

    def __len__(self) -> int:
        return int(self.state is not None)

    def __getitem__(self, index: int) -> dict[str, Any] | None:
        return self.state

    def update(self, attn_state: Any = None, layer_idx: int = 0, offset: int = 1, **new: Any) -> dict[str, Any]:
        """What is None is left as it is."""
        if attn_state is not None:
            raise Refused(
                f"{self.name} keeps keys and values, which grow with the sequence: it can be trained, but the adapter "
                "has no prefill and no decode for it"
            )
        names = ("recurrent_state", "conv_state", "ffn_state")
        self.state = (self.state or dict.fromkeys(("attn_state", *names))) | {
            name: new[name] for name in names if new.get(name) is not None
        }
        return self.state

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens held."""
        self.asked = True
        return int(self.position)


# --- states ----------------------------------------------------------------------------------------------------------


class _Kept(NamedTuple):
    """What a layer keeps: nested as its cache holds it, and by name; tensors [2, ...] without memory."""

    structure: dict[str, Any]
    tensors: dict[str, Tensor]
    asks_position: bool


@cache
def _run_once(width: int, layer: str, settings: Settings, device: torch.device, dtype: torch.dtype) -> _Kept:
    """Finds out what the layer keeps, from one token of each of two sequences."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(cuda), torch.device(device), torch.no_grad():
        operator = FlaLayer(width, layer=layer, settings=dict(settings)).to(dtype)
        held = _Cache(operator.name, None, 0)
        try:
            operator._run(torch.zeros(2, 1, width, dtype=dtype), held)
        except (Refused, torch.OutOfMemoryError):
            raise
        except Exception as error:  # some layers say that they cannot be continued
            raise Refused(f"{operator.name} keeps no state: {type(error).__name__}: {error}") from error
    tensors = {name: tensor.to("meta") for name, tensor in _tensors(held.state, operator.name).items()}
    if held.state is None or not tensors:
        raise Refused(f"{operator.name} keeps nothing between calls: it reads whole sequences, and cannot decode")
    for name, tensor in tensors.items():
        if not tensor.ndim or len(tensor) != 2:
            raise Refused(f"{operator.name} keeps {name} {list(tensor.shape)}, without a row for each of 2 sequences")
    return _Kept(_filled(held.state, tensors), tensors, held.asked)


def _tensors(kept: Any, owner: str) -> dict[str, Tensor]:
    """The tensors in nested dicts, tuples and lists, by names such as `conv_state.0`. Raises Refused for others."""
    found = {}

    def visit(each: Any, name: str) -> None:
        if isinstance(each, Tensor):
            found[name] = each
        elif isinstance(each, (dict, tuple, list)):
            for key, inner in (each if isinstance(each, dict) else dict(enumerate(each))).items():
                visit(inner, f"{name}.{key}" if name else str(key))
        elif each is not None:
            raise Refused(f"{owner} keeps a {type(each).__name__} as its {name}, which the adapter cannot hold")

    visit(kept, "")
    return found


def _filled(structure: Any, tensors: Mapping[str, Tensor], name: str = "") -> Any:
    """The structure with `tensors` in the places that their names say."""
    if isinstance(structure, dict):
        return {key: _filled(each, tensors, f"{name}.{key}" if name else key) for key, each in structure.items()}
    if isinstance(structure, (tuple, list)):
        return type(structure)(_filled(each, tensors, f"{name}.{i}") for i, each in enumerate(structure))
    return None if structure is None else tensors[name]


# --- building --------------------------------------------------------------------------------------------------------


def _layer_class(layer: str) -> type[nn.Module]:
    try:
        package = importlib.import_module("fla.layers")
    except ImportError as error:
        raise ValueError(
            f"fla:{layer} needs flash-linear-attention, which cannot be imported here ({error}): "
            f"{to_install('fla-layers')}"
        ) from error
    found = getattr(package, layer, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        known = [name for name in dir(package) if isinstance(getattr(package, name), type)]
        raise ValueError(f"flash-linear-attention has no layer {layer!r}{nearest(layer, known)}")
    return found


def _construct(width: int, layer: str, settings: Mapping[str, Value]) -> nn.Module:
    kind = _layer_class(layer)
    taken = [p.name for p in inspect.signature(kind).parameters.values() if p.kind is not p.VAR_KEYWORD]
    known = [name for name in taken if name not in _NO_SETTINGS]
    for name in settings:
        if name not in known:
            raise ValueError(f"fla:{layer} has no setting {name!r}{nearest(name, known)}; it takes {', '.join(known)}")
    told = {name: value for name, value in _TOLD.items() if name in taken}
    try:
        made = kind(**{"hidden_size": width, **told, **settings})
    except Exception as error:  # each layer has its own ways
        given = ", ".join(f"{name}={value}" for name, value in settings.items()) or "its defaults"
        raise ValueError(
            f"fla:{layer} cannot be built at width {width} with {given}: {type(error).__name__}: {error}"
        ) from error
    saved = made.state_dict()
    for name, buffer in list(made.named_buffers()):
        if name not in saved:  # a model that is loaded into modules without memory needs all of them in its file
            owner, _, leaf = name.rpartition(".")
            made.get_submodule(owner).register_buffer(leaf, buffer)
    return made


@dataclass(frozen=True)
class _LayerCost(Cost):
    """Exact in parameters; the state is that of a run on this machine, when it is asked for. FLOPs are not known."""

    key: tuple[int, str, Settings] = (0, "", ())

    def state_bytes(self, batch: int, max_length: int, itemsize: int) -> int:
        """Raises ValueError where the layer keeps no state of a fixed size, and where its kernels do not run."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}[itemsize]
        tensors = _run_once(*self.key, device, dtype).tensors.values()
        return batch * sum(tensor[0].numel() * tensor.itemsize for tensor in tensors)

    def flops(self, batch: int, context: int) -> int:
        raise ValueError(f"how much fla:{self.key[1]} computes is not known")


@cache
def _cost(width: int, layer: str, settings: Settings) -> Cost:
    with torch.device("meta"):
        module = _construct(width, layer, dict(settings))
    return _LayerCost(sum(p.numel() for p in module.parameters()), key=(width, layer, settings))


def cost(width: int, layer: str, settings: Mapping[str, Value]) -> Cost:
    """The price of a layer of flash-linear-attention. Raises ValueError as `FlaLayer` does."""
    return _cost(width, layer, tuple(settings.items()))

"""Measures the rows of a latency table on the device at hand.

A row is a slope. Two chains of blocks with distinct weights are timed, one twice as long as the other; what the second
half adds is the time of its blocks inside a model, gaps between kernels included, and what is left over is the
constant cost of a forward pass.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nfsearch.latency_lut.device import free_memory, provenance, resolve
from nfsearch.latency_lut.keys import EMBEDDING, Key
from nfsearch.latency_lut.table import (
    OUT_OF_MEMORY,
    SLOPE,
    WHOLE,
    LatencyTable,
    Row,
    TableError,
)
from nfsearch.latency_lut.timing import Bounds, bounds, prepared, take, warm_up
from nfsearch.ops.model import Block, HybridLM
from nfsearch.space.architecture import Architecture, Layer
from nfsearch.space.notation import parse_layers

# Something else on the machine, or an unlucky capture of a graph, slows whole rows for seconds. So all are measured
# once and then all again, and the faster look at each is kept.
LOOKS = 2

Progress = Callable[[int, int, "Row | None"], None]
Link = Callable[[Tensor], Tensor]


def build(
    keys: Iterable[Key], path: str | Path, *, device: str = "auto", progress: Progress | None = None
) -> LatencyTable:
    """Measures `keys` into the table at `path`, which is written again after every row.

    A table that is there already is completed: rows that it has are not measured again. `device` is auto, cpu, cuda or
    the short name of this machine's device. `progress(done, total, row)` is called at the start, with row None, and
    after each look at a row; it counts looks. A row that does not fit into memory is recorded as such.

    Raises TableError if the table there was made on another device, by other versions or by other kernels, and
    ValueError if `device` is not here.
    """
    wanted = list(dict.fromkeys(keys))
    kind = resolve(device)
    table = _started(Path(path), kind)
    missing = table.missing(wanted)
    before = LOOKS * (len(wanted) - len(missing))
    if progress:
        progress(before, LOOKS * len(wanted), None)
    if missing and table.rows:
        warm_up(kind)
    for done, key in enumerate(LOOKS * missing, start=before + 1):
        row = measure(key, kind)
        known = table.rows.get(key)
        if known is None or _faster(row, known):
            table.add(row)
            table.save(path)
        if progress:
            progress(done, LOOKS * len(wanted), row)
    return table


def _faster(row: Row, known: Row) -> bool:
    return row.latency_ms is not None and (known.latency_ms is None or row.latency_ms < known.latency_ms)


def _started(path: Path, kind: str) -> LatencyTable:
    """The table at `path`, or a new one there (so that a folder that cannot be written shows before the work)."""
    if path.exists():
        table = LatencyTable.load(path)
        if differences := table.provenance.differences(provenance(kind)):
            raise TableError(
                f"{path} has rows that new ones cannot join ({'; '.join(differences)}); "
                "name another file, or delete this one to measure all of it again"
            )
        return table
    warm_up(kind)
    table = LatencyTable(provenance(kind))
    table.save(path)
    return table


# --- one row ---------------------------------------------------------------------------------------------------------


def measure(key: Key, kind: str, within: Bounds | None = None) -> Row:
    """The row of `key` on a device of this kind, "cpu" or "cuda"."""
    within = within or bounds(kind)
    size = _bytes(key)
    short = min(within.chain(size), int(free_memory(kind) // (2 * size)))
    row = None
    if short:
        try:
            row = _slope(key, kind, short, within)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
    gc.collect()
    if kind == "cuda":
        torch.cuda.empty_cache()
    return row or _row(key, kind, OUT_OF_MEMORY, None, 2 * size / 1e6)


@torch.inference_mode()
def _slope(key: Key, kind: str, short: int, within: Bounds) -> Row:
    long = 2 * short
    chain = _Chain.of(key, long, kind)
    runs = prepared(lambda: chain.run(short), kind), prepared(lambda: chain.run(long), kind)
    samples = take(runs, (-1 / short, 1 / short), kind, within)
    slope, spread = samples.combine(-1 / short, 1 / short)
    overhead, overhead_spread = samples.combine(2, -1)
    whole, whole_spread = samples.combine(0, 1 / long)
    good = slope > 0
    return _row(
        key,
        kind,
        SLOPE if good else WHOLE,
        1e3 * (slope if good else whole),
        long * _bytes(key) / 1e6,
        spread_ms=1e3 * (spread if good else whole_spread),
        overhead_ms=1e3 * overhead if good else 0.0,
        overhead_spread_ms=1e3 * overhead_spread,
        runs=samples.count,
        short_chain=short,
        long_chain=long,
    )


def _row(
    key: Key,
    kind: str,
    status: str,
    latency_ms: float | None,
    working_set_mb: float,
    *,
    spread_ms: float = 0.0,
    overhead_ms: float = 0.0,
    overhead_spread_ms: float = 0.0,
    runs: int = 0,
    short_chain: int = 0,
    long_chain: int = 0,
) -> Row:
    return Row(
        key=key,
        status=status,
        latency_ms=latency_ms,
        spread_ms=spread_ms,
        overhead_ms=overhead_ms,
        overhead_spread_ms=overhead_spread_ms,
        runs=runs,
        short_chain=short_chain,
        long_chain=long_chain,
        working_set_mb=working_set_mb,
        cache="distinct rows" if key.end == EMBEDDING else "distinct weights",
        cuda_graph=kind == "cuda",
    )


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Also where the end of a failed capture raised another error over it."""
    if error is None:
        return False
    return any(text in str(error) for text in ("out of memory", "allocate memory")) or _is_out_of_memory(
        error.__context__
    )


# --- chains ----------------------------------------------------------------------------------------------------------


@dataclass
class _Chain:
    """Links with weights of their own, run one after the other on what the one before gave."""

    x: Tensor  # [batch, width] in decode, [batch, time, width] in prefill
    links: list[Link]

    @classmethod
    def of(cls, key: Key, length: int, kind: str) -> _Chain:
        dtype = getattr(torch, key.dtype)
        shape = (key.batch, key.width) if key.phase == "decode" else (key.batch, key.context, key.width)
        x = torch.randn(shape, device=kind).to(dtype)
        if key.end == EMBEDDING:
            return cls(x, _embedding_links(key, length, kind, dtype))
        if key.end:
            return cls(x, [_head_link(key, kind, dtype) for _ in range(length)])
        (layer,) = parse_layers(key.block)
        return cls(x, [_block_link(key, layer, kind, dtype) for _ in range(length)])

    def run(self, length: int) -> Tensor:
        x = self.x
        for link in self.links[:length]:
            x = link(x)
        return x


def _block_link(key: Key, layer: Layer, kind: str, dtype: torch.dtype) -> Link:
    with torch.device(kind):
        block = Block(layer, key.width, 1e-6).to(dtype).eval()
    room = key.context + (key.phase == "decode")
    state = block.operator.init_state(key.batch, room, device=kind, dtype=dtype)
    if key.phase == "prefill":
        return lambda x: block(x, state)
    fill(state)
    position = torch.tensor(key.context, device=kind)
    return lambda x: block.step(x, state, position)


def _head_link(key: Key, kind: str, dtype: torch.dtype) -> Link:
    model = _bare_model(key, kind, dtype)

    def link(x: Tensor) -> Tensor:
        model.next_logits(x)
        return x

    return link


def _embedding_links(key: Key, length: int, kind: str, dtype: torch.dtype) -> list[Link]:
    """A model has one embedding, so the links share it; each looks up rows of its own."""
    model = _bare_model(key, kind, dtype)
    shape = (key.batch,) if key.phase == "decode" else (key.batch, key.context)
    vocab = model.architecture.vocab
    tokens = [torch.randint(vocab, shape, device=kind) for _ in range(length)]
    return [lambda x, t=t: model.embedding(t) for t in tokens]  # type: ignore[misc]


def _bare_model(key: Key, kind: str, dtype: torch.dtype) -> HybridLM:
    settings = key.end_settings
    architecture = Architecture(key.width, (), int(settings["vocab"]), head_norm="head_norm" in settings)
    with torch.device(kind):
        return HybridLM(architecture).to(dtype).eval()


def fill(state: dict[str, Tensor]) -> None:
    """Random contents: a state of zeros costs less power, and so less time, than one in use."""
    for tensor in state.values():
        if tensor.is_floating_point():
            tensor.normal_(std=0.1)


def _bytes(key: Key) -> int:
    """What one link touches: weights, state, and in prefill the activations that come in."""
    itemsize = getattr(torch, key.dtype).itemsize
    tokens = key.batch * (key.context if key.phase == "prefill" else 1)
    activations = tokens * key.width * itemsize
    if key.end == EMBEDDING:
        return 2 * activations
    if key.end:
        return int(key.end_settings["vocab"]) * key.width * itemsize + activations
    (layer,) = parse_layers(key.block)
    cost = layer.cost(key.width)
    state = cost.state_bytes(key.batch, key.context + (key.phase == "decode"), itemsize)
    return (cost.parameters + key.width) * itemsize + state + activations

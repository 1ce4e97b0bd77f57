"""The conformance suite that every operator passes: the project's own, and any that another package adds.

In a test file:

    from nfsearch.space import Layer
    from nfsearch.testing import OperatorSuite

    class TestMyMixer(OperatorSuite):
        layers = (Layer.of("MyMixer"), Layer.of("MyMixer", head_dim=16))
        widths = (32, 96)

The operator's spec must be found under its name, so install the package that declares it (entry-point group
`nfsearch.operators`). Small sizes are enough, and the reference is a loop in Python: keep widths below a hundred.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from nfsearch.ops.model import Block
from nfsearch.ops.operator import Operator, State, build_operator
from nfsearch.space import Layer

EXACT = 1e-10  # relative error allowed in float64
SINGLE = 1e-4  # in float32
HALF = 0.15  # in bfloat16, with weights far larger than a trained model's

_ON_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class OperatorSuite:
    """Subclass it as `Test...` and name `layers` and `widths`; pytest runs every test for every layer.

    Forms and gradients are compared at the first of `widths`, costs at each. Everything runs on the CPU, and again on a
    CUDA device where there is one, always against the operator's `reference` on the CPU in float64.

    Override `lengths`, `splits` and `gradient_lengths` for an operator whose chunks are longer than 64 steps. For one
    whose kernels are a library's, say in `devices` where they run and in `tolerances` in which dtypes and how exactly:
    the `reference` is then taken on the first of the devices, in the widest of the dtypes.
    """

    layers: ClassVar[Sequence[Layer]]
    widths: ClassVar[Sequence[int]]
    lengths: ClassVar[Sequence[int]] = (1, 2, 7, 31, 63, 64, 65, 130)
    splits: ClassVar[Sequence[tuple[int, ...]]] = ((1,), (2, 3), (5, 12), (33, 34), (63, 64, 65), (96,), (3, 70))
    gradient_lengths: ClassVar[Sequence[int]] = (13, 67)
    devices: ClassVar[Sequence[str]] = ("cpu", "cuda")
    tolerances: ClassVar[Mapping[torch.dtype, float]] = {
        torch.bfloat16: HALF,
        torch.float32: SINGLE,
        torch.float64: EXACT,
    }

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        cases: dict[str, Sequence[Any]] = {
            "layer": self.layers,
            "width": self.widths,
            "time": self.gradient_lengths,
            "device": [pytest.param(d, marks=_ON_CUDA) if d == "cuda" else d for d in self.devices],
            "dtype": list(self.tolerances),
        }
        for name in [name for name in cases if name in metafunc.fixturenames]:
            metafunc.parametrize(name, cases[name], ids=str if name == "layer" else None)

    @pytest.fixture(autouse=True)
    def _needs_its_device(self) -> None:
        if self.home == "cuda" and not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")

    @property
    def home(self) -> str:
        """Where the reference is taken, and what is tested on one device."""
        return self.devices[0]

    @property
    def widest(self) -> torch.dtype:
        return max(self.tolerances, key=lambda dtype: dtype.itemsize)

    @property
    def exact(self) -> float:
        """The relative error allowed in the widest dtype."""
        return self.tolerances[self.widest]

    def reference(self, layer: Layer, x: Tensor) -> Tensor:
        """What everything is compared with."""
        return self.make(layer, self.widest, self.home).reference(x.to(self.home, self.widest))

    def make(self, layer: Layer, dtype: torch.dtype, device: str = "cpu") -> Operator:
        """The operator at the first width, always with the same weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            operator = build_operator(layer, self.widths[0]).double()
            self.randomise(operator)
        return operator.to(device, dtype)

    @torch.no_grad()
    def randomise(self, operator: Operator) -> None:
        """Makes every parameter matter: projections are large enough to saturate gates, nothing is left at 0 or 1."""
        projections = {module.weight for module in operator.modules() if isinstance(module, nn.Linear)}
        for parameter in operator.parameters():
            if parameter in projections:
                parameter.normal_(std=(3 / parameter.shape[1]) ** 0.5)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)

    def inputs(self, time: int, batch: int = 2) -> Tensor:
        """[batch, time, width] in float64 on the CPU."""
        random = torch.Generator().manual_seed(time)
        return torch.randn(batch, time, self.widths[0], dtype=torch.float64, generator=random)

    # --- the forms -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def test_parallel_and_step_follow_the_reference(self, layer: Layer, device: str) -> None:
        x = self.inputs(max(self.lengths))
        expected = self.reference(layer, x)
        for kind, tolerance in self.tolerances.items():
            if kind.itemsize < 4:
                continue
            operator, given = self.make(layer, kind, device), x.to(device, kind)
            if kind != self.widest:
                home = self.make(layer, kind, self.home).reference(x.to(self.home, kind))
                agree(home, expected, tolerance, f"reference in {kind}")
            for time in self.lengths:  # a loop over time: prefixes give prefixes
                agree(operator(given[:, :time]), expected[:, :time], tolerance, f"forward of {time} steps in {kind}")
            agree(steps(operator, given, empty(operator, given)), expected, tolerance, f"steps in {kind}")

    @torch.no_grad()
    def test_state_is_carried_across_splits(self, layer: Layer, device: str) -> None:
        operator = self.make(layer, self.widest, device)
        total = 1 + max(itertools.chain(*self.splits))
        given = self.inputs(total)
        x = given.to(device, self.widest)
        whole = empty(operator, x)
        expected = operator(x, whole)
        agree(expected, self.reference(layer, given), self.exact, f"forward of {total} steps with a state")
        for cuts in self.splits:
            state, parts = empty(operator, x), []
            for i, (first, last) in enumerate(itertools.pairwise((0, *cuts, total))):
                piece = x[:, first:last]
                # The two forms take turns, so that each continues what the other left.
                parts.append(steps(operator, piece, state, first) if i % 2 else operator(piece, state, first))
            agree(torch.cat(parts, dim=1), expected, self.exact, f"{total} steps cut at {cuts}")
            for name, tensor in whole.items():
                agree(state[name], tensor, self.exact, f"state {name!r} after {total} steps cut at {cuts}")

    @torch.no_grad()
    def test_state_is_written_in_place(self, layer: Layer) -> None:
        operator = self.make(layer, torch.float32, self.home)
        x = self.inputs(9).to(self.home, torch.float32)
        state = empty(operator, x)
        for name, tensor in state.items():
            assert not tensor.any(), f"init_state: {name!r} is not zero"
        before, position = dict(state), torch.tensor(8, device=self.home)
        operator(x[:, :8], state)
        operator.step(x[:, 8], state, position)
        assert position == 8, "step changed the position, which the caller counts"
        assert state.keys() == before.keys(), f"state {list(state)}, made as {list(before)}"
        for name, tensor in before.items():
            assert state[name] is tensor, f"state {name!r} was replaced; a captured graph would write the old one"
            assert tensor.any(), f"state {name!r} was never written"

    @torch.no_grad()
    def test_sequences_of_a_batch_do_not_meet(self, layer: Layer) -> None:
        operator = self.make(layer, self.widest, self.home)
        x = self.inputs(20, batch=3).to(self.home, self.widest)

        def run(rows: Tensor) -> Tensor:
            state = empty(operator, rows)
            return torch.cat((operator(rows[:, :15], state), steps(operator, rows[:, 15:], state, 15)), dim=1)

        agree(run(x[2:]), run(x)[2:], self.exact, "a sequence alone, against the same in a batch of 3")

    # --- training --------------------------------------------------------------------------------------------------

    def test_gradients(self, layer: Layer, device: str, time: int) -> None:
        operator, reference = (self.make(layer, self.widest, kind) for kind in (device, self.home))
        x = self.inputs(time)
        random = torch.Generator().manual_seed(1)
        weight = torch.randn(x.shape, dtype=x.dtype, generator=random).to(self.home, self.widest)

        def leaves(made: Operator, kind: str) -> dict[str, Tensor]:
            return {"x": x.to(kind, self.widest).requires_grad_(), **dict(made.named_parameters())}

        at = leaves(operator, device)
        total = (operator(at["x"]) * weight.to(device)).sum()
        got = dict(zip(at, torch.autograd.grad(total, tuple(at.values())), strict=True))
        at = leaves(reference, self.home)

        def loss() -> Tensor:
            return (reference.reference(at["x"]) * weight).sum()

        if (total := loss()).requires_grad:
            expected = dict(zip(at, torch.autograd.grad(total, tuple(at.values())), strict=True))
            for name, tensor in expected.items():
                assert tensor.abs().max() > 0, f"the gradient of {name} is zero"
                agree(got[name], tensor, 1e-9, f"the gradient of {name}, {time} steps")
        else:
            for name, leaf in at.items():
                self.agree_with_slope(loss, leaf, got[name].to(self.home), f"the gradient of {name}, {time} steps")

    @torch.no_grad()
    def agree_with_slope(self, loss: Callable[[], Tensor], leaf: Tensor, gradient: Tensor, what: str) -> None:
        """For a reference without a gradient: along the gradient, the loss rises as steeply as the gradient is long.

        A central difference; its step balances the error of the two values against the loss's curvature.
        """
        length = gradient.norm()
        assert length > 0, f"{what} is zero"
        step = self.exact ** (1 / 3) / 20
        change = gradient / length * leaf.norm().clamp_min(leaf.numel() ** 0.5 / 10) * step
        start = leaf.clone()
        leaf.copy_(start + change)
        above = loss().double()
        leaf.copy_(start - change)
        slope = (above - loss().double()) / (2 * change.norm())
        leaf.copy_(start)
        agree(slope, length, 5 * step, what)

    def test_gradients_of_long_inputs_are_finite(self, layer: Layer, device: str) -> None:
        """In float32, in which what float64 still holds may overflow."""
        operator = self.make(layer, torch.float32, device)
        x = self.inputs(512, batch=1).to(device, torch.float32).requires_grad_()
        operator(x).square().mean().backward()
        for name, leaf in (("x", x), *operator.named_parameters()):
            assert leaf.grad is not None, f"no gradient reached {name}"
            assert leaf.grad.isfinite().all(), f"the gradient of {name} is not finite after 512 tokens"

    def test_autocast_trains(self, layer: Layer, device: str) -> None:
        operator = self.make(layer, torch.float32, device)
        given = self.inputs(20)
        x = given.to(device, torch.float32).requires_grad_()
        with torch.autocast(device, torch.bfloat16):
            y = operator(x)
        y.float().square().mean().backward()
        for name, leaf in (("x", x), *operator.named_parameters()):
            assert leaf.grad is not None, f"no gradient reached {name}"
            assert leaf.grad.isfinite().all(), f"the gradient of {name} is not finite"
        agree(y, self.reference(layer, given), self.tolerances[torch.bfloat16], "forward under autocast")

    @torch.no_grad()
    def test_declared_normalisation_is_along_the_width(self, layer: Layer) -> None:
        operator, width = self.make(layer, self.widest, self.home), self.widths[0]
        parameters = dict(operator.named_parameters())
        x = self.inputs(5).to(self.home, self.widest)
        x[..., 0] = 0
        expected = operator(x)

        def changed(name: str, axis: int, index: int) -> Tensor:
            """[width] true where the output changes with one slice of a parameter."""
            original = parameters[name].clone()
            parameters[name].select(axis, index).add_(1)
            found = (operator(x) - expected).abs().amax(dim=(0, 1)) > EXACT
            parameters[name].copy_(original)
            return found

        for axis, names in ((1, operator.row_normalised), (0, operator.column_normalised)):
            for name in names:
                assert name in parameters, f"{name} is declared normalised, but is not among {list(parameters)}"
                shape = tuple(parameters[name].shape)
                assert len(shape) == 2, f"{name} {shape} is not a matrix"
                assert shape[axis] == width, f"{name} {shape}: axis {axis} is not the width {width}"
        for name in operator.row_normalised:
            assert not changed(name, 1, 0).any(), f"column 0 of {name} does not read channel 0, which is zero"
            assert changed(name, 1, 1).any(), f"{name} does not read the operator's input"
        for name in operator.column_normalised:
            channels = changed(name, 0, 1).nonzero().flatten().tolist()
            assert channels == [1], f"row 1 of {name} does not write channel 1 alone, but {channels}"

    # --- costs, dtypes, graphs -------------------------------------------------------------------------------------

    def test_cost_is_what_is_allocated(self, layer: Layer, width: int, dtype: torch.dtype) -> None:
        operator, cost = build_operator(layer, width).to(self.home, dtype), layer.cost(width)
        owned = sum(p.numel() for p in operator.parameters())
        assert owned == cost.parameters, f"{owned} parameters, the cost says {cost.parameters}"
        for batch, length in itertools.product((1, 3), (1, 5, 300)):
            state = operator.init_state(batch, length, device=self.home, dtype=dtype)
            held = sum(t.numel() * t.element_size() for t in state.values())
            said = cost.state_bytes(batch, length, dtype.itemsize)
            assert held == said, f"state of {batch} x {length} in {dtype}: {held} bytes, the cost says {said}"

    @torch.no_grad()
    def test_half_precision_runs_and_agrees(self, layer: Layer, device: str) -> None:
        operator, x = self.make(layer, torch.bfloat16, device), self.inputs(70)
        small = x.to(device, torch.bfloat16)
        state = empty(operator, small)
        got = torch.cat((operator(small[:, :66], state), steps(operator, small[:, 66:], state, 66)), dim=1)
        assert got.dtype == torch.bfloat16, f"{got.dtype} of a bfloat16 operator and input"
        agree(got, self.reference(layer, x), self.tolerances[torch.bfloat16], "bfloat16")

    @torch.no_grad()
    def test_step_needs_no_value_from_the_device(self, layer: Layer) -> None:
        """On tensors without values: asking for one (`.item()`, a shape that depends on data) raises."""
        if "cpu" not in self.devices:
            pytest.skip("kernels for CUDA alone need values; the captured step below says as much")
        operator = self.make(layer, torch.float32, "meta")
        x = torch.empty(3, self.widths[0], device="meta")
        state = operator.init_state(3, 5, device="meta", dtype=x.dtype)
        assert operator.step(x, state, torch.empty((), dtype=torch.int64, device="meta")).shape == x.shape

    @_ON_CUDA
    @torch.no_grad()
    def test_a_block_decodes_as_its_operator_says(self, layer: Layer) -> None:
        """On a CUDA device, where an operator's fused step runs once it has been checked."""
        kind = max((dtype for dtype in self.tolerances if dtype.itemsize <= 4), key=lambda dtype: dtype.itemsize)
        with torch.device("cuda"):
            block = Block(layer, self.widths[0], 1e-6).to(kind)
        block.operator = self.make(layer, kind, "cuda")
        given = self.inputs(20)
        x = given.to("cuda", kind)
        state = empty(block.operator, x)
        positions = torch.arange(20, device="cuda")
        got = torch.stack([block.step(row, state, positions[t]) - row for t, row in enumerate(x.unbind(1))], dim=1)
        unit = given / (given.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        agree(got, self.reference(layer, unit), 10 * self.tolerances[kind], "steps of a block")

    @_ON_CUDA
    @pytest.mark.parametrize(("kind", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
    @torch.no_grad()
    def test_a_captured_step_replays_the_eager_one(self, layer: Layer, kind: torch.dtype, tolerance: float) -> None:
        operator = self.make(layer, kind, "cuda")
        x = self.inputs(20).to("cuda", kind)
        wanted, state = empty(operator, x), empty(operator, x)
        expected = steps(operator, x, wanted)
        row, position = x[:, 0].clone(), torch.zeros((), dtype=torch.int64, device="cuda")

        def step() -> Tensor:
            y = operator.step(row, state, position)
            position.add_(1)
            return y

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # kernels are compiled and libraries make their workspaces before the capture
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = step()
        for tensor in (position, *state.values()):
            tensor.zero_()
        outputs = []
        for new in x.unbind(1):
            row.copy_(new)
            graph.replay()
            outputs.append(y.clone())
        agree(torch.stack(outputs, dim=1), expected, tolerance, "20 replayed steps")
        for name, tensor in wanted.items():
            agree(state[name], tensor, tolerance, f"state {name!r} after 20 replayed steps")


def agree(got: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Raises AssertionError unless the largest difference, relative to the largest expected value, is in bounds."""
    assert got.shape == expected.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    assert got.isfinite().all(), f"{what}: not finite"
    got, expected = got.detach().double().cpu(), expected.detach().double().cpu()
    error = ((got - expected).abs().max() / expected.abs().max()).item()
    assert error <= tolerance, f"{what}: {error:.1e} off, at most {tolerance:.0e} is allowed"


def steps(operator: Operator, x: Tensor, state: State, first: int = 0) -> Tensor:
    """x [batch, time, width] one token at a time, after the `first` tokens that the state holds."""
    positions = torch.arange(first, first + x.shape[1], device=x.device)
    return torch.stack([operator.step(row, state, positions[t]) for t, row in enumerate(x.unbind(1))], dim=1)


def empty(operator: Operator, x: Tensor) -> State:
    """A state with room for x [batch, time, width]."""
    return operator.init_state(len(x), x.shape[1], device=x.device, dtype=x.dtype)

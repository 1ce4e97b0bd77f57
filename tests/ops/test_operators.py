"""Every operator of the project passes the shipped conformance suite; below, what is an operator's own."""

from __future__ import annotations

import pytest
import torch

from nfsearch.ops.deltanet import DeltaNet
from nfsearch.ops.operator import build_operator
from nfsearch.space import Layer, operators
from nfsearch.testing.operators import OperatorSuite, empty


class Suite(OperatorSuite):
    widths = (32, 96)

    def test_what_to_normalise_is_declared(self, layer: Layer) -> None:
        operator = build_operator(layer, self.widths[0])
        assert operator.row_normalised
        assert operator.column_normalised


class TestAttention(Suite):
    layers = (
        Layer.of("A", head_dim=8),
        Layer.of("A", head_dim=16, kv_heads=2, qk_norm=True),
        Layer.of("A", head_dim=8, kv_heads=1, window=7, rope_base=500.0),
        Layer.of("A", head_dim=8, window=64),
        Layer.of("A", head_dim=8, heads=6, kv_heads=2, rope=0.75, gate=True, qk_norm="all"),
        Layer.of("A", head_dim=8, heads=6, kv_heads=3, window=5, rope=0, gate=True, qk_norm=True),
    )

    @torch.no_grad()
    def test_window_hides_what_is_older(self) -> None:
        operator = self.make(Layer.of("A", head_dim=8, window=7), torch.float64)
        x = self.inputs(20)
        changed = x.clone()
        changed[:, 12] += 1
        seen = (operator(changed) - operator(x)).abs().amax(dim=(0, 2)) > 0
        assert seen.nonzero().flatten().tolist() == list(range(12, 19))

    @pytest.mark.parametrize("length", [8, 15])
    def test_a_text_beyond_the_window_needs_no_mask_of_time_by_time(
        self, length: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        operator = self.make(Layer.of("A", head_dim=8, window=7), torch.float32)
        monkeypatch.setattr(operator, "_mask", lambda *_: pytest.fail("a mask for all positions was asked for"))
        operator(self.inputs(length).float(), empty(operator, self.inputs(length).float()))

    def test_more_than_the_state_holds_is_refused(self) -> None:
        operator = self.make(Layer.of("A", head_dim=8), torch.float32)
        state = operator.init_state(2, 5, device="cpu", dtype=torch.float32)
        with pytest.raises(ValueError, match="6 tokens do not fit a state made for 5"):
            operator(self.inputs(6).float(), state)


class TestDeltaNet(Suite):
    layers = (Layer.of("D", head_dim=8), Layer.of("D", head_dim=16, conv=2), Layer.of("D", head_dim=8, neg_eigval=True))

    @torch.no_grad()
    def test_only_negative_eigenvalues_keep_a_parity(self) -> None:
        """A token that is written with beta near 2 turns the state's sign along its key, whatever was there."""
        for neg_eigval, expected in ((False, [1, 0, 0]), (True, [1, -1, 1])):
            operator = self.make(Layer.of("D", head_dim=32, neg_eigval=neg_eigval), torch.float64)
            assert isinstance(operator, DeltaNet)
            k, beta = operator.layout.start("k"), operator.layout.start("beta")
            operator.in_proj.weight.zero_()
            operator.in_proj.weight[[k, beta], 0] = 9.0
            operator.conv.zero_()[:, -1] = 1.0
            x = torch.ones(1, 3, 32, dtype=torch.float64)
            state = operator.init_state(1, 3, device="cpu", dtype=x.dtype)
            state["state"][0, 0, 0, 0] = 1.0
            found = []
            for t in range(3):
                found.append(float(state["state"][0, 0, 0, 0]))
                operator(x[:, t : t + 1], state, t)
            assert found == pytest.approx(expected, abs=1e-2)


class TestGatedShortConv(Suite):
    layers = (Layer.of("C"), Layer.of("C", conv=1), Layer.of("C", conv=5))


class TestGatedDeltaNet(Suite):
    layers = (Layer.of("GDN", head_dim=8), Layer.of("GDN", head_dim=16, expand_v=1, conv=3),
              Layer.of("GDN", head_dim=8, heads=6, key_heads=2))  # fmt: skip


class TestGatedLinearAttention(Suite):
    layers = (Layer.of("GLA"), Layer.of("GLA", heads=2, expand_k=1.0, expand_v=0.5))


class TestMamba2(Suite):
    layers = (
        Layer.of("M2", head_dim=16, state=8),
        Layer.of("M2", expand=1, head_dim=8, state=24, conv=1),
        Layer.of("M2", expand=1.5, head_dim=8, groups=2, state=8),
        Layer.of("M2", heads=6, head_dim=8, groups=3, state=8, conv=2),
    )


class TestFeedForward(Suite):
    layers = (Layer.of("F"), Layer.of("F", ratio=1.5, act="relu2"))


def test_every_operator_is_tested() -> None:
    built_in = {name for name, spec in operators().items() if spec.module.startswith("nfsearch.ops.")}
    assert {layer.op for suite in Suite.__subclasses__() for layer in suite.layers} == built_in

"""Arguments of Megatron-LM; `megatron_arguments.py` beside this file has its parser read them."""

from __future__ import annotations

import random
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nfsearch.export import Winner
from nfsearch.export.megatron import MegatronExporter
from nfsearch.report.result import RunResult
from nfsearch.space import Architecture, SpaceSettings
from tests.nfsearch.megatron_arguments import SPACE, expected

MEGATRON = MegatronExporter()
DESIGN = Architecture.parse(
    "(M2[groups=2,state=64] F[act=relu2,ratio=4]){2} A[gate=true,qk_norm=true,rope=0.25,window=512] "
    "GDN F[act=relu2,ratio=4] A[gate=true,qk_norm=true,rope=0.25]",
    width=1024,
    vocab=1000,
    norm_eps=1e-5,
    tied_head=False,
)
ARGUMENTS = """
    --hybrid-layer-pattern 'M-M-*G-*'
    --spec megatron.core.models.hybrid.hybrid_layer_specs hybrid_stack_spec
    --hidden-size 1024
    --group-query-attention
    --mamba-num-heads 32
    --mamba-head-dim 64
    --mamba-state-dim 64
    --mamba-num-groups 2
    --ffn-hidden-size 4096
    --num-attention-heads 8
    --num-query-groups 2
    --kv-channels 128
    --qk-layernorm
    --attention-output-gate
    --linear-num-value-heads 3
    --linear-num-key-heads 3
    --linear-key-head-dim 256
    --linear-value-head-dim 512
    --linear-conv-kernel-dim 4
    --window-size 511,0
    --window-attn-skip-freq '[0,0,0,0,1,0,0,0]'
    --position-embedding-type rope
    --rotary-percent 0.25
    --rotary-base 10000
    --squared-relu
    --normalization RMSNorm
    --norm-epsilon 1e-05
    --disable-bias-linear
    --untie-embeddings-and-output-weights
    --init-method-std 0.02
    --attention-dropout 0
    --hidden-dropout 0
"""


def unneeded() -> Any:
    raise AssertionError("nothing is to be trained")


def test_bash_reads_the_arguments_from_the_file(result: RunResult, tmp_path: Path) -> None:
    fields = {"architecture": DESIGN.to_dict(), "digest": DESIGN.digest}
    record = result.candidates[0].model_copy(update=fields)
    path = MEGATRON.export(Winner(result, record, unneeded, unneeded), tmp_path / "new" / "design.sh")
    assert path.read_text().partition("MODEL_ARGS=(")[2] == f"{ARGUMENTS})\n"
    said = subprocess.run(
        ["bash", "-c", f"source {path}; printf '%s\\n' \"${{MODEL_ARGS[@]}}\""],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.split("\n")[:-1] == [word for argument in MEGATRON.arguments(DESIGN) for word in argument]
    assert f"{DESIGN.parameters:,} parameters with the 1,000 tokens" in path.read_text()
    with pytest.raises(FileExistsError):
        MEGATRON.export(Winner(result, record, unneeded, unneeded), path)


def test_a_design_without_attention_or_positions_asks_for_none() -> None:
    words = [word for argument in MEGATRON.arguments(Architecture.parse("M2 M2", width=128)) for word in argument]
    assert "--group-query-attention" not in words
    assert "--swiglu" not in words
    assert words[words.index("--position-embedding-type") + 1] == "none"
    assert words[words.index("--num-attention-heads") + 1] == "1"


@pytest.mark.parametrize(("rope", "turning"), [("0.3", 20), ("0.33333333", 22), ("0.7", 44), ("0.01", 0), ("1", 64)])
def test_as_many_values_turn_as_here(rope: str, turning: int) -> None:
    design = Architecture.parse(f"A[head_dim=64,rope={rope}]", width=256)
    assert design.layers[0].shape(256).get("rotary", 64) == turning
    found = {name: values[0] for name, *values in MEGATRON.arguments(design) if values}
    assert found["--position-embedding-type"] == ("rope" if turning else "none")
    assert int(64 * float(found.get("--rotary-percent", 0))) == turning  # as Megatron rounds


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ("M2 D", "layer 1 is D: megatron has layers for M2, GDN, A, F alone"),
        ("M2 C", "layer 1 is C: megatron has layers for M2, GDN, A, F alone"),
        ("M2[conv=3]", "layer 0 is M2[conv=3], with conv=3: megatron needs conv=4"),
        ("A[qk_norm=all]", "layer 0 is A[qk_norm=all], with qk_norm=all: megatron needs qk_norm=false or qk_norm=true"),
        ("A[rope_base=1.5]", "layer 0 is A[rope_base=1.5], with rope_base=1.5: megatron needs a whole number"),
        (
            "A[window=8] A[window=9]",
            "layer 1 is A[window=9], with window=9, and layer 0 is A[window=8], with 8: "
            "megatron has one window-size for all layers",
        ),
        (
            "F F[act=relu2]",
            "layer 1 is F[act=relu2], with act=relu2, and layer 0 is F, with swiglu: "
            "megatron has one activation for all layers",
        ),
        (
            "A A[rope=0]",
            "layer 1 is A[rope=0], with rope=0, and layer 0 is A, with 1: "
            "megatron has one rotary-percent for all layers",
        ),
        ("A A[window=8] A[window=8] F M2 GDN", ""),
    ],
)
def test_what_it_refuses(layers: str, said: str) -> None:
    assert MEGATRON.refusal(Architecture.parse(layers, width=512)) == said


def test_meta_tokens_and_divided_logits_are_refused() -> None:
    assert MEGATRON.refusal(replace(DESIGN, meta_tokens=3)) == "meta_tokens is 3: megatron has none"
    assert MEGATRON.refusal(replace(DESIGN, head_norm=True)) == "head_norm is true: megatron does not divide its logits"


def test_whatever_a_space_that_serves_it_draws_has_arguments() -> None:
    space, rng = SpaceSettings.model_validate(SPACE).build(1000), random.Random(0)
    for _ in range(60):
        design = space.sample(rng).architecture
        names = [argument[0] for argument in MEGATRON.arguments(design)]
        assert len(names) == len(set(names))
        assert expected(design)["hybrid_layer_pattern"]

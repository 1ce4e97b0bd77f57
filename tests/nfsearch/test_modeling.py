"""The code of an exported folder, an independent implementation of every operator, held against ours."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from nfsearch import hf
from nfsearch.export.hub import HubExporter
from nfsearch.ops.model import HybridLM
from nfsearch.space import Architecture, Layer
from nfsearch.space.operators import operators

if TYPE_CHECKING:
    from nfsearch.export.modeling_nfsearch import NFSearchForCausalLM

VOCAB = 101
SETTINGS: dict[str, dict[str, tuple[Any, ...]]] = {  # every setting of every operator, small
    "A": {
        "head_dim": (8, 16), "heads": (None, 2, 6), "kv_heads": (None, 1, 2), "window": (None, 1, 4, 50),
        "qk_norm": (False, True, "all"), "rope": (1.0, 0.5, 0.25, 0.0), "rope_base": (10000.0, 500.0),
        "gate": (False, True),
    },
    "C": {"conv": (1, 2, 3)},
    "D": {"head_dim": (8, 16), "conv": (1, 2, 4), "neg_eigval": (False, True)},
    "GDN": {
        "head_dim": (8, 16), "expand_v": (1, 2), "conv": (1, 4), "heads": (None, 4), "key_heads": (None, 1, 2),
    },
    "GLA": {"heads": (2, 4), "expand_k": (0.5, 1.0), "expand_v": (1.0, 2.0)},
    "M2": {
        "expand": (1, 1.5, 2), "heads": (None, None, 6), "head_dim": (8, 16), "groups": (1, 2, 3), "state": (8, 12),
        "conv": (1, 3, 4),
    },
    "F": {"ratio": (1.0, 2.5), "act": ("swiglu", "relu2")},
}  # fmt: skip
SEVERAL = "A[head_dim=16,window=8] D[head_dim=16] F[ratio=1] M2[head_dim=16,state=16] GDN[head_dim=16] GLA C"


@pytest.fixture(scope="module", autouse=True)
def transformers() -> Any:
    """Imported here, as it takes five seconds."""
    return pytest.importorskip("transformers", minversion="5.20")


def theirs(ours: HybridLM) -> NFSearchForCausalLM:
    """The model that a folder of this one holds."""
    from nfsearch.export.modeling_nfsearch import NFSearchConfig, NFSearchForCausalLM

    said = HubExporter().config(ours.architecture)
    model = NFSearchForCausalLM(NFSearchConfig(**{name: said[name] for name in said if name != "auto_map"}))
    missing, odd = model.load_state_dict(hf.folder_weights(ours), strict=False)
    assert (missing, odd) == (["lm_head.weight"] * ours.architecture.tied_head, [])
    return model.eval()


def drawn(architecture: Architecture, seed: int = 0) -> HybridLM:
    """A model none of whose weights is one or zero, or the same as another."""
    torch.manual_seed(seed)
    model = HybridLM(architecture)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight) if weight.dim() == 1 else 0.01 * torch.randn_like(weight))
    return model.eval()


def member(number: int) -> Architecture:
    """One of many, over all operators and settings: each operator is in every seventh at least."""
    rng = random.Random(number)

    def layer(op: str) -> Layer:
        while True:
            made = Layer.of(op, **{name: rng.choice(values) for name, values in SETTINGS[op].items()})
            try:
                made.shape(32)
            except ValueError:  # these settings do not fit one another
                continue
            return made

    ops = [list(SETTINGS)[number % len(SETTINGS)], *rng.choices(list(SETTINGS), k=3)]
    return Architecture(
        32, [layer(op) for op in ops], vocab=VOCAB, meta_tokens=rng.choice((0, 1, 5)),  # type: ignore[arg-type]
        head_norm=rng.random() < 0.5, norm_eps=rng.choice((1e-6, 1e-5)), tied_head=rng.random() < 0.5,
    )  # fmt: skip


@pytest.fixture(scope="module")
def several() -> HybridLM:
    return drawn(Architecture.parse(SEVERAL, width=32, vocab=VOCAB, meta_tokens=3))


@pytest.fixture
def model(several: HybridLM) -> NFSearchForCausalLM:
    return theirs(several)


def padded(rows: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    """A batch of these rows and its attention mask; padding is token 7."""
    time = max(map(len, rows))
    tokens, mask = torch.full((len(rows), time), 7), torch.zeros(len(rows), time, dtype=torch.long)
    for i, row in enumerate(rows):
        there = slice(time - len(row), time) if side == "left" else slice(0, len(row))
        tokens[i, there], mask[i, there] = row, 1
    return tokens, mask


def generated(model: NFSearchForCausalLM, tokens: Tensor, mask: Tensor | None = None, **how: Any) -> Tensor:
    """The new tokens alone."""
    mask = torch.ones_like(tokens) if mask is None else mask
    how = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 7, "eos_token_id": None, **how}
    return model.generate(tokens, attention_mask=mask, **how)[:, tokens.shape[1] :]


def test_every_operator_and_setting_is_tried() -> None:
    from nfsearch.export.modeling_nfsearch import MIXERS

    assert set(MIXERS) == {*hf.OPERATORS, "foreign"}
    known = {name: spec for name, spec in operators().items() if spec.module.startswith("nfsearch.")}
    assert {spec.long_name for spec in known.values()} == set(hf.OPERATORS)
    assert {name: set(spec.settings) for name, spec in known.items()} == {name: set(SETTINGS[name]) for name in known}


@pytest.mark.parametrize("number", range(20))
@torch.no_grad()
def test_a_member_is_the_same_model(number: int) -> None:
    ours = drawn(member(number), number)
    model, rng = theirs(ours), random.Random(number)
    for time in (1, rng.randint(2, 60), rng.randint(61, 130), rng.randint(131, 300)):
        tokens = torch.randint(0, VOCAB, (2, time))
        torch.testing.assert_close(model(tokens, use_cache=False).logits, ours(tokens), atol=1e-5, rtol=0)
    rows = [torch.randint(0, VOCAB, (time,)) for time in (1, rng.randint(2, 9), rng.randint(10, 70))]
    alone = [model(row[None]).logits[0] for row in rows]
    new = [generated(model, row[None])[0] for row in rows]
    for side in ("left", "right"):
        tokens, mask = padded(rows, side)
        found = model(tokens, attention_mask=mask).logits
        for got, real, expected in zip(found, mask, alone, strict=True):
            torch.testing.assert_close(got[real.bool()], expected, atol=1e-5, rtol=0)
        assert torch.equal(generated(model, tokens, mask), torch.stack(new))
    assert torch.equal(generated(model, tokens, mask, use_cache=False), torch.stack(new))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("number", range(6))
@torch.no_grad()
def test_a_member_is_the_same_model_on_cuda(number: int) -> None:
    ours = drawn(member(number), number)
    model, tokens = theirs(ours).cuda(), torch.randint(0, VOCAB, (2, 200))
    torch.testing.assert_close(model(tokens.cuda()).logits.cpu(), ours(tokens), atol=1e-4, rtol=0)
    rows = [torch.randint(0, VOCAB, (time,)) for time in (5, 70)]
    alone = torch.stack([generated(model, row[None].cuda())[0] for row in rows])
    for side in ("left", "right"):
        assert torch.equal(generated(model, *(z.cuda() for z in padded(rows, side))), alone)


@pytest.mark.parametrize(
    "how", [{"num_beams": 3}, {"do_sample": True, "top_k": 20}, {"num_beams": 2, "do_sample": True}]
)
@pytest.mark.parametrize("layers", [SEVERAL, "GLA F[ratio=1]"])
def test_generate_is_the_same_with_and_without_the_cache(how: dict[str, Any], layers: str) -> None:
    model = theirs(drawn(Architecture.parse(layers, width=32, vocab=VOCAB, meta_tokens=2)))
    tokens, found = torch.randint(0, VOCAB, (3, 9)), []
    for use in (True, False):
        torch.manual_seed(3)
        found.append(generated(model, tokens, use_cache=use, **how))
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ["past_key_values", "cache"])  # of it before transformers 5.24, and since
@torch.no_grad()
def test_a_cached_text_goes_on_by_tokens_and_by_parts(several: HybridLM, model: NFSearchForCausalLM, name: str) -> None:
    from nfsearch.export.modeling_nfsearch import NFSearchCache

    tokens, cache = torch.randint(0, VOCAB, (2, 90)), NFSearchCache(model.config)
    held: dict[str, Any] = {name: cache}
    for _ in range(2):
        parts = [model(part, **held).logits for part in tokens.split((2, 1, 5, 1, 1, 70, 10), dim=1)]
        assert cache.get_seq_length() == 90
        torch.testing.assert_close(torch.cat(parts, dim=1), several(tokens), atol=1e-5, rtol=0)
        cache.reset()
    padding = torch.ones(2, 90).long()
    padding[0, :3] = 0
    parts = [
        model(tokens[:, a:b], attention_mask=padding[:, :b], **held).logits
        for a, b in ((0, 20), (20, 60), (60, 61), (61, 90))
    ]
    torch.testing.assert_close(torch.cat(parts, dim=1)[0, 3:], several(tokens[:1, 3:])[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_what_is_generated_while_training_is_the_same(model: NFSearchForCausalLM, checkpointed: bool) -> None:
    tokens, mask = padded([torch.arange(5), torch.arange(17)], "left")
    expected = generated(model, tokens, mask, use_cache=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer transformers have another name for it
        if checkpointed:
            model.gradient_checkpointing_enable()
    assert torch.equal(generated(model.train(), tokens, mask), expected)


def test_the_loss_of_padded_texts_is_that_of_the_texts(model: NFSearchForCausalLM) -> None:
    rows = [torch.randint(0, VOCAB, (time,)) for time in (3, 12, 30)]
    alone = sum(model(row[None], labels=row[None]).loss * (len(row) - 1) for row in rows) / sum(
        len(r) - 1 for r in rows
    )
    for side in ("left", "right"):
        tokens, mask = padded(rows, side)
        loss = model(tokens, attention_mask=mask, labels=tokens.masked_fill(mask == 0, -100)).loss
        torch.testing.assert_close(loss, alone)
    loss.backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


@torch.no_grad()
def test_features_of_every_layer_are_those_of_the_tokens(model: NFSearchForCausalLM) -> None:
    rows = [torch.randint(0, VOCAB, (time,)) for time in (4, 11)]
    alone = [model(row[None], output_hidden_states=True).hidden_states for row in rows]
    assert torch.equal(alone[0][0], model.get_input_embeddings()(rows[0])[None])
    tokens, mask = padded(rows, "left")
    for each, *expected in zip(
        model(tokens, attention_mask=mask, output_hidden_states=True).hidden_states, *alone, strict=True
    ):
        for i in range(2):
            torch.testing.assert_close(each[i][mask[i].bool()], expected[i][0], atol=1e-5, rtol=0)
    embedded = model.get_input_embeddings()(tokens)
    by_features = model(inputs_embeds=embedded, attention_mask=mask, logits_to_keep=2).logits
    assert torch.equal(by_features, model(tokens, attention_mask=mask).logits[:, -2:])


def test_what_it_cannot_read_is_refused(transformers: Any, model: NFSearchForCausalLM) -> None:
    from nfsearch.export.modeling_nfsearch import NFSearchCache, NFSearchConfig, NFSearchModel

    tokens, cache = torch.zeros(2, 6, dtype=torch.long), NFSearchCache(model.config)
    model(tokens, past_key_values=cache)
    mask = torch.tensor([[1] * 9, [1] * 8 + [0]])
    for said, arguments in {
        "padding is read at the start alone": dict(attention_mask=mask, past_key_values=cache, input_ids=tokens[:, :3]),
        r"attention_mask must be \[batch, 6\], not \[2, 9\]": dict(attention_mask=mask, input_ids=tokens),
        "several texts in a row": dict(input_ids=tokens, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]])),
        "the cache must be an NFSearchCache, not a DynamicCache": dict(
            input_ids=tokens, past_key_values=transformers.DynamicCache()
        ),
        "either input_ids or inputs_embeds": {},
    }.items():
        with pytest.raises(ValueError, match=said):
            model(**arguments)
    with pytest.raises(ValueError, match="layer 0 is 'hyena', but this model knows attention, "):
        NFSearchModel(NFSearchConfig(layers=[{"operator": "hyena"}]))


def test_a_model_made_anew_is_drawn_as_ours(several: HybridLM) -> None:
    from nfsearch.export.modeling_nfsearch import NFSearchForCausalLM

    torch.manual_seed(0)
    wide = Architecture.parse(SEVERAL.replace("head_dim=16", "head_dim=4"), width=256, vocab=VOCAB, meta_tokens=9)
    new = NFSearchForCausalLM(theirs(HybridLM(wide)).config).state_dict()
    for name, expected in hf.folder_weights(HybridLM(wide)).items():
        torch.testing.assert_close(new[name].mean(), expected.mean(), atol=0.4 * float(expected.std()), rtol=0.1)
        torch.testing.assert_close(new[name].std(), expected.std(), atol=1e-4, rtol=0.3)


# --- what users of transformers do with it ----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_trainer_trains_it_on_ragged_text_with_checkpointed_layers(
    transformers: Any, several: HybridLM, model: NFSearchForCausalLM, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    rng = random.Random(0)
    texts = [{"input_ids": [(start + i) % 50 for i in range(rng.randint(3, 40))]} for start in range(24)]

    def batch(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        tokens, mask = padded([torch.tensor(row["input_ids"]) for row in rows], rng.choice(("left", "right")))
        return {"input_ids": tokens, "attention_mask": mask, "labels": tokens.masked_fill(mask == 0, -100)}

    settings = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=25, per_device_train_batch_size=8, learning_rate=0.01, report_to="none",
        gradient_checkpointing=True, logging_steps=5, save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = transformers.Trainer(model=model, args=settings, train_dataset=texts, data_collator=batch)
    checkpointed: list[bool] = []
    model.model.layers[1].mixer.in_proj.register_forward_hook(lambda *_: checkpointed.append(torch.is_grad_enabled()))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.6 * losses[0]
    assert len(checkpointed) == 50, "each layer runs once forwards and once more for the backward pass"
    trainer.save_model(str(tmp_path / "trained"))
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        expected = model.eval()(tokens).logits
        torch.testing.assert_close(hf.load(tmp_path / "trained")(tokens), expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_checkpointed_layers_have_the_same_gradients(model: NFSearchForCausalLM) -> None:
    tokens, mask = padded([torch.arange(9), torch.arange(70) % VOCAB], "left")
    gradients = []
    for checkpointing in (False, True):
        model.train().zero_grad()
        if checkpointing:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # newer transformers have another name for it
                model.gradient_checkpointing_enable()
        model(tokens, attention_mask=mask, labels=tokens.masked_fill(mask == 0, -100)).loss.backward()
        gradients.append([weight.grad.clone() for weight in model.parameters() if weight.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("targets", [None, "all-linear"])
def test_peft_adapts_it_by_its_defaults(model: NFSearchForCausalLM, targets: str | None) -> None:
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=targets, task_type="CAUSAL_LM"))
    found = {name.rsplit(".", 1)[-1] for name in adapted.base_model.targeted_module_names}
    assert {"qkv", "in_proj", "out_proj", "gate_up", "down"} <= found
    assert "lm_head" not in found
    tokens, mask = padded([torch.arange(5), torch.arange(17)], "left")
    before = adapted(tokens, attention_mask=mask).logits
    optimizer = torch.optim.SGD([weight for weight in adapted.parameters() if weight.requires_grad], lr=1.0)
    for _ in range(2):  # the first gives one factor of each adapter gradients, the second both
        adapted(tokens, attention_mask=mask, labels=tokens).loss.backward()
        optimizer.step()
    assert not torch.allclose(adapted(tokens, attention_mask=mask).logits, before)
    with adapted.disable_adapter():
        torch.testing.assert_close(adapted(tokens, attention_mask=mask).logits, before)


@pytest.mark.slow
def test_it_is_compiled_without_a_break(model: NFSearchForCausalLM) -> None:
    tokens, mask = padded([torch.arange(9), torch.arange(70) % VOCAB], "left")
    labels = tokens.masked_fill(mask == 0, -100)
    expected = model.train()(tokens, attention_mask=mask, labels=labels)
    compiled = torch.compile(model, fullgraph=True, backend="eager")  # which traces all, and makes no kernels
    found = compiled(tokens, attention_mask=mask, labels=labels)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.loss, expected.loss)


@pytest.mark.slow
def test_it_is_exported_as_a_graph_for_any_batch(model: NFSearchForCausalLM) -> None:
    tokens, mask = padded([torch.arange(9), torch.arange(12), torch.arange(20)], "left")
    batch = {0: torch.export.Dim.DYNAMIC}
    graph = torch.export.export(
        model,
        (),
        dict(input_ids=tokens, attention_mask=mask, use_cache=False),
        dynamic_shapes=dict(input_ids=batch, attention_mask=batch, use_cache=None),
    ).module()
    for some in (slice(0, 3), slice(1, 3)):
        found = graph(input_ids=tokens[some], attention_mask=mask[some], use_cache=False).logits
        torch.testing.assert_close(found, model(tokens[some], attention_mask=mask[some]).logits, atol=1e-5, rtol=0)

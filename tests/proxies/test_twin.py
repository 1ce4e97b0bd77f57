from __future__ import annotations

import math

import pytest

from nfsearch.proxies import Job
from nfsearch.proxies.settings import TrainingSettings
from nfsearch.proxies.trainer import train_model
from nfsearch.proxies.training import TrainingProxy
from nfsearch.proxies.twin import check_narrowing, narrowed
from nfsearch.space import Architecture, SpaceSettings
from nfsearch.support.metrics import Measurement

WINNER = "(D F M2 F A F M2 F){2} (D F M2 F){2}"


def test_a_twin_has_the_same_operators_and_heads() -> None:
    candidate = Architecture.parse(
        f"{WINNER} GDN GLA A[window=512] M2[heads=96,groups=8]",
        width=2048,
        vocab=131072,
        head_norm=True,
        tied_head=False,
    )
    twin = narrowed(candidate, 16, 257)
    assert (twin.width, twin.vocab, twin.head_norm, twin.tied_head) == (128, 257, True, False)
    assert [layer.op for layer in twin.layers] == [layer.op for layer in candidate.layers]
    for layer, narrow in zip(candidate.layers, twin.layers, strict=True):
        wide_shape, shape = layer.shape(2048), narrow.shape(128)
        for name in ("heads", "kv_heads", "window", "conv", "groups"):
            assert shape.get(name) == wide_shape.get(name)
        for name in ("head_dim", "key_dim", "value_dim", "inner", "state"):
            assert shape.get(name, 0) * 16 == wide_shape.get(name, 0)


def test_what_cannot_be_narrowed_is_said_before_the_search() -> None:
    space = SpaceSettings(width=[1024, 1152], layers="D F").build(257)
    check_narrowing(space, 1)
    check_narrowing(space, 8)
    with pytest.raises(ValueError, match=r"proxy.narrow: designs of width 1024 cannot be narrowed 3 times: width 1024"):
        check_narrowing(space, 3)
    with pytest.raises(ValueError, match=r"narrowed 256 times: head_dim of D 128 is not a multiple of 256"):
        check_narrowing(SpaceSettings(width=1024, layers="D").build(257), 256)


def test_training_with_narrow_trains_the_twin_and_says_so() -> None:
    settings = TrainingSettings(tokens=512, sequence=32, batch=4, validation_tokens=256)
    proxy = TrainingProxy(settings.model_copy(update={"narrow": 8}), "cpu")
    wide = Architecture.parse("D F", width=256, vocab=5000)
    twin = narrowed(wide, 8, proxy.vocab)
    model, found = proxy.train(Job(wide, proxy.fidelity))
    assert model.embedding.weight.shape == (proxy.vocab, 32)
    of_twin = train_model(twin, proxy.corpus, settings, seed=0, device="cpu")[1].metrics
    size = Measurement(of_twin["loss"].value - 0.19 * math.log(wide.non_embedding_parameters / 10_000_000))
    assert found.metrics == {"sized_loss": size, **of_twin}  # it is the candidate that is corrected for size
    assert "a twin narrowed 8 times" in str(proxy.fidelity)
    whole = TrainingProxy(settings, "cpu").fidelity
    assert "twin" not in str(whole)
    assert proxy.fidelity < whole  # cheaper, and never on one front with it

"""The copy of a convolutional encoder in another dtype."""

from __future__ import annotations

import pytest
import torch

from overtone.backends.cast import CastEncoder, copy_encoder
from overtone.backends.fused.encoder import FusedEncoder
from overtone.errors import UsageError
from support.families import CONVOLUTIONAL, KIND_CASES, add_trained, batch, family_model


def test_each_encoder_has_the_copy_that_pays() -> None:
    assert isinstance(copy_encoder(family_model().encoder, torch.float32), FusedEncoder)
    assert copy_encoder(family_model("citrinet").encoder, torch.float32) is None
    assert isinstance(copy_encoder(family_model("citrinet").encoder, torch.bfloat16), CastEncoder)


@pytest.mark.parametrize("family", CONVOLUTIONAL)
def test_a_copy_in_float32_is_the_encoder(family: str) -> None:
    """In training too: the copy has the encoder's own taps and dropouts."""
    model = family_model(family)
    add_trained(model, "a", KIND_CASES["linear_pre"])
    copied = CastEncoder(model.encoder, torch.float32)
    mel, lengths = model.preprocessor(*batch(8_000, 5_000))
    model.train_only("a", base_dropout=True)
    found = []
    for encoder in (model.encoder, copied):
        torch.manual_seed(0)
        with model.adapters.use("a"):
            x, frames = encoder(mel, lengths)
        x.square().sum().backward()
        gradients = [parameter.grad.clone() for parameter in model.adapters["a"].parameters()]  # type: ignore[union-attr]
        found.append([x.detach(), frames, *gradients])
        model.zero_grad()
    assert all(torch.equal(own, other) for own, other in zip(*found, strict=True))


def test_the_copy_follows_the_base() -> None:
    model = family_model("citrinet").set_compute_dtype("bfloat16")
    copied = model.backend
    assert isinstance(copied, CastEncoder)
    waveforms, lengths = batch(8_000)
    with torch.no_grad():
        before, _ = model(waveforms, lengths)
        made = copied.current()
        assert copied.current() is made
        next(iter(model.encoder.parameters())).mul_(2.0)
        assert copied.current() is not made
        assert not torch.equal(model(waveforms, lengths)[0], before)
    assert {parameter.dtype for parameter in model.encoder.parameters()} == {torch.float32}


def test_both_parts_of_a_copy_make_the_whole() -> None:
    model = family_model("citrinet")
    copied = CastEncoder(model.encoder, torch.bfloat16)
    mel, lengths = model.preprocessor(*batch(8_000, 5_000))
    with torch.no_grad():
        whole, frames = copied(mel, lengths)
        for cut in range(model.encoder.depth + 1):
            x, there = copied.below(mel, lengths, cut)
            assert x.dtype is torch.bfloat16
            y, count = copied.above(x, there, cut)
            assert torch.equal(y, whole)
            assert torch.equal(count, frames)


def test_openvino_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overtone.backends.openvino.encoder.check_installed", lambda: None)
    with pytest.raises(UsageError, match="it knows Conformer encoders, not Citrinet"):
        family_model("citrinet").set_compute_dtype("openvino")

"""The model as a whole: its modes, its dtype, and the fingerprint of its base."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from overtone.adapters.kinds.linear import LinearAdapter
from overtone.checkpoints.load import load_model, save_model
from overtone.errors import AdapterError, ConfigError
from overtone.models.asr_model import AsrModel, build_model
from overtone.nets.subsampling import StackingSubsampling
from support.families import ENCODERS, FAMILIES, KIND_CASES, add_trained, batch, family_model
from support.fixtures import fixture_file

SIGNAL = (8_000, 6_000)


def modes(model: AsrModel, kind: type[nn.Module]) -> set[bool]:
    return {module.training for module in model.encoder.modules() if isinstance(module, kind)}


# Modes


def test_a_model_is_born_for_inference() -> None:
    model = family_model()
    assert not model.training
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("base_dropout", [False, True])
def test_training_one_adapter(base_dropout: bool) -> None:
    model = family_model()
    for name in ("a", "b"):
        model.adapters.add(name, LinearAdapter())
    assert model.train_only("a", base_dropout=base_dropout) is model
    trainable = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert trainable == {id(parameter) for parameter in model.adapters.parameters_of("a")}
    assert modes(model, nn.Dropout) == {base_dropout}
    assert modes(model, nn.BatchNorm2d) == {False}
    assert model.training
    assert model.preprocessor.training
    model.eval()
    assert not any(module.training for module in model.modules())
    model.train()
    assert modes(model, nn.Dropout) == {base_dropout}
    assert modes(model, nn.BatchNorm2d) == {False}
    with pytest.raises(AdapterError, match="Did you mean"):
        model.train_only("aa")


def test_base_dropout_is_on_only_where_asked() -> None:
    torch.manual_seed(0)
    model = family_model()
    model.adapters.add("a", LinearAdapter())
    expected = model(*batch(*SIGNAL))[0]
    for base_dropout in (False, True):
        model.train_only("a", base_dropout=base_dropout)
        with torch.no_grad(), model.adapters.use("a"):
            assert torch.equal(model(*batch(*SIGNAL))[0], expected) != base_dropout


def test_absolute_positions_are_not_dropped() -> None:
    """NeMo drops encodings of distances only."""
    assert family_model("abs_pos", dropout_emb=0.5).encoder.dropout_emb.p == 0.0
    assert family_model("conformer", dropout_emb=0.5).encoder.dropout_emb.p == 0.5


def test_training_the_base() -> None:
    model = family_model()
    model.adapters.add("a", LinearAdapter())
    model.set_compute_dtype("bfloat16").train_only("a")
    assert model.train_base() is model
    assert model.compute_dtype == "float32"
    assert all(parameter.requires_grad for parameter in model.base_parameters())
    assert not any(parameter.requires_grad for parameter in model.adapters.parameters())
    assert modes(model, nn.Dropout) == modes(model, nn.BatchNorm2d) == {True}
    fingerprint = model.fingerprint()
    model(*batch(*SIGNAL))
    assert model.fingerprint() != fingerprint


@pytest.mark.parametrize(
    "changes", [{}, {"conv_norm": "group_norm4"}, {"use_bias": False}, {"subsampling": "dw_striding"}]
)
def test_freezing_the_base_does_not_change_a_bit(changes: dict[str, object]) -> None:
    for family in ENCODERS if changes else FAMILIES:
        model = family_model(family, **changes)
        outputs = [model.requires_grad_(flag)(*batch(*SIGNAL))[0].detach() for flag in (True, False)]
        with torch.no_grad():
            outputs += [model.requires_grad_(flag)(*batch(*SIGNAL))[0] for flag in (True, False)]
        with torch.inference_mode():
            outputs.append(model(*batch(*SIGNAL))[0])
        assert all(torch.equal(output, outputs[0]) for output in outputs), family


# Numbers


@pytest.mark.parametrize("family", FAMILIES)
def test_the_base_in_bfloat16_is_near(family: str) -> None:
    model = family_model(family)
    add_trained(model, "a", KIND_CASES["linear_pre"])
    with torch.no_grad(), model.adapters.use("a"):
        exact, lengths = model(*batch(*SIGNAL))
        near, same = model.set_compute_dtype("bfloat16")(*batch(*SIGNAL))
        assert model.compute_dtype == "bfloat16"
        assert torch.equal(lengths, same)
        assert near.dtype is torch.float32
        assert 0.0 < float((near - exact).abs().mean()) < 0.05
        assert torch.equal(model.set_compute_dtype("float32")(*batch(*SIGNAL))[0], exact)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {
        torch.float32,
        torch.int64,
    } or family == "streaming"


def test_compute_dtypes() -> None:
    model = family_model()
    assert model.compute_dtype == "float32"
    assert model.set_compute_dtype("auto").compute_dtype in ("float32", "bfloat16")
    with pytest.raises(ConfigError, match=r"'float16' is unknown. Allowed: auto, float32, bfloat16"):
        model.set_compute_dtype("float16")


def test_a_device_without_float64_computes_with_the_weights_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy for frozen weights is made in float64, which `mps` does not have."""
    monkeypatch.setattr(AsrModel, "device", property(lambda model: torch.device("mps")))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    for dtype in ("auto", "float32"):
        model = family_model().set_compute_dtype(dtype, prepared=True)
        assert model.backend is None
        assert model.compute_dtype == "float32"
    with pytest.raises(ConfigError, match="'bfloat16' is not for the device mps"):
        family_model().set_compute_dtype("bfloat16")


def test_what_it_says_of_itself() -> None:
    for family, seconds in {"conformer": 0.04, "fastconformer": 0.08, "citrinet": 0.04, "jasper": 0.02}.items():
        model = family_model(family)
        assert model.seconds_per_frame == pytest.approx(seconds)
        assert model.sample_rate == 16_000
        assert model.head.reduction == "mean_batch"
        assert model.name == family
        assert model.device == torch.device("cpu")
        frames = model(*batch(32_000))[1]
        assert int(frames) * seconds == pytest.approx(2.0, abs=1.5 * seconds)


def test_the_base_has_no_keys_of_adapters() -> None:
    model = family_model()
    before = list(model.state_dict())
    model.adapters.add("a", LinearAdapter())
    assert list(model.base_state_dict()) == before
    assert len(model.state_dict()) > len(before)


# Fingerprint


def test_the_fingerprint_does_not_know_adapters_dtypes_or_counters() -> None:
    model = family_model()
    fingerprint = model.fingerprint()
    assert fingerprint.startswith("sha256:")
    assert len(fingerprint) == 7 + 64
    model.adapters.add("a", LinearAdapter())
    model.set_compute_dtype("bfloat16")
    model.train_only("a")
    for name, tensor in model.base_state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.add_(5)
    assert model.fingerprint() == fingerprint
    assert family_model().fingerprint() == fingerprint
    assert copy.deepcopy(model).fingerprint() == fingerprint


def test_the_fingerprint_sees_every_tensor_of_the_base() -> None:
    model = family_model()
    seen = {model.fingerprint()}
    tensors = [tensor for tensor in model.base_state_dict().values() if tensor.is_floating_point()]
    for tensor in tensors:
        tensor.data.view(-1)[0] += 1.0  # past all counters of changes
        seen.add(model.fingerprint())
    assert len(seen) == len(tensors) + 1


def test_the_fingerprint_sees_settings_that_change_numbers_only() -> None:
    model = family_model()

    def changed(part: str, **values: object) -> str:
        settings = {name: dict(section) for name, section in model.settings.items()}
        settings[part].update(values)
        other = build_model(settings=settings, tokenizer=model.tokenizer)
        other.load_state_dict(model.state_dict())
        return other.fingerprint()

    same = [
        changed("encoder", dropout=0.3, dropout_att=0.1, dropout_emb=0.2, dropout_pre_encoder=0.0),
        changed("encoder", position_max_len=100),
        changed("encoder", position="rel_pos", attention_context=(-1, -1)),
        changed("encoder", attention_context=[-1, -1]),
        changed("preprocessor", dither=0.1, pad_to=0),
    ]
    assert set(same) == {model.fingerprint()}
    other = [
        changed("encoder", attention_context=[4, 4]),
        changed("encoder", scale_input=False),
        changed("preprocessor", window_stride=0.02),
        changed("preprocessor", preemphasis=None),
        changed("decoder", temperature=2.0),
    ]
    assert len({model.fingerprint(), *other}) == 6


def test_the_fingerprint_of_a_model_made_in_inference_mode() -> None:
    fingerprint = family_model().fingerprint()
    with torch.inference_mode():
        model = family_model()
    assert model.fingerprint() == fingerprint


@pytest.mark.parametrize("name", ["conformer_ctc_bpe", "conformer_ctc_char", "fastconformer_ctc_bpe"])
def test_plain_and_adapted_files_and_folders_have_one_fingerprint(name: str, tmp_path: Path) -> None:
    plain = load_model(fixture_file(f"{name}/model.nemo"))
    adapted = load_model(fixture_file(f"{name}/adapted.nemo"))
    assert adapted.adapters.names
    assert not plain.adapters.names
    assert plain.fingerprint() == adapted.fingerprint()
    assert load_model(save_model(adapted, tmp_path / "native")).fingerprint() == plain.fingerprint()
    assert load_model(save_model(adapted, tmp_path / "back.nemo")).fingerprint() == plain.fingerprint()


def test_half_precision_storage_of_the_same_values_has_the_same_fingerprint(tmp_path: Path) -> None:
    model = family_model()
    with torch.no_grad():
        for tensor in model.base_state_dict().values():
            tensor.copy_(tensor.bfloat16())
    stored = load_model(save_model(model, tmp_path / "half", storage="bfloat16"))
    assert stored.fingerprint() == model.fingerprint()
    assert {tensor.dtype for tensor in stored.parameters()} == {torch.float32}


@pytest.mark.parametrize(("frames", "counted"), [(5, 2), (6, 1), (8, 1), (9, 2)])
def test_stacked_frames_left_over_count_as_in_nemo(frames: int, counted: int) -> None:
    """Five frames, four side by side: whether the fifth counts depends on the padding, what is computed does not."""
    stacking = StackingSubsampling(2, 3, factor=4, norm=True)
    mel = torch.arange(10.0).reshape(1, 5, 2)
    alone, _ = stacking(mel, torch.tensor([5]))
    padded, lengths = stacking(nn.functional.pad(mel, (0, 0, 0, frames - 5)), torch.tensor([5]))
    assert lengths.tolist() == [counted]
    torch.testing.assert_close(padded[:, :2], alone)


def test_batch_norms_keep_their_statistics_in_training_mode() -> None:
    """Unless the base itself is in training."""
    model = family_model()
    before = model.fingerprint()
    model.train()
    model(*batch(*SIGNAL))
    assert modes(model, nn.BatchNorm2d) == {False}
    assert model.fingerprint() == before
    model.train_base()
    model(*batch(*SIGNAL))
    assert modes(model, nn.BatchNorm2d) == {True}
    assert model.fingerprint() != before


def test_overlapping_evaluations_bring_the_modes_back_when_the_last_one_ends() -> None:
    model = family_model().train()
    before = [module.training for module in model.modules()]
    first, second = model.evaluating(), model.evaluating()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not model.training
    second.__exit__(None, None, None)
    assert [module.training for module in model.modules()] == before

"""The encoder and its head beside NeMo, and what must hold of them whatever the weights are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overtone.adapters.kinds.base import Kind
from overtone.adapters.kinds.linear import LinearAdapter
from overtone.adapters.kinds.tiny_attention import TinyAttentionAdapter
from overtone.checkpoints.load import load_model
from overtone.checkpoints.nemo.config import translate
from overtone.models.asr_model import AsrModel, build_model
from overtone.nets.attention import attend, relative_shift, split_heads
from overtone.nets.conformer import ConformerEncoder
from overtone.nets.ctc import CtcProjection, ctc_loss
from overtone.nets.layers import Reduction, channels_last_is_safe, run_checkpointed, time_conv, valid_frames
from overtone.nets.taps import Tap, TapContext
from overtone.tokenizers import CharTokenizer
from support.families import ENCODERS, WIDTH, batch, family_model
from support.fixtures import CTC_MODELS, HERE, fixture_file, recordings

VARIANTS = sorted(path.stem for path in (HERE / "fixtures" / "encoders").glob("*.npz"))

# Beside NeMo


def reference_mel(index: int | None = None) -> tuple[Tensor, Tensor]:
    """NeMo's own features of one recording, or of the three in a batch: [B, F, T], [B]."""
    arrays = np.load(fixture_file("mel/batch.npz" if index is None else "mel/reference.npz"))
    part = "b" if index is None else index
    return torch.from_numpy(arrays[f"mel_{part}"]), torch.from_numpy(arrays[f"mel_len_{part}"])


def reference_parts(arrays: Any) -> list[str]:
    return [part for part in ("0", "1", "2", "b") if f"enc_{part}" in arrays]


@pytest.mark.parametrize("name", CTC_MODELS)
@pytest.mark.parametrize("combo", ["base", "none", "an4", "two", "an4+two", "rel", "wide", "mhsa", "an4+rel", "dec"])
def test_encoder_and_head_equal_nemo(name: str, combo: str) -> None:
    assert_equals_nemo(name, combo, None if combo in ("base", "none") else combo)


@pytest.mark.parametrize("name", CTC_MODELS)
def test_adapters_of_both_modules_and_all_at_once_equal_nemo(name: str) -> None:
    assert_equals_nemo(name, "both", "both")
    assert_equals_nemo(name, "all", "@file")


def assert_equals_nemo(name: str, combo: str, choice: str | None) -> None:
    model = load_model(fixture_file(f"{name}/{'model' if combo == 'base' else 'adapted'}.nemo"))
    arrays = np.load(fixture_file(f"{name}/ref_{combo}.npz"))
    for part in reference_parts(arrays):
        mel, mel_lengths = reference_mel(None if part == "b" else int(part))
        with torch.no_grad(), model.adapters.use(choice):
            encoded, encoded_lengths = model.encoder(mel, mel_lengths)
            log_probs, frames = model.recognise(mel, mel_lengths)
        assert encoded_lengths.tolist() == frames.tolist() == arrays[f"enc_len_{part}"].tolist()
        for row, length in enumerate(frames.tolist()):
            expected = torch.from_numpy(arrays[f"enc_{part}"][row, :, :length].T)
            torch.testing.assert_close(encoded[row, :length], expected, rtol=0, atol=2e-4)
            decided = arrays[f"ctc_argmax_{part}"][row, :length]
            assert log_probs[row, :length].argmax(-1).tolist() == decided.tolist()
            if f"logp_{part}" in arrays:
                expected = torch.from_numpy(arrays[f"logp_{part}"][row, :length])
                torch.testing.assert_close(log_probs[row, :length], expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", CTC_MODELS)
def test_from_the_recording_on_the_same_is_decided(name: str) -> None:
    """The features part by the rounding of the FFT on other processors, NeMo's own too: log-probs by 3e-4."""
    model = load_model(fixture_file(f"{name}/model.nemo"))
    model.preprocessor.pad_to = 0
    arrays = np.load(fixture_file(f"{name}/ref_base.npz"))
    for part in reference_parts(arrays):
        with torch.no_grad():
            log_probs, frames = model(*recordings(None if part == "b" else int(part)))
        for row, length in enumerate(frames.tolist()):
            expected = torch.from_numpy(arrays[f"logp_{part}"][row, :length])
            torch.testing.assert_close(log_probs[row, :length], expected, rtol=0, atol=4e-4)
            assert log_probs[row, :length].argmax(-1).tolist() == arrays[f"ctc_argmax_{part}"][row, :length].tolist()


def nemo_encoder(path: Path) -> tuple[AsrModel, dict[str, Tensor], Any]:
    """A model around a reference encoder, the tensors of its adapter, and the reference."""
    arrays = np.load(path)
    config = json.loads(str(arrays["config"]))
    description = translate(
        {
            "target": "nemo.collections.asr.models.EncDecCTCModel",
            "preprocessor": {
                "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
                "features": config["feat_in"],
                "n_fft": 512,
            },
            "encoder": {"_target_": "nemo.collections.asr.modules.ConformerEncoder", **config},
            "decoder": {"_target_": "nemo.collections.asr.modules.ConvASRDecoder", "vocabulary": ["a", "b"]},
        }
    )
    model = build_model(settings=description.settings, tokenizer=CharTokenizer(["a", "b"]))
    values, weights, first = torch.from_numpy(arrays["values"]), {}, 0
    for key, shape in json.loads(str(arrays["shapes"])).items():
        size = int(np.prod(shape))
        weights[key] = values[first : first + size].view(shape)
        first += size
    adapter = {key: weights.pop(key) for key in list(weights) if "adapter_layer" in key}
    own = {key for key in model.encoder.state_dict() if not key.endswith("num_batches_tracked")}
    assert own == set(weights)
    model.encoder.load_state_dict(weights, strict=False)
    return model, adapter, arrays


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_of_the_encoder_equals_nemo(variant: str) -> None:
    model, _, arrays = nemo_encoder(HERE / "fixtures" / "encoders" / f"{variant}.npz")
    mel, lengths = torch.from_numpy(arrays["mel"]), torch.from_numpy(arrays["lengths"])
    with torch.no_grad():
        output, frames = model.encoder(mel, lengths)
    assert frames.tolist() == arrays["output_lengths"].tolist()
    expected = torch.from_numpy(arrays["output"]).transpose(1, 2)
    assert output.shape == expected.shape
    for row, length in enumerate(frames.tolist()):
        torch.testing.assert_close(output[row, :length], expected[row, :length], rtol=0, atol=2e-5)


def test_there_are_variants() -> None:
    assert len(VARIANTS) >= 28


NEMO_ADAPTERS: dict[str, tuple[Kind, dict[str, str]]] = {
    "abs_pos": (
        TinyAttentionAdapter(heads=2, projection=4),
        {"norm": "pre_norm", "query": "linear_q", "key": "linear_k", "value": "linear_v", "out": "linear_out"},
    ),
    "limited_abs_pos": (
        LinearAdapter(dim=3, activation="gelu", norm_position="post"),
        {"down": "module.0", "up": "module.2", "norm": "module.3"},
    ),
}


@pytest.mark.parametrize("variant", NEMO_ADAPTERS)
def test_adapters_on_absolute_positions_equal_nemo(variant: str) -> None:
    model, tensors, arrays = nemo_encoder(HERE / "fixtures" / "encoders" / f"{variant}.npz")
    kind, names = NEMO_ADAPTERS[variant]
    adapter = model.adapters.add("extra", kind)
    values = {}
    for key in adapter.tensors():
        host, part, parameter = key.removeprefix("encoder.").rsplit(".", 2)
        layer = host.rpartition(".")[0]
        values[key] = tensors[f"{layer}.adapter_layer.extra.{names[part]}.{parameter}"]
    adapter.load_tensors(values)
    with torch.no_grad(), model.adapters.use("extra"):
        output, frames = model.encoder(torch.from_numpy(arrays["mel"]), torch.from_numpy(arrays["lengths"]))
    expected = torch.from_numpy(arrays["adapted"]).transpose(1, 2)
    for row, length in enumerate(frames.tolist()):
        torch.testing.assert_close(output[row, :length], expected[row, :length], rtol=0, atol=2e-5)


# Invariants


@pytest.mark.parametrize("family", ENCODERS)
def test_a_row_alone_equals_the_row_in_a_batch_at_the_same_padding(family: str) -> None:
    model = family_model(family)
    waveforms, lengths = batch(16_000, 11_000, 3_000)
    with torch.no_grad():
        together, frames = model(waveforms, lengths)
        for row in range(3):
            alone, own_frames = model(waveforms[row : row + 1], lengths[row : row + 1])
            assert own_frames.tolist() == [frames[row]]
            torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ENCODERS)
def test_what_lies_past_a_row_s_length_does_not_matter(family: str) -> None:
    encoder = family_model(family).encoder
    generator = torch.Generator().manual_seed(5)
    mel = torch.randn(2, 20, 90, generator=generator)
    lengths = torch.tensor([90, 41])
    other = mel.clone()
    other[1, :, 41:] = 100.0
    with torch.no_grad():
        first, frames = encoder(mel, lengths)
        second, _ = encoder(other, lengths)
        short, _ = encoder(mel[1:, :, :41], lengths[1:])
    assert torch.equal(first[1, : frames[1]], second[1, : frames[1]])
    torch.testing.assert_close(short[0], first[1, : frames[1]], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("context", "style", "seen"),
    [
        ((-1, -1), "regular", {0: "111111", 3: "111111"}),
        ((1, 2), "regular", {0: "111000", 3: "001111"}),
        ((2, -1), "regular", {0: "111111", 3: "011111"}),
        ((-1, 0), "regular", {0: "100000", 3: "111100"}),
        ((2, 1), "chunked_limited", {0: "110000", 2: "111100", 5: "001111"}),
        ((0, 1), "chunked_limited", {1: "110000", 4: "000011"}),
        ((-1, 1), "chunked_limited", {1: "110000", 4: "111111"}),
    ],
)
def test_visible_frames(context: tuple[int, int], style: Any, seen: dict[int, str]) -> None:
    encoder = ConformerEncoder(width=8, layers=1, heads=2, attention_context=context, attention_context_style=style)
    visible = encoder.visible(6, torch.device("cpu"))
    for query, expected in seen.items():
        assert "".join(str(int(flag)) for flag in visible[query]) == expected


def test_a_causal_encoder_does_not_look_ahead() -> None:
    encoder = family_model("streaming", attention_context=[4, 0], attention_context_style="regular").encoder
    mel = torch.randn(1, 20, 80, generator=torch.Generator().manual_seed(1))
    changed = mel.clone()
    changed[:, :, 60:] += 1.0
    with torch.no_grad():
        before, _ = encoder(mel, torch.tensor([80]))
        after, _ = encoder(changed, torch.tensor([80]))
    same = (before == after).all(-1)[0].tolist()
    assert all(same[:15])
    assert not all(same)


def test_tied_biases_are_one_parameter() -> None:
    encoder = family_model(untie_biases=False).encoder
    first, second = (layer.self_attn for layer in encoder.layers)
    assert first.pos_bias_u is second.pos_bias_u
    assert first.pos_bias_v is second.pos_bias_v
    untied = family_model().encoder
    assert untied.layers[0].self_attn.pos_bias_u is not untied.layers[1].self_attn.pos_bias_u


def test_without_biases_only_norms_subsampling_and_attention_keep_theirs() -> None:
    encoder = family_model(use_bias=False).encoder
    biases = {key for key in encoder.layers[0].state_dict() if key.endswith(".bias")}
    assert all("norm" in key for key in biases)


def test_the_width_of_the_output_may_differ() -> None:
    model = family_model(output_width=10)
    encoded, _ = model.encoder(torch.randn(1, 20, 40), torch.tensor([40]))
    assert encoded.shape == (1, 10, 10)
    assert model(*batch(8_000))[0].shape[-1] == 12
    assert family_model(output_width=WIDTH).encoder.out_proj is None


def test_relative_shift_puts_the_score_of_each_distance_at_its_key() -> None:
    frames = 5
    scores = torch.arange(2 * frames - 1.0).expand(2, 3, frames, -1) + 100.0 * torch.arange(frames)[:, None]
    shifted = relative_shift(scores)
    for query in range(frames):
        for key in range(frames):
            assert shifted[1, 2, query, key] == scores[1, 2, query, frames - 1 - query + key]


def test_attention_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (split_heads(torch.randn(2, 7, 12, generator=generator), 3) for _ in range(3))
    allowed = valid_frames(torch.tensor([7, 4]), 7)[:, None, None, :].expand(2, 1, 7, 7)
    expected = F.scaled_dot_product_attention(query, key, value, allowed).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attend(query, key, value, None, allowed), expected)
    nothing = torch.zeros(2, 1, 7, 7, dtype=torch.bool)
    assert not attend(query, key, value, None, nothing).any()


def test_a_model_used_in_inference_mode_can_be_trained_afterwards() -> None:
    model = family_model()
    with torch.inference_mode():
        model(*batch(8_000))
    model.adapters.add("a", TinyAttentionAdapter())
    model.train_only("a")
    with model.adapters.use("a"):
        log_probs, _ = model(*batch(8_000))
    log_probs.square().sum().backward()


@pytest.mark.parametrize(("left", "right"), [(2, 2), (4, 0), (1, 3)])
@pytest.mark.parametrize("channels", [6, 64, 80])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_depthwise_convolution(left: int, right: int, channels: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 11, channels, generator=generator)
    weight, bias = torch.randn(channels, 1, 5, generator=generator), torch.randn(channels, generator=generator)
    padded = F.pad(x.transpose(1, 2), (left, right))
    expected = F.conv1d(padded, weight, bias, groups=channels).transpose(1, 2)
    output = time_conv(x.to(dtype), weight.to(dtype), bias.to(dtype), left=left, right=right)
    torch.testing.assert_close(output.float(), expected, rtol=0, atol=1e-5 if dtype is torch.float32 else 0.1)
    assert channels_last_is_safe(torch.float32, 80)
    assert not channels_last_is_safe(torch.bfloat16, 80)


def test_an_empty_tap_gives_its_output_back() -> None:
    tap = Tap("linear", 4, 6)
    y = torch.randn(1, 2, 6)
    assert tap(torch.randn(1, 2, 4), y, TapContext(valid=torch.ones(1, 2, dtype=torch.bool))) is y
    assert not list(tap.parameters())
    assert (tap.in_width, tap.out_width, Tap("input", 3).out_width) == (4, 6, 3)


def test_checkpointed_runs_again_for_the_backward_pass() -> None:
    runs = []

    def part(x: Tensor) -> Tensor:
        runs.append(len(runs))
        return x.sin() * 2

    x = torch.tensor([0.5], requires_grad=True)
    run_checkpointed(part, x).backward()
    assert runs == [0, 1]
    torch.testing.assert_close(x.grad, 2 * torch.tensor([0.5]).cos())


# The head and its loss


def test_the_head_gives_log_probabilities() -> None:
    head = CtcProjection(width=6, classes=4, temperature=2.0)
    x = torch.randn(2, 3, 6)
    log_probs = head(x, torch.tensor([3, 2]))
    assert log_probs.shape == (2, 3, 5)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(2, 3))
    logits = head.projection(x.transpose(1, 2)).transpose(1, 2) / 2.0
    torch.testing.assert_close(log_probs, logits.log_softmax(-1))


def by_definition(log_probs: Tensor, target: list[int]) -> float:
    """-log of the summed probability of all paths that read as the target: log_probs [T, V+1]."""
    import itertools

    blank, total = log_probs.size(1) - 1, 0.0
    for path in itertools.product(range(blank + 1), repeat=log_probs.size(0)):
        read = [symbol for symbol, _ in itertools.groupby(path) if symbol != blank]
        if read == target:
            total += float(sum(log_probs[frame, symbol] for frame, symbol in enumerate(path)).exp())
    return -float(np.log(total))


def test_the_loss_is_the_definition_in_every_reduction() -> None:
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(3, 5, 4, generator=generator).log_softmax(-1)
    lengths, targets, sizes = torch.tensor([5, 4, 1]), torch.tensor([[0, 0], [2, 1], [1, 1]]), torch.tensor([2, 1, 2])
    first = by_definition(log_probs[0], [0, 0])
    second = by_definition(log_probs[1, :4], [2])
    expected: dict[Reduction, float] = {
        "mean_batch": (first + second) / 3,
        "mean_volume": (first + second) / 5,
        "mean": (first / 2 + second) / 3,
        "sum": first + second,
    }
    for reduction, value in expected.items():
        loss = ctc_loss(log_probs, lengths, targets, sizes, reduction=reduction)
        assert loss.item() == pytest.approx(value, rel=1e-5), reduction


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_is_that_of_torch(reduction: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(3, 20, 6, generator=generator).log_softmax(-1)
    lengths, sizes = torch.tensor([20, 15, 4]), torch.tensor([5, 3, 4])
    targets = torch.randint(0, 5, (3, 5), generator=generator)
    loss = ctc_loss(log_probs, lengths, targets, sizes, reduction=reduction)
    torch_loss = nn.CTCLoss(blank=5, reduction=reduction, zero_infinity=True)
    assert loss.item() == pytest.approx(torch_loss(log_probs.transpose(0, 1), targets, lengths, sizes).item())


def test_an_empty_transcript_has_a_loss() -> None:
    log_probs = torch.randn(1, 3, 4).log_softmax(-1)
    arguments = (log_probs, torch.tensor([3]), torch.zeros(1, 0, dtype=torch.int64), torch.tensor([0]))
    for reduction in ("mean_batch", "mean_volume", "mean", "sum"):
        expected = -float(log_probs[0, :, 3].sum())
        assert ctc_loss(*arguments, reduction=reduction).item() == pytest.approx(expected, rel=1e-5)

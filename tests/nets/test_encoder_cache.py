"""Cache-aware streaming beside NeMo's own loop, and beside the same models offline."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from overtone.adapters.kinds.linear import LinearAdapter
from overtone.adapters.kinds.lora import LoraAdapter
from overtone.adapters.kinds.tiny_attention import TinyAttentionAdapter
from overtone.checkpoints.load import load_model
from overtone.errors import AdapterError, UsageError
from overtone.models.asr_model import AsrModel
from overtone.nets.encoder_cache import CachedEncoder, EncoderCache, join_caches, mel_chunks, split_cache
from support.families import KindCase, add_trained, batch, family_model
from support.fixtures import fixture_file

CTC, REGULAR = "fastconformer_cache_aware_ctc_bpe", "conformer_cache_aware_regular_ctc_bpe"
HYBRID = "fastconformer_cache_aware_hybrid_bpe"
CASES = [
    (CTC, "base", [12, 3]),
    (CTC, "an4", [12, 3]),
    (CTC, "base", [12, 1]),
    (CTC, "an4", [12, 1]),
    (CTC, "base", [12, 0]),
    (REGULAR, "base", [16, 1]),
    (REGULAR, "an4", [16, 1]),
    (HYBRID, "base", [12, 3]),
    (HYBRID, "an4", [12, 3]),
    (HYBRID, "base", [12, 1]),
    (HYBRID, "an4", [12, 1]),
]
TOLERANCE = 2e-4


def reference(name: str, stem: str) -> tuple[Any, dict[str, Any]]:
    tensors = np.load(fixture_file(f"{name}/{stem}.npz"))
    return tensors, json.loads(fixture_file(f"{name}/{stem}.json").read_text("utf-8"))


def features(model: AsrModel, *wavs: str) -> tuple[Tensor, Tensor]:
    """mel [B, F, T], lengths [B] as NeMo's buffer has them: one frame more than offline."""
    mels = []
    for wav in wavs:
        samples = torch.from_numpy(soundfile.read(fixture_file(f"wavs/{wav}.wav"), dtype="float32")[0])[None]
        mels.append(model.preprocessor(samples, torch.tensor([samples.size(1)]))[0][0].T)
    lengths = torch.tensor([len(mel) for mel in mels])
    return torch.nn.utils.rnn.pad_sequence(mels, batch_first=True).transpose(1, 2), lengths


def run_steps(
    model: AsrModel, mel: Tensor, lengths: Tensor, *, padded: bool = False
) -> list[tuple[Tensor, Tensor, EncoderCache]]:
    """The output x [B, T, D], lengths [B] and state of every step over mel [B, F, T]."""
    encoder = CachedEncoder(model.encoder)
    cache, steps = encoder.begin(len(lengths), padded=padded), []
    for chunk in mel_chunks(mel, lengths, encoder.sizes, padded=padded):
        x, valid, cache = encoder.step(chunk.mel, chunk.lengths, cache, last=chunk.last)
        steps.append((x, valid, cache))
    return steps


def texts(model: AsrModel, steps: list[tuple[Tensor, Tensor, EncoderCache]], row: int = 0) -> list[str]:
    """The text of one stream after every step."""
    decoder, found = model.head.decoder(), []
    for x, lengths, _ in steps:
        with torch.no_grad():
            emissions = model.head.emit(x, lengths)
        decoder.push(emissions[row, : int(lengths[row])].numpy())
        found.append(decoder.hypotheses()[0].text)
    return found


@pytest.mark.parametrize(("name", "combo", "context"), CASES)
def test_every_step_is_that_of_nemo(name: str, combo: str, context: list[int]) -> None:
    tensors, told = reference(name, f"stream_{combo}_{context[0]}_{context[1]}")
    model = load_model(fixture_file(f"{name}/adapted.nemo"), att_context_size=context)
    with model.adapters.use(None if combo == "base" else combo):
        steps = run_steps(model, *features(model, "s6"))
        found = texts(model, steps)
    assert [x.size(1) for x, _, _ in steps] == tensors["enc_steps"].tolist()
    assert [lengths.tolist() for _, lengths, _ in steps] == tensors["enc_len"].tolist()
    assert [cache.lengths.tolist() for _, _, cache in steps] == tensors["cache_last_channel_len"].tolist()
    encoded = torch.cat([x for x, _, _ in steps], dim=1).transpose(1, 2)
    np.testing.assert_allclose(encoded.numpy(), tensors["enc"], rtol=0, atol=TOLERANCE)
    check_caches(tensors, [cache for _, _, cache in steps])
    assert found[-1] == told["text"][0]
    assert found == [texts[0] for texts in told["text_steps"]]


def check_caches(tensors: Any, caches: list[EncoderCache]) -> None:
    for suffix, step in (("", 1), ("_every8", 8)):
        if f"cache_last_channel{suffix}" not in tensors:
            continue
        chosen = caches[::step]
        inputs = np.stack([cache.inputs.numpy() for cache in chosen])
        columns = np.stack([cache.columns.transpose(2, 3).numpy() for cache in chosen])
        np.testing.assert_allclose(inputs, tensors[f"cache_last_channel{suffix}"], rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(columns, tensors[f"cache_last_time{suffix}"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", [CTC, REGULAR, HYBRID])
def test_two_streams_are_computed_together_as_nemo_does(name: str) -> None:
    tensors, told = reference(name, "stream_base_batch")
    model = load_model(fixture_file(f"{name}/model.nemo"))
    steps = run_steps(model, *features(model, "s6", "w2"))
    assert [lengths.tolist() for _, lengths, _ in steps] == tensors["enc_len"].tolist()
    begin = 0
    for x, lengths, _ in steps:
        for row, length in enumerate(lengths.tolist()):
            expected = tensors["enc"][row, :, begin : begin + length]
            np.testing.assert_allclose(x[row, :length].T.numpy(), expected, rtol=0, atol=TOLERANCE)
        begin += x.size(1)
    for row in range(2):
        assert texts(model, steps, row)[-1] == told["text"][row]


def test_a_padded_first_step_is_that_of_nemo() -> None:
    """With `pad_and_drop_preencoded` every step has the same number of frames."""
    tensors, told = reference(CTC, "stream_base_paddrop")
    model = load_model(fixture_file(f"{CTC}/adapted.nemo"), att_context_size=[12, 3])
    mel, lengths = features(model, "s6")
    sizes = CachedEncoder(model.encoder).sizes
    chunks = list(mel_chunks(mel, lengths, sizes, padded=True))
    assert [chunk.mel.size(2) for chunk in chunks] == tensors["chunk_frames"].tolist()
    assert [chunk.lengths.tolist() for chunk in chunks] == tensors["chunk_len"].tolist()
    steps = run_steps(model, mel, lengths, padded=True)
    assert [x.size(1) for x, _, _ in steps] == tensors["enc_steps"].tolist()
    assert [cache.lengths.tolist() for _, _, cache in steps] == tensors["cache_last_channel_len"].tolist()
    encoded = torch.cat([x for x, _, _ in steps], dim=1).transpose(1, 2)
    np.testing.assert_allclose(encoded.numpy(), tensors["enc"], rtol=0, atol=TOLERANCE)
    assert texts(model, steps) == [each[0] for each in told["text_steps"]]


def test_the_other_head_of_a_hybrid_reads_the_same_steps() -> None:
    told = json.loads(fixture_file(f"{HYBRID}/stream_base_ctc_head.json").read_text("utf-8"))
    model = load_model(fixture_file(f"{HYBRID}/model.nemo"))
    with model.decoding_with("ctc"):
        found = texts(model, run_steps(model, *features(model, "s6")))
    assert found == [texts[0] for texts in told["text_steps"]]


KINDS = {
    "linear": KindCase(kind=LinearAdapter(dim=4), last=()),
    "lora": KindCase(kind=LoraAdapter(rank=2), last=()),
    "decoder": KindCase(kind=LinearAdapter(dim=3), modules="encoder+decoder", last=()),
}


def streaming_model(**changes: Any) -> AsrModel:
    """A small model; an encoder frame in 40 ms, chunks of two frames that see four."""
    model = family_model("streaming", **changes)
    for seed, (name, case) in enumerate(KINDS.items()):
        add_trained(model, name, case, seed=seed)
    return model


def whole_steps(model: AsrModel, samples: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    """mel [1, F, T], lengths [1] of noise."""
    waveforms, lengths = batch(samples, seed=seed)
    mel, frames = model.preprocessor(waveforms, lengths)
    return mel[:, :, : int(frames[0])], frames


@pytest.mark.parametrize("context", [[4, 1], [9, 2], [-1, 1]])
@pytest.mark.parametrize("adapter", [None, *KINDS])
def test_steps_together_are_the_model_offline(context: list[int], adapter: str | None) -> None:
    model = streaming_model(attention_context=context, attention_contexts=[context])
    mel, lengths = whole_steps(model, 32_000)
    with model.adapters.use(adapter), torch.no_grad():
        expected, frames = model.encoder(mel, lengths)
        steps = run_steps(model, mel, lengths)
    encoded = torch.cat([x[:, : int(valid[0])] for x, valid, _ in steps], dim=1)
    assert 0 <= int(frames[0]) - encoded.size(1) <= 1  # the last frame has none of its own mel frames
    torch.testing.assert_close(encoded, expected[:, : encoded.size(1)], rtol=0, atol=2e-5)


def test_streams_of_different_adapters_in_one_step_are_each_alone() -> None:
    model = streaming_model()
    encoder = CachedEncoder(model.encoder)
    choices = [None, *KINDS]
    mels = [whole_steps(model, 20_000, seed=seed) for seed in range(len(choices))]
    alone = []
    for choice, (mel, lengths) in zip(choices, mels, strict=True):
        with model.adapters.use(choice):
            alone.append(run_steps(model, mel, lengths))
    caches = [encoder.begin() for _ in choices]
    mel, lengths = torch.cat([mel for mel, _ in mels]), torch.cat([lengths for _, lengths in mels])
    with model.adapters.use(choices):
        for number, chunk in enumerate(mel_chunks(mel, lengths, encoder.sizes)):
            x, _, cache = encoder.step(chunk.mel, chunk.lengths, join_caches(caches), last=chunk.last)
            caches = split_cache(cache)
            for row, steps in enumerate(alone):
                expected, _, own = steps[number]
                torch.testing.assert_close(x[row : row + 1], expected, rtol=0, atol=2e-5)
                torch.testing.assert_close(caches[row].inputs, own.inputs, rtol=0, atol=2e-5)
    assert number > 10


def test_a_short_last_chunk_may_be_filled_up() -> None:
    model = streaming_model()
    encoder = CachedEncoder(model.encoder)
    mel, lengths = whole_steps(model, 20_800)
    *chunks, last = mel_chunks(mel, lengths, encoder.sizes)
    cache = encoder.begin()
    for chunk in chunks:
        _, _, cache = encoder.step(chunk.mel, chunk.lengths, cache)
    missing = encoder.sizes.front + encoder.sizes.later - last.mel.size(2)
    assert missing > 0
    short, valid, _ = encoder.step(last.mel, last.lengths, cache, last=True)
    padded = torch.nn.functional.pad(last.mel, (0, missing), value=7.0)
    filled, same, _ = encoder.step(padded, last.lengths, cache, last=True)
    assert valid.tolist() == same.tolist()
    torch.testing.assert_close(filled[:, : int(valid[0])], short[:, : int(valid[0])], rtol=0, atol=2e-5)


def test_a_step_leaves_the_state_before_it_as_it_is() -> None:
    model = streaming_model()
    encoder = CachedEncoder(model.encoder)
    mel, lengths = whole_steps(model, 16_000)
    first, second = list(mel_chunks(mel, lengths, encoder.sizes))[:2]
    _, _, cache = encoder.step(first.mel, first.lengths, encoder.begin())
    once, _, _ = encoder.step(second.mel, second.lengths, cache)
    again, _, _ = encoder.step(second.mel, second.lengths, cache)
    assert torch.equal(once, again)


def test_an_adapter_of_attention_is_refused() -> None:
    model = streaming_model()
    add_trained(model, "attention", KindCase(kind=TinyAttentionAdapter(), last=()))
    mel, lengths = whole_steps(model, 16_000)
    with model.adapters.use("attention"), pytest.raises(AdapterError, match="linear or LoRA adapter"):
        run_steps(model, mel, lengths)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"attention_context": [4, -1]}, "no limit on the right"),
        ({"attention_context": [5, 1]}, "whole chunks"),
        ({"conv_context": None}, "see later frames"),
        ({"causal_downsampling": False}, "not causal"),
        ({"position": "abs_pos"}, "absolute"),
    ],
)
def test_a_model_that_was_not_trained_for_it_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        CachedEncoder(family_model("streaming", **changes).encoder)


def test_a_context_that_the_model_was_not_trained_with_is_refused() -> None:
    with pytest.raises(UsageError, match=r"not with the attention context \[2, 1\], but with \[4, 1\]"):
        CachedEncoder(family_model("streaming").encoder, [2, 1])

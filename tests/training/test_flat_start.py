"""The flat start: tokens spread over the loud part of an utterance, and its weight over the steps."""

from __future__ import annotations

import pytest
import torch

from overtone.config import load_settings
from overtone.data.dataset import Batch
from overtone.errors import ConfigError
from overtone.training.flat_start import IGNORED, FlatStart, spread, token_sizes

FRAME = 100
"""Samples."""


def batch(*rows: tuple[list[float], list[int]]) -> Batch:
    """Rows of (level of each frame, targets)."""
    frames, targets = max(len(levels) for levels, _ in rows), max(len(tokens) for _, tokens in rows)
    waveforms, padded = torch.zeros(len(rows), frames * FRAME), torch.zeros(len(rows), targets, dtype=torch.int64)
    for row, (levels, tokens) in enumerate(rows):
        waveforms[row, : len(levels) * FRAME] = torch.tensor(levels).repeat_interleave(FRAME)
        padded[row, : len(tokens)] = torch.tensor(tokens)
    return Batch(
        waveforms,
        torch.tensor([len(levels) * FRAME for levels, _ in rows]),
        padded,
        torch.tensor([len(tokens) for _, tokens in rows]),
        ["" for _ in rows],
        ["" for _ in rows],
    )


def guess(made: Batch, lengths: list[int], sizes: torch.Tensor) -> list[list[int]]:
    result: list[list[int]] = spread(made, torch.tensor(lengths), max(lengths), sizes, FRAME).tolist()
    return result


def test_tokens_share_the_loud_part() -> None:
    made = batch(([0, 0, 1, 1, 1, 1, 0], [3, 4]), ([1, 1, 1, 1, 1], [5]))
    none = IGNORED
    assert guess(made, [7, 5], torch.ones(8)) == [
        [none, none, 3, 3, 4, 4, none],
        [5, 5, 5, 5, 5, none, none],
    ]


def test_a_pause_within_belongs_to_the_speech_and_sizes_count() -> None:
    sizes = torch.tensor([1.0, 3.0])
    assert guess(batch(([1, 0, 0, 1], [0, 1])), [4], sizes) == [[0, 1, 1, 1]]


def test_more_tokens_than_frames() -> None:
    (row,) = guess(batch(([1, 1], [1, 2, 3, 4])), [2], torch.ones(8))
    assert row == [1, 3]


def test_silence_gives_no_guess() -> None:
    assert guess(batch(([0, 0, 0], [1, 2])), [3], torch.ones(8)) == [[IGNORED] * 3]


def test_sizes_are_characters_and_the_start_of_a_word() -> None:
    assert token_sizes(["<x>", "▁", "▁the", "s"]).tolist() == pytest.approx([3, 1.7, 3.7, 1])


def test_the_weight_falls_to_nothing() -> None:
    start = FlatStart(steps=10, weight=4.0, sizes=torch.ones(8), samples_per_frame=FRAME)
    made = batch(([1, 1, 1, 1], [3, 4]))
    log_probs = torch.randn(1, 4, 9, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    ctc, lengths = torch.tensor(2.0), torch.tensor([4])
    flat = -(log_probs[0, [0, 1], 3].sum() + log_probs[0, [2, 3], 4].sum()) / 4
    assert torch.allclose(start.mix(ctc, [log_probs, log_probs], lengths, made, 0), 0.5 * ctc + 4.0 * flat)
    assert torch.allclose(start.mix(ctc, [log_probs], lengths, made, 5), 0.75 * ctc + 2.0 * flat)
    assert start.mix(ctc, [log_probs], lengths, made, 10) is ctc


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.flat_start.steps=5", "model.flat_start.steps: is for model.train=everything"),
        ("model.interctc={apply_at_layers: [1], loss_weights: [0.3]}", "model.interctc.apply_at_layers"),
        ("model.interctc.apply_at_layers=[1]", "0 weights for 1 layers"),
        ("model.interctc={apply_at_layers: [1, 2], loss_weights: [0.5, 0.6]}", "their sum less than 1"),
    ],
)
def test_settings_that_cannot_be(override: str, message: str) -> None:
    given = ["model.pretrained_model=fundamental", "model.adapter.adapter_name=x", "model.train_ds.manifest_filepath=x"]
    with pytest.raises(ConfigError) as caught:
        load_settings([*given, override])
    assert message in str(caught.value)

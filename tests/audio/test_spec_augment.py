from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from overtone.audio.spec_augment import SpecAugment
from overtone.errors import ConfigError

LENGTHS = torch.tensor([200, 100, 7, 0])


def mel() -> torch.Tensor:
    return torch.ones(4, 80, 200)


def masked(augment: SpecAugment, seed: int, lengths: torch.Tensor = LENGTHS) -> torch.Tensor:
    """Places of the masks, [B, F, T]."""
    return augment(mel(), lengths, torch.Generator().manual_seed(seed)) == augment.mask_value


def runs(row: torch.Tensor) -> list[int]:
    """The lengths of the stretches of True."""
    edges = torch.nonzero(torch.diff(row.int(), prepend=torch.zeros(1), append=torch.zeros(1))).flatten().tolist()
    return [end - start for index, (start, end) in enumerate(pairwise(edges)) if index % 2 == 0]


def test_only_in_training() -> None:
    augment = SpecAugment(freq_masks=2, time_masks=2).eval()
    features = mel()
    assert augment(features, LENGTHS, None) is features
    assert SpecAugment().train()(features, LENGTHS, None) is features


def test_the_input_is_left_alone() -> None:
    features = mel()
    SpecAugment(freq_masks=5, time_masks=5, time_width=0.5).train()(features, LENGTHS, None)
    assert (features == 1).all()


def test_time_masks_stay_within_each_utterance() -> None:
    augment = SpecAugment(time_masks=1, time_width=0.1)
    widths: list[list[int]] = [[], [], [], []]
    for seed in range(300):
        places = masked(augment, seed)
        assert (places == places[:, :1]).all(), "whole frames"
        for row, length in enumerate(LENGTHS.tolist()):
            assert not places[row, 0, length:].any()
            found = runs(places[row, 0])
            assert len(found) <= 1
            widths[row] += found
    assert max(widths[0]) == 19
    assert max(widths[1]) == 9
    assert min(widths[0]) == min(widths[1]) == 1
    assert widths[2] == widths[3] == []


def test_time_width_in_frames() -> None:
    augment = SpecAugment(time_masks=1, time_width=30)
    found = [[runs(places[row, 0]) for row in range(4)] for places in (masked(augment, s) for s in range(300))]
    longest = [max((width for draw in found for width in draw[row]), default=0) for row in range(4)]
    assert longest[:2] == [29, 29]
    assert longest[2:] == [7, 0]


def test_frequency_masks() -> None:
    augment = SpecAugment(freq_masks=1, freq_width=27)
    widths, first = [], set()
    for seed in range(300):
        places = masked(augment, seed)
        assert (places == places[:, :, :1]).all(), "whole bins"
        widths += [width for row in range(4) for width in runs(places[row, :, 0])]
        first |= {int(places[row, :, 0].int().argmax()) for row in range(4)}
    assert (min(widths), max(widths)) == (1, 26)
    assert max(first) > 70


def test_utterances_have_masks_of_their_own() -> None:
    places = masked(SpecAugment(freq_masks=2, time_masks=5), 0, torch.tensor([200] * 4))
    assert not torch.equal(places[0], places[1])
    assert places.float().mean() < 0.8


def test_randomness_is_the_generators() -> None:
    augment = SpecAugment(freq_masks=2, time_masks=5)
    state = torch.random.get_rng_state()
    assert torch.equal(masked(augment, 1), masked(augment, 1))
    assert not torch.equal(masked(augment, 1), masked(augment, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(4)
    first = augment(mel(), LENGTHS)
    torch.manual_seed(4)
    assert torch.equal(augment(mel(), LENGTHS), first)


def test_mask_value_and_extremes() -> None:
    augment = SpecAugment(freq_masks=1, time_masks=3, freq_width=500, time_width=1.0, mask_value=-2.5)
    values = augment(mel(), LENGTHS, torch.Generator().manual_seed(0)).unique().tolist()
    assert values == [-2.5, 1.0]
    nothing = SpecAugment(freq_masks=1, time_masks=1, freq_width=0, time_width=0)
    assert torch.equal(nothing(mel(), LENGTHS, None), mel())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("freq_masks", -1),
        ("time_masks", 1.5),
        ("freq_width", -27),
        ("freq_width", 0.1),
        ("time_width", 1.5),
        ("time_width", -0.1),
        ("time_width", -3),
        ("time_width", float("nan")),
        ("time_width", True),
        ("mask_value", float("nan")),
        ("mask_value", "0"),
    ],
)
def test_refuses_by_name(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key):
        SpecAugment(**{key: value})

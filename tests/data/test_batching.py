"""Rows of different length as one tensor."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from overtone.nets.layers import SIZES_PER_OCTAVE, pad_rows, round_up


@given(st.integers(1, 10_000_000))
def test_a_length_grows_by_a_sixteenth_at_most(size: int) -> None:
    assert size <= round_up(size) <= size * (1 + 1 / SIZES_PER_OCTAVE)
    assert round_up(round_up(size)) == round_up(size)


def test_lengths_are_few() -> None:
    """All recordings between one and thirty-two seconds."""
    assert len({round_up(size) for size in range(16_384, 524_288, 16)}) == 5 * SIZES_PER_OCTAVE + 1


def test_rows_keep_their_values_and_lengths() -> None:
    short, long = np.ones((2, 3), np.float32), np.full((2, 37), 2.0, np.float32)
    whole, lengths = pad_rows([short, long], least=5)
    assert whole.shape == (2, 2, 38)
    assert lengths.tolist() == [5, 37]
    assert torch.equal(whole[0, :, :3], torch.ones(2, 3))
    assert not whole[0, :, 3:].any()
    assert torch.equal(whole[1, :, :37], torch.full((2, 37), 2.0))
    assert not whole[1, :, 37:].any()

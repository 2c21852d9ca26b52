"""Plain samples: WAV headers, however they are cut, and the change of rates."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import soxr
from hypothesis import given
from hypothesis import strategies as st

from overtone.audio.pcm import Block, Resampler, join_blocks, read_wav_layout
from support.media import packed


@pytest.mark.parametrize(
    ("kind", "coding", "rate"),
    [
        ("wav16", "pcm16", 16_000), ("wav24", "pcm24", 44_100), ("wav8", "pcm8", 8_000), ("wav32", "pcm32", 16_000),
        ("wavfloat", "float32", 48_000), ("wavdouble", "float64", 16_000), ("wavmulaw", "mulaw", 8_000),
        ("wavalaw", "alaw", 8_000), ("extensible", "pcm16", 16_000), ("rf64", "pcm16", 16_000),
    ],
)  # fmt: skip
def test_a_layout_is_known_once_the_header_is_there(kind: str, coding: str, rate: int) -> None:
    data = packed(kind, channels=2)
    layout = read_wav_layout(data)
    assert layout is not None
    assert (layout.coding, layout.rate, layout.channels) == (coding, rate, 2)
    assert layout.size == len(data) - layout.first == round(1.5 * rate) * layout.frame_bytes
    assert all(read_wav_layout(data[:size]) is None for size in range(12, layout.first))


def test_a_size_of_sixty_four_bits() -> None:
    data = packed("rf64")
    place = data.index(b"ds64") + 16
    big = data[:place] + struct.pack("<Q", 6 * 2**30) + data[place + 8 :]
    layout = read_wav_layout(big)
    assert layout is not None
    assert layout.size == 6 * 2**30


def test_a_coding_that_is_none_of_ours() -> None:
    layout = read_wav_layout(packed("wav-adpcm"))
    assert layout is not None
    assert layout.coding == ""


@given(st.lists(st.tuples(st.sampled_from([8_000, 16_000, 44_100]), st.integers(1, 3_000)), min_size=1, max_size=6))
def test_a_changing_rate_is_the_parts_after_each_other(parts: list[tuple[int, int]]) -> None:
    generator = np.random.default_rng(0)
    blocks = [Block(generator.standard_normal((size, 1)).astype(np.float32), rate) for rate, size in parts]
    resampler = Resampler(16_000)
    found = np.concatenate([*(resampler.push(block) for block in blocks), resampler.finish()])
    expected = [
        soxr.resample(block.samples[:, 0], block.rate, 16_000, quality="HQ")
        if block.rate != 16_000
        else block.samples[:, 0]
        for block in join_blocks(blocks)
    ]
    np.testing.assert_array_equal(found, np.concatenate(expected))


def test_joined_blocks_are_floats_of_full_scale_one() -> None:
    pieces = [
        Block(np.array([[-32768], [16384]], np.int16), 8_000),
        Block(np.array([[1]], np.int16), 8_000),
        Block(np.array([[-(2**31)], [2**30]], np.int32), 8_000),
        Block(np.array([[0], [255]], np.uint8), 8_000),
        Block(np.array([[0.25]], np.float64), 8_000),
        Block(np.array([[0.5, 0.75]], np.float32), 8_000),
        Block(np.array([[0.5, 0.75]], np.float32), 16_000),
    ]
    joined = list(join_blocks(pieces))
    assert [block.samples.tolist() for block in joined] == [
        [[-1.0], [0.5], [2**-15]], [[-1.0], [0.5]], [[-1.0], [127 / 128]], [[0.25]], [[0.5, 0.75]], [[0.5, 0.75]],
    ]  # fmt: skip
    assert all(block.samples.dtype == np.float32 for block in joined)
    assert [block.rate for block in joined] == [8_000] * 5 + [16_000]

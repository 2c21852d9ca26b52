"""Local attention beside the same computed with whole matrices."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from overtone.nets import local_attention
from overtone.nets.attention import PositionTable
from overtone.nets.local_attention import (
    attend_globally,
    attend_locally,
    encoding_rows,
    mix_queries,
    select_encodings,
    spread_band,
    take_band,
)
from overtone.nets.subsampling import ConvSubsampling
from overtone.nets.taps import Window

WINDOWS = [Window(left=3, right=3), Window(left=5, right=2), Window(left=0, right=4), Window(left=40, right=1)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attend_densely(
    query: Tensor, key: Tensor, value: Tensor, placed: tuple[Tensor, Tensor], valid: Tensor, window: Window
) -> Tensor:
    frames = query.size(2)
    distance = torch.arange(frames) - torch.arange(frames).unsqueeze(1)  # key - query
    seen = (distance >= -window.left) & (distance <= window.right)
    places = (placed[0] @ placed[1].transpose(-2, -1)).gather(
        3, (distance + window.left).clamp(0, window.left + window.right).expand(*query.shape[:3], frames)
    )
    scores = (query @ key.transpose(-2, -1) + places) / math.sqrt(query.size(-1))
    scores = scores.masked_fill(~(seen & valid[:, None, None]), -math.inf)
    return torch.softmax(scores, dim=-1) @ value


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("frames", [1, 7, 32, 100])
@pytest.mark.parametrize("at_once", [1, 1 << 24])
def test_it_is_attention_with_a_mask(
    window: Window, frames: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_attention, "SCORES_AT_ONCE", at_once)
    query, key, value, second = (random(2, 3, frames, 4, seed=seed) for seed in range(4))
    placed = second, random(1, 3, window.left + window.right + 1, 4, seed=5)
    valid = torch.arange(frames) < torch.tensor([frames, (frames + 1) // 2]).unsqueeze(1)
    found = attend_locally(query, key, value, placed, valid, window)
    expected = attend_densely(query, key, value, placed, valid, window)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1][:, valid[1]], expected[1][:, valid[1]], rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_attention_with_a_mask() -> None:
    window, valid = Window(left=3, right=5), torch.ones(1, 50, dtype=torch.bool)
    inputs = [random(1, 2, 50, 4, seed=seed).requires_grad_() for seed in range(4)]
    encodings = random(1, 2, 9, 4, seed=9)
    gradients = []
    for attend in (attend_locally, attend_densely):
        outcome = attend(*inputs[:3], (inputs[3], encodings), valid, window)
        gradients.append(torch.autograd.grad(outcome.square().sum(), inputs))
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_a_band_is_taken_and_spread() -> None:
    scores = random(2, 4, 9)
    band = take_band(scores, 6)
    for row in range(4):
        assert torch.equal(band[:, row], scores[:, row, row : row + 6])
    spread = spread_band(band, 9)
    assert torch.equal(take_band(spread, 6), band)
    assert torch.count_nonzero(spread) == torch.count_nonzero(band)


def test_encodings_of_equal_sides_are_those_of_the_distances() -> None:
    assert encoding_rows(Window(left=2, right=2)) == [0, 1, 2, 3, 4]
    table = PositionTable(8, "rel_pos")(3, torch.device("cpu"))
    assert torch.equal(select_encodings(table, Window(left=2, right=2)), table)


def test_encodings_of_unequal_sides_are_placed_as_in_nemo() -> None:
    """The column c, of the distance c - w, has the row c below l, and the row c - 2w + r + l from 2w - r on."""
    for left, right in ((8, 4), (4, 8), (5, 4), (3, 0)):
        widest = max(left, right)
        columns: list[int | None] = [None] * (2 * widest + 1)
        columns[:left] = range(left)
        columns[2 * widest - right :] = range(left, left + right + 1)
        expected = columns[widest - left : widest + right + 1]
        assert encoding_rows(Window(left=left, right=right)) == expected


def test_global_frames_see_all() -> None:
    query, key, value = random(2, 3, 2, 4), random(2, 3, 9, 4, seed=1), random(2, 3, 9, 4, seed=2)
    valid = torch.arange(9) < torch.tensor([[9], [5]])
    found = attend_globally(query, key, value, valid)
    whole = F.scaled_dot_product_attention(query, key, value, valid[:, None, None])
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-6)


def test_queries_of_one_global_frame_stay_as_they_are() -> None:
    query = random(2, 4, 1, 3)
    assert torch.equal(mix_queries(query, [1, 1]), query)
    several = random(2, 4, 3, 3)
    mixed = mix_queries(several, [3, 2])
    assert torch.equal(mixed[:1], mix_queries(several[:1], [3]))
    assert torch.equal(mixed[1:, :, :2], mix_queries(several[1:, :, :2], [2]))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("frames", [64, 501, 800])
def test_a_long_recording_is_subsampled_in_pieces(
    causal: bool, depthwise: bool, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from overtone.backends.fused.subsampling import FusedSubsampling
    from overtone.nets import subsampling

    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = ConvSubsampling(20, 16, factor=8, channels=8, depthwise=depthwise, causal=causal)
    mel, lengths = random(3, frames, 20), torch.tensor([frames, frames // 2, 11])
    for compute in (module, FusedSubsampling(module, torch.float32, 1.0)):
        with torch.no_grad():
            whole, counts = compute(mel, lengths)
            monkeypatch.setattr(subsampling, "LONG_BYTES", 50_000)
            pieces, same = compute(mel, lengths)
            monkeypatch.undo()
        assert pieces.shape == whole.shape
        assert counts.tolist() == same.tolist()
        for row, count in enumerate(counts.tolist()):
            torch.testing.assert_close(pieces[row, :count], whole[row, :count], rtol=0, atol=1e-5)

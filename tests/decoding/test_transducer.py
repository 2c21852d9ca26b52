"""Greedy decoding of transducers: beside a plain loop over frames, in parts, and as paths that are cut and joined."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from overtone.decoding.transducer import TransducerDecoder, TransducerPath, TransducerSearch, read_path
from support.small_transducer import BLANK, LETTERS, frames_of, make_search


def plain_loop(search: TransducerSearch, frames: Tensor) -> tuple[list[int], list[int], list[int], float]:
    """One recording, frame by frame: tokens, their frames and durations, and the score; frames [T, J]."""
    joint, time, symbols, score = search.joint, 0, 0, 0.0
    ids: list[int] = []
    places: list[int] = []
    lasts: list[int] = []
    output, state = search.prediction.begin(1)
    while time < len(frames):
        scores = joint(frames[None, time : time + 1], joint.pred(output)[:, None])[0, 0, 0]
        tokens = scores[: BLANK + 1].log_softmax(-1)
        token = int(tokens.argmax())
        score += float(tokens[token])
        duration = joint.durations[int(scores[BLANK + 1 :].argmax())] if joint.durations else int(token == BLANK)
        if token == BLANK:
            time, symbols = time + max(1, duration), 0
            continue
        ids.append(token)
        places.append(time)
        lasts.append(duration)
        output, state = search.prediction.step(torch.tensor([token]), state)
        symbols = 0 if duration else symbols + 1
        time += duration
        if symbols >= search.max_symbols:
            time, symbols = time + 1, 0
    return ids, places, lasts, score


@pytest.mark.parametrize("durations", [(), (0, 1, 2, 4), (1, 2)])
@pytest.mark.parametrize("stateless", [False, True])
@pytest.mark.parametrize("max_symbols", [1, 3, 10])
def test_a_batch_is_decoded_as_each_row_by_a_plain_loop(
    durations: tuple[int, ...], stateless: bool, max_symbols: int
) -> None:
    lengths = [23, 1, 9, 17, 0]
    said = 0
    for seed in range(4):
        search = make_search(seed, durations, max_symbols=max_symbols, stateless=stateless, blank=2.0 * seed - 2.0)
        frames = frames_of(len(lengths), 23, seed)
        paths = search.paths(frames, torch.tensor(lengths))
        with torch.no_grad():
            for path, row, length in zip(paths, frames, lengths, strict=True):
                ids, places, lasts, score = plain_loop(search, row[:length])
                assert (path.ids.tolist(), path.places.tolist(), path.durations.tolist()) == (ids, places, lasts)
                assert path.score == pytest.approx(score, abs=1e-3)
                assert path.frames == length
                said += len(ids)
    assert said > 20


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 1000),
    st.sampled_from([(), (0, 1, 2, 4)]),
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
)
def test_a_stream_in_parts_is_the_whole(seed: int, durations: tuple[int, ...], parts: list[int]) -> None:
    search = make_search(seed, durations)
    frames = frames_of(1, sum(parts), seed)
    (whole,) = search.paths(frames, torch.tensor([sum(parts)]))
    decoder = TransducerDecoder(search, LETTERS, seconds_per_frame=0.08)
    silent, begin = [], 0
    for part in parts:
        emissions = frames[0, begin : begin + part].numpy()
        silent.append(decoder.silent(emissions))
        fork = decoder.fork()
        fork.push(emissions[::-1].copy())
        decoder.push(emissions)
        begin += part
    (found,) = decoder.hypotheses()
    expected = read_path(whole, LETTERS, seconds_per_frame=0.08)
    assert (found.text, found.ids, found.spans) == (expected.text, expected.ids, expected.spans)
    assert found.score == pytest.approx(expected.score, abs=1e-3)
    spoken = np.zeros(sum(parts), dtype=bool)
    spoken[whole.places] = True
    assert not (np.concatenate(silent) & spoken).any(), "a frame with a token is not silent"


def path_of(places: list[int], frames: int, **options: Any) -> TransducerPath:
    count = len(places)
    return TransducerPath(
        ids=np.arange(1, count + 1),
        places=np.array(places, dtype=np.int64),
        durations=np.array(options.get("durations", [0] * count), dtype=np.int64),
        log_probs=np.full(count, -0.5, dtype=np.float32),
        frames=frames,
        score=-2.0,
    )


def test_paths_are_cut_and_joined() -> None:
    path = path_of([0, 3, 3, 7], 9)
    assert len(path) == 9
    assert path.silent.tolist() == [frame not in (0, 3, 7) for frame in range(9)]
    parts = [path.cut(0, 3), path.cut(3, 4), path.cut(4, 9)]
    assert [part.places.tolist() for part in parts] == [[0], [0, 0], [3]]
    joined = parts[0].join(parts[1:])
    assert joined.places.tolist() == path.places.tolist()
    assert joined.ids.tolist() == path.ids.tolist()
    assert joined.frames == 9
    assert path.cut(0, 9) is path


def test_durations_are_spans_and_speech() -> None:
    path = path_of([0, 2, 6], 8, durations=[2, 3, 4])
    assert path.silent.tolist() == [False, False, False, False, False, True, False, False]
    found = read_path(path, LETTERS, seconds_per_frame=0.1)
    assert found.spans == ((0, 2), (2, 5), (6, 8)), "the last one ends with the recording"
    assert found.text == "abc"
    assert [(word.start, word.end) for word in found.words] == [(0.0, 0.8)]

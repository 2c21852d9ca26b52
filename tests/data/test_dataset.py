"""Batches are a pure function of manifests, settings, seed, epoch and step."""

from __future__ import annotations

import itertools
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from overtone.data.batching import BatchPlan, Place, StepSampler, bare_cuts, place_of, step_seed
from overtone.data.dataset import (
    Batch,
    SpeechDataset,
    collate,
    keep_durations,
    make_loader,
    refuse_unusable,
    unusable_transcripts,
)
from overtone.data.manifest import Utterance, read_manifest
from overtone.errors import DataError
from overtone.nets.ctc import frames_needed
from overtone.nets.layers import round_up
from overtone.training.data import batch_bounds
from support.train_samples import write_corpus


def plan(count: int = 50, **options: object) -> BatchPlan:
    durations = tuple(1 + (index * 7 % 23) / 10 for index in range(count))
    return BatchPlan(durations=durations, **{"batch_size": 4, **options})  # type: ignore[arg-type]


def utterances(*durations: float, text: str = "abc") -> list[Utterance]:
    return [
        Utterance(audio_path=Path("a.wav"), duration=seconds, text=text, line=line, manifest=Path("m.json"))
        for line, seconds in enumerate(durations, 1)
    ]


# Plans


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 200), size=st.integers(1, 30), seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_every_utterance_stands_in_one_batch_of_an_epoch(count: int, size: int, seed: int, epoch: int) -> None:
    batches = plan(count, batch_size=size, seed=seed).batches(epoch)
    assert sorted(index for batch in batches for index in batch) == list(range(count))
    assert len(batches) == -(-count // size)
    assert sorted(map(len, batches))[1:] == [size] * (len(batches) - 1)


@pytest.mark.parametrize("options", [{}, {"batch_duration": 9.0, "batch_size": None, "buckets": 3}])
def test_a_plan_depends_on_seed_and_epoch_alone(options: dict[str, object]) -> None:
    first, again, other = plan(**options), plan(**options), plan(**options, seed=1)
    later = first.batches(3)
    assert first.batches(0) == again.batches(0)
    assert later == again.batches(3)
    assert first.batches(0) != later
    assert first.batches(0) != other.batches(0)


def test_batches_hold_utterances_of_similar_duration() -> None:
    lengthy = plan(800, batch_size=8)
    padded = sum(len(batch) * max(lengthy.durations[index] for index in batch) for batch in lengthy.batches(0))
    assert padded < 1.05 * sum(lengthy.durations)


def test_duration_buckets_limit_the_audio_of_a_batch() -> None:
    lengthy = plan(300, batch_duration=12.0, batch_size=6, buckets=4)
    batches = lengthy.batches(1)
    assert sorted(index for batch in batches for index in batch) == list(range(300))
    assert max(map(lengthy.seconds, batches)) <= 12.0
    assert max(map(len, batches)) <= 6
    assert lengthy.length(1, 2) == -(-len(batches) // 2)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_buckets_of_few_utterances(count: int) -> None:
    batches = plan(count, batch_duration=2.0, batch_size=None).batches(0)
    assert sorted(index for batch in batches for index in batch) == list(range(count))


def test_without_shuffling_the_manifests_order_stands() -> None:
    assert plan(6, shuffle=False).batches(5) == [[0, 1, 2, 3], [4, 5]]
    assert plan(6, shuffle=False, drop_last=True).batches(0) == [[0, 1, 2, 3]]


def test_an_epoch_can_be_cut_short() -> None:
    whole = plan().batches(0)
    assert plan(limit=3).batches(0) == whole[:3]
    assert plan(limit=0.5).batches(0) == whole[: len(whole) // 2]
    assert plan(limit=0).batches(0) == []


def test_cuts_are_lhotses() -> None:
    from lhotse import CutSet

    cuts = bare_cuts([1.5, 2.0])
    assert isinstance(cuts, CutSet)
    assert [(cut.id, cut.duration) for cut in cuts] == [("0", 1.5), ("1", 2.0)]


# Steps


@pytest.mark.parametrize("start", [0, 1, 12, 13, 14, 29, 40])
def test_a_run_goes_on_at_any_step(start: int) -> None:
    whole = list(StepSampler(plan(), total=40))
    assert whole[:13] == plan().batches(0)
    assert whole[13:26] == plan().batches(1)
    rest = StepSampler(plan(), total=40, start=start)
    assert list(rest) == whole[start:]
    assert len(rest) == 40


def test_processes_share_the_batches_of_an_epoch() -> None:
    """Thirteen batches on two processes: seven each, one twice; in every step both have about equally long ones."""
    batches = plan().batches(0)
    first, second = (list(StepSampler(plan(), total=7, rank=rank, processes=2)) for rank in (0, 1))
    assert len(first) == len(second) == 7
    assert sorted({tuple(batch) for batch in first + second}) == sorted(map(tuple, batches))
    longest = [sorted(max(plan().durations[index] for index in batch) for batch in part) for part in (first, second)]
    in_turn = sorted(max(plan().durations[index] for index in batch) for batch in batches)
    assert longest[0] == in_turn[0::2]
    assert longest[1][1:] == in_turn[1::2]
    assert place_of(plan(), 7, processes=2) == (1, 7)


def test_the_order_of_shared_batches_changes_with_the_epoch() -> None:
    longest = [
        [max(plan().durations[index] for index in batch) for batch in plan().shares(epoch, 2)[0]] for epoch in (0, 0, 1)
    ]
    assert longest[0] == longest[1]
    assert longest[0] != sorted(longest[0])
    assert longest[0] != longest[2]


def test_more_processes_than_batches_repeat_them() -> None:
    small = plan(6)
    first, second = small.batches(0)
    shares = [{tuple(batch) for batch in share} for share in small.shares(0, 5)]
    assert all(len(share) == 1 for share in shares)
    assert set.union(*shares) == {tuple(first), tuple(second)}
    assert small.length(0, 5) == 1


@pytest.mark.parametrize("duration", [None, 12.0, 3.0])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_validation_batches_are_equally_many_for_every_process(processes: int, duration: float | None) -> None:
    for count, size in itertools.product((3, 7, 40), (None, 1, 4)):
        seconds = [10.0 - 9.0 * number / count for number in range(count)]
        whole = BatchPlan(durations=tuple(seconds), batch_size=size, batch_duration=duration)
        bounds = batch_bounds(seconds, whole, size or 16, processes)
        batches = [seconds[first:end] for first, end in itertools.pairwise(bounds)]
        assert list(itertools.chain.from_iterable(batches)) == seconds
        assert all(batches)
        assert len(batches) % processes == 0
        if processes == 1:
            assert max(map(len, batches)) <= (size or (count if duration else 16))
            assert all(duration is None or len(held) == 1 or len(held) * held[0] <= duration for held in batches)


def test_the_epoch_of_a_step() -> None:
    assert [place_of(plan(), step) for step in (0, 12, 13, 30)] == [(0, 0), (0, 0), (1, 13), (2, 26)]
    assert place_of(plan(), 30, near=Place(1, 13)) == (2, 26)


def test_epochs_of_different_length() -> None:
    """Duration buckets leave another number of batches over in every epoch."""
    durations = tuple(np.random.default_rng(0).uniform(1, 5, 200))
    lengthy = BatchPlan(durations=durations, batch_duration=9.0, batch_size=None, buckets=5)
    lengths = [lengthy.length(epoch) for epoch in range(8)]
    assert len(set(lengths)) > 1
    whole = [batch for epoch in range(8) for batch in lengthy.batches(epoch)]
    for start in (0, lengths[0] - 1, sum(lengths[:5]), sum(lengths[:6]) + 3):
        near = place_of(lengthy, max(0, start - 1))
        assert list(StepSampler(lengthy, total=len(whole), start=start, near=near)) == whole[start:]


def test_seeds_of_steps_differ() -> None:
    seeds = {step_seed(seed, step, rank) for seed in range(3) for step in range(50) for rank in range(2)}
    assert len(seeds) == 300
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert step_seed(1, 2) == step_seed(1, 2)


# Choosing utterances


def test_durations_are_kept_between_limits_and_counted() -> None:
    kept = keep_durations(utterances(0.5, 1.0, 2.0, 3600.0), minimum=1.0, maximum=2.0)
    assert [utterance.line for utterance in kept.utterances] == [2, 3]
    assert (kept.too_short, kept.too_long) == (1, 1)
    assert kept.left_out_hours == pytest.approx(3600.5 / 3600)
    assert keep_durations(utterances(0.5, 99.0)).hours == pytest.approx(99.5 / 3600)


def test_transcripts_longer_than_their_frames_are_found() -> None:
    """At 0.1 s a frame: five frames for `a b c`, one more where a token repeats."""
    lines = utterances(0.5, 0.5, 0.5, 0.5) + utterances(0.5, text=" ")
    tokens = [[1, 2, 3, 4, 5], [1, 1, 2, 2], [1, 2, 3, 4, 4], [], [1]]
    problems = unusable_transcripts(lines, tokens, seconds_per_frame=0.1, frames_needed=frames_needed)
    assert sorted(problems) == [1, 2, 3, 4]
    assert problems[1] == "too short for its transcript: 4 tokens need 6 frames, 0.5 s give 5"
    assert problems[4] == "the transcript is empty"


def test_the_room_of_a_transcript_is_that_of_its_own_task() -> None:
    lines = [replace(utterances(9.0)[0], language=task) for task in (None, "de", "long")]
    room = {None: 3, "de": None, "long": 2}
    problems = unusable_transcripts(
        lines, [[1, 2, 3]] * 3, seconds_per_frame=0.1, frames_needed=frames_needed, most_tokens=room.__getitem__
    )
    assert problems == {2: "too long: 3 tokens, and the model reads 2 at most"}


def test_the_message_shows_the_first_of_many() -> None:
    lines = utterances(*[1.0] * 8)
    refuse_unusable(lines, {}, key="k")
    with pytest.raises(DataError) as caught:
        refuse_unusable(lines, dict.fromkeys(range(7), "wrong"), key="model.train_ds.unusable")
    message = str(caught.value)
    assert message.startswith("7 of 8 utterances cannot be used:\n  m.json:1: wrong")
    assert "m.json:5" in message
    assert "m.json:6" not in message
    assert "and 2 more" in message
    assert "model.train_ds.unusable=drop" in message


# Loading


def dataset(folder: Path, **options: int) -> SpeechDataset:
    lines = read_manifest(write_corpus(folder))
    tokens = [[1, 2, 3][: 1 + index % 3] for index in range(len(lines))]
    return SpeechDataset(lines, tokens, sample_rate=16_000, **options)


def test_batches_are_padded_with_zeros(tmp_path: Path) -> None:
    held = dataset(tmp_path)
    (batch,) = make_loader(held, [[0, 11]], workers=0, pin_memory=True)
    assert isinstance(batch, Batch)
    assert batch.waveforms.shape == (2, round_up(int(batch.lengths.max())))
    assert batch.lengths.tolist() == [len(held.load(0)), len(held.load(11))]
    assert batch.waveforms[0, batch.lengths[0] :].abs().sum() == 0
    assert batch.targets.tolist() == [[1, 0, 0], [1, 2, 3]]
    assert batch.target_lengths.tolist() == [1, 3]
    assert batch.texts == ["one", "six"]
    assert batch.ids == [f"{tmp_path / 'train.json'}:1", f"{tmp_path / 'train.json'}:12"]


def test_workers_change_nothing(tmp_path: Path) -> None:
    held = dataset(tmp_path)
    batches = [[3, 1], [0], [5, 7, 2], [11, 10]]
    alone = list(make_loader(held, batches, workers=0, pin_memory=False))
    helped = list(make_loader(dataset(tmp_path), batches, workers=2, pin_memory=False))
    for first, second in zip(alone, helped, strict=True):
        assert isinstance(first, Batch)
        assert isinstance(second, Batch)
        assert torch.equal(first.waveforms, second.waveforms)
        assert torch.equal(first.targets, second.targets)
        assert first.ids == second.ids


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_recording_is_one_clear_error(tmp_path: Path, workers: int) -> None:
    held = dataset(tmp_path)
    samples = np.zeros(16_000, np.float32)
    samples[7] = np.nan
    soundfile.write(tmp_path / "train3.wav", samples, 16_000, subtype="FLOAT")
    error, good = list(make_loader(held, [[2, 3], [4]], workers=workers, pin_memory=False))
    assert isinstance(good, Batch)
    assert isinstance(error, DataError)
    assert str(error).startswith(f"{tmp_path / 'train.json'}:4: ")
    assert "NaN" in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_what_fits_is_read_from_disk_once(tmp_path: Path) -> None:
    held = dataset(tmp_path, cache_bytes=200_000)
    first, second = held.load(0), held.load(11)
    assert held.load(0) is first
    assert held.load(11) is second
    assert held.room == 200_000 - first.nbytes - second.nbytes
    assert held.load(10) is not held.load(10)


def test_offsets_rates_and_channels(tmp_path: Path) -> None:
    """The second half of a stereo recording at 8 kHz comes as mono at the model's rate."""
    time = np.arange(16_000) / 8_000
    tone = np.where(time < 1.0, 0.0, np.sin(2 * np.pi * 440 * time))
    soundfile.write(tmp_path / "a.wav", np.stack([tone, np.zeros_like(tone)], 1), 8_000)
    entry = {"audio_filepath": "a.wav", "duration": 1.0, "offset": 1.0, "text": "hum"}
    (tmp_path / "m.json").write_text(json.dumps(entry))
    held = SpeechDataset(read_manifest(tmp_path / "m.json"), [[1]], sample_rate=16_000)
    waveform = held.load(0)
    assert waveform.shape == (16_000,)
    assert np.sqrt(np.mean(waveform**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.02)
    batch = collate([held[0]])
    assert isinstance(batch, Batch)
    assert batch.lengths.tolist() == [16_000]


def test_reading_ahead_fills_the_memory_that_there_is(tmp_path: Path) -> None:
    utterances = read_manifest(write_corpus(tmp_path, count=4))
    tokens = [[1]] * 4
    dataset = SpeechDataset(utterances, tokens, sample_rate=16_000, cache_bytes=4 * 16_000 * 2)
    assert [dataset.read_ahead(index) for index in range(3)] == [True, True, False]
    assert sorted(dataset.cache) == [0, 1]
    utterances[1].audio_path.unlink()
    assert dataset[1].waveform is dataset.cache[1]


def test_what_cannot_be_read_ahead_is_told_when_it_is_asked_for(tmp_path: Path) -> None:
    utterances = read_manifest(write_corpus(tmp_path, count=2))
    utterances[0].audio_path.unlink()
    dataset = SpeechDataset(utterances, [[1]] * 2, sample_rate=16_000)
    assert dataset.read_ahead(0)
    assert isinstance(dataset[0], DataError)

"""Transcription of files, folders and manifests: windows, batches, failures, adapters by row."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

import overtone
from overtone.audio import load
from overtone.audio.load import load_audio, open_source
from overtone.decoding.ctc import CtcPath, greedy
from overtone.errors import AdapterError, DataError, UsageError
from overtone.inference.recordings import find_recordings
from overtone.inference.transcribe import Transcriber, transcribe
from overtone.inference.windows import Window, join_windows, plan_windows
from overtone.wer import character_errors
from support.fixtures import fixture_file
from support.media import write_media
from support.small_models import small_model
from support.tone_model import FRAME, SAMPLE_RATE, ToneModel, sentence

# Windows


@given(st.integers(1, 5000), st.integers(2, 800), st.integers(0, 300))
def test_windows_cover_everything_evenly_and_no_window_is_too_long(frames: int, window: int, overlap: int) -> None:
    overlap = min(overlap, window - 1)
    windows = plan_windows(frames, window=window, overlap=overlap)
    assert windows[0].start == 0
    assert windows[-1].stop == frames
    assert max(w.frames for w in windows) <= window
    if len(windows) > 1:
        assert all(left.stop - right.start == overlap for left, right in itertools.pairwise(windows))
        assert max(w.frames for w in windows) - min(w.frames for w in windows) <= 1
        fewer = len(windows) - 1
        assert fewer * (window - overlap) + overlap < frames


def path_of(ids: list[int]) -> CtcPath:
    return CtcPath(ids=np.array(ids), log_probs=np.zeros(len(ids), np.float32), blank=0)


def test_the_seam_lies_in_the_pause_that_both_windows_hear() -> None:
    windows = [Window(0, 12), Window(4, 16)]
    left = path_of([1, 0, 2, 2, 0, 3, 3, 0, 0, 0, 9, 9])
    right = path_of([8, 8, 3, 0, 0, 0, 4, 4, 0, 5, 0, 6])
    joined = join_windows(windows, [left, right])
    assert joined.ids.tolist() == [1, 0, 2, 2, 0, 3, 3, 0, 0, 0, 4, 4, 0, 5, 0, 6]


def test_without_a_common_pause_the_seam_is_the_middle() -> None:
    joined = join_windows([Window(0, 8), Window(4, 12)], [path_of([1] * 8), path_of([2] * 8)])
    assert joined.ids.tolist() == [1] * 6 + [2] * 6


def test_a_last_window_of_another_length_than_planned_is_kept_to_its_end() -> None:
    joined = join_windows([Window(0, 8), Window(4, 12)], [path_of([1] * 9), path_of([2] * 9)])
    assert joined.ids.size == 13


def test_windows_read_as_the_whole(model: ToneModel, record: Callable[..., Path]) -> None:
    text = sentence(120)
    path = record("long.wav", text)
    (whole,) = transcribe(model, path, window=None)
    (windowed,) = transcribe(model, path, window=6.0, overlap=1.5, batch_seconds=20.0)
    assert whole.text == text
    assert windowed == whole


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100])
def test_windows_meet_on_one_grid_at_any_rate(model: ToneModel, record: Callable[..., Path], rate: int) -> None:
    text = sentence(40, seed=rate)
    path = record("other.flac", text, rate=rate, channels=2)
    (whole,) = transcribe(model, path, window=None)
    (windowed,) = transcribe(model, path, window=5.0, overlap=1.0)
    assert whole.text == windowed.text == text
    assert [word.start for word in windowed.words] == pytest.approx([word.start for word in whole.words], abs=0.05)


def test_long_audio_is_read_window_by_window(model: ToneModel, record: Callable[..., Path]) -> None:
    path = record("long.wav", sentence(200))
    transcribe(model, path, window=4.0, overlap=1.0, batch_seconds=8.0)
    assert max(len(rows) for rows in model.batches) == 2
    assert max(samples for rows in model.batches for samples in rows) <= 4 * SAMPLE_RATE


# Batches


def test_batches_hold_like_lengths_within_their_seconds(model: ToneModel, record: Callable[..., Path]) -> None:
    texts = ["ab" * (1 + number % 9) for number in range(30)]
    paths = [record(f"{number}.wav", text) for number, text in enumerate(texts)]
    hypotheses = transcribe(model, paths, batch_seconds=10.0)
    assert [hypothesis.text for hypothesis in hypotheses] == texts
    assert all(max(rows) * len(rows) <= 10.0 * SAMPLE_RATE for rows in model.batches)
    assert len(model.batches) < 12


def test_progress_ends_at_the_whole(model: ToneModel, record: Callable[..., Path]) -> None:
    seen: list[tuple[float, float]] = []
    paths = [record("a.wav", "abc abc"), record("b.wav", sentence(30))]
    list(Transcriber(model, batch_seconds=5.0).stream(paths, progress=lambda *now: seen.append(now)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == pytest.approx(seen[-1][1])


def test_a_recording_shorter_than_a_frame_is_heard(model: ToneModel, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "click.wav", np.full(7, 0.1, np.float32), SAMPLE_RATE)
    (hypothesis,) = transcribe(model, tmp_path / "click.wav")
    assert hypothesis.text == ""
    assert model.batches == [[2 * FRAME]]


# What is found, and what is not


def test_folders_are_searched_at_any_depth_in_order(record: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("b.wav", "deep/er/a.flac", "a.ogg", ".hidden/x.wav"):
        record(name, "ab")
    (tmp_path / "notes.txt").write_text("no audio")
    (found,) = find_recordings(tmp_path)
    assert [recording.name for recording in found] == ["a.ogg", "b.wav", "deep/er/a.flac"]


def test_folders_find_the_sound_of_phones_and_films_and_name_what_is_not_read(
    model: ToneModel, record: Callable[..., Path], tmp_path: Path
) -> None:
    samples = soundfile.read(record("ref.wav", "abc fed", rate=16_000), dtype="float32", always_2d=True)[0]
    for name, form, coding in (("a.m4a", "ipod", "alac"), ("b.webm", "webm", "libopus"), ("c.MOV", "mov", "pcm_s16le")):
        write_media(tmp_path / name, samples, 16_000, form=form, coding=coding, options={}, video=name == "c.MOV")
    (tmp_path / "old.avi").write_bytes(b"RIFF")
    results = list(Transcriber(model).stream(tmp_path))
    assert [result.recording.name for result in results] == ["a.m4a", "b.webm", "c.MOV", "old.avi", "ref.wav"]
    assert [result.hypothesis and result.hypothesis.text for result in results] == [*["abc fed"] * 3, None, "abc fed"]
    assert "old.avi: .avi files are not read. Convert it" in str(results[3].error)


@pytest.mark.parametrize("duration", [9.0, 31.0, 3285.0])
def test_a_manifest_that_says_more_than_there_is(
    model: ToneModel, record: Callable[..., Path], tmp_path: Path, duration: float
) -> None:
    record("short.wav", "abc fed")
    line = {"audio_filepath": "short.wav", "duration": duration, "offset": 0.2}
    (tmp_path / "set.json").write_text(json.dumps(line))
    (result,) = Transcriber(model, window=6.0).stream(tmp_path / "set.json")
    assert f"the manifest says {duration:g} s, but {tmp_path / 'short.wav'} holds 1.2" in str(result.error)


@pytest.mark.parametrize("name", ["talk.mp3", "talk.m4a", "talk.flac", "talk.wav"])
def test_a_long_recording_is_read_once_from_start_to_end(
    model: ToneModel, record: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    text = sentence(160)
    samples = soundfile.read(record("ref.wav", text), dtype="float32", always_2d=True)[0]
    path, other = record(name.replace("m4a", "flac"), text).with_name(name), record("short.wav", "abc")
    if name.endswith("m4a"):
        write_media(path, samples, SAMPLE_RATE, form="ipod", coding="alac", options={})
    opened: list[str] = []

    def counting(path: Path) -> Any:
        opened.append(path.name)
        return open_source(path)

    monkeypatch.setattr(load, "open_source", counting)
    results = list(Transcriber(model, window=6.0, overlap=2.0, batch_seconds=13.0).stream([other, path, other]))
    assert [result.hypothesis and result.hypothesis.text for result in results] == ["abc", text, "abc"]
    assert opened.count(name) == 2, "counted, and read"


def test_files_are_closed_where_nobody_waits_for_the_rest(model: ToneModel, record: Callable[..., Path]) -> None:
    path = record("talk.flac", sentence(160))
    open_files = {link.resolve() for link in Path("/proc/self/fd").iterdir()}
    results = Transcriber(model, window=6.0, overlap=2.0, batch_seconds=13.0).stream([record("a.wav", "abc"), path])
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert {link.resolve() for link in Path("/proc/self/fd").iterdir()} - open_files == set()


def test_manifest_lines_are_stretches_of_files(model: ToneModel, record: Callable[..., Path], tmp_path: Path) -> None:
    record("audio/two.wav", "abc fed")
    second = 4 * 5 * FRAME / SAMPLE_RATE
    lines = [
        {"audio_filepath": "audio/two.wav", "duration": 0.6, "text": "abc"},
        {"audio_filepath": "audio/two.wav", "duration": 0.6, "offset": second},
    ]
    manifest = tmp_path / "set.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = list(Transcriber(model).stream(manifest))
    assert [result.hypothesis and result.hypothesis.text for result in results] == ["abc", "fed"]
    assert [result.recording.text for result in results] == ["abc", None]
    assert results[0].recording.name == "audio/two.wav"


def test_what_cannot_be_read_is_reported_and_the_rest_goes_on(
    model: ToneModel, record: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "broken.wav").write_bytes(b"RIFF nonsense")
    (tmp_path / "empty").mkdir()
    paths = [tmp_path / "broken.wav", record("good.wav", "abc"), tmp_path / "missing.wav", tmp_path / "empty"]
    results = list(Transcriber(model).stream(paths))
    assert [result.hypothesis is None for result in results] == [True, False, True, True]
    assert [result.error is None for result in results] == [False, True, False, False]
    assert "broken.wav" in str(results[0].error)
    assert "holds no audio" in str(results[3].error)
    with pytest.raises(DataError, match=r"broken\.wav"):
        transcribe(model, paths)


def test_nothing_to_do_is_refused(model: ToneModel) -> None:
    with pytest.raises(UsageError, match="Nothing to transcribe"):
        transcribe(model, [])


@pytest.mark.parametrize("settings", [{"window": 5.0, "overlap": 5.0}, {"overlap": -1.0}, {"batch_seconds": 0.0}])
def test_impossible_settings_are_refused(model: ToneModel, settings: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(reversed(settings))):
        Transcriber(model, **settings)


# The model is left as it was


def test_modes_and_compute_dtype_return(model: ToneModel, record: Callable[..., Path]) -> None:
    model.train()
    path = record("a.wav", "abc")
    results = Transcriber(model, compute_dtype="bfloat16").stream([path, path])
    next(results)
    assert model.training
    assert model.compute_dtype == "float32", "a run that waits has no effect on its caller"
    results.close()
    assert model.compute_dtype == "float32"


def test_the_base_computes_again_as_before() -> None:
    """With the very copy of its weights that it had: `float32` alone does not tell that there was one."""
    model = small_model().set_compute_dtype("float32", prepared=True)
    before = model.backend
    with model.computing_in("bfloat16"):
        assert model.compute_dtype == "bfloat16"
    assert model.backend is before
    with model.computing_in("float32"):
        assert model.backend_in_use is None
        with model.computing_in(None):
            assert model.backend_in_use is None
    assert model.backend_in_use is before
    assert model.backend is before


def test_unknown_adapters_and_lists_that_do_not_fit_are_refused_before_reading(model: ToneModel) -> None:
    with pytest.raises(AdapterError, match="medical"):
        transcribe(model, "missing.wav", adapter="medical")
    with pytest.raises(UsageError, match="2 adapters for 1 paths"):
        transcribe(model, "missing.wav", adapter=[None, None])


# NeMo's models


@pytest.mark.parametrize("name", ["conformer_ctc_bpe", "conformer_ctc_char", "fastconformer_ctc_bpe"])
def test_files_read_as_nemo_reads_them(name: str) -> None:
    from overtone.checkpoints.load import load_model

    model = load_model(fixture_file(f"{name}/model.nemo"))
    texts = json.loads(fixture_file(f"{name}/ref_base.json").read_text("utf-8"))
    wavs = [fixture_file(f"wavs/w{number}.wav") for number in range(3)]
    assert [hypothesis.text for hypothesis in transcribe(model, wavs)] == texts["ctc_b"]
    assert [transcribe(model, wav)[0].text for wav in wavs] == [texts[f"ctc_{number}"][0] for number in range(3)]
    samples = torch.from_numpy(soundfile.read(wavs[1], dtype="float32")[0])[None]
    with torch.no_grad():
        log_probs, lengths = model(samples, torch.tensor([samples.shape[1]]))
    direct = greedy(log_probs, lengths, model.tokenizer, seconds_per_frame=model.seconds_per_frame)
    assert transcribe(model, wavs[1]) == direct


def forty_seconds() -> list[tuple[Path, str]]:
    """Telephone prompts one after the other, with their words."""
    folder = Path(overtone.__file__).parent / "prompts"
    chosen: list[tuple[Path, str]] = []
    seconds = 0.0
    for line in (folder / "test.jsonl").read_text("utf-8").splitlines():
        entry = json.loads(line)
        chosen.append((folder / entry["audio_filepath"], entry["text"]))
        seconds += entry["duration"] + 1 / 3
        if seconds > 40:
            break
    return chosen


def spoken_words() -> str:
    return " ".join(text for _, text in forty_seconds())


@pytest.fixture
def joined_prompts(tmp_path: Path) -> Path:
    """40 seconds of telephone prompts in one file."""
    pause = np.zeros(SAMPLE_RATE // 3, np.float32)
    parts = [part for path, _ in forty_seconds() for part in (load_audio(path), pause)]
    soundfile.write(tmp_path / "joined.wav", np.concatenate(parts), SAMPLE_RATE)
    return tmp_path / "joined.wav"


@pytest.mark.parametrize("name", ["conformer_ctc_bpe", "fastconformer_ctc_bpe"])
def test_windows_of_real_encoders_meet_frame_by_frame(name: str, joined_prompts: Path) -> None:
    from overtone.checkpoints.load import load_model

    model = load_model(fixture_file(f"{name}/model.nemo"))

    def frames(**settings: float | None) -> np.ndarray:
        """[T] which token each frame holds, -1 where none does."""
        (hypothesis,) = transcribe(model, joined_prompts, **settings)
        held = np.full(int(42 / model.seconds_per_frame), -1)
        for token, (first, last) in zip(hypothesis.ids, hypothesis.spans, strict=True):
            held[first:last] = token
        return held

    whole, windowed = frames(window=None), frames(window=15.0, overlap=4.0)
    agreement = {shift: float((whole == np.roll(windowed, shift)).mean()) for shift in (-2, -1, 0, 1, 2)}
    # The weights are random, and each window has features of its own mean: near, not equal.
    assert agreement.pop(0) > 0.75
    assert max(agreement.values()) < 0.6


def test_windows_cost_the_embedded_base_nothing(joined_prompts: Path) -> None:
    """Against the words that were said: windows as long as what the base was trained on do no worse than the whole."""
    from overtone.checkpoints.load import load_model

    model = load_model("fundamental")
    said = spoken_words()
    (whole,), (windowed,) = transcribe(model, joined_prompts, window=None), transcribe(model, joined_prompts, window=15)
    errors = {name: character_errors(said, text).rate for name, text in (("whole", whole.text), ("cut", windowed.text))}
    assert len(windowed.words) > 30
    assert errors["cut"] <= errors["whole"] + 0.02


def test_each_path_goes_through_its_own_adapters() -> None:
    from overtone.checkpoints.load import load_model

    model = load_model(fixture_file("conformer_ctc_bpe/adapted.nemo"))
    wav = fixture_file("wavs/w2.wav")
    choices = [None, "an4", "an4+two", "an4"]
    expected = [
        json.loads(fixture_file(f"conformer_ctc_bpe/ref_{combo}.json").read_text("utf-8"))["ctc_2"][0]
        for combo in ("base", "an4", "an4+two", "an4")
    ]
    assert [hypothesis.text for hypothesis in transcribe(model, [wav] * 4, adapter=choices)] == expected
    assert transcribe(model, wav, adapter="an4+two")[0].text == expected[2]

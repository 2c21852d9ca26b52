"""Streams: chunks on one grid, utterances and their times, endpointing, features beside the offline ones."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from overtone.decoding.decoder import DecodingOptions
from overtone.decoding.phrase_boost import Boost, BoostTree
from overtone.errors import UsageError
from overtone.serving.adapter_store.store import Lease
from overtone.serving.engine.engine import Engine, EngineSettings
from overtone.serving.errors import OverloadError, WorkerError
from overtone.serving.recognition.request import Endpointing
from overtone.serving.streaming.stream import Event, Final, Interim, Stream, StreamSettings
from support.serving_models import noise, offline, tiny_model
from support.step_head import StepHead
from support.streams import finals, frames_of, run, stream_all
from support.tone_model import FRAME, SAMPLE_RATE, ToneModel, spoken

CONTEXTS = [(0.8, 1.6, 1.6), (0.16, 1.92, 1.92), (0.04, 0.0, 0.0), (2.0, 0.0, 0.4)]


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * SAMPLE_RATE), dtype=np.float32)


def tone_settings(context: tuple[float, float, float] = CONTEXTS[0], **options: Any) -> StreamSettings:
    chunk, left, right = context
    return StreamSettings(chunk=chunk, left=left, right=right, normalisation="buffer", **options)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """A model that hears each frame alone: streaming must give what hearing the whole gives, frame for frame."""
    with Engine(ToneModel(), EngineSettings(max_wait=0.0)) as engine:  # type: ignore[arg-type]
        yield engine


# One grid


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("portion", [1600, 640, 7777, 10**9])
def test_frames_and_times_are_those_of_the_whole(engine: Engine, context: Any, portion: int) -> None:
    waveform = np.concatenate((silence(0.52), spoken("abc bad cafe"), silence(0.4), spoken("deed fed")))
    settings = tone_settings(context, endpointing=Endpointing(stop_history=0))
    (final,) = finals(stream_all(Stream(engine, settings=settings), waveform, portion))
    decoder = engine.model.head.decoder()
    decoder.push(offline(engine.model, waveform))
    (whole,) = decoder.hypotheses()
    assert final.text == whole.text
    assert [replace(word, confidence=0.0) for word in final.words] == [
        replace(word, confidence=0.0) for word in whole.words
    ]
    assert [word.confidence for word in final.words] == pytest.approx([word.confidence for word in whole.words])
    assert (final.start, final.end) == (whole.words[0].start, whole.words[-1].end)
    assert final.words[0].start == pytest.approx(0.52)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_every_frame_is_decoded_once_whatever_the_portions(engine: Engine, seed: int) -> None:
    generator = np.random.default_rng(seed)
    letters = "".join(generator.choice(list("abcdefgh"), size=40))
    waveform = np.concatenate((spoken(letters), silence(generator.uniform(0, 0.03))))
    context = (0.04 * generator.integers(1, 30), 0.04 * generator.integers(0, 50), 0.04 * generator.integers(0, 50))
    stream = Stream(engine, settings=tone_settings(context, endpointing=Endpointing(stop_history=0)))
    events: list[Event] = []
    position = 0
    while position < waveform.size:
        step = int(generator.integers(1, 20_000))
        events += run(stream.push(waveform[position : position + step]))
        position += step
    assert [final.text for final in finals(events + run(stream.finish()))] == [letters]


def test_the_buffers_are_as_long_as_asked_and_lie_on_whole_frames(engine: Engine) -> None:
    model = engine.model
    model.batches.clear()  # type: ignore[operator, union-attr]
    stream_all(Stream(engine, settings=tone_settings(interim=False)), noise(8.0))
    heard: list[int] = list(itertools.chain(*model.batches))  # type: ignore[arg-type]
    # 0.8 + 1.6; then with more and more on the left; 1.6 + 0.8 + 1.6; what is left.
    assert heard == [38_400, 51_200, *[64_000] * 6, 51_200]
    assert all(length % FRAME == 0 for length in heard)


# Utterances


def test_a_pause_ends_an_utterance_and_times_go_on(engine: Engine) -> None:
    waveform = np.concatenate((spoken("abba"), silence(1.2), spoken("bad bed"), silence(3.0), spoken("fed")))
    events = stream_all(Stream(engine, settings=tone_settings()), waveform)
    assert [final.text for final in finals(events)] == ["abba", "bad bed", "fed"]
    first, second, third = finals(events)
    assert first.start == 0.0
    assert second.words[0].start == pytest.approx(0.8 + 1.2)
    assert third.start == pytest.approx(0.8 + 1.2 + 1.4 + 3.0)
    assert first.audio_processed < second.audio_processed < third.audio_processed
    assert third.audio_processed == pytest.approx(waveform.size / SAMPLE_RATE, abs=0.001)
    assert all(0.5 < final.confidence <= 1.0 for final in finals(events))


def test_interim_results_grow_and_come_before_the_right_context(engine: Engine) -> None:
    waveform = np.concatenate((spoken("abc bad cafe deed fed"), silence(2.0)))
    stream = Stream(engine, settings=tone_settings())
    first: list[Event] = []
    heard = 0
    while not first:
        first = run(stream.push(waveform[heard : heard + 3200]))
        heard += 3200
    assert heard / SAMPLE_RATE == pytest.approx(0.8)  # one chunk, not chunk and right context
    rest = [*first, *run(stream.push(waveform[heard:])), *run(stream.finish())]
    texts = [event.text for event in rest if isinstance(event, Interim)]
    assert texts
    assert all("abc bad cafe deed fed".startswith(text.strip()[:-1]) for text in texts)
    assert all(0.0 <= event.stability <= 0.9 for event in rest if isinstance(event, Interim))
    assert [final.text for final in finals(rest)] == ["abc bad cafe deed fed"]
    silent = stream_all(Stream(engine, settings=tone_settings(interim=False)), waveform)
    assert [type(event) for event in silent] == [Final]


def test_silence_says_nothing(engine: Engine) -> None:
    assert stream_all(Stream(engine, settings=tone_settings()), silence(6.0)) == []
    assert stream_all(Stream(engine, settings=tone_settings()), silence(0.0)) == []
    assert stream_all(Stream(engine, settings=tone_settings()), silence(0.001)) == []


def test_an_utterance_is_ended_when_asked(engine: Engine) -> None:
    stream = Stream(engine, settings=tone_settings())
    forced = run(stream.push(spoken("abba"), force_eou=True))
    assert [final.text for final in finals(forced)] == ["abba"]
    assert finals(run(stream.push(silence(0.0), force_eou=True))) == []
    rest = run(stream.push(spoken("cafe"))) + run(stream.finish())
    assert [(final.text, final.start) for final in finals(rest)] == [("cafe", pytest.approx(0.8))]


@pytest.mark.parametrize("chunk", [0.8, 0.2, 4.0])
def test_an_endless_utterance_is_cut_between_words(engine: Engine, chunk: float) -> None:
    """Letters are a frame apart, words ten."""
    waveform = np.concatenate([spoken("abcde"), silence(0.36)] * 30)
    events = stream_all(Stream(engine, settings=tone_settings((chunk, 1.6, 1.6), max_utterance=8.0)), waveform)
    texts = [final.text for final in finals(events)]
    assert all(text == "abcde" * (len(text) // 5) for text in texts)
    assert "".join(texts) == "abcde" * 30
    assert len(texts) >= 5
    assert all(final.end - final.start <= 8.0 + chunk for final in finals(events))


def test_without_words_an_endless_utterance_is_cut_between_letters(engine: Engine) -> None:
    text = "abcde" * 40
    events = stream_all(Stream(engine, settings=tone_settings(max_utterance=8.0)), spoken(text))
    assert "".join(final.text for final in finals(events)) == text
    assert len(finals(events)) >= 5


def test_what_follows_a_cut_ends_in_the_next_silence(engine: Engine) -> None:
    """The last letter ends with the chunk, in which the utterance is cut before it."""
    parts = (silence(0.04), spoken("a" * 44), silence(1.2), spoken("fed"), silence(1.2), spoken("bad"))
    waveform = np.concatenate(parts)
    events = stream_all(Stream(engine, settings=tone_settings(max_utterance=8.0)), waveform)
    assert [final.text for final in finals(events)][-2:] == ["fed", "bad"]


def test_boosts_and_alternatives_in_a_stream(engine: Engine) -> None:
    boosts = BoostTree([Boost(phrases=("bad",), boost=5.0)], engine.model.tokenizer)
    waveform = np.concatenate((spoken("bad bed"), silence(1.0), spoken("abba")))
    decoding = DecodingOptions(boosts=boosts, alternatives=3)
    events = stream_all(Stream(engine, settings=tone_settings(), decoding=decoding), waveform)
    plain = stream_all(Stream(engine, settings=tone_settings()), waveform)
    assert [final.text for final in finals(events)] == ["bad bed", "abba"]
    assert [word.start for final in finals(events) for word in final.words] == [
        word.start for final in finals(plain) for word in final.words
    ]
    assert all(1 <= len(final.alternatives) <= 3 for final in finals(events))
    assert all(final.alternatives[0].text == final.text for final in finals(events))


def test_the_early_end_is_an_interim_of_full_stability(engine: Engine) -> None:
    endpointing = Endpointing(stop_history_eou=240)
    waveform = np.concatenate((spoken("abba"), silence(4.0)))
    events = stream_all(Stream(engine, settings=tone_settings((0.16, 0.4, 0.0), endpointing=endpointing)), waveform)
    sure = [event for event in events if isinstance(event, Interim) and event.stability == 1.0]
    assert [event.text for event in sure] == ["abba"]
    assert events.index(sure[0]) < events.index(finals(events)[0])


# A real encoder


def test_memory_does_not_grow_with_the_stream() -> None:
    model = tiny_model()
    settings = StreamSettings(max_utterance=4.0, endpointing=Endpointing(stop_history=0))
    with Engine(model, EngineSettings(max_wait=0.0)) as engine, Stream(engine, settings=settings) as stream:
        for seed in range(40):
            run(stream.push(noise(1.0, seed=seed)))
            assert stream._features is not None
            assert stream._features._samples.size < 20 * SAMPLE_RATE // 10
            assert stream._features._mel.shape[1] < 1000


@pytest.mark.parametrize("portion", [1600, 16_000, 10**9])
def test_with_all_the_context_a_stream_is_the_recording(portion: int) -> None:
    """A real encoder: with everything on the right, the frames are the offline ones."""
    model = tiny_model()
    waveform = noise(6.0, seed=5)
    with Engine(model, EngineSettings(max_wait=0.0)) as engine:
        settings = StreamSettings(chunk=0.8, left=30.0, right=30.0, interim=False)
        heard = frames_of(Stream(engine, settings=settings), waveform, portion)
    np.testing.assert_allclose(heard, offline(model, waveform), atol=5e-3)


def test_portions_do_not_change_what_a_real_encoder_hears() -> None:
    model = tiny_model()
    waveform = noise(7.3, seed=6)
    with Engine(model, EngineSettings(max_wait=0.0)) as engine:
        settings = StreamSettings(interim=False)
        heard = [frames_of(Stream(engine, settings=settings), waveform, portion) for portion in (1600, 5000, 10**9)]
    assert len(heard[0]) == len(offline(model, waveform))
    for other in heard[1:]:
        np.testing.assert_allclose(other, heard[0], atol=1e-4)


# Many streams, failures


def test_many_streams_share_batches_and_each_hears_itself() -> None:
    model = ToneModel()
    texts = ["abc bad", "cafe deed", "hage fed", "abba bed", "dach", "gabe", "beef", "head"]
    found: dict[str, list[str]] = {}
    with Engine(model, EngineSettings(max_wait=0.02)) as engine:  # type: ignore[arg-type]

        def client(text: str) -> None:
            events = stream_all(Stream(engine, settings=tone_settings()), spoken(text), 12_800)
            found[text] = [final.text for final in finals(events)]

        threads = [threading.Thread(target=client, args=(text,)) for text in texts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert found == {text: [text] for text in texts}
        assert engine.state().batches < engine.state().rows


def test_streams_in_an_event_loop_and_clients_that_vanish() -> None:
    released: list[str] = []

    class Held:
        """A lease that tells when it is released."""

        names, digests, choice = (), (), None

        def __init__(self, name: str) -> None:
            self.name = name

        def release(self) -> None:
            released.append(self.name)

    async def client(engine: Engine, text: str, *, vanishes: bool) -> list[str]:
        lease: Lease = Held(text)  # type: ignore[assignment]
        with Stream(engine, lease, settings=tone_settings()) as stream:
            events = await stream.push(spoken(text))
            if vanishes:
                task = asyncio.ensure_future(stream.push(spoken(text * 50)))
                await asyncio.sleep(0.01)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                return []
            events += await stream.finish()
            return [final.text for final in finals(events)]

    async def everybody() -> list[list[str]]:
        with Engine(ToneModel(), EngineSettings(max_wait=0.01)) as engine:  # type: ignore[arg-type]
            texts = ["abba", "cafe", "bad", "bed", "head", "fed"]
            clients = [client(engine, text, vanishes=index % 2 == 1) for index, text in enumerate(texts)]
            answers = await asyncio.gather(*clients)
            await asyncio.sleep(0.1)
            assert engine.state().waiting == 0
            return list(answers)

    assert asyncio.run(everybody()) == [["abba"], [], ["bad"], [], ["head"], []]
    assert {*released} == {"abba", "cafe", "bad", "bed", "head", "fed"}


def test_a_stream_that_failed_is_over(engine: Engine) -> None:
    model = ToneModel()

    def fail(waveforms: torch.Tensor, lengths: torch.Tensor) -> Any:
        raise ValueError("broken")

    model.forward = fail  # type: ignore[method-assign]
    with Engine(model) as broken:  # type: ignore[arg-type]
        stream = Stream(broken, settings=tone_settings())
        with pytest.raises(WorkerError, match="broken"):
            run(stream.push(spoken("abc bad cafe")))
        with pytest.raises(UsageError, match="over"):
            run(stream.push(spoken("abc")))


def test_a_stream_that_has_begun_waits_for_a_place_and_one_that_begins_does_not(engine: Engine) -> None:
    refusals = [0]
    submit = engine.submit

    def full(*arguments: Any, **options: Any) -> Any:
        if refusals[0]:
            refusals[0] -= 1
            raise OverloadError("full")
        return submit(*arguments, **options)

    engine.submit = full  # type: ignore[method-assign]
    try:
        stream = Stream(engine, settings=tone_settings())
        run(stream.push(spoken("abba cafe")))
        refusals[0] = 3
        events = run(stream.push(spoken(" bad bed"))) + run(stream.finish())
        assert refusals[0] == 0
        assert finals(events)[-1].text == "abba cafe bad bed"
        refusals[0] = 1
        with pytest.raises(OverloadError):
            run(Stream(engine, settings=tone_settings()).push(spoken("abba cafe")))
    finally:
        del engine.submit  # type: ignore[method-assign]


@pytest.mark.parametrize("wrong", [{"chunk": 0.0}, {"left": -1.0}, {"right": 100.0}, {"chunk": float("nan")}])
def test_settings_that_do_not_fit_are_refused(engine: Engine, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Stream(engine, settings=StreamSettings(**{"normalisation": "buffer", **wrong}))


# Another head


class StepToneModel(ToneModel):
    """The tones again, by a head whose emissions are no log-probabilities and whose decoder has a state."""

    def __init__(self) -> None:
        super().__init__()
        self.head = StepHead(self.tokenizer, seconds_per_frame=self.seconds_per_frame)  # type: ignore[assignment]

    def forward(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """waveforms [B, S], lengths [B] -> scores of silence, of the letters, and a level, [B, T, V+2]; lengths [B]."""
        log_probs, frames = super().forward(waveforms, lengths)
        silence_first = log_probs.roll(1, dims=-1)
        return torch.cat((silence_first, log_probs.sum(dim=-1, keepdim=True)), dim=-1), frames


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("portion", [640, 7777])
def test_a_stream_is_decoded_by_the_head_that_the_model_has(context: Any, portion: int) -> None:
    pause = silence(1.4)
    waveform = np.concatenate((silence(0.52), spoken("abc bad"), pause, spoken("deed"), pause))
    with Engine(StepToneModel(), EngineSettings(max_wait=0.0)) as engine:  # type: ignore[arg-type]
        events = stream_all(Stream(engine, settings=tone_settings(context)), waveform, portion)
    assert [final.text.strip() for final in finals(events)] == ["abc bad", "deed"]
    starts = [final.start for final in finals(events)]
    assert starts == pytest.approx([0.52, 0.52 + (spoken("abc bad").size + pause.size) / SAMPLE_RATE], abs=0.05)

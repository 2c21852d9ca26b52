"""Final results of streams: the utterance heard once more as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from overtone.serving.engine.engine import Engine, EngineSettings
from overtone.serving.errors import OverloadError
from overtone.serving.recognition.offline import recognise
from overtone.serving.recognition.request import Endpointing
from overtone.serving.streaming.stream import Event, Final, Interim, Stream, StreamSettings
from support.serving_models import noise, tiny_model
from support.streams import finals, run, stream_all
from support.tone_model import SAMPLE_RATE, ToneModel, spoken

ONE = Endpointing(stop_history=0)
"""One utterance a stream."""


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """A real encoder with random weights, sure enough of itself that rounding changes no letter."""
    model = tiny_model(seed=3)
    model.decoder.projection.weight.data.mul_(8.0)
    with Engine(model, EngineSettings(max_wait=0.0)) as engine:
        yield engine


@pytest.fixture(scope="module")
def tones() -> Iterator[Engine]:
    with Engine(ToneModel(), EngineSettings(max_wait=0.0)) as engine:  # type: ignore[arg-type]
        yield engine


def heard(engine: Engine, waveform: np.ndarray, portion: int = 3200, **options: Any) -> list[Event]:
    return stream_all(Stream(engine, settings=StreamSettings(**{"endpointing": ONE, **options})), waveform, portion)


@pytest.mark.parametrize("context", [(0.8, 1.6, 1.6), (0.16, 0.4, 0.4)])
@pytest.mark.parametrize("interim", [True, False])
@pytest.mark.parametrize("normalisation", ["running", "buffer"])
def test_a_stream_of_one_utterance_ends_with_what_the_whole_recording_gives(
    engine: Engine, context: tuple[float, float, float], interim: bool, normalisation: Any
) -> None:
    chunk, left, right = context
    waveform = noise(9.3, seed=5)
    (whole,) = run(recognise(engine, waveform)).hypotheses
    options = {"chunk": chunk, "left": left, "right": right, "interim": interim, "normalisation": normalisation}
    (final,) = finals(heard(engine, waveform, **options))
    assert len(whole.text) > 20
    assert final.text == whole.text
    assert [(word.start, word.end) for word in final.words] == [(word.start, word.end) for word in whole.words]
    (by_chunks,) = finals(heard(engine, waveform, **options, finals="chunks"))
    assert by_chunks.text != whole.text


@pytest.mark.parametrize("interim", [True, False])
def test_how_the_audio_comes_changes_no_final_result(engine: Engine, interim: bool) -> None:
    """Also where steps of the audio after an utterance are in the queue before it is heard again."""
    waveform = np.concatenate([noise(4.0, seed=1), np.zeros(2 * SAMPLE_RATE, dtype=np.float32), noise(5.0, seed=2)])
    texts = [
        [final.text for final in finals(heard(engine, waveform, portion, interim=interim, max_utterance=3.0))]
        for portion in (1600, 16_000, 10**9)
    ]
    assert len(texts[0]) > 2
    assert texts[1] == texts[0]
    assert texts[2] == texts[0]


@pytest.mark.parametrize("normalisation", ["running", "buffer"])
def test_a_full_queue_costs_time_and_no_words(engine: Engine, normalisation: Any) -> None:
    waveform = noise(9.3, seed=5)
    expected = [final.text for final in finals(heard(engine, waveform, normalisation=normalisation, finals="chunks"))]
    originals = {name: getattr(engine, name) for name in ("submit", "submit_features")}
    calls = [0]

    def full_every_second_time(submit: Any) -> Any:
        def place(*arguments: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] % 2 == 0:
                raise OverloadError("full")
            return submit(*arguments, **options)

        return place

    for name, submit in originals.items():
        setattr(engine, name, full_every_second_time(submit))
    try:
        found = [final.text for final in finals(heard(engine, waveform, normalisation=normalisation, finals="chunks"))]
    finally:
        for name in originals:
            delattr(engine, name)
    assert calls[0] > 10
    assert found == expected


def test_an_utterance_of_several_windows(tones: Engine) -> None:
    """Longer than a window of 30 s, and not at the beginning of the stream."""
    text = "abc bad cafe deed fed " * 14 + "abba"
    silence = np.zeros(round(5.2 * SAMPLE_RATE), dtype=np.float32)
    waveform = np.concatenate([spoken("abba"), silence, spoken(text)])
    first, second = finals(
        heard(tones, waveform, normalisation="buffer", endpointing=Endpointing(), max_utterance=120.0)
    )
    assert (first.text, second.text) == ("abba", text)
    assert second.start == pytest.approx(0.8 + 5.2)
    model = tones.model
    assert max(max(batch) for batch in model.batches) <= 30 * SAMPLE_RATE  # type: ignore[operator, union-attr]


@pytest.mark.parametrize("context", [(0.8, 25.0, 1.6), (0.8, 1.6, 25.0)])
def test_context_longer_than_windows_overlap_is_not_decoded(tones: Engine, context: tuple[float, float, float]) -> None:
    chunk, left, right = context
    silence = np.zeros(round(1.2 * SAMPLE_RATE), dtype=np.float32)
    texts = ["abc bad cafe deed fed " * 2 + "abba", "deed", "fed bad " * 8 + "cab", "head", "bee " * 9 + "bed"]
    waveform = np.concatenate([part for text in texts for part in (spoken(text), silence)])
    options = {"chunk": chunk, "left": left, "right": right, "normalisation": "buffer", "endpointing": Endpointing()}
    assert [final.text for final in finals(heard(tones, waveform, 10**9, **options))] == texts


def test_where_the_whole_has_no_words_its_chunks_have_the_last_say() -> None:
    model = ToneModel()
    forward = model.forward

    def deaf(waveforms: torch.Tensor, lengths: torch.Tensor) -> Any:
        """Hears nothing in what is longer than a step."""
        return forward(waveforms * (lengths <= 4 * SAMPLE_RATE)[:, None], lengths)

    model.forward = deaf  # type: ignore[method-assign]
    with Engine(model, EngineSettings(max_wait=0.0)) as engine:  # type: ignore[arg-type]
        text = "abc bad cafe deed fed abba"
        assert [final.text for final in finals(heard(engine, spoken(text), normalisation="buffer"))] == [text]


def test_what_a_step_has_heard_whole_is_not_heard_again(tones: Engine) -> None:
    batches: list[list[int]] = tones.model.batches  # type: ignore[assignment]
    batches.clear()
    heard(tones, spoken("abc bad cafe"), 10**9, normalisation="buffer", interim=False)
    with_second_pass = list(batches)
    batches.clear()
    heard(tones, spoken("abc bad cafe"), 10**9, normalisation="buffer", interim=False, finals="chunks")
    assert with_second_pass == batches


def test_interim_results_do_not_wait_for_it(tones: Engine) -> None:
    """They are told from chunks before the utterance has ended."""
    events = heard(tones, spoken("abc bad cafe deed fed " * 3), normalisation="buffer")
    assert [type(event) for event in events[:5]] == [Interim] * 5
    assert isinstance(events[-1], Final)

"""Words of adapters at the server: in recordings and in streams, and adapters of the store that have words alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from overtone.adapters.words import WordPart
from overtone.decoding.ngram_counts import build_ngram
from overtone.decoding.phrase_boost import Boost
from overtone.serving.engine.engine import Engine, EngineSettings
from overtone.serving.recognition.offline import recognise
from overtone.serving.streaming.stream import Interim, Stream, StreamSettings
from overtone.tokenizers import Tokenizer
from support.serving_models import noise, store_of, tiny_model
from support.streams import finals, run, stream_all
from support.tone_model import ToneModel, spoken


class Held:
    """A lease on an adapter of the model."""

    def __init__(self, choice: str | None) -> None:
        self.choice = choice
        self.names = () if choice is None else (choice,)
        self.digests = ()

    def release(self) -> None:
        """Nothing is held."""


def words_of(tokenizer: Tokenizer, texts: list[str]) -> WordPart:
    ngram = build_ngram([tokenizer.encode(text) for text in texts], vocabulary_size=tokenizer.size, order=3)
    boosts = (Boost(phrases=(texts[0],), boost=10.0),)
    return WordPart(tokenizer_digest=tokenizer.digest(), ngram=ngram, weight=1.0, boosts=boosts)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    model = ToneModel()
    model.adapters.add_words("cabs", words_of(model.tokenizer, ["cab had a cab", "bad cab"] * 5))
    with Engine(model, EngineSettings(max_wait=0.0)) as engine:  # type: ignore[arg-type]
        yield engine


UNCLEAR = (0.52 * spoken("dab had ") + 0.48 * spoken("cab had ")).astype(np.float32)


@pytest.mark.parametrize(("choice", "expected"), [(None, "dab had"), ("cabs", "cab had")])
def test_recordings_are_decoded_with_the_words_of_their_adapter(engine: Engine, choice: str, expected: str) -> None:
    found = run(recognise(engine, UNCLEAR, lease=Held(choice)))  # type: ignore[arg-type]
    assert found.hypotheses[0].text.strip() == expected


def test_streams_have_words_of_their_own_and_what_is_known_stays(engine: Engine) -> None:
    waveform = np.tile(UNCLEAR, 3)
    settings = StreamSettings(chunk=0.4, left=0.8, right=0.4, normalisation="buffer")
    for choice, word in ((None, "dab"), ("cabs", "cab")):
        stream = Stream(engine, Held(choice), settings=settings)  # type: ignore[arg-type]
        events = stream_all(stream, waveform, 6400)
        (final,) = finals(events)
        assert final.text.split() == [word, "had"] * 3
        interim = [event for event in events if isinstance(event, Interim)]
        assert any(event.known for event in interim)
        for event in interim:
            known = [each.text for each in event.words[: event.known]]
            assert known == final.text.split()[: event.known]


def test_an_adapter_of_words_alone_is_served_from_a_folder(tmp_path: Path) -> None:
    model = tiny_model()
    model.adapters.add_words("notes", words_of(model.tokenizer, ["the old man", "an old hat"]))
    model.adapters.save("notes", tmp_path / "notes")
    model.adapters.remove("notes")
    store = store_of(model, tmp_path)
    with Engine(model) as engine, store.acquire("notes") as lease:
        found = [run(recognise(engine, noise(2.0), lease=each)) for each in (None, lease)]
    assert found[0].hypotheses[0].text != found[1].hypotheses[0].text

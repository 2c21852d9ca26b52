"""Transcription with words: n-grams and phrases of adapters, row by row and window by window, and those of a caller."""

from __future__ import annotations

import re

import numpy as np
import pytest

from overtone.adapters.words import WordPart
from overtone.decoding.ngram_counts import build_ngram
from overtone.decoding.phrase_boost import Boost
from overtone.errors import UsageError
from overtone.inference.transcribe import Transcriber, transcribe
from support.tone_model import ToneModel, spoken


def words_of(texts: list[str], *, weight: float = 1.0, phrases: tuple[str, ...] = ()) -> WordPart:
    tokenizer = ToneModel().tokenizer
    ngram = build_ngram([tokenizer.encode(text) for text in texts], vocabulary_size=tokenizer.size, order=3)
    boosts = (Boost(phrases=phrases, boost=50.0),) if phrases else ()
    return WordPart(tokenizer_digest=tokenizer.digest(), ngram=ngram, weight=weight, boosts=boosts)


def unclear(text: str, rival: str, share: float = 0.48) -> np.ndarray:
    """[S] float32: the text, with another one a little more quietly at the same time."""
    return ((1 - share) * spoken(text) + share * spoken(rival)).astype(np.float32)


def test_rows_are_decoded_with_the_words_of_their_adapters() -> None:
    model = ToneModel()
    model.adapters.add_words("cabs", words_of(["cab had a cab", "bad cab"] * 5))
    audio = (unclear("dab had", "cab had"), 16_000)
    transcriber = Transcriber(model)
    base, cabs, both, again = transcriber.stream([audio] * 4, adapter=[None, "cabs", "cabs", None])
    assert [each.hypothesis.text for each in (base, cabs, both, again)] == ["dab had", "cab had", "cab had", "dab had"]
    assert base.hypothesis == again.hypothesis == Transcriber(model).transcribe([audio])[0]
    assert [(word.start, word.end) for word in cabs.hypothesis.words] == [
        (word.start, word.end) for word in base.hypothesis.words
    ]
    assert cabs.hypothesis.words[0].confidence < 0.5 < base.hypothesis.words[0].confidence


def test_words_act_in_every_window_and_alternatives_are_ranked() -> None:
    model = ToneModel()
    model.adapters.add_words("cabs", words_of(["cab had a cab", "bad cab"] * 5))
    audio = (np.concatenate([unclear("dab had ", "cab had ")] * 6), 16_000)
    for window in (None, 4.0):
        (result,) = Transcriber(model, window=window, overlap=1.0, alternatives=4).stream([audio], adapter="cabs")
        texts = [each.text for each in result.alternatives]
        assert texts[0] == result.hypothesis.text
        assert texts[0].split() == ["cab", "had"] * 6
        assert len(texts) == len(set(texts)) == 4
    assert not next(Transcriber(model).stream([audio], adapter="cabs")).alternatives


def test_phrases_and_beams_are_asked_for() -> None:
    model = ToneModel()
    audio = (unclear("dab had", "cab had", share=0.495), 16_000)
    assert Transcriber(model, beam=4).transcribe([audio])[0].text == "dab had"
    assert Transcriber(model, phrases={"cab": 20.0}).transcribe([audio])[0].text == "cab had"
    assert transcribe(model, [audio], phrases=["cab"], beam=4)[0].text == "cab had"
    for options, message in (
        ({"beam": 0}, "beam is 0; 1 to 256"),
        ({"alternatives": 0}, "alternatives is 0; 1 to 64"),
        ({"phrases": ["cab", "naïve"]}, "1 of 2 phrases cannot be written"),
        ({"phrases": {"cab": 101.0}}, "The boost of 'cab' is 101.0"),
        ({"phrases": "cab"}, "a list of phrases is needed"),
    ):
        with pytest.raises(UsageError, match=re.escape(message)):
            Transcriber(model, **options)

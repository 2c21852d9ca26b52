"""What an acoustic part is judged with, where general speech takes some of the words' weight."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from overtone.inference.retention import Retention, Strength, weaken
from overtone.learning import acoustic, training
from overtone.learning.corrections import Correction
from overtone.learning.learn import Learner
from overtone.learning.state import LearnSettings
from overtone.wer import ErrorCounts
from support.small_models import small_model
from support.train_samples import write_corpus


def correction(text: str) -> Correction:
    noise = np.random.default_rng(zlib.crc32(text.encode())).integers(-3000, 3000, 24_000)
    return Correction(text=text, samples=noise.astype(np.int16))


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_the_acoustic_part_is_judged_with_the_words_that_will_act(
    share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = ErrorCounts(substitutions=1, deletions=0, insertions=0, hits=9)
    given: list[Any] = []
    judged: list[Any] = []

    def choose(model: Any, adapter: Any, part: Any, **_: Any) -> Retention:
        given.append(part)
        own = Strength(scale=1.0, share=share, part=weaken(part, share), general=counts, domain=counts)
        return Retention(kappa=0.5, base=counts, whole=own, chosen=own)

    def count(model: Any, heard: Any, part: Any, **_: Any) -> ErrorCounts:
        judged.append(part)
        return counts

    monkeypatch.setattr(acoustic, "LEAST_HELD_OUT_WORDS", 1)
    learner = Learner(model=small_model(), folder=tmp_path / "mine", say=lambda _: None)
    texts = (f"word {first} of {second}" for first in "abcde" for second in "klmn")
    words = learner.add([correction(text) for text in texts], LearnSettings())
    assert words is not None
    before = learner.words_of(words)
    assert before is not None
    monkeypatch.setattr(training, "choose_strength", choose)
    monkeypatch.setattr(training, "count_errors", count)
    general = write_corpus(tmp_path, count=2, name="general")
    (made,) = training.AcousticLearner(learner, LearnSettings(steps=1, general=(str(general),))).learn()
    (blind,) = given
    assert blind.digest() != before.digest(), "it does not know what is held out"
    now = learner.words_of(made)
    assert [own and own.weight for own in judged] == [blind.weight, blind.weight * share if share else None]
    assert (now and now.weight) == (pytest.approx(before.weight * share) if share else None)

"""The word part that learns: what corrections add to the origin's, and the general prior that stays mixed in."""

from __future__ import annotations

from pathlib import Path

import pytest

from overtone.adapters.prior import Prior
from overtone.adapters.word_text import make_words
from overtone.decoding.ngram_counts import build_ngram
from overtone.errors import AdapterError
from overtone.learning.corrections import Learnt
from overtone.learning.words import grow_part, without_held_out
from support.small_models import small_model


def test_a_part_that_is_mixed_with_the_general_prior_stays_so() -> None:
    model = small_model()
    tokenizer = model.tokenizer
    general = build_ngram([tokenizer.encode("hold the line")], vocabulary_size=tokenizer.size, order=3)
    prior = Prior(tokenizer_digest=tokenizer.digest(), digest="sha256:", ngram=general, weight=0.7, token_bonus=2.0)
    origin = make_words(tokenizer, sequences=[tokenizer.encode("press the key")], prior=prior, prior_share=0.4)
    grown = grow_part(model, origin, (), origin.weighted(0.9, 1.5, prior_share=0.3))
    assert (grown.prior, grown.prior_share, grown.weight, grown.token_bonus) == (prior, 0.3, 0.9, 1.5)
    alone = grow_part(model, origin, (), None)
    assert (alone.prior, alone.prior_share) == (None, 0.0)


def test_without_origin_and_corrections_there_is_no_part() -> None:
    with pytest.raises(AdapterError):
        grow_part(small_model(), None, (), None)


def test_a_text_that_is_held_out_is_not_counted_from_elsewhere() -> None:
    """Not without a recording, nor where the recording is not kept any more."""
    own, text = None, ""
    for count in range(100):
        text = "press " * count + "one"
        own = Learnt(id="a", key="a", text=text, language=None, audio=Path("x"), seconds=1.0)
        if own.is_held_out:
            break
    assert own is not None
    alone = Learnt(id="b", key="b", text=text, language=None, audio=None, seconds=0.0)
    other = Learnt(id="c", key="c", text="hold on", language=None, audio=None, seconds=0.0)
    assert without_held_out([alone, other], [own, alone, other]) == [other]
    assert without_held_out([alone, other], [alone, other]) == [alone, other], "nothing is judged by it"

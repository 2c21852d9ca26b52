"""Pieces of OpenAI's JSON that its HTTP and its realtime interface share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from overtone.decoding.hypothesis import Word

LEAST_PROBABILITY = 1e-6


def word_logprobs(words: Sequence[Word], mask: Callable[[str], str]) -> list[dict[str, Any]]:
    """`logprobs` of words, with OpenAI's fields of tokens: the logarithm of each word's probability.

    mask: of the words' texts. The tokens together are the text.
    """
    found = []
    for index, word in enumerate(words):
        text = f"{' ' if index else ''}{mask(word.text)}"
        logprob = round(word_logarithm(word), 4)
        found.append({"token": text, "bytes": list(text.encode()), "logprob": logprob})
    return found


def word_logarithm(word: Word) -> float:
    """Logarithm of a word's probability, never infinite."""
    return math.log(max(word.confidence, LEAST_PROBABILITY))

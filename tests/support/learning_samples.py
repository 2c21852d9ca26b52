"""Corrections with recordings of noise, held out or not, and judgements of them."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from overtone.learning import learn as words_module
from overtone.learning import training as learning
from overtone.learning.corrections import Correction, Learnt
from overtone.learning.state import LearnSettings
from overtone.wer import ErrorCounts

SHORT = LearnSettings(steps=2)


def correction(text: str, seconds: float = 1.5) -> Correction:
    noise = np.random.default_rng(zlib.crc32(text.encode())).integers(-3000, 3000, round(seconds * 16_000))
    return Correction(text=text, samples=noise.astype(np.int16))


def held_out(text: str) -> bool:
    return Learnt(id="", key="", text=text, language=None, audio=Path("x"), seconds=1.0).is_held_out


def some(count: int, held: bool, word: str = "word") -> list[Correction]:
    """Corrections that are held out, or are not."""
    texts = (f"{word} {'abcdefghij'[place % 10]} {'klmnopqrst'[place // 10]} of ten" for place in range(100))
    return [correction(text) for text in texts if held_out(text) is held][:count]


def judge_with(monkeypatch: pytest.MonkeyPatch, *errors: int) -> None:
    """Have the errors on held-out corrections be these, in turn."""
    left = list(errors)

    def count(*_: Any, **__: Any) -> ErrorCounts:
        return ErrorCounts(substitutions=left.pop(0), deletions=0, insertions=0, hits=20)

    for module in (learning, words_module):
        monkeypatch.setattr(module, "count_errors", count)

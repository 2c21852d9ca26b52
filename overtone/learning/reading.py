"""Corrections as somebody hands them in: checked before anything is written, in the model's letters and at its rate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from overtone.adapters.word_text import Policy, leave_out, write_tokens
from overtone.data.dataset import read_utterance
from overtone.data.manifest import Utterance, read_texts
from overtone.data.vocabulary import check_languages
from overtone.decoding.phrase_boost import spellings
from overtone.errors import DataError
from overtone.learning.corrections import Correction, Learnt
from overtone.models.asr_model import AsrModel
from overtone.models.vocabulary import tokenizer_of
from overtone.tokenizers import Tokenizer

LONGEST_SECONDS = 60.0
"""The longest recording of one correction."""
MOST_SECONDS = 4 * 3600.0
"""The longest recordings of one file of corrections, all together."""


def read_corrections(path: Path, model: AsrModel, *, policy: Policy) -> list[Correction]:
    """The corrections of a file of JSON lines, in the tokens of a `writing_with` block if there is one.

    Raises DataError, naming the line, for what cannot be learnt from.
    """
    rows, tokenizer = read_texts(path), tokenizer_of(model)
    check_languages(languages_of(tokenizer, model), [own for _, _, own in rows if own is not None])
    seconds = sum(own.duration for _, _, own in rows if own is not None)
    if seconds > MOST_SECONDS:
        raise DataError(
            f"{path} has {seconds / 3600:.1f} h of recordings; {MOST_SECONDS / 3600:g} h at a time are allowed. "
            "Divide it, or train from it with `overtone train`."
        )
    texts = writable_texts(tokenizer, [(text, language) for text, language, _ in rows], policy=policy)
    found = []
    for text, (_, language, own) in zip(texts, rows, strict=True):
        if text is not None:
            samples = None if own is None else samples_of(own, model.sample_rate)
            found.append(Correction(text=text, language=language, samples=samples))
    return found


def samples_of(utterance: Utterance, sample_rate: int) -> NDArray[np.int16]:
    """The samples [S] of a line. Raises DataError, naming it, for a recording that is too long or cannot be read."""
    where = f"{utterance.manifest}:{utterance.line}"
    if utterance.duration > LONGEST_SECONDS:
        raise DataError(
            f"{where}: {utterance.duration:g} s are too long for one correction, {LONGEST_SECONDS:g} s are allowed. "
            "Cut it into sentences, or leave the recording out."
        )
    try:
        return whole_numbers(read_utterance(utterance, sample_rate))
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def whole_numbers(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    """Samples [S] in -1..1 as 16-bit numbers; those of a 16-bit file are what it holds."""
    return np.clip(np.round(samples * 32768.0), -32768, 32767).astype(np.int16)


def writable_texts(
    tokenizer: Tokenizer, rows: Iterable[tuple[str, str | None]], *, policy: Policy
) -> Sequence[str | None]:
    """Texts, each with its language or None, in the model's letters; None for what is left out.

    policy: for texts with characters that the model cannot write. Raises DataError where it is to refuse, and where
    nothing is left.
    """
    given = list(rows)
    write_tokens(tokenizer, given, policy=policy, option="--unwritable ")
    cased, found = spellings(tokenizer).cased, list[str | None]()
    for text, language in given:
        plain = " ".join(cased(text).split())
        strange = set(tokenizer.unwritable(plain, language))
        if strange and policy == "keep":
            plain = leave_out(plain, strange)
            strange = set(tokenizer.unwritable(plain, language))
        found.append(plain if plain and not strange and tokenizer.encode(plain, language) else None)
    return found


def languages_of(tokenizer: Tokenizer, model: AsrModel) -> tuple[str, ...]:
    """The languages that a correction may name: of the transcripts' tokens, else those that the model is told."""
    return tuple(tokenizer.languages or model.languages)


class Readings:
    """Texts in the letters of tokenizers: each is worked out once, however often the journal is read."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str, str | None], str | None] = {}
        """By the tokenizer's digest, the text and its language; None for what it cannot write."""

    def read(self, tokenizer: Tokenizer, learnt: Iterable[Learnt]) -> list[Learnt]:
        """The corrections that a tokenizer writes, in its letters: they may have been written down for another one."""
        found, digest = list[Learnt](), tokenizer.digest()
        for own in learnt:
            key = (digest, own.text, own.language)
            if key not in self.known:
                self.known[key] = in_letters(tokenizer, own.text, own.language)
            text = self.known[key]
            if text is not None:
                found.append(own if text == own.text else replace(own, text=text))
        return found


def in_letters(tokenizer: Tokenizer, text: str, language: str | None) -> str | None:
    """A text as the tokenizer can write it, in another case if it must be; None where it cannot, or writes nothing."""
    if tokenizer.unwritable(text, language):
        text = spellings(tokenizer).cased(text)
        if tokenizer.unwritable(text, language):
            return None
    return text if tokenizer.encode(text, language) else None

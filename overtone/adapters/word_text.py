"""Word parts from text: sentences and phrases read from files, written in the model's tokens, and counted.

Text is written in the letters that the model has: where these are of one case, so is the text.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from overtone.adapters.prior import SHARE, Prior
from overtone.adapters.words import WordPart, group_boosts
from overtone.decoding.mixture import estimate_share
from overtone.decoding.ngram import Ngram
from overtone.decoding.ngram_counts import build_ngram
from overtone.decoding.phrase_boost import can_write, spellings
from overtone.errors import DataError
from overtone.files import open_regular
from overtone.tokenizers import Tokenizer

Policy = Literal["refuse", "drop", "keep"]
LARGEST_TEXT = 64 * 2**20
"""Bytes of all text that is counted."""
BOOST = 10.0
"""The boost of a phrase unless its line gives one."""
SHOWN = 12
ORDER = 6
WEIGHT = 0.4
"""The n-gram's weight where no recordings are there to choose it with: it seldom does harm."""
TOKEN_BONUS = 1.0
"""The token bonus that goes with it."""
Phrases = Sequence[tuple[str, float]]
"""Phrases with their boosts."""


@dataclass
class TokenText:
    """Sentences in the model's tokens, and what could not be written of them."""

    sequences: list[list[int]] = field(default_factory=list)
    sentences: int = 0
    """Sentences that were given, blank ones aside."""
    unwritable: int = 0
    """Those that hold what the model cannot write."""
    characters: Counter[str] = field(default_factory=Counter)
    """The characters that it cannot write, and how often each occurs."""
    examples: list[str] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """The number of all tokens."""
        return sum(map(len, self.sequences))

    def describe(self, what: str = "sentences") -> str:
        """Two lines for a message: counts, characters and an example."""
        listed = [f"{shown(sign)} × {count}" for sign, count in self.characters.most_common(SHOWN)]
        more = f", … {len(self.characters) - SHOWN} more" if len(self.characters) > SHOWN else ""
        example = f"\n  {self.examples[0][:100]}" if self.examples else ""
        return (
            f"{self.unwritable} of {self.sentences} {what} hold what the model cannot write: "
            f"{', '.join(listed)}{more}{example}"
        )


def read_sentences(path: Path, *, at_most: int = LARGEST_TEXT) -> list[str]:
    """The lines of a text file that are not blank.

    Raises DataError for a file that is missing, empty, huge or no text.
    """
    try:
        with open_regular(path) as file:
            content = file.read(at_most + 1)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    if len(content) > at_most:
        raise DataError(
            f"{path} has more than {at_most >> 20} MB of text; so much is not needed. Give a part of it, such as "
            "sentences drawn at random."
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text ({error.reason} at byte {error.start}). Convert it.") from error
    if "\0" in text:
        raise DataError(f"{path} is no text: it holds zero bytes. Give plain text, a sentence a line.")
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    if not lines:
        raise DataError(f"{path} holds no text. Give plain text, a sentence a line.")
    return lines


def write_tokens(
    tokenizer: Tokenizer,
    sentences: Iterable[tuple[str, str | None]],
    *,
    policy: Policy,
    option: str,
) -> TokenText:
    """Sentences, each with its language or None, in the model's tokens.

    policy: for sentences with characters that the model cannot write. option: how a user chooses it, for the message.
    Raises DataError where the policy is to refuse, and where nothing is left.
    """
    found, cased = TokenText(), spellings(tokenizer).cased
    for given, language in sentences:
        text = " ".join(cased(given).split())
        if not text:
            continue
        found.sentences += 1
        strange = tokenizer.unwritable(text, language)
        if strange:
            found.unwritable += 1
            found.characters.update(strange)
            if len(found.examples) < SHOWN:
                found.examples.append(given)
            if policy != "keep":
                continue
            text = leave_out(text, set(strange))
        ids = tokenizer.encode(text, language)
        if ids and not tokenizer.unwritable(text, language):
            found.sequences.append(ids)
    if found.unwritable and policy == "refuse":
        raise DataError(
            f"{found.describe()}\nGive {option}keep (leave those characters out) or {option}drop (leave those "
            "sentences out), or correct the text."
        )
    if not found.sequences:
        left = f" {found.describe()}" if found.unwritable else ""
        raise DataError(f"Nothing of the text is left to count.{left}")
    return found


def leave_out(text: str, strange: set[str]) -> str:
    """The text without some characters: a space where they may part words, nothing for marks inside of words."""
    kept = []
    for sign in text:
        if sign not in strange:
            kept.append(sign)
        elif sign not in "'’ʼ´`\u00ad" and not unicodedata.category(sign).startswith("M"):
            kept.append(" ")
    return " ".join("".join(kept).split())


def check_phrases(tokenizer: Tokenizer, phrases: Phrases, *, policy: Policy, option: str) -> tuple[Phrases, TokenText]:
    """The phrases that the model can write, and what it cannot.

    Raises DataError where the policy is to refuse, and where there is none at all.
    """
    if not phrases:
        raise DataError("There is no phrase in the file of phrases; write one a line.")
    found, kept, cased = TokenText(), [], spellings(tokenizer).cased
    for phrase, boost in phrases:
        text = " ".join(cased(phrase).split())
        found.sentences += 1
        if can_write(tokenizer, text):
            kept.append((text, boost))
            continue
        found.unwritable += 1
        strange = tokenizer.unwritable(text)
        found.characters.update(strange)
        found.examples.append(phrase)
        rest = leave_out(text, set(strange))
        if policy == "keep" and rest and can_write(tokenizer, rest):
            kept.append((rest, boost))
    if found.unwritable and policy == "refuse":
        raise DataError(
            f"{found.describe('phrases')}\nGive {option}keep (leave those characters out) or {option}drop (leave those "
            "phrases out), or correct them."
        )
    return kept, found


def make_words(
    tokenizer: Tokenizer,
    *,
    sequences: Sequence[Sequence[int]] = (),
    ngram: Ngram | None = None,
    phrases: Phrases = (),
    order: int = ORDER,
    weight: float = WEIGHT,
    token_bonus: float = TOKEN_BONUS,
    prior: Prior | None = None,
    prior_share: float | None = None,
) -> WordPart:
    """A word part of sentences in tokens, or of an n-gram that exists already, and of phrases.

    prior: the general prior that the n-gram is mixed with. prior_share: its share; None is the one with which the
    sentences predict each other best, or SHARE where there are none.
    Raises AdapterError where there is neither, DataError for an n-gram of another number of tokens.
    """
    if ngram is None and sequences:
        ngram = build_ngram(sequences, vocabulary_size=tokenizer.size, order=order)
    if ngram is not None and ngram.vocabulary_size != tokenizer.size:
        raise DataError(f"The n-gram has {ngram.vocabulary_size} tokens, the model {tokenizer.size}.")
    if ngram is None or prior is None:
        prior, prior_share = None, 0.0
    elif prior_share is None:
        prior_share = estimate_share(sequences, prior.ngram, order=order) if sequences else SHARE
    return WordPart(
        tokenizer_digest=tokenizer.digest(),
        ngram=ngram,
        weight=weight if ngram is not None else 0.0,
        token_bonus=token_bonus if ngram is not None else 0.0,
        prior=prior,
        prior_share=prior_share,
        boosts=group_boosts(phrases),
        beam=prior.beam if prior is not None and prior_share else 0,
    )


def shown(character: str) -> str:
    """A character for a message, with its Unicode name where it is invisible or easily mistaken."""
    name = unicodedata.name(character, "") if len(character) == 1 else ""
    plain = character.isascii() and character.isprintable() and character != " "
    return repr(character) if plain or not name else f"{character!r} ({name.lower()})"


def prior_words(prior: Prior) -> WordPart:
    """The general prior as a word part of its own, with its weights."""
    return WordPart(
        tokenizer_digest=prior.tokenizer_digest,
        ngram=prior.ngram,
        weight=prior.weight,
        token_bonus=prior.token_bonus,
        beam=prior.beam,
    )

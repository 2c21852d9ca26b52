"""Boosted phrases: a tree of characters that the beam search walks along with every prefix.

Characters, not tokens: a phrase is found however the model cuts it into pieces. A phrase begins where a word begins
and ends where a word ends, so `cat` is not found in `catalogue`.

The scale: a phrase of n characters is worth `boost · NATS_PER_CHARACTER · n` natural-logarithm units, so that its
probability is multiplied by e to that power. Positive boosts are paid character by character, as an advance that is
withdrawn when the phrase is not completed; negative ones are charged when it is. 5…20 helps rare words, 50 makes a
phrase hard to avoid wherever it could be meant, -100 forbids.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from overtone.tokenizers import Tokenizer

NATS_PER_CHARACTER = 0.05
LARGEST_BOOST = 100.0
MAX_CHARACTERS = 200_000
"""Characters of all phrases of one request together; more are ignored."""

Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Boost:
    """Phrases that are likelier (boost > 0) or less likely (boost < 0) than the model thinks."""

    phrases: tuple[str, ...]
    """Words or phrases, written as the transcript writes them; case is adapted to the vocabulary's."""

    boost: float
    """-100…100, clamped; the module's text gives the scale."""


@dataclass(eq=False, slots=True)
class Place:
    """A place in the tree of phrases, or in that of the vocabulary."""

    children: dict[str, Place] = field(default_factory=dict)
    depth: int = 0
    rate: float = 0.0
    """The largest positive bonus of a character among the phrases that go on from here, or end here."""
    end: float = 0.0
    """The bonus of the phrase that ends here; 0 where none does."""
    tokens: list[int] = field(default_factory=list)
    """The ids that are spelt so, for a place in the vocabulary."""

    def follow(self, character: str) -> Place:
        if character not in self.children:
            self.children[character] = Place(depth=self.depth + 1)
        return self.children[character]


@dataclass(frozen=True, slots=True)
class BoostState:
    """The bonus of a prefix, and the phrases that it is in the middle of."""

    active: tuple[tuple[Place, float], ...]
    """Its places in the tree, each with the bonus that was paid for good on the way there."""
    fresh: bool
    """True if a word begins here."""
    earned: float
    """Bonus of completed phrases."""
    bonus: float
    """The same with the largest advance."""


class BoostTree:
    """The phrases of one request; immutable once built, so the streams of a client may share it."""

    def __init__(self, boosts: Sequence[Boost], tokenizer: Tokenizer) -> None:
        self.root = Place()
        self.vocabulary = spellings(tokenizer)
        self.ignored: tuple[str, ...] = ()
        """Phrases that are empty, hold characters that the vocabulary cannot write, or are too many."""
        self.start = BoostState(active=((self.root, 0.0),), fresh=True, earned=0.0, bonus=0.0)
        self.largest_gain = 0.0
        """The most that one token can add to the bonus of a prefix."""
        self._onward: dict[tuple[Place, bool], Tokens] = {}
        ignored, characters = [], 0
        for boost in boosts:
            value = min(LARGEST_BOOST, max(-LARGEST_BOOST, boost.boost)) * NATS_PER_CHARACTER
            for phrase in boost.phrases:
                text = " ".join(self.vocabulary.cased(phrase).split())
                characters += len(text)
                if not text or characters > MAX_CHARACTERS or not can_write(tokenizer, text):
                    ignored.append(phrase)
                else:
                    self._add(text, value)
        self.ignored = tuple(ignored)

    def __bool__(self) -> bool:
        return bool(self.root.children)

    def _add(self, text: str, rate: float) -> None:
        place = self.root
        for character in text:
            place = place.follow(character)
            place.rate = max(place.rate, rate)
        place.end = rate * len(text)
        self.largest_gain = max(self.largest_gain, rate * self.vocabulary.longest)

    def after(self, state: BoostState, token: int) -> BoostState:
        """The state of a prefix with one more token."""
        active, fresh, earned = state.active, state.fresh, state.earned
        for character in self.vocabulary.texts[token]:
            if character == " ":
                if fresh:
                    continue
                earned, active = self._end_word(active, earned)
            else:
                active = tuple(
                    (place.children[character], paid) for place, paid in active if character in place.children
                )
            fresh = character == " "
        advance = max((place.rate * place.depth - paid for place, paid in active), default=0.0)
        return BoostState(active=active, fresh=fresh, earned=earned, bonus=earned + max(0.0, advance))

    def _end_word(
        self, active: tuple[tuple[Place, float], ...], earned: float
    ) -> tuple[float, tuple[tuple[Place, float], ...]]:
        """Pay for the phrases that end here; a longer one that goes on is paid for the rest alone."""
        onward = [(self.root, 0.0)]
        for place, paid in active:
            if place.end:
                earned += place.end - paid
                paid = place.end
            if " " in place.children:
                onward.append((place.children[" "], paid))
        return earned, tuple(onward)

    def final(self, state: BoostState) -> float:
        """The bonus of a prefix that ends here."""
        return state.earned if state.fresh else self._end_word(state.active, state.earned)[0]

    def onward(self, state: BoostState) -> Tokens:
        """The tokens with which a prefix would begin a phrase or go on in one."""
        places = [self._tokens_at(place, state.fresh) for place, _ in state.active]
        if not state.fresh:  # any word may end here and a phrase begin
            places.append(self._tokens_at(self.root, False))
        return places[0] if len(places) == 1 else np.unique(np.concatenate(places))

    def _tokens_at(self, place: Place, fresh: bool) -> Tokens:
        found = self._onward.get((place, fresh))
        if found is None:
            spelt = self.vocabulary.root
            starts = []
            if fresh or place is not self.root:
                starts.append(spelt)
            if (fresh or place is self.root) and " " in spelt.children:  # a space more where one is said already
                starts.append(spelt.children[" "])
            ids = {token for start in starts for token in common(start, place)}
            found = self._onward[place, fresh] = np.array(sorted(ids), dtype=np.int64)
        return found


def common(tokens: Place, phrases: Place) -> list[int]:
    """The ids that are spelt along the phrases."""
    found, pairs = [], [(tokens, phrases)]
    while pairs:
        spelt, phrase = pairs.pop()
        found += spelt.tokens
        pairs += [(spelt.children[sign], phrase.children[sign]) for sign in spelt.children.keys() & phrase.children]
    return found


class Spellings:
    """The spelling of every token, with spaces where words begin."""

    def __init__(self, spelled: Sequence[str]) -> None:
        self.texts = list(spelled)
        self.root = Place()
        self.longest = max(map(len, self.texts), default=0)
        signs = set(itertools.chain.from_iterable(self.texts))
        self.has_upper = any(sign.isupper() for sign in signs)
        self.has_lower = any(sign.islower() for sign in signs)
        for token, text in enumerate(self.texts):
            place = self.root
            for character in text:
                place = place.follow(character)
            if text:
                place.tokens.append(token)

    def cased(self, phrase: str) -> str:
        if not self.has_upper:
            return phrase.lower()
        return phrase if self.has_lower else phrase.upper()


def spellings(tokenizer: Tokenizer) -> Spellings:
    return spellings_of(tuple(tokenizer.spelled))


def can_write(tokenizer: Tokenizer, text: str) -> bool:
    """True if the tokenizer can write the text, in one of its languages."""
    return any(not tokenizer.unwritable(text, language) for language in tokenizer.languages or (None,))


@lru_cache(maxsize=16)
def spellings_of(spelled: tuple[str, ...]) -> Spellings:
    return Spellings(spelled)

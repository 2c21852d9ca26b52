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
import math
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from overtone.errors import DataError
from overtone.tokenizers import Tokenizer

NATS_PER_CHARACTER = 0.05
LARGEST_BOOST = 100.0
MAX_CHARACTERS = 200_000
"""Characters of all phrases of one request together; more are ignored."""

NOT_SPACE = re.compile("[^ ]+")
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
        self.boosts = tuple(boosts)
        self.tokenizer = tokenizer
        self.vocabulary = spellings(tokenizer)
        self.ignored: tuple[str, ...] = ()
        """Phrases that are empty, hold characters that the vocabulary cannot write, or are too many."""
        self.start = BoostState(active=((self.root, 0.0),), fresh=True, earned=0.0, bonus=0.0)
        self.largest_gain = 0.0
        """The most that one token can add to the bonus of a prefix."""
        self._others: dict[int, BoostTree] = {}
        """Trees of the same phrases over other tokenizers, by their identity."""
        self._onward: dict[tuple[Place, bool], Tokens] = {}
        self._table: BoostTable | None = None
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

    def over(self, tokenizer: Tokenizer) -> BoostTree:
        """The same phrases over the tokens of another tokenizer."""
        if tokenizer is self.tokenizer:
            return self
        if id(tokenizer) not in self._others:
            self._others[id(tokenizer)] = BoostTree(self.boosts, tokenizer)
        return self._others[id(tokenizer)]

    def _add(self, text: str, rate: float) -> None:
        place = self.root
        for character in text:
            place = place.follow(character)
            place.rate = max(place.rate, rate)
        place.end = rate * len(text)
        self.largest_gain = max(self.largest_gain, rate * self.vocabulary.longest)

    def after(self, state: BoostState, token: int) -> BoostState:
        """The state of a prefix with one more token."""
        return self.after_text(state, self.vocabulary.texts[token])

    def after_text(self, state: BoostState, text: str) -> BoostState:
        """The state of a prefix with more characters."""
        active, fresh, earned = state.active, state.fresh, state.earned
        for character in text:
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

    @property
    def table(self) -> BoostTable:
        """The tree as a table of numbered states, which is filled as they are met."""
        if self._table is None:
            self._table = BoostTable(self)
        return self._table

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


def read_phrases(path: Path, boost: float) -> dict[str, float]:
    """The phrases of a text file and their boosts: a phrase a line, and after a tab its own boost.

    boost: of phrases that have none. Empty lines and those that begin with `#` do not count. Raises DataError for a
    file that cannot be read, and for a boost that is no number from -100 to 100.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the phrases cannot be read ({error}). A text file in UTF-8 is needed.") from error
    found: dict[str, float] = {}
    for number, line in enumerate(lines, start=1):
        phrase, tab, text = line.partition("\t")
        if not phrase.strip() or phrase.startswith("#"):
            continue
        try:
            value = float(text) if tab else boost
        except ValueError:
            value = math.nan
        if not abs(value) <= LARGEST_BOOST:
            raise DataError(f"{path}:{number}: '{text[:40]}' is no boost; a number from -100 to 100 is needed there.")
        found[" ".join(phrase.split())] = value
    return found


class BoostTable:
    """The states of a tree as numbers: the next state and the gain of every token, filled as states are met.

    Whether a token begins a phrase or goes on in one, `onward` tells; all other tokens of one shape lead to one state.
    """

    def __init__(self, tree: BoostTree) -> None:
        self.tree = tree
        self.size = len(tree.vocabulary.texts)
        self._lock = threading.Lock()
        self._numbers: dict[tuple[tuple[tuple[Place, float], ...], bool], int] = {}
        self._states: list[BoostState] = []
        self._rows: list[int] = []
        """The row of each state in the arrays below, -1 before it is filled."""
        self._filled = 0
        self._next = torch.zeros(0, self.size, dtype=torch.int64)
        self._gains = torch.zeros(0, self.size)
        self._number(tree.start)
        shapes = [NOT_SPACE.sub("\0", text) for text in tree.vocabulary.texts]
        self._shapes = sorted({shape for shape in shapes if "\0 " not in shape})
        number = {shape: index for index, shape in enumerate(self._shapes)}
        self._shape = torch.tensor([number.get(shape, 0) for shape in shapes], dtype=torch.int64)
        self._several = np.array([token for token, shape in enumerate(shapes) if "\0 " in shape], dtype=np.int64)
        """Tokens in which a word ends: each is looked at by itself."""

    def score(self, states: Tensor) -> Tensor:
        """states [N] int64 -> the gain of each token [N, V], float32."""
        rows, _, gains = self._ensure(states)
        return gains[rows].to(states.device)

    def follow(self, states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The gain of each token in its state, [N] float32, and the state after it, [N]; states, tokens [N] int64."""
        rows, following, gains = self._ensure(states)
        chosen = tokens.cpu()
        return gains[rows, chosen].to(states.device), following[rows, chosen].to(states.device)

    def end(self, states: Tensor) -> Tensor:
        """states [N] int64 -> the gain of a prefix that ends there, [N] float32."""
        gains = [self.tree.final(state) - state.bonus for state in (self._states[each] for each in states.tolist())]
        return torch.tensor(gains, dtype=torch.float32, device=states.device)

    def _ensure(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Fill what is missing of the states [N]; their rows, and the arrays [·, V] of next states and gains."""
        with self._lock:
            own, places = torch.unique(states.cpu(), return_inverse=True)
            wanted = own.tolist()
            for state in wanted:
                if self._rows[state] < 0:
                    self._fill(state)
            rows = torch.tensor([self._rows[state] for state in wanted], dtype=torch.int64)
            return rows[places], self._next, self._gains

    def _number(self, state: BoostState) -> int:
        """The number of a state; what was earned before does not count."""
        key = (state.active, state.fresh)
        found = self._numbers.get(key)
        if found is None:
            found = self._numbers[key] = len(self._states)
            self._states.append(replace(state, earned=0.0, bonus=state.bonus - state.earned))
            self._rows.append(-1)
        return found

    def _fill(self, number: int) -> None:
        tree, state = self.tree, self._states[number]
        if self._filled == len(self._next):  # replaced, never changed under a reader of filled rows
            room = max(16, 2 * len(self._next))
            self._next = torch.cat((self._next, self._next.new_zeros(room - self._filled, self.size)))
            self._gains = torch.cat((self._gains, self._gains.new_zeros(room - self._filled, self.size)))
        plain = [tree.after_text(state, shape) for shape in self._shapes]
        following, gains = self._next[self._filled], self._gains[self._filled]
        if plain:
            following.copy_(torch.tensor([self._number(each) for each in plain])[self._shape])
            gains.copy_(torch.tensor([each.bonus - state.bonus for each in plain])[self._shape])
        for token in {*tree.onward(state).tolist(), *self._several.tolist()}:
            then = tree.after(state, token)
            following[token], gains[token] = self._number(then), then.bonus - state.bonus
        self._rows[number] = self._filled
        self._filled += 1


class BoostBatch:
    """The trees of the rows of a batch, or none: gains of tokens, and states as numbers."""

    def __init__(self, trees: Sequence[BoostTree | None], vocabulary_size: int) -> None:
        self.rows = len(trees)
        self.vocabulary_size = vocabulary_size
        tables = {id(tree): tree.table for tree in trees if tree is not None}
        self.tables = list(tables.values())
        numbers = {key: index for index, key in enumerate(tables)}
        self.table_of = torch.tensor([-1 if tree is None else numbers[id(tree)] for tree in trees])
        """[B] the table of each row, -1 where it has none."""
        self.reach = torch.tensor([0.0 if tree is None else tree.largest_gain for tree in trees])
        """[B] the most that one token can gain."""

    @property
    def start(self) -> Tensor:
        """[B] int64"""
        return torch.zeros(self.rows, dtype=torch.int64)

    def score(self, rows: Tensor, states: Tensor) -> Tensor:
        """rows [N], states [N] -> the gain of each token [N, V] float32, zeros for rows without a tree."""
        found = torch.zeros(len(states), self.vocabulary_size, device=states.device)
        for table, own in self._parts(rows):
            found[own] = table.score(states[own])
        return found

    def follow(self, rows: Tensor, states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The gain of each token in its state, [N] float32, and the state after it, [N]; rows, states, tokens [N]."""
        gains, following = torch.zeros(len(states), device=states.device), states.clone()
        for table, own in self._parts(rows):
            gains[own], following[own] = table.follow(states[own], tokens[own])
        return gains, following

    def end(self, rows: Tensor, states: Tensor) -> Tensor:
        """rows [N], states [N] -> the gain of a prefix that ends there, [N] float32."""
        found = torch.zeros(len(states), device=states.device)
        for table, own in self._parts(rows):
            found[own] = table.end(states[own])
        return found

    def _parts(self, rows: Tensor) -> Iterator[tuple[BoostTable, Tensor]]:
        """Each table, and the places [·] among rows [N] that use it."""
        tables = self.table_of.to(rows.device)[rows]
        for index, table in enumerate(self.tables):
            own = torch.nonzero(tables == index)[:, 0]
            if len(own):
                yield table, own


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

"""N-grams side by side: the rows of a batch with one each, and the arrays in which they stay for later batches.

N-grams of a batch lie behind one another in a pack. Small ones are copied for each batch: that takes a millisecond, and
a search finds its way faster in little memory. Large ones stay in one pack for later batches, which then copy nothing;
it grows by doubling, and begins anew when it has become too large.

Legend: N queries, V tokens, S states, A arcs, B rows.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor

from overtone.decoding.ngram import Arcs, Ngram, make_arcs
from overtone.errors import DataError

COPIED = 200_000
"""Arcs of a batch that are copied for it alone."""
LARGEST_PACK = 8_000_000
"""Arcs of a pack that is added to, some 300 MB; one batch may have more."""
OF_ARCS = ("tokens", "log_probs", "next", "keys")
OF_STATES = ("backoff_states", "backoff_log_probs", "end_log_probs")

PACKS: WeakValueDictionary[tuple[int, torch.device], NgramPack] = WeakValueDictionary()
"""Packs that stay, by size of the vocabulary and device; each lives as long as an n-gram in it."""
CHANGES = threading.Lock()


class NgramPack:
    """N-grams over one vocabulary behind one another, on one device; what has been given out never changes."""

    def __init__(self, vocabulary_size: int, device: torch.device) -> None:
        self.vocabulary_size = vocabulary_size
        self.device = device
        self.places: WeakKeyDictionary[Ngram, int] = WeakKeyDictionary()
        """The first state of each n-gram."""
        self.arrays: dict[str, Tensor] = {}
        """The arrays of Arcs, longer than what is in use."""
        self.arcs = self.states = self.levels = 0
        self.lock = threading.Lock()

    def place(self, ngrams: Sequence[Ngram]) -> tuple[Arcs, dict[Ngram, int]]:
        """The arcs of a pack with all of these n-grams, and the first state of each; n-grams are on its device."""
        with self.lock:
            missing = [ngram for ngram in ngrams if ngram not in self.places]
            if missing and self.arcs + sum(map(len, missing)) > LARGEST_PACK:
                missing = list(ngrams)
                self.places, self.arrays = WeakKeyDictionary(), {}
                self.arcs = self.states = self.levels = 0
            if missing:
                self.reserve(sum(map(len, missing)), sum(ngram.states for ngram in missing))
            for ngram in missing:
                self.add(ngram)
            return self.in_use(), {ngram: self.places[ngram] for ngram in ngrams}

    def reserve(self, arcs: int, states: int) -> None:
        """Have room for so many more; where there is none, twice what is needed is taken."""
        sizes = {**dict.fromkeys(OF_ARCS, (self.arcs, arcs)), **dict.fromkeys(OF_STATES, (self.states, states))}
        for name, (used, more) in {**sizes, "starts": (self.states + 1, states)}.items():
            old, dtype = self.arrays.get(name), torch.float32 if name.endswith("log_probs") else torch.int64
            if old is None:
                self.arrays[name] = torch.zeros(used + more, dtype=dtype, device=self.device)
            elif used + more > len(old):
                self.arrays[name] = torch.zeros(2 * (used + more), dtype=dtype, device=self.device)
                self.arrays[name][:used] = old[:used]

    def add(self, ngram: Ngram) -> None:
        """Write an n-gram behind the others."""
        own, first_arc, first_state = ngram.arcs, self.arcs, self.states
        arcs = slice(first_arc, first_arc + len(ngram))
        states = slice(first_state, first_state + ngram.states)
        self.arrays["tokens"][arcs] = own.tokens
        self.arrays["log_probs"][arcs] = own.log_probs
        self.arrays["next"][arcs] = own.next + first_state
        self.arrays["keys"][arcs] = own.keys + first_state * self.vocabulary_size
        self.arrays["backoff_states"][states] = own.backoff_states + first_state
        self.arrays["backoff_log_probs"][states] = own.backoff_log_probs
        self.arrays["end_log_probs"][states] = own.end_log_probs
        self.arrays["starts"][first_state : states.stop + 1] = own.starts + first_arc
        self.arcs, self.states, self.levels = arcs.stop, states.stop, max(self.levels, own.levels)
        self.places[ngram] = first_state

    def in_use(self) -> Arcs:
        """The arrays as far as n-grams lie in them."""
        parts: dict[str, Any] = {name: self.arrays[name][: self.arcs] for name in OF_ARCS}
        parts |= {name: self.arrays[name][: self.states] for name in OF_STATES}
        starts = self.arrays["starts"][: self.states + 1]
        return Arcs(**parts, starts=starts, vocabulary_size=self.vocabulary_size, levels=self.levels)


def find_pack(vocabulary_size: int, device: torch.device) -> NgramPack:
    """The pack of a vocabulary on a device."""
    with CHANGES:
        pack = PACKS.get((vocabulary_size, device))
        if pack is None:
            pack = PACKS[vocabulary_size, device] = NgramPack(vocabulary_size, device)
        return pack


class NgramBatch:
    """Rows with an n-gram each, or with none: the scores of these are 0.

    A state is one of the row's own n-gram, whatever else is in the batch.
    """

    def __init__(self, ngrams: Sequence[Ngram | None], *, vocabulary_size: int) -> None:
        """ngrams: one or None for each of B rows. Raises DataError for an n-gram of another number of tokens."""
        for ngram in ngrams:
            if ngram is not None and ngram.vocabulary_size != vocabulary_size:
                raise DataError(
                    f"The n-gram has {ngram.vocabulary_size} tokens, the model {vocabulary_size}: it is of another "
                    "tokenizer. Build it with this model."
                )
        owned = list(dict.fromkeys(ngram for ngram in ngrams if ngram is not None))
        device = owned[0].arcs.tokens.device if owned else torch.device("cpu")
        self.vocabulary_size = vocabulary_size
        silent = silent_ngram(vocabulary_size, device)
        each = [silent if ngram is None else ngram for ngram in ngrams]
        if len(owned) == 1 and None not in ngrams:
            self.arcs, places = owned[0].arcs, {owned[0]: 0}
        elif sum(map(len, owned)) <= COPIED:
            self.arcs, places = NgramPack(vocabulary_size, device).place([*owned, silent])
        else:
            pack = find_pack(vocabulary_size, device)
            self.arcs, places = pack.place([*owned, silent])
            for ngram in owned:
                ngram.pack = pack
        self.offsets = torch.tensor([places[ngram] for ngram in each], dtype=torch.int64, device=device)
        """[B] int64: the place of each row's states among those of all."""
        self.start = torch.tensor([ngram.start for ngram in each], dtype=torch.int64, device=device)
        """[B] int64: the state at the beginning of a sentence."""

    def score(self, rows: Tensor, states: Tensor) -> Tensor:
        """Log-probabilities [N, V] float32 of every next token, rows and states [N] int64."""
        return self.arcs.score(states + self.offsets[rows])

    def follow(self, rows: Tensor, states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The log-probability of each token in its state, [N], and the state after it, [N]; all [N] int64."""
        log_probs, following = self.arcs.follow(states + self.offsets[rows], tokens)
        return log_probs, following - self.offsets[rows]

    def advance(self, rows: Tensor, states: Tensor, tokens: Tensor) -> Tensor:
        """The states [N] after one token more, rows, states and tokens [N] int64."""
        return self.arcs.follow(states + self.offsets[rows], tokens)[1] - self.offsets[rows]

    def end(self, rows: Tensor, states: Tensor) -> Tensor:
        """Log-probabilities [N] of the end of the sentence, rows and states [N] int64."""
        return self.arcs.end_log_probs[states + self.offsets[rows]]


@cache
def silent_ngram(vocabulary_size: int, device: torch.device) -> Ngram:
    """An n-gram whose scores are all 0, for rows without one."""
    none, size = torch.zeros(1), vocabulary_size
    arcs = make_arcs(
        tokens=torch.arange(size),
        log_probs=torch.zeros(size),
        following=torch.zeros(size),
        starts=torch.tensor([0, size]),
        backoff_states=none,
        backoff_log_probs=none,
        end_log_probs=none,
    )
    return Ngram(arcs.to(device), order=1, start=0)

"""Token n-grams with back-off as flat arrays: a state is a context, an arc a token that was seen after it.

The score of a token is that of the arc in the longest context that has one, plus the weights of the contexts left on
the way there (Katz 1987). Every state has a link to the next shorter context, and state 0 is the empty one, with an arc
for each token. All logarithms are natural. `ngram_counts` builds an n-gram from tokens, `arpa` reads and writes files.

Legend: N queries, V tokens, S states, A arcs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from overtone.errors import DataError

LARGEST_ORDER = 10
"""Tokens of the longest n-gram that is read."""
LOWEST = -1e4
"""The logarithm that stands for no chance at all; finite, so that sums of scores stay numbers."""
LARGEST_WEIGHT = 1e4

INTEGERS = ("arc_tokens", "arc_next", "arc_starts", "backoff_states", "head")
NUMBERS = ("arc_log_probs", "backoff_log_probs", "end_log_probs")


@dataclass(frozen=True, eq=False, kw_only=True)
class Arcs:
    """The arrays of one n-gram, or of several behind one another; states are those of all together."""

    tokens: Tensor
    """[A] int64, rising within a state."""
    log_probs: Tensor
    """[A] float32."""
    next: Tensor
    """[A] int64: the state after the arc."""
    starts: Tensor
    """[S+1] int64: the first arc of each state."""
    keys: Tensor
    """[A] int64, rising: state * V + token."""
    backoff_states: Tensor
    """[S] int64; an empty context is its own."""
    backoff_log_probs: Tensor
    """[S] float32."""
    end_log_probs: Tensor
    """[S] float32: the end of the sentence in this context."""
    vocabulary_size: int
    levels: int
    """Steps from the longest context to the empty one."""

    def score(self, states: Tensor) -> Tensor:
        """Log-probabilities [N, V] of every next token, states [N]."""
        chain = [(states, torch.zeros(len(states), device=states.device))]
        for _ in range(self.levels):
            state, weight = chain[-1]
            chain.append((self.backoff_states[state], weight + self.backoff_log_probs[state]))
        root, weight = chain.pop()
        every = torch.arange(self.vocabulary_size, device=states.device)
        scores = self.log_probs[self.starts[root][:, None] + every] + weight[:, None]
        flat, rows = scores.view(-1), torch.arange(len(states), device=states.device)
        for state, weight in reversed(chain):
            first = self.starts[state]
            counts = torch.where(state == root, 0, self.starts[state + 1] - first)
            row = rows.repeat_interleave(counts)
            ahead = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
            arc = first[row] + ahead
            flat[row * self.vocabulary_size + self.tokens[arc]] = self.log_probs[arc] + weight[row]
        return scores

    def follow(self, states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The log-probability of each token in its state, [N], and the state after it, [N]; states and tokens [N]."""
        weight = torch.zeros(len(states), device=states.device)
        for _ in range(self.levels):
            key = states * self.vocabulary_size + tokens
            missing = self.keys[self.find(key)] != key
            weight = weight + torch.where(missing, self.backoff_log_probs[states], 0.0)
            states = torch.where(missing, self.backoff_states[states], states)
        arc = self.find(states * self.vocabulary_size + tokens)
        return weight + self.log_probs[arc], self.next[arc]

    def find(self, keys: Tensor) -> Tensor:
        """The first arcs [N] whose keys are not below these, keys [N]."""
        return torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


class Ngram:
    """An n-gram over the tokens of one vocabulary; immutable."""

    def __init__(self, arcs: Arcs, *, order: int, start: int) -> None:
        """start: the state at the beginning of a sentence."""
        self.arcs = arcs
        self.order = order
        self.start = start
        self.copies: dict[str, Ngram] = {}
        """Copies on other devices."""
        self.pack: object = None
        """The pack that it lies in, which lives as long as it does."""

    @property
    def vocabulary_size(self) -> int:
        """The number of tokens V, without the blank."""
        return self.arcs.vocabulary_size

    @property
    def states(self) -> int:
        """The number of contexts S."""
        return len(self.arcs.backoff_states)

    @cached_property
    def largest_gain(self) -> float:
        """The largest logarithm of a token in any context: 0 at most, but for n-grams that do not sum to one."""
        arcs = self.arcs
        owners = torch.arange(self.states, device=arcs.tokens.device).repeat_interleave(arcs.starts.diff())
        own = torch.full((self.states,), -torch.inf, device=arcs.tokens.device)
        own = own.scatter_reduce(0, owners, arcs.log_probs, "amax")
        found = own
        for _ in range(arcs.levels):
            found = torch.maximum(own, arcs.backoff_log_probs + found[arcs.backoff_states])
        return float(found.max())

    def __len__(self) -> int:
        """The number of arcs A."""
        return len(self.arcs.tokens)

    def score(self, states: Tensor) -> Tensor:
        """Log-probabilities [N, V] float32 of every next token, states [N] int64."""
        return self.arcs.score(states)

    def advance(self, states: Tensor, tokens: Tensor) -> Tensor:
        """The states [N] after one token more, states and tokens [N] int64."""
        return self.arcs.follow(states, tokens)[1]

    def end(self, states: Tensor) -> Tensor:
        """Log-probabilities [N] of the end of the sentence, states [N] int64."""
        return self.arcs.end_log_probs[states]

    def sentence_log_prob(self, tokens: Sequence[int]) -> float:
        """The log-probability of a whole sentence, its end included."""
        state, total = torch.tensor([self.start], device=self.arcs.tokens.device), 0.0
        for token in tokens:
            value, state = self.arcs.follow(state, torch.tensor([token], device=state.device))
            total += float(value)
        return total + float(self.end(state))

    def to(self, device: torch.device | str) -> Ngram:
        """The same on a device; on another one it is a copy, which is made once."""
        if self.arcs.tokens.device == torch.device(device):
            return self
        if str(device) not in self.copies:
            self.copies[str(device)] = Ngram(self.arcs.to(device), order=self.order, start=self.start)
        return self.copies[str(device)]

    def to_tensors(self) -> dict[str, Tensor]:
        """The n-gram as int32 and float32 tensors by name, for safetensors."""
        arcs = self.arcs
        found = {
            "arc_tokens": arcs.tokens.int(),
            "arc_next": arcs.next.int(),
            "arc_starts": arcs.starts.int(),
            "backoff_states": arcs.backoff_states.int(),
            "head": torch.tensor([self.order, self.start], dtype=torch.int32),
            "arc_log_probs": arcs.log_probs,
            "backoff_log_probs": arcs.backoff_log_probs,
            "end_log_probs": arcs.end_log_probs,
        }
        return {name: tensor.cpu().contiguous() for name, tensor in found.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Ngram:
        """The n-gram of `to_tensors`. Raises DataError for tensors that are no n-gram."""
        fault = form_fault(tensors) or content_fault(tensors)
        if fault:
            raise DataError(f"The n-gram is damaged: {fault}. Fetch it or build it again.")
        order, start = tensors["head"].tolist()
        arcs = make_arcs(
            tokens=tensors["arc_tokens"],
            log_probs=tensors["arc_log_probs"],
            following=tensors["arc_next"],
            starts=tensors["arc_starts"],
            backoff_states=tensors["backoff_states"],
            backoff_log_probs=tensors["backoff_log_probs"],
            end_log_probs=tensors["end_log_probs"],
        )
        return cls(arcs, order=order, start=start)


def make_arcs(
    *,
    tokens: Tensor,
    log_probs: Tensor,
    following: Tensor,
    starts: Tensor,
    backoff_states: Tensor,
    backoff_log_probs: Tensor,
    end_log_probs: Tensor,
) -> Arcs:
    """The arrays of a sound n-gram, whose state 0 has an arc for each token.

    tokens, log_probs, following [A], starts [S+1], backoff_states, backoff_log_probs, end_log_probs [S].
    """
    starts, tokens, backoff_states = starts.long(), tokens.long(), backoff_states.long()
    size = int(starts[1])
    owners = torch.arange(len(starts) - 1).repeat_interleave(starts.diff())
    return Arcs(
        tokens=tokens,
        log_probs=log_probs.float(),
        next=following.long(),
        starts=starts,
        keys=owners * size + tokens,
        backoff_states=backoff_states,
        backoff_log_probs=backoff_log_probs.float(),
        end_log_probs=end_log_probs.float(),
        vocabulary_size=size,
        levels=count_levels(backoff_states),
    )


def count_levels(backoff_states: Tensor) -> int:
    """Steps until every state has come to one that is its own, backoff_states [S]; past LARGEST_ORDER in a circle."""
    own = torch.arange(len(backoff_states))
    at, levels = own, 0
    while levels <= LARGEST_ORDER and not bool((backoff_states[at] == at).all()):
        at, levels = backoff_states[at], levels + 1
    return levels


def form_fault(tensors: Mapping[str, Tensor]) -> str | None:
    """The first fault in names, types and sizes of an n-gram's tensors."""
    wrong = sorted({*INTEGERS, *NUMBERS} ^ tensors.keys())
    if wrong:
        return f"its tensors should be {', '.join((*INTEGERS, *NUMBERS))}; missing or left over: {', '.join(wrong)}"
    for name, tensor in tensors.items():
        kind = torch.int32 if name in INTEGERS else torch.float32
        if tensor.dtype is not kind or tensor.dim() != 1:
            return f"{name} should be one row of {kind}, and is {tensor.dtype} {list(tensor.shape)}"
    states, arcs = len(tensors["backoff_states"]), len(tensors["arc_tokens"])
    sizes = {
        "arc_next": arcs,
        "arc_log_probs": arcs,
        "arc_starts": states + 1,
        "backoff_log_probs": states,
        "end_log_probs": states,
        "head": 2,
    }
    for name, size in sizes.items():
        if len(tensors[name]) != size:
            return f"{name} has {len(tensors[name])} values, {size} are expected"
    return None if states and arcs else "it has no state or no arc"


def content_fault(tensors: Mapping[str, Tensor]) -> str | None:
    """The first fault in the values of an n-gram's tensors, whose sizes are right."""
    starts, tokens, back = tensors["arc_starts"].long(), tensors["arc_tokens"].long(), tensors["backoff_states"].long()
    states, arcs = len(back), len(tokens)
    order, start = tensors["head"].tolist()
    if not (1 <= order <= LARGEST_ORDER and 0 <= start < states):
        return f"order {order} or first state {start} is out of range"
    if int(starts[0]) != 0 or int(starts[-1]) != arcs or bool((starts.diff() < 0).any()):
        return "the arcs of its states do not follow one another"
    size = int(starts[1])
    if size < 1 or not torch.equal(tokens[:size], torch.arange(size)):
        return "the empty context does not have one arc for each token"
    owners = torch.arange(states).repeat_interleave(starts.diff())
    if bool((tokens < 0).any() or (tokens >= size).any() or ((owners * size + tokens).diff() <= 0).any()):
        return "a token is out of range, or the tokens of a context are not in order"
    following = tensors["arc_next"]
    if bool((following < 0).any() or (following >= states).any()):
        return "an arc leads to no state"
    if bool((back < 0).any() or (back >= states).any()):
        return "a context backs off to no state"
    if count_levels(back) >= LARGEST_ORDER or bool((back[1:] == torch.arange(1, states)).any()) or int(back[0]) != 0:
        return "its contexts back off in a circle, or too far"
    for name in NUMBERS:
        values = tensors[name]
        highest = LARGEST_WEIGHT if name == "backoff_log_probs" else 1e-3
        if not bool(torch.isfinite(values).all()) or bool((values > highest).any() or (values < -LARGEST_WEIGHT).any()):
            return f"{name} holds a number that no logarithm of a probability can be"
    return None if float(tensors["backoff_log_probs"][0]) == 0.0 else "the empty context has a weight"

"""Compact files of token n-grams: a few bits for each n-gram instead of twenty bytes, for small vocabularies.

States follow one another by the lengths of their contexts, so that tokens and the numbers of arcs tell everything else:
the state after an arc and the next shorter context are found again when the file is read. Logarithms are kept in steps
of 1/16, and all of it is deflated (RFC 1951).

Legend: V tokens, S states, A arcs.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from overtone.errors import DataError

STEPS = 16.0
"""Steps of a natural logarithm."""
MIDDLE = 128
"""The byte that stands for a weight of 0."""
MOST_TOKENS = 254
"""Tokens of the largest vocabulary: an arc's number of arcs after it is one byte."""
MOST_ARCS = 8_000_000
"""Arcs of the largest n-gram that is read."""
PREFIX = "compact_"
ARRAYS = ("tokens", "sizes", "log_probs", "backoffs", "ends")

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]


def compact(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The compact form of an n-gram's tensors, with logarithms rounded.

    Raises DataError for a vocabulary that is too large, and for states in another order than `build_ngram`'s.
    """
    starts, back = tensors["arc_starts"].numpy(), tensors["backoff_states"].numpy()
    size = int(starts[1])
    if size > MOST_TOKENS:
        raise DataError(f"An n-gram over {size} tokens has no compact form; {MOST_TOKENS} are the most.")
    weights, ends = tensors["backoff_log_probs"].numpy(), tensors["end_log_probs"].numpy()
    order, begin = tensors["head"].tolist()
    after = np.insert(
        tensors["arc_next"].numpy(), size, begin
    )  # a sentence's beginning follows the empty context's arcs
    leads = after > np.concatenate(([0], np.maximum.accumulate(after)[:-1]))
    sizes = np.zeros(len(leads), dtype=np.uint8)
    if leads.sum() == len(back) - 1:
        sizes[leads] = (np.diff(starts)[1:] + 1).astype(np.uint8)
    inherited = np.abs(ends - (ends[back] + weights)) < 1e-4
    inherited[0] = False
    found = {
        "tokens": tensors["arc_tokens"].numpy().astype(np.uint8),
        "sizes": sizes,
        "log_probs": to_steps(-tensors["arc_log_probs"].numpy(), 0),
        "backoffs": to_steps(weights, MIDDLE),
        "ends": np.where(inherited, 0, np.maximum(to_steps(-ends, 1), 1)).astype(np.uint8),
    }
    packed = {f"{PREFIX}{name}": deflate(values) for name, values in found.items()}
    packed["head"] = torch.tensor([order, size, len(after) - 1, len(back)], dtype=torch.int32)
    again = expand(packed) if sizes.any() or len(back) == 1 else {}
    linked = ("arc_next", "backoff_states", "arc_starts")
    if not again or any(not torch.equal(again[name], tensors[name]) for name in linked):
        raise DataError("The states of the n-gram are in no order that has a compact form; build it with build_ngram.")
    return packed


def to_steps(values: npt.NDArray[np.float32], zero: int) -> Bytes:
    """Logarithms [N] in steps from the byte that stands for 0, the nearest where they are out of range."""
    steps: Bytes = np.clip(np.round(values * STEPS) + zero, 0, 255).astype(np.uint8)
    return steps


def deflate(values: Bytes) -> Tensor:
    """Bytes [N] as a smaller row of them, [M]."""
    return torch.frombuffer(bytearray(zlib.compress(values.tobytes(), 9)), dtype=torch.uint8)


def inflate(tensor: Tensor, count: int) -> Bytes:
    """The bytes of a smaller row [M] uint8. Raises DataError where they are not so many."""
    try:
        stream = zlib.decompressobj()
        content = stream.decompress(tensor.numpy().tobytes(), count + 1)
    except (zlib.error, TypeError) as error:
        raise damaged(f"its bytes cannot be inflated ({error})") from error
    if len(content) != count or not stream.eof:
        raise damaged(f"{count} bytes are expected, and its stream has other ones or no end")
    return np.frombuffer(content, dtype=np.uint8)


def damaged(fault: str) -> DataError:
    """The error for a compact form that is none."""
    return DataError(f"The compact n-gram is damaged: {fault}. Fetch it or build it again.")


def expand(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an n-gram from its compact form. Raises DataError where it is damaged."""
    wrong = sorted({*(f"{PREFIX}{name}" for name in ARRAYS), "head"} ^ tensors.keys())
    if wrong:
        raise damaged(f"missing or left over: {', '.join(wrong)}")
    head = tensors["head"]
    if head.dtype is not torch.int32 or head.shape != (4,):
        raise damaged("its head is not four numbers")
    order, size, arcs, states = head.tolist()
    if not (1 <= size <= MOST_TOKENS and size <= arcs <= MOST_ARCS and 1 <= states <= arcs + 2):
        raise damaged(f"{size} tokens, {arcs} arcs or {states} states are out of range")
    counts = {"tokens": arcs, "sizes": arcs + 1, "log_probs": arcs, "backoffs": states, "ends": states}
    parts = {name: inflate(tensors[f"{PREFIX}{name}"], count) for name, count in counts.items()}
    leads = parts["sizes"] > 0
    sizes = np.concatenate(([size], parts["sizes"][leads].astype(np.int64) - 1))
    if len(sizes) != states or int(sizes.sum()) != arcs:
        raise damaged("its numbers of arcs do not add up")
    starts = np.concatenate(([0], np.cumsum(sizes)))
    weights = ((parts["backoffs"].astype(np.float32)) - MIDDLE) / STEPS
    weights[0] = 0.0
    following, back, levels = link(parts["tokens"].astype(np.int64), leads, starts, size)
    if len(levels) >= order:
        raise damaged(f"its contexts have up to {len(levels)} tokens, and its order is {order}")
    said = parts["ends"] > 0
    ends = (1.0 - parts["ends"].astype(np.float32)) / STEPS
    for first, last in levels:
        inherited = ~said[first:last]
        shorter = ends[back[first:last]] + weights[first:last]
        ends[first:last] = np.where(inherited, np.minimum(shorter, 0.0), ends[first:last])
    found = {
        "arc_tokens": parts["tokens"].astype(np.int32),
        "arc_next": following.astype(np.int32),
        "arc_starts": starts.astype(np.int32),
        "backoff_states": back.astype(np.int32),
        "head": np.array([order, int(leads[: size + 1].sum()) if leads[size] else 0], dtype=np.int32),
        "arc_log_probs": parts["log_probs"].astype(np.float32) / -STEPS,
        "backoff_log_probs": weights,
        "end_log_probs": ends,
    }
    return {name: torch.from_numpy(values) for name, values in found.items()}


def link(
    tokens: Integers, leads: npt.NDArray[np.bool_], starts: Integers, size: int
) -> tuple[Integers, Integers, list[tuple[int, int]]]:
    """The state after each arc, [A], the next shorter context of each state, [S], and states by length, shortest first.

    tokens [A], leads [A+1]: true where an arc has a state of its own, the beginning of a sentence behind the first
    `size`; starts [S+1]. Raises DataError where an n-gram does not rest on a shorter one.
    """
    numbers = np.cumsum(leads)
    numbers, own = np.delete(numbers, size), np.delete(leads, size)
    owners = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    keys = owners * size + tokens
    following, back = np.zeros(len(tokens), dtype=np.int64), np.zeros(len(starts) - 1, dtype=np.int64)
    following[:size] = np.where(own[:size], numbers[:size], 0)
    first, last = 1, 1 + int(leads[: size + 1].sum())
    levels = []
    while first < last:
        levels.append((first, last))
        low, high = int(starts[first]), int(starts[last])
        wanted = back[owners[low:high]] * size + tokens[low:high]
        places = np.searchsorted(keys[:low], wanted)
        if not np.array_equal(keys[np.minimum(places, max(low - 1, 0))], wanted):
            raise damaged("an n-gram does not rest on a shorter one")
        shorter = following[places]
        following[low:high] = np.where(own[low:high], numbers[low:high], shorter)
        back[numbers[low:high][own[low:high]]] = shorter[own[low:high]]
        first, last = last, last + int(own[low:high].sum())
    if last != len(back):
        raise damaged("a context is reached by no arc")
    return following, back, levels

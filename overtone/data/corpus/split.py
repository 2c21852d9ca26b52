"""Parts of a corpus, no speaker in two of them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from overtone.errors import UsageError


def read_parts(text: str) -> dict[str, float]:
    """`train=0.8,valid=0.1,test=0.1` -> the share of each part. Raises UsageError for others."""
    parts: dict[str, float] = {}
    for item in text.split(","):
        name, _, share = item.partition("=")
        try:
            parts[name.strip()] = float(share)
        except ValueError:
            raise UsageError(f"'{item}' is not of the form NAME=SHARE, such as train=0.8,valid=0.1,test=0.1.") from None
    wrong = [name for name, share in parts.items() if not 0 < share <= 1 or not name or "/" in name]
    if wrong or len(parts) != len(text.split(",")) or abs(sum(parts.values()) - 1) > 1e-6:
        raise UsageError(f"'{text}': the parts need names of their own, and shares between 0 and 1 that add up to 1.")
    return parts


def split(
    durations: Sequence[float], groups: Sequence[str | None], parts: Mapping[str, float], *, seed: int = 0
) -> list[str]:
    """The part of each utterance. Utterances of one group (a speaker) come to one part; those without are alone.

    Large groups are dealt out first, each to the part that lacks the most of its share: the same for the same seed.
    Raises UsageError for fewer groups than parts.
    """
    members: dict[object, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(index if group is None else group, []).append(index)
    if len(members) < len(parts):
        raise UsageError(
            f"{len(members)} speakers cannot be dealt out to {len(parts)} parts, no speaker in two of them. "
            "Give fewer parts, or leave the speakers out with --no-speakers."
        )
    order = list(members.values())
    random.Random(seed).shuffle(order)
    sizes = [sum(durations[index] for index in group) for group in order]
    whole = sum(sizes)
    lacking = {name: share * whole for name, share in parts.items()}
    empty, chosen = set(parts), [""] * len(durations)
    ranked = sorted(range(len(order)), key=lambda place: -sizes[place])
    for done, place in enumerate(ranked):
        free = empty if len(ranked) - done <= len(empty) else set(parts)  # every part has something
        name = max((name for name in parts if name in free), key=lambda name: lacking[name])
        lacking[name] -= sizes[place]
        empty.discard(name)
        for index in order[place]:
            chosen[index] = name
    return chosen

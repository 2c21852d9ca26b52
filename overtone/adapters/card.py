"""An adapter's card as it is read: error rates and step of the adapter that its folder holds.

Where a training was to keep general speech, its end chose a strength, or an earlier step. The card's `steps`,
`wer_after` and `curve` stay those of the best step; `retention` holds the same of what was chosen, its words included.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any, NamedTuple


class Rates(NamedTuple):
    """Word error rates on the domain, 0..1; None where the card does not tell."""

    before: float | None
    """The base's."""
    after: float | None
    """The adapter's."""


def reached_rates(card: Mapping[str, Any]) -> Rates:
    """Error rates on the domain of the base and of the adapter in the folder, both on the same utterances if told so.

    Damage to general speech (`general` of the card) is of the same adapter. Anything but a number counts as not told.
    """
    before, after = rate(card, "wer_before"), rate(card, "wer_after")
    domain = part(part(card, "retention"), "domain_wer")
    chosen = rate(domain, "chosen")
    if chosen is None:
        return Rates(before, after)
    base = rate(domain, "base")  # older cards have none
    return Rates(before if base is None else base, chosen)


def reached_step(card: Mapping[str, Any]) -> int | None:
    """Step of the training whose parameters the folder holds; None where the card does not tell."""
    found = part(card, "retention").get("step", card.get("steps"))
    return found if type(found) is int else None


def reached_scale(card: Mapping[str, Any]) -> float:
    """Share of that step's change with which the adapter acts."""
    found = rate(part(card, "retention"), "scale")
    return 1.0 if found is None else found


def part(card: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section of a card; empty where it is none."""
    found = card.get(name)
    return found if isinstance(found, Mapping) else {}


def rate(section: Mapping[str, Any], name: str) -> float | None:
    """A finite number of a section; None for anything else."""
    found = section.get(name)
    is_number = isinstance(found, int | float) and not isinstance(found, bool) and isfinite(found)
    return float(found) if is_number and found is not None else None

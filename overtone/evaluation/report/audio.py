"""Sound of a report: small files embedded as they are, others as Ogg-Opus, the rest as links."""

from __future__ import annotations

import os
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

from overtone.errors import DataError
from overtone.evaluation.listening import sound_uri
from overtone.evaluation.results import UtteranceResult

LONGEST = 90.0
"""Seconds; longer stretches are linked, not embedded."""


@dataclass(kw_only=True)
class AudioBudget:
    """Players and bytes that may still be embedded."""

    players: int
    bytes: int


def player(utterance: UtteranceResult, page: Path, budget: AudioBudget) -> str:
    """An audio element with the sound inside while the budget lasts, and a link to the file."""
    name = utterance.audio_path.name
    link = f'<a href="{escape(link_to(utterance, page))}">{escape(name)}</a>'
    sound = embed_sound(utterance, budget)
    if sound is None:
        return link
    label = escape(f"{name}: {utterance.reference}")
    return f'<audio controls preload="metadata" aria-label="{label}" src="{sound}"></audio>{link}'


def embed_sound(utterance: UtteranceResult, budget: AudioBudget) -> str | None:
    """The sound as a data URI, taken from the budget; None where it does not fit or cannot be read."""
    if budget.players <= 0 or utterance.duration > LONGEST:
        return None
    try:
        sound = sound_uri(
            utterance.held or utterance.audio_path, utterance.offset, utterance.duration, utterance.channel
        )
    except (DataError, OSError, RuntimeError):  # soundfile's errors are RuntimeErrors
        return None
    if len(sound) > budget.bytes:
        return None
    budget.players -= 1
    budget.bytes -= len(sound)
    return sound


def link_to(utterance: UtteranceResult, page: Path) -> str:
    """The file as seen from the page, with the stretch that is meant (W3C Media Fragments)."""
    target = utterance.audio_path.resolve()
    try:
        address = quote(Path(os.path.relpath(target, page.resolve().parent)).as_posix())
    except ValueError:  # another drive
        address = target.as_uri()
    if not utterance.offset:
        return address
    return f"{address}#t={utterance.offset:g},{utterance.offset + utterance.duration:g}"

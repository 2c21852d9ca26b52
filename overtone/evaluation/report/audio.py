"""Sound of a report: small files embedded as they are, others as Ogg-Opus, the rest as links."""

from __future__ import annotations

import base64
import io
import os
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

from overtone.audio.load import audio_duration, load_audio
from overtone.errors import DataError
from overtone.evaluation.results import UtteranceResult

PLAYABLE = {
    ".wav": "audio/wav",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".mp3": "audio/mpeg",
    ".flac": "audio/flac",
}
"""Formats that browsers play, with their media types."""

SMALL_FILE = 48_000
"""Bytes up to which a whole file is embedded as it is."""

LONGEST = 90.0
"""Seconds; longer stretches are linked, not embedded."""

OPUS_RATE = 16_000


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
        kind, content = _original(utterance) or ("audio/ogg", _opus(utterance))
    except (DataError, OSError, RuntimeError):  # soundfile's errors are RuntimeErrors
        return None
    encoded = base64.b64encode(content).decode("ascii")
    if len(encoded) > budget.bytes:
        return None
    budget.players -= 1
    budget.bytes -= len(encoded)
    return f"data:{kind};base64,{encoded}"


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


def _original(utterance: UtteranceResult) -> tuple[str, bytes] | None:
    """The file itself where it is small, whole and of a kind that browsers play."""
    path = utterance.audio_path
    kind = PLAYABLE.get(path.suffix.lower())
    if kind is None or utterance.offset or utterance.channel is not None or path.stat().st_size > SMALL_FILE:
        return None
    if abs(audio_duration(path) - utterance.duration) > 0.1:
        return None
    return kind, path.read_bytes()


def _opus(utterance: UtteranceResult) -> bytes:
    import soundfile

    samples = load_audio(
        utterance.audio_path,
        offset=utterance.offset,
        duration=utterance.duration,
        sample_rate=OPUS_RATE,
        channel=utterance.channel,
    )
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, OPUS_RATE, format="OGG", subtype="OPUS")
    return buffer.getvalue()

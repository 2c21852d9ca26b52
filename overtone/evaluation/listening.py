"""One utterance as HTML: its sound as a data URI, and its words with the errors marked."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path

from overtone.audio.load import AudioReader, Channels, audio_duration
from overtone.audio.sources import Held
from overtone.wer import align_words

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
OPUS_RATE = 16_000


def sound_uri(path: Path | Held, offset: float, duration: float, channel: Channels | None) -> str:
    """The sound of a stretch in seconds: a small file as it is, anything else as Ogg-Opus.

    Raises DataError, OSError and RuntimeError (soundfile's) for sound that cannot be read.
    """
    original = _original(path, offset, duration, channel) if isinstance(path, Path) else None
    kind, content = original or ("audio/ogg", _opus(path, offset, duration, channel))
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _original(path: Path, offset: float, duration: float, channel: Channels | None) -> tuple[str, bytes] | None:
    """The file itself where it is small, whole and of a kind that browsers play."""
    kind = PLAYABLE.get(path.suffix.lower())
    if kind is None or offset or channel is not None or path.stat().st_size > SMALL_FILE:
        return None
    if abs(audio_duration(path) - duration) > 0.1:
        return None
    return kind, path.read_bytes()


def _opus(path: Path | Held, offset: float, duration: float, channel: Channels | None) -> bytes:
    import soundfile

    with AudioReader(path, offset=offset, duration=duration, sample_rate=OPUS_RATE, channel=channel) as reader:
        samples = reader.read()
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, OPUS_RATE, format="OGG", subtype="OPUS")
    return buffer.getvalue()


def mark_errors(reference: str, hypothesis: str) -> str:
    """The hypothesis with missing words struck out and wrong ones underlined."""
    words = []
    for aligned in align_words(reference, hypothesis):
        if aligned.kind == "equal":
            words.append(escape(aligned.hypothesis or ""))
            continue
        if aligned.reference is not None:
            words.append(f"<del>{escape(aligned.reference)}</del>")
        if aligned.hypothesis is not None:
            words.append(f"<ins>{escape(aligned.hypothesis)}</ins>")
    return " ".join(words) or "<i>nothing</i>"


def player_beside(sound: str, reference: str, hypothesis: str) -> str:
    """A player of the sound, a data URI, above what was said and what was heard, its errors marked."""
    said, heard = escape(reference), mark_errors(reference, hypothesis)
    player = f'<audio controls preload="metadata" src="{sound}"></audio>'
    return f"{player}<table><tr><td>said</td><td>{said}</td></tr><tr><td>heard</td><td>{heard}</td></tr></table>"

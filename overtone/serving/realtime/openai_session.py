"""Session of OpenAI's realtime transcription: its JSON in both generations, changes of it, the request in it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from overtone.audio.decode import Encoding
from overtone.decoding.phrase_boost import Boost
from overtone.serving.errors import RequestError, UnsupportedError
from overtone.serving.http.requests import json_object
from overtone.serving.recognition.request import Endpointing, RecognitionRequest, changed_endpointing, keyword_boosts

PCM_RATE = 24_000
"""Hertz of OpenAI's `audio/pcm`, unless the session says otherwise."""
G711_RATE = 8_000
RATES = (8_000, 96_000)
ENCODINGS: dict[str, Encoding] = {"audio/pcm": "linear_pcm", "audio/pcmu": "mulaw", "audio/pcma": "alaw"}
QUICK = ("minimal", "low", "medium")
DELAYS = (*QUICK, "high", "xhigh")
"""Values of `delay`; with the quick ones words are sent while they are spoken, and not computed again."""
BETA_FORMATS = {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}
"""Values of `input_audio_format` in the beta."""
LOGPROBS = "item.input_audio_transcription.logprobs"
VAD_WITHOUT_EFFECT = ("threshold", "prefix_padding_ms", "idle_timeout_ms", "create_response", "interrupt_response")
"""Settings of turn detection by loudness, and of models that answer; utterances end here by silence of the model."""
SESSION_KEYS = frozenset({"type", "audio", "include", "id", "object", "expires_at", "client_secret"})
BETA_KEYS = frozenset(
    {
        "input_audio_format", "input_audio_transcription", "input_audio_noise_reduction", "turn_detection", "include",
        "modalities", "id", "object", "expires_at", "client_secret",
    }
)  # fmt: skip
"""Keys of a session in the beta; one of the first four marks its form."""
INPUT_KEYS = frozenset({"format", "transcription", "noise_reduction", "turn_detection"})
TRANSCRIPTION_KEYS = frozenset({"model", "language", "languages", "prompt", "keywords", "delay"})


@dataclass(frozen=True, kw_only=True)
class TranscriptionSession:
    """Settings of one connection. A client must set them before its audio is recognised."""

    id: str = field(default_factory=lambda: f"sess_{secrets.token_hex(12)}")
    model: str = ""
    """Name of the model; empty until it is set."""
    language: str = ""
    prompt: str = ""
    keywords: tuple[str, ...] = ()
    format: str = "audio/pcm"
    rate: int = PCM_RATE
    """Hertz."""
    turn_detection: Mapping[str, Any] | None = field(default_factory=lambda: {"type": "server_vad"})
    """None: the client ends utterances itself, by `input_audio_buffer.commit`."""
    noise_reduction: Any = None
    delay: str = ""
    include: tuple[str, ...] = ()
    configured: bool = False

    @property
    def bytes_per_second(self) -> int:
        return self.rate * (2 if self.format == "audio/pcm" else 1)


def is_beta_form(session: Mapping[str, Any]) -> bool:
    """Tell whether a client's session has the flat keys of the beta."""
    return "audio" not in session and bool(session.keys() & (BETA_KEYS - SESSION_KEYS))


def update_session(session: TranscriptionSession, changes: Any) -> TranscriptionSession:
    """Session with a client's changes, of either form; it is configured then.

    Raises RequestError or UnsupportedError: what has no meaning here would change the transcript elsewhere.
    """
    changes = json_object(changes, "session")
    beta = is_beta_form(changes)
    check_keys(changes, BETA_KEYS if beta else SESSION_KEYS, "session")
    kind = changes.get("type", "transcription")
    if kind != "transcription":
        message = (
            f"A session of type {str(kind)[:40]!r} is not supported: this server transcribes. Allowed: transcription."
        )
        raise RequestError(message, "session.type")
    if beta:
        names = {"format": "input_audio_format", "transcription": "input_audio_transcription"}
        names |= {"noise_reduction": "input_audio_noise_reduction", "turn_detection": "turn_detection"}
        where = {key: f"session.{name}" for key, name in names.items()}
        given = {key: changes[name] for key, name in names.items() if name in changes}
    else:
        audio = json_object(changes.get("audio") or {}, "session.audio")
        check_keys(audio, {"input"}, "session.audio")
        given = dict(json_object(audio.get("input") or {}, "session.audio.input"))
        check_keys(given, INPUT_KEYS, "session.audio.input")
        where = {key: f"session.audio.input.{key}" for key in INPUT_KEYS}
    readers: dict[str, Callable[[Any, str], dict[str, Any]]] = {
        "format": read_format,
        "transcription": read_transcription,
        "turn_detection": read_turn_detection,
        "noise_reduction": lambda value, _: {"noise_reduction": value},
    }
    found: dict[str, Any] = {}
    for key, value in given.items():
        found |= readers[key](value, where[key])
    if "include" in changes:
        found["include"] = read_include(changes["include"])
    changed = replace(session, **found, configured=True)
    if not changed.model:
        raise RequestError(
            "The session names no model; set it in the transcription.", f"{where['transcription']}.model"
        )
    return changed


def check_keys(value: Mapping[str, Any], allowed: frozenset[str] | set[str], where: str) -> None:
    """Raises RequestError for a key that is not allowed."""
    for key in value:
        if key not in allowed:
            message = f"'{where}.{key[:60]}' is unknown. Allowed: {', '.join(sorted(allowed))}."
            raise RequestError(message, f"{where}.{key[:60]}")


def read_format(value: Any, where: str) -> dict[str, Any]:
    """Format and rate, of `{"type": "audio/pcm", "rate": 24000}` or `"pcm16"`. Raises RequestError."""
    if value is None:
        return {}
    if isinstance(value, str):
        value = {"type": BETA_FORMATS.get(value, value)}
    value = json_object(value, where)
    check_keys(value, {"type", "rate"}, where)
    kind = value.get("type", "audio/pcm")
    if not isinstance(kind, str) or kind not in ENCODINGS:
        allowed = ", ".join((*ENCODINGS, *BETA_FORMATS))
        raise RequestError(f"The format {str(kind)[:40]!r} is unknown. Allowed: {allowed}.", f"{where}.type")
    rate = value.get("rate", PCM_RATE if kind == "audio/pcm" else G711_RATE)
    if isinstance(rate, bool) or not isinstance(rate, int) or not RATES[0] <= rate <= RATES[1]:
        allowed = f"a whole number from {RATES[0]} to {RATES[1]} is allowed, {PCM_RATE} is usual"
        message = f"The rate is {str(rate)[:40]}; {allowed}."
        raise RequestError(message, f"{where}.rate")
    return {"format": kind, "rate": rate}


def read_transcription(value: Any, where: str) -> dict[str, Any]:
    """Model, language and hints. Raises RequestError."""
    value = json_object(value, where)  # null turns transcription off: then nothing is left to do here
    check_keys(value, TRANSCRIPTION_KEYS, where)
    found: dict[str, Any] = {}
    for name in ("model", "language", "prompt", "delay"):
        if name in value:
            text = "" if value[name] is None else value[name]
            if not isinstance(text, str):
                raise RequestError(f"'{where}.{name}' must be text.", f"{where}.{name}")
            if text or name != "model":
                found[name] = text
    if found.get("delay", "") not in ("", *DELAYS):
        raise RequestError(f"'{where}.delay' is one of {', '.join(DELAYS)}.", f"{where}.delay")
    languages, keywords = (texts(value.get(name), f"{where}.{name}") for name in ("languages", "keywords"))
    if len(languages) > 1:
        message = f"'{where}.languages' names {len(languages)} languages; the model understands one."
        raise RequestError(message, f"{where}.languages")
    if languages:
        found["language"] = languages[0]
    if "keywords" in value:
        found["keywords"] = keywords
    return found


def texts(value: Any, where: str) -> tuple[str, ...]:
    """List of texts; none for null. Raises RequestError."""
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise RequestError(f"'{where}' must be a list of texts.", where)
    return tuple(value)


def read_turn_detection(value: Any, where: str) -> dict[str, Any]:
    """Turn detection: null, or `server_vad` with its settings. Raises RequestError."""
    if value is None:
        return {"turn_detection": None}
    value = json_object(value, where)
    check_keys(value, {"type", "silence_duration_ms", *VAD_WITHOUT_EFFECT}, where)
    kind = value.get("type", "server_vad")
    if kind != "server_vad":
        message = f"Turn detection of type {str(kind)[:40]!r} is not supported. Allowed: server_vad, or null."
        raise RequestError(message, f"{where}.type")
    pause = value.get("silence_duration_ms")
    if pause is not None and (isinstance(pause, bool) or not isinstance(pause, int) or not 1 <= pause <= 60_000):
        message = f"silence_duration_ms is {str(pause)[:40]}; 1 to 60000 milliseconds are allowed."
        raise RequestError(message, f"{where}.silence_duration_ms")
    given = {name: inner for name, inner in value.items() if inner is not None}
    return {"turn_detection": {"type": "server_vad", **given}}


def read_include(value: Any) -> tuple[str, ...]:
    """Additions to results that a client asks for. Raises RequestError."""
    for name in texts(value, "session.include"):
        if name != LOGPROBS:
            raise RequestError(f"'{name[:60]}' cannot be included. Allowed: {LOGPROBS}.", "session.include")
    return tuple(value or ())


def recognition_request(
    session: TranscriptionSession, endpointing: Endpointing, *, prompt_boost: float
) -> RecognitionRequest:
    """Session -> a recognition request. endpointing: the server's own. prompt_boost: of the prompt's words; 0 is none.

    Raises RequestError.
    """
    detection = session.turn_detection
    pause = 0 if detection is None else detection.get("silence_duration_ms", endpointing.stop_history)
    boosts: tuple[Boost, ...] = keyword_boosts(session.keywords, session.prompt, prompt_boost)
    without_effect = {
        "prompt": session.prompt and not prompt_boost,
        "noise_reduction": session.noise_reduction,
        **{f"turn_detection.{name}": name in (detection or {}) for name in VAD_WITHOUT_EFFECT},
    }
    try:
        return RecognitionRequest(
            model=session.model,
            language=session.language,
            encoding=ENCODINGS[session.format],
            sample_rate=session.rate,
            channels=1,
            boosts=boosts,
            endpointing=changed_endpointing(endpointing, {"stop_history": pause}),
            ignored=tuple(name for name, given in without_effect.items() if given),
        )
    except UnsupportedError as error:
        raise RequestError(str(error), "session") from error


def session_json(session: TranscriptionSession, *, beta: bool, endpointing: Endpointing) -> dict[str, Any]:
    """JSON of a session as its generation of clients reads it. endpointing: the server's own."""
    transcription: dict[str, Any] = {
        "model": session.model,
        "language": session.language or None,
        "prompt": session.prompt,
    }
    if session.delay:
        transcription["delay"] = session.delay
    if session.keywords:
        transcription["keywords"] = list(session.keywords)
    detection = session.turn_detection
    if detection is not None:
        detection = {"silence_duration_ms": endpointing.stop_history, **detection}
    include = list(session.include) or None
    common: dict[str, Any] = {"id": session.id, "object": "realtime.transcription_session", "include": include}
    if beta:
        names = {value: key for key, value in BETA_FORMATS.items()}
        return {
            **common,
            "modalities": ["audio", "text"],
            "input_audio_format": names[session.format],
            "input_audio_transcription": transcription if session.model else None,
            "input_audio_noise_reduction": session.noise_reduction,
            "turn_detection": detection,
        }
    format = {"type": session.format, **({"rate": session.rate} if session.format == "audio/pcm" else {})}
    return {
        **common,
        "type": "transcription",
        "audio": {
            "input": {
                "format": format,
                "transcription": transcription if session.model else None,
                "noise_reduction": session.noise_reduction,
                "turn_detection": detection,
            }
        },
    }

"""Session of Riva's realtime interface: its JSON, changes of it, the recognition request in it, and its secrets."""

from __future__ import annotations

import copy
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from overtone.audio.decode import Encoding
from overtone.serving.auth.guard import Metadata
from overtone.serving.errors import AccessError, RequestError
from overtone.serving.http.requests import json_object
from overtone.serving.recognition.request import (
    Endpointing,
    RecognitionRequest,
    changed_endpointing,
    custom_adapter,
    custom_context,
    json_boosts,
    unknown_keys,
)

T = TypeVar("T")

ENCODINGS: dict[str, Encoding] = {
    "none": "auto",
    "": "auto",
    "pcm16": "linear_pcm",
    "g711_ulaw": "mulaw",
    "g711_alaw": "alaw",
}
"""Values of input_audio_format; `none` is a file with its header."""
ENDPOINTING = (
    "start_history", "start_threshold", "stop_history", "stop_threshold", "stop_history_eou", "stop_threshold_eou",
)  # fmt: skip
LARGEST = 2**31 - 1
"""Largest whole number of a session, as in Riva's gRPC interface."""


def new_session(*, language: str, model: str, sample_rate: int, secret: dict[str, Any] | None) -> dict[str, Any]:
    """Session with the server's defaults; `transcription_session.update` changes it. A 0 of endpointing is unset."""
    return {
        "id": f"sess_{secrets.token_hex(12)}",
        "object": "realtime.transcription_session",
        "modalities": ["text"],
        "input_audio_format": "pcm16",
        "input_audio_transcription": {"language": language, "model": model, "prompt": ""},
        "input_audio_params": {"sample_rate_hz": sample_rate, "num_channels": 1},
        "recognition_config": {
            "max_alternatives": 1,
            "enable_automatic_punctuation": False,
            "enable_word_time_offsets": False,
            "enable_profanity_filter": False,
            "enable_verbatim_transcripts": True,
            "custom_configuration": "",
        },
        "speaker_diarization": {"enable_speaker_diarization": False, "max_speaker_count": 0},
        "word_boosting": {"enable_word_boosting": False, "word_boosting_list": []},
        "endpointing_config": dict.fromkeys(ENDPOINTING, 0),
        "custom_configuration": {},
        "client_secret": secret,
    }


def update_session(session: Mapping[str, Any], changes: Any) -> dict[str, Any]:
    """Session with a client's changes; keys that mean nothing here are left out. Raises RequestError."""
    result = copy.deepcopy(dict(session))
    for key, value in json_object(changes, "session").items():
        if key in ("id", "object", "client_secret") or key not in result or value is None:
            continue
        if isinstance(result[key], dict) and key != "custom_configuration":
            for name, inner in json_object(value, key).items():
                if name in result[key] and inner is not None:
                    result[key][name] = inner
        else:
            result[key] = value
    try:
        json.dumps(result, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):  # half a surrogate pair is a ValueError too
        raise RequestError("The session holds a number or a character that JSON cannot say.", "session") from None
    return result


def recognition_request(session: Mapping[str, Any], endpointing: Endpointing) -> RecognitionRequest:
    """Session -> a recognition request. endpointing: the server's own. Raises RequestError or UnsupportedError."""
    transcription, audio = session["input_audio_transcription"], session["input_audio_params"]
    options, boosting = session["recognition_config"], session["word_boosting"]
    format = session["input_audio_format"]
    if not isinstance(format, str) or format not in ENCODINGS:
        allowed = ", ".join(filter(None, ENCODINGS))
        raise RequestError(f"input_audio_format {str(format)[:40]!r} is unknown. Allowed: {allowed}.")
    try:
        custom = {**pairs(session["custom_configuration"]), **pairs(options["custom_configuration"])}
        return RecognitionRequest(
            model=of_kind(str, transcription, "model"),
            adapter=custom_adapter(custom),
            language=of_kind(str, transcription, "language"),
            encoding=ENCODINGS[format],
            sample_rate=of_kind(int, audio, "sample_rate_hz"),
            channels=of_kind(int, audio, "num_channels"),
            separate_speakers=of_kind(bool, session["speaker_diarization"], "enable_speaker_diarization"),
            boosts=json_boosts(boosting["word_boosting_list"]) if boosting["enable_word_boosting"] else (),
            alternatives=of_kind(int, options, "max_alternatives"),
            word_times=of_kind(bool, options, "enable_word_time_offsets"),
            mask_profanity=of_kind(bool, options, "enable_profanity_filter"),
            endpointing=changed_endpointing(endpointing, given_endpointing(session["endpointing_config"])),
            attention_context=custom_context(custom),
            ignored=(*ignored_fields(session), *unknown_keys(custom)),
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise RequestError(f"The session holds a value of the wrong kind: {str(error)[:200]}.", "session") from error


def of_kind(kind: Callable[[Any], T], section: Mapping[str, Any], name: str) -> T:
    """Value of a session: str, int or bool; a whole number may stand for a flag. Raises TypeError or OverflowError."""
    value = section[name]
    if not isinstance(value, str if kind is str else int):
        raise TypeError(f"'{name}' must be a {'text' if kind is str else 'whole number' if kind is int else 'flag'}")
    if isinstance(value, int) and not -LARGEST <= value <= LARGEST:
        raise OverflowError(f"'{name}' is out of range")
    return kind(value)


def given_endpointing(config: Mapping[str, Any]) -> dict[str, float]:
    """Values of endpointing that a session sets: those above 0. Raises TypeError."""
    values: dict[str, float] = {}
    for name in ENDPOINTING:
        value = config[name]
        kinds = int | float if "threshold" in name else int
        if not isinstance(value, kinds):
            raise TypeError(f"'{name}' must be a number")
        if value > 0:
            values[name] = value
    return values


def ignored_fields(session: Mapping[str, Any]) -> list[str]:
    """Fields of a session that are set and have no effect on a stream."""
    options = session["recognition_config"]
    asked = {
        "prompt": session["input_audio_transcription"]["prompt"],
        "max_alternatives": options["max_alternatives"] not in (0, 1),
        "enable_automatic_punctuation": options["enable_automatic_punctuation"],
        "enable_verbatim_transcripts": not options["enable_verbatim_transcripts"],
        "max_speaker_count": session["speaker_diarization"]["max_speaker_count"],
    }
    return [name for name, value in asked.items() if value]


def pairs(value: Any) -> dict[str, str]:
    """Keys and values of `{"key": "value"}`, or as NVIDIA's clients write it, "key:value,key2:value2".

    Raises ValueError.
    """
    if isinstance(value, dict):
        if not all(isinstance(text, str) for text in value.values()):
            raise ValueError("the values of custom_configuration must be texts")
        return value
    if not isinstance(value, str):
        raise ValueError("custom_configuration must be an object or a text")
    found = {}
    for pair in value.replace(" ", "").split(","):
        key, colon, rest = pair.partition(":")
        if pair and (not colon or ":" in rest):
            raise ValueError(f"custom_configuration: {pair[:40]!r} is not key:value")
        if pair:
            found[key] = rest
    return found


class Secrets:
    """Short-lived secrets that stand for a token when a browser or a script opens its WebSocket."""

    SECONDS = 60.0
    MOST = 10_000

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[float, list[tuple[str, str]]]] = OrderedDict()

    def mint(self, metadata: Metadata) -> dict[str, Any]:
        """New secret, `{"value", "expires_at"}`, for the token in these headers."""
        kept = [
            (name, value)
            for name, value in metadata
            if name in ("authorization", "x-api-key") and isinstance(value, str)
        ]
        value = secrets.token_urlsafe(32)
        self._forget_old()
        self._known[value] = (time.monotonic() + self.SECONDS, kept)
        return {"value": value, "expires_at": int(time.time() + self.SECONDS)}

    def redeem(self, value: str) -> list[tuple[str, str]]:
        """Headers that a secret was minted for; it works once. Raises AccessError."""
        self._forget_old()
        found = self._known.pop(value, None)
        if found is None:
            raise AccessError(
                "The session's secret is unknown, used or too old; make a new one.", fault="unauthenticated"
            )
        return found[1]

    def _forget_old(self) -> None:
        now = time.monotonic()
        while self._known:
            oldest = next(iter(self._known))
            if self._known[oldest][0] > now and len(self._known) < self.MOST:
                break
            del self._known[oldest]

"""The session of Riva's realtime interface: what a client may say about it, and what that means."""

from __future__ import annotations

import copy
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from overtone.serving.auth.access import AccessError, Metadata
from overtone.serving.http.errors import invalid
from overtone.serving.http.requests import HttpSettings, add_contexts, mapping
from overtone.serving.riva.protobuf import ENCODINGS, RecognitionConfig

FORMATS = {
    "none": "ENCODING_UNSPECIFIED",
    "": "ENCODING_UNSPECIFIED",
    "pcm16": "LINEAR_PCM",
    "g711_ulaw": "MULAW",
    "g711_alaw": "ALAW",
}
"""input_audio_format; `none` is a file with its header."""
ENDPOINTING = (
    "start_history", "start_threshold", "stop_history", "stop_threshold", "stop_history_eou", "stop_threshold_eou",
)  # fmt: skip


def new_session(settings: HttpSettings, model: str, sample_rate: int, secret: dict[str, Any] | None) -> dict[str, Any]:
    """What a client is given, and changes by `transcription_session.update`. A 0 of endpointing is the server's own."""
    return {
        "id": f"sess_{secrets.token_hex(12)}",
        "object": "realtime.transcription_session",
        "modalities": ["text"],
        "input_audio_format": "pcm16",
        "input_audio_transcription": {"language": settings.language, "model": model, "prompt": ""},
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


def updated(session: Mapping[str, Any], changes: Any) -> dict[str, Any]:
    """The session with what the client wants otherwise; keys that mean nothing here are left out. Raises HttpError."""
    result = copy.deepcopy(dict(session))
    for key, value in mapping(changes, "session").items():
        if key in ("id", "object", "client_secret") or key not in result or value is None:
            continue
        if isinstance(result[key], dict) and key != "custom_configuration":
            for name, inner in mapping(value, key).items():
                if name in result[key] and inner is not None:
                    result[key][name] = inner
        else:
            result[key] = value
    try:
        json.dumps(result, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):  # half a surrogate pair is a ValueError too
        raise invalid("The session holds a number or a character that JSON cannot say.", "session") from None
    return result


def recognition_config(session: Mapping[str, Any]) -> Any:
    """The RecognitionConfig that says the same, so that both doors mean the same by it. Raises HttpError."""
    transcription, audio = session["input_audio_transcription"], session["input_audio_params"]
    wishes, boosting = session["recognition_config"], session["word_boosting"]
    format = session["input_audio_format"]
    if not isinstance(format, str) or format not in FORMATS:
        raise invalid(
            f"input_audio_format {str(format)[:40]!r} is unknown. Allowed: {', '.join(filter(None, FORMATS))}."
        )
    try:
        config = RecognitionConfig(
            encoding=ENCODINGS[FORMATS[format]].number,
            sample_rate_hertz=audio["sample_rate_hz"],
            audio_channel_count=audio["num_channels"],
            language_code=transcription["language"],
            model=transcription["model"],
            max_alternatives=wishes["max_alternatives"],
            enable_word_time_offsets=wishes["enable_word_time_offsets"],
            profanity_filter=wishes["enable_profanity_filter"],
            custom_configuration={
                **pairs(session["custom_configuration"]),
                **pairs(wishes["custom_configuration"]),
            },
        )
        config.diarization_config.enable_speaker_diarization = session["speaker_diarization"][
            "enable_speaker_diarization"
        ]
        for name in ENDPOINTING:
            value = session["endpointing_config"][name]
            if value > 0:
                setattr(config.endpointing_config, name, value)
        if boosting["enable_word_boosting"]:
            add_contexts(config, boosting["word_boosting_list"])
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise invalid(f"The session holds a value of the wrong kind: {str(error)[:200]}.", "session") from error
    return config


def ignored_wishes(session: Mapping[str, Any]) -> list[str]:
    """What a session asks for that has no effect on it, and that `recognition_config` leaves out or a stream does."""
    wishes = session["recognition_config"]
    asked = {
        "prompt": session["input_audio_transcription"]["prompt"],
        "max_alternatives": wishes["max_alternatives"] not in (0, 1),
        "enable_automatic_punctuation": wishes["enable_automatic_punctuation"],
        "enable_verbatim_transcripts": not wishes["enable_verbatim_transcripts"],
        "max_speaker_count": session["speaker_diarization"]["max_speaker_count"],
    }
    return [name for name, value in asked.items() if value]


def pairs(value: Any) -> dict[str, str]:
    """`{"key": "value"}`, or as NVIDIA's clients write it, "key:value,key2:value2". Raises ValueError."""
    if isinstance(value, dict):
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
        """`{"value", "expires_at"}` for the token in these headers."""
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
        """The headers that it was minted for; it works once. Raises AccessError."""
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

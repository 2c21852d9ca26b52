"""Messages of Riva's clients -> recognition requests. `riva/fields.py` documents every field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from google.protobuf.message import DecodeError

from overtone.audio.decode import Encoding
from overtone.serving.errors import RequestError
from overtone.serving.recognition.request import (
    Endpointing,
    RecognitionRequest,
    changed_endpointing,
    custom_adapter,
    custom_context,
    custom_task,
    phrase_boosts,
    unknown_keys,
)
from overtone.serving.riva.fields import IGNORED_FIELDS
from overtone.serving.riva.protobuf import ENCODING_NAMES

ENCODINGS: dict[int, Encoding] = {0: "auto", 1: "linear_pcm", 2: "flac", 3: "mulaw", 4: "ogg_opus", 20: "alaw"}


def reader(kind: Any) -> Callable[[bytes], Any]:
    """Function from bytes to a message of the kind, or None: gRPC would answer an error there as the server's fault."""

    def read(data: bytes) -> Any:
        try:
            return kind.FromString(data)
        except DecodeError:
            return None

    return read


def readable(message: Any) -> Any:
    """The message. Raises RequestError for None (see `reader`)."""
    if message is None:
        raise RequestError("the request is damaged: its bytes are not those of the message that this method takes")
    return message


def audio_size(message: Any) -> int:
    """Bytes of audio in a message of a stream. Raises RequestError for a damaged one."""
    return len(readable(message).audio_content)


def recognition_request(config: Any, *, endpointing: Endpointing, interim: bool = True) -> RecognitionRequest:
    """config: RecognitionConfig. endpointing: the server's own. Raises RequestError or UnsupportedError."""
    if config.encoding not in ENCODINGS:
        allowed = ", ".join(ENCODING_NAMES.values())
        raise RequestError(f"encoding {config.encoding} is unknown. Allowed: {allowed}.")
    return RecognitionRequest(
        model=config.model,
        adapter=custom_adapter(config.custom_configuration),
        language=config.language_code,
        encoding=ENCODINGS[config.encoding],
        sample_rate=config.sample_rate_hertz,
        channels=config.audio_channel_count,
        separate_channels=config.enable_separate_recognition_per_channel,
        separate_speakers=config.diarization_config.enable_speaker_diarization,
        boosts=phrase_boosts((context.phrases, context.boost) for context in config.speech_contexts),
        alternatives=config.max_alternatives,
        word_times=config.enable_word_time_offsets,
        mask_profanity=config.profanity_filter,
        endpointing=changed_endpointing(endpointing, given_endpointing(config.endpointing_config)),
        interim=interim,
        task=custom_task(config.custom_configuration),
        attention_context=custom_context(config.custom_configuration),
        ignored=ignored_fields(config),
    )


def given_endpointing(config: Any) -> dict[str, float]:
    """Values that an EndpointingConfig sets; -1 counts as unset, as some clients send it."""
    names = [field.name for field in fields(Endpointing) if config.HasField(field.name)]
    return {name: getattr(config, name) for name in names if getattr(config, name) != -1}


def ignored_fields(config: Any) -> tuple[str, ...]:
    """Fields of a RecognitionConfig that are set and have no effect, and the first of the unknown keys."""
    named = (field.name for field, _ in config.ListFields() if field.name in IGNORED_FIELDS)
    return (*named, *unknown_keys(config.custom_configuration))

"""RecognitionConfig of the Riva interface -> what to do. Every field is told of in `riva_fields`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import grpc

from overtone.audio.decode import AudioFormat, Encoding
from overtone.decoding.decoder import BeamSettings, DecodingOptions
from overtone.decoding.phrase_boost import Boost, BoostTree
from overtone.serving.adapter_store.names import chosen_adapters
from overtone.serving.riva.errors import RivaError, invalid
from overtone.serving.riva.protobuf import ENCODING_NAMES
from overtone.serving.streaming.endpointing import Endpointing
from overtone.tokenizers import Tokenizer

Kind = Literal["offline", "online"]
"""Riva's words for Recognize and StreamingRecognize."""

ENCODINGS: dict[int, Encoding] = {0: "auto", 1: "linear_pcm", 2: "flac", 3: "mulaw", 4: "ogg_opus", 20: "alaw"}
MAX_ALTERNATIVES = 16
MAX_NAME_LENGTH = 500
"""Characters of a model's name, with its adapters."""
MAX_PHRASES = 4096
MAX_PHRASE_LENGTH = 200
UNSET_BOOST = 4.0
"""What a boost of 0 (unset) counts as: the default of NVIDIA's client scripts."""


@dataclass(frozen=True, kw_only=True)
class RecognitionRequest:
    """A configuration that was found sound."""

    kind: Kind
    model: str
    """The model as the request wrote it, for messages."""
    names: tuple[str, ...]
    """The adapters, in the order in which they act; empty for the base."""
    encoding: Encoding
    sample_rate: int
    channels: int
    per_channel: bool
    """Whether each channel was asked to be recognised apart, which can be refused only when the header is known."""
    language: str
    alternatives: int
    boosts: tuple[Boost, ...]
    word_times: bool
    mask_profanity: bool
    endpointing: Endpointing

    @property
    def adapter(self) -> str | None:
        """What a shelf takes: `a`, `a+b`, or None."""
        return "+".join(self.names) or None

    def decoding(self, tokenizer: Tokenizer) -> DecodingOptions:
        """Takes a while where there are many phrases."""
        boosts = BoostTree(self.boosts, tokenizer) if self.boosts else None
        beam = BeamSettings(width=max(BeamSettings().width, self.alternatives))
        return DecodingOptions(boosts=boosts, alternatives=self.alternatives, beam=beam)


def read_config(config: Any, *, kind: Kind, base: str, language: str, endpointing: Endpointing) -> RecognitionRequest:
    """config: RecognitionConfig; base: the base's name; language, endpointing: the server's.

    Raises RivaError or UsageError.
    """
    if not understands(language, config.language_code):
        raise unavailable(config.language_code, kind)
    check_unsupported(config)
    custom: Mapping[str, str] = config.custom_configuration
    if config.encoding not in ENCODINGS:
        raise invalid(f"encoding {config.encoding} is unknown. Allowed: {', '.join(ENCODING_NAMES.values())}.")
    for name in ("sample_rate_hertz", "max_alternatives", "audio_channel_count"):
        if getattr(config, name) < 0:
            raise invalid(f"{name} is {getattr(config, name)}; it cannot be negative.")
    for name, value in (("model", config.model), ("custom_configuration 'adapter'", custom.get("adapter", ""))):
        if len(value) > MAX_NAME_LENGTH:
            raise invalid(f"{name} has {len(value)} characters; at most {MAX_NAME_LENGTH} are allowed.")
    return RecognitionRequest(
        kind=kind,
        model=config.model,
        names=chosen_adapters(config.model, custom.get("adapter", ""), base),
        encoding=ENCODINGS[config.encoding],
        sample_rate=config.sample_rate_hertz,
        channels=config.audio_channel_count,
        per_channel=config.enable_separate_recognition_per_channel,
        language=language,
        alternatives=min(MAX_ALTERNATIVES, max(1, config.max_alternatives)),
        boosts=read_boosts(config.speech_contexts),
        word_times=config.enable_word_time_offsets,
        mask_profanity=config.profanity_filter,
        endpointing=read_endpointing(config.endpointing_config, endpointing),
    )


def unavailable(language: str, kind: Kind, more: str = "") -> RivaError:
    """Riva's own words, which its clients look for; `more` follows them."""
    return invalid(f"Error: Unavailable model requested. Lang: {language}, Type: {kind}{more}")


def understands(language: str, asked: str) -> bool:
    """Empty, the server's own tag or its language alone (`en` for `en-US`, any `en-XX` for `en`), in any case."""
    asked_tag, own = asked.lower(), language.lower()
    primary = own.partition("-")[0]
    return asked_tag in ("", own, primary) or (own == primary and asked_tag.startswith(f"{own}-"))


def check_unsupported(config: Any) -> None:
    """What would give another answer than the one that was asked for."""
    if config.diarization_config.enable_speaker_diarization:
        raise unimplemented("diarization_config.enable_speaker_diarization", "speakers are not told apart")
    if config.enable_separate_recognition_per_channel and config.audio_channel_count > 1:
        raise per_channel_refused()
    if "adapter_scale" in config.custom_configuration:
        raise invalid("custom_configuration 'adapter_scale' is not supported: an adapter acts as it was trained.")


def unimplemented(name: str, reason: str) -> RivaError:
    return RivaError(grpc.StatusCode.UNIMPLEMENTED, f"{name} is not supported: {reason}.")


def per_channel_refused() -> RivaError:
    return unimplemented("enable_separate_recognition_per_channel", "channels are averaged; send each as a request")


def check_channels(audio: AudioFormat | None, request: RecognitionRequest) -> None:
    """audio: what the header said, once it is known."""
    if request.per_channel and audio is not None and audio.channels > 1:
        raise per_channel_refused()


def read_boosts(contexts: Any) -> tuple[Boost, ...]:
    """speech_contexts, those without phrases left out."""
    boosts = []
    total = 0
    for context in contexts:
        phrases = tuple(phrase for phrase in context.phrases if phrase.strip())
        total += len(phrases)
        if not math.isfinite(context.boost):
            raise invalid(f"speech_contexts: a boost of {context.boost} is no number.")
        if any(len(phrase) > MAX_PHRASE_LENGTH for phrase in phrases):
            raise invalid(f"speech_contexts: a phrase has at most {MAX_PHRASE_LENGTH} characters.")
        if phrases:
            boosts.append(Boost(phrases=phrases, boost=context.boost or UNSET_BOOST))
    if total > MAX_PHRASES:
        raise invalid(f"speech_contexts: {total} phrases; at most {MAX_PHRASES} are allowed.")
    return tuple(boosts)


def read_endpointing(config: Any, default: Endpointing) -> Endpointing:
    """EndpointingConfig over the server's default; -1 counts as unset, as some clients send it."""
    values = {field.name: given(config, field.name, getattr(default, field.name)) for field in fields(Endpointing)}
    eou, stop = values["stop_history_eou"], values["stop_history"]
    if given(config, "stop_history_eou", None) is not None and 0 < stop <= eou:
        raise invalid(f"endpointing_config: stop_history_eou ({eou}) must be shorter than stop_history ({stop}).")
    if eou is not None and 0 < stop <= eou:
        values["stop_history_eou"] = None
    return Endpointing(**values)


def given(config: Any, name: str, default: Any) -> Any:
    value = getattr(config, name)
    if not config.HasField(name) or value == -1:
        return default
    most = 1.0 if "threshold" in name else 60_000
    if not 0 <= value <= most:
        raise invalid(f"endpointing_config: {name} is {value:g}; allowed: 0 … {most:g}.")
    return value

"""Request of a client in plain values: adapter, audio format, phrase boosts, and the contents of its results.

Each interface fills in a `RecognitionRequest` from its own messages, in one function; recognition knows nothing else
of a request. A `Call` is the record of its progress, for logs and metrics.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from overtone.audio.decode import AudioFormat, Encoding
from overtone.decoding.phrase_boost import Boost
from overtone.errors import UsageError
from overtone.serving.engine.queue import Turn
from overtone.serving.errors import RequestError, UnsupportedError

MAX_ALTERNATIVES = 16
MAX_NAME_LENGTH = 500
"""Characters of a model's name, with its adapters."""
MAX_PHRASES = 4096
MAX_PHRASE_LENGTH = 200
"""Characters."""
MULTILINGUAL = "multi"
"""Riva's language tag of a model that finds out the language itself."""
UNSET_BOOST = 4.0
"""Boost of phrases that come with 0 (unset): the default of NVIDIA's client scripts."""

KNOWN_KEYS = frozenset(
    {
        "adapter", "adapter_scale", "apply_partial_itn", "att_context_size", "enable_automatic_language_detection",
        "enable_vad_endpointing", "get_vad_probabilities", "source_language", "stop_history_eou",
        "target_language", "task", "pnc", "itn", "timestamp", "diarize", "emotion", "decodercontext",
    }
)  # fmt: skip
"""Keys of Riva's custom_configuration that are no mistake, besides those of `neural_vad.`."""
TASK_KEYS = {
    "source_language": "source_lang",
    "target_language": "target_lang",
    **{name: name for name in ("task", "pnc", "itn", "timestamp", "diarize", "emotion", "decodercontext")},
}
"""Keys of custom_configuration, and fields of a form, that say what a multitask model is to do: its slots."""
LISTED = 20
"""Unknown keys in the log."""
WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
"""A word of a prompt."""


@dataclass(frozen=True, kw_only=True)
class Endpointing:
    """Beginning and end of utterances; names and defaults are Riva's. Histories are rounded to whole frames.

    Raises UsageError for values that cannot be.
    """

    start_history: int = 300
    """Milliseconds looked at for the beginning."""
    start_threshold: float = 0.2
    """Share of them that must have a token; one frame at least."""
    stop_history: int = 800
    """Milliseconds looked at for the end; 0 never ends an utterance before the stream (or `max_utterance`)."""
    stop_threshold: float = 0.98
    """Share of them that must be silent."""
    stop_history_eou: int | None = None
    """Milliseconds of an earlier guess, an interim result of stability 1; shorter than `stop_history`."""
    stop_threshold_eou: float | None = None
    """Share of them that must be silent; `stop_threshold` unless given."""

    def __post_init__(self) -> None:
        for name in ("start_history", "stop_history", "stop_history_eou"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 60_000:
                raise UsageError(f"{name} is {value}; 0 to 60000 milliseconds are allowed.")
        for name in ("start_threshold", "stop_threshold", "stop_threshold_eou"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise UsageError(f"{name} is {value}; a share from 0 to 1 is needed.")
        if self.stop_history_eou and self.stop_history and self.stop_history_eou >= self.stop_history:
            raise UsageError(
                f"stop_history_eou is {self.stop_history_eou} ms and stop_history {self.stop_history} ms; "
                "the first must be shorter."
            )


@dataclass(frozen=True, kw_only=True)
class RecognitionRequest:
    """A request as its client made it. Raises RequestError or UnsupportedError where it cannot be followed."""

    model: str = ""
    """Name of the base or an adapter, `base+a+b`; empty is the base."""
    adapter: str = ""
    """Second place for the adapter; empty where `model` alone says it."""
    language: str = ""
    """BCP-47 tag; empty is the server's."""
    task: str = ""
    """Further slots of a multitask model's prompt, `target_lang=en,pnc=no`; empty leaves them to the model."""
    encoding: Encoding = "auto"
    """Encoding of audio without a header; a header is believed before it."""
    sample_rate: int = 0
    """Hertz; 0 is unknown."""
    channels: int = 0
    """Channels of audio without a header; 0 is one."""
    separate_channels: bool = False
    """Recognise each channel apart: refused as soon as there is more than one."""
    separate_speakers: bool = False
    """Tell speakers apart: refused."""
    boosts: tuple[Boost, ...] = ()
    """Phrases and how much likelier they are made."""
    alternatives: int = 1
    """Hypotheses asked for; 0 is 1."""
    word_times: bool = False
    """Results hold words with times."""
    mask_profanity: bool = False
    endpointing: Endpointing = field(default_factory=Endpointing)
    """Beginning and end of a stream's utterances."""
    interim: bool = True
    """A stream's results include interim ones."""
    attention_context: tuple[int, int] | None = None
    """Attention context of a cache-aware stream, one that the model was trained with; None is the server's."""
    ignored: tuple[str, ...] = ()
    """Fields of the client's message that were set and have no effect, for the log."""

    def __post_init__(self) -> None:
        if self.separate_speakers:
            raise unsupported("diarization_config.enable_speaker_diarization", "speakers are not told apart")
        if self.separate_channels and self.channels > 1:
            raise separate_channels_unsupported()
        for name, number in (
            ("sample_rate_hertz", self.sample_rate),
            ("max_alternatives", self.alternatives),
            ("audio_channel_count", self.channels),
        ):
            if number < 0:
                raise RequestError(f"{name} is {number}; it cannot be negative.")
        for name, text in (("model", self.model), ("custom_configuration 'adapter'", self.adapter)):
            if len(text) > MAX_NAME_LENGTH:
                raise RequestError(f"{name} has {len(text)} characters; at most {MAX_NAME_LENGTH} are allowed.")

    @property
    def hypotheses(self) -> int:
        """Hypotheses that a result holds at most, 1 … 16."""
        return min(MAX_ALTERNATIVES, max(1, self.alternatives))

    def check_format(self, audio: AudioFormat | None) -> None:
        """audio: as its header says, None until that is known. Raises UnsupportedError."""
        if self.separate_channels and audio is not None and audio.channels > 1:
            raise separate_channels_unsupported()


@dataclass(kw_only=True)
class Call:
    """Record of one call, for logs and metrics: never of what was said."""

    method: str
    base: str = ""
    """Name of the base, where the server has several."""
    adapter: str = ""
    """`a+b`; empty for the base."""
    tenant: str = ""
    code: str = "OK"
    """Name of the gRPC status, or HTTP status."""
    seconds: float = 0.0
    """Time from the first byte to the last answer."""
    audio_seconds: float = 0.0
    ignored: tuple[str, ...] = ()
    """Fields that were set and have no effect."""
    request_id: str = ""
    """Id in the log and in the answer."""
    connection: str = ""
    """Address of the client's connection, which tells clients apart where there are no tenants; never logged."""

    rank: int = 0
    """Rank of its rows in the queue, by the priorities of its tenant and adapters."""

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of its adapters; empty for the base."""
        return tuple(self.adapter.split("+")) if self.adapter else ()

    @property
    def turn(self) -> Turn:
        """Turn of its rows: with those of its tenant, else with those of its adapters."""
        return Turn(self.rank, self.tenant or self.adapter)

    @property
    def client(self) -> str:
        """Whose turn it is: the tenant's, or the connection's where there are no tenants."""
        return self.tenant or self.connection

    def facts(self) -> dict[str, Any]:
        """Fields for the log."""
        return {name: value for name, value in vars(self).items() if name not in ("connection", "rank")}


def unsupported(name: str, reason: str) -> UnsupportedError:
    """name: of Riva's field."""
    return UnsupportedError(f"{name} is not supported: {reason}.")


def separate_channels_unsupported() -> UnsupportedError:
    return unsupported("enable_separate_recognition_per_channel", "channels are averaged; send each as a request")


def understands(language: str, asked: str) -> bool:
    """Tell whether `asked` is empty, the server's tag or its language alone: `en` for `en-US`, any `en-XX` for `en`."""
    asked_tag, own = asked.lower(), language.lower()
    primary = own.partition("-")[0]
    return asked_tag in ("", own, primary) or (own == primary and asked_tag.startswith(f"{own}-"))


def phrase_boosts(contexts: Iterable[tuple[Iterable[str], float]]) -> tuple[Boost, ...]:
    """Boosts of phrases with a number each, those without phrases left out; 0 is unset. Raises RequestError."""
    boosts = []
    total = 0
    for texts, boost in contexts:
        phrases = tuple(phrase for phrase in texts if phrase.strip())
        total += len(phrases)
        if not math.isfinite(boost):
            raise RequestError(f"speech_contexts: a boost of {boost} is no number.")
        if any(len(phrase) > MAX_PHRASE_LENGTH for phrase in phrases):
            raise RequestError(f"speech_contexts: a phrase has at most {MAX_PHRASE_LENGTH} characters.")
        if phrases:
            boosts.append(Boost(phrases=phrases, boost=boost or UNSET_BOOST))
    if total > MAX_PHRASES:
        raise RequestError(f"speech_contexts: {total} phrases; at most {MAX_PHRASES} are allowed.")
    return tuple(boosts)


def keyword_boosts(keywords: Iterable[str], prompt: str, prompt_boost: float) -> tuple[Boost, ...]:
    """Boosts of OpenAI's `keywords`, and by prompt_boost of the words of its `prompt`. Raises RequestError."""
    words = dict.fromkeys(WORD.findall(prompt)) if prompt_boost else ()
    short = [word for word in words if len(word) <= MAX_PHRASE_LENGTH]
    return phrase_boosts([(keywords, 0.0), (short[:MAX_PHRASES], prompt_boost)])


def json_boosts(contexts: Any) -> tuple[Boost, ...]:
    """Boosts of `[{"phrases": ["…"], "boost": 10}]` in JSON.

    Raises RequestError, and TypeError, ValueError or OverflowError for other JSON.
    """
    if not isinstance(contexts, list):
        raise TypeError("phrases to be boosted must be a list of objects")
    found = []
    for context in contexts:
        phrases = context.get("phrases") if isinstance(context, dict) else None
        if not isinstance(phrases, list) or not all(isinstance(phrase, str) for phrase in phrases):
            raise TypeError("'phrases' must be a list of texts")
        boost = context.get("boost", 0.0)
        if not isinstance(boost, int | float):
            raise TypeError("'boost' must be a number")
        for phrase in phrases:
            phrase.encode()  # half a surrogate pair is a ValueError
        found.append((phrases, float(boost)))
    return phrase_boosts(found)


def custom_adapter(custom: Mapping[str, str]) -> str:
    """Adapter in Riva's custom_configuration; empty where it has none. Raises RequestError."""
    if "adapter_scale" in custom:
        raise RequestError("custom_configuration 'adapter_scale' is not supported: an adapter acts as it was trained.")
    return custom.get("adapter", "")


def custom_task(given: Mapping[str, str]) -> str:
    """Slots of a multitask model's prompt among texts by name, as one text; a context comes last.

    A source alone is the target too.
    """
    named = {slot: given[key].strip() for key, slot in TASK_KEYS.items() if given.get(key, "").strip()}
    if source := named.get("source_lang"):
        named = {"source_lang": source, "target_lang": source, **named}
    return ",".join(f"{slot}={value}" for slot, value in named.items())


def custom_context(custom: Mapping[str, str]) -> tuple[int, int] | None:
    """`att_context_size` in custom_configuration, `70/1`, `70,1` or `[70,1]`; None where it has none.

    Raises RequestError.
    """
    text = custom.get("att_context_size", "")
    if not text:
        return None
    try:
        left, right = map(int, text.strip("[] ").replace("/", ",").split(","))
    except ValueError:
        raise RequestError(f"custom_configuration 'att_context_size' is {text[:40]!r}; 70/1 is the form.") from None
    return left, right


def is_known_key(key: str) -> bool:
    """Tell whether a key of custom_configuration is one of Riva's, or ours."""
    return key in KNOWN_KEYS or key.startswith("neural_vad.")


def unknown_keys(custom: Mapping[str, str]) -> tuple[str, ...]:
    """First of the unknown keys of custom_configuration, for the log."""
    unknown = sorted(key for key in custom if not is_known_key(key))
    return tuple(f"custom_configuration[{key[:40]!r}]" for key in unknown[:LISTED])


def changed_endpointing(default: Endpointing, changes: Mapping[str, Any]) -> Endpointing:
    """The server's endpointing with a client's values, by Riva's names. Raises RequestError."""
    stop, early = changes.get("stop_history", default.stop_history), default.stop_history_eou
    keeps_early = early is None or not 0 < stop <= early
    try:
        return replace(default if keeps_early else replace(default, stop_history_eou=None), **changes)
    except UsageError as error:
        raise RequestError(f"endpointing_config: {error}") from error

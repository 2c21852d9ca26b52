"""Table of all fields of Riva's interface and how the server treats them, as `docs/riva.md` shows it.

python -m overtone.serving.riva.fields docs/riva.md    write the tables anew between the page's marks
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from overtone.decoding.task import FLAGS
from overtone.serving.riva.protobuf import ENCODINGS, descriptor

Treatment = Literal["honoured", "ignored", "rejected", "set", "unset"]
"""Requests: honoured, ignored (the note says why) or rejected (the note says how); responses: set or unset."""

BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


@dataclass(frozen=True, kw_only=True)
class Field:
    """A field of a message, and how the server treats it."""

    message: str
    """Name without its package."""
    name: str
    treatment: Treatment
    note: str


@dataclass(frozen=True, kw_only=True)
class CustomKey:
    """A key of custom_configuration."""

    name: str
    treatment: Treatment
    note: str


def fields(message: str, *rows: tuple[str, Treatment, str]) -> list[Field]:
    return [Field(message=message, name=name, treatment=treatment, note=note) for name, treatment, note in rows]


REQUEST_FIELDS = [
    *fields(
        "RecognitionConfig",
        (
            "encoding",
            "honoured",
            "Unspecified: found from the audio. A header (MP3: an ID3 tag) has precedence.",
        ),
        ("sample_rate_hertz", "honoured", "0: from the header; audio without one needs it. Any rate is resampled."),
        (
            "language_code",
            "honoured",
            "Empty: the server's language, or `auto` of a model with prompts. Others are unavailable.",
        ),
        ("max_alternatives", "honoured", "0 is 1; at most 16. There may be fewer."),
        ("profanity_filter", "honoured", "All but the first letter of the words on the server's list become `*`."),
        ("speech_contexts", "honoured", "Boosts of this request alone; those without phrases are skipped."),
        ("audio_channel_count", "honoured", "0: from the header, else 1. Channels are averaged into one."),
        ("enable_word_time_offsets", "honoured", "Words of the first alternative of final results."),
        ("enable_automatic_punctuation", "ignored", "The transcript is punctuated as the model was trained to."),
        (
            "enable_separate_recognition_per_channel",
            "rejected",
            "UNIMPLEMENTED where there is more than one channel; no effect on one.",
        ),
        ("model", "honoured", "The base (or empty), `<base>+<adapter>`, or an adapter's name; `a+b` is a chain."),
        ("verbatim_transcripts", "ignored", "There is no inverse text normalisation: what was said is returned."),
        ("diarization_config", "honoured", "Accepted as long as it enables nothing."),
        ("custom_configuration", "honoured", "Key by key, see below."),
        ("endpointing_config", "honoured", "When an utterance of a stream ends; Recognize has no use for it."),
    ),
    *fields(
        "SpeechContext",
        (
            "phrases",
            "honoured",
            "At most 4096 in a request, 200 characters each. What the vocabulary cannot write, and what is beyond "
            "200 000 characters in all, has no effect; the log says how many.",
        ),
        ("boost", "honoured", "-100 … 100, beyond is clamped; negative makes phrases unlikelier. 0 (unset) is 4."),
    ),
    *fields(
        "SpeakerDiarizationConfig",
        ("enable_speaker_diarization", "rejected", "UNIMPLEMENTED: speakers are not told apart."),
        ("max_speaker_count", "ignored", "Means nothing without diarization."),
    ),
    *fields(
        "EndpointingConfig",
        ("start_history", "honoured", "Milliseconds. -1 counts as unset in all six."),
        ("start_threshold", "honoured", "0 … 1."),
        (
            "stop_history",
            "honoured",
            "Milliseconds; 0: utterances end with the stream, by `force_eou` or after 60 s.",
        ),
        ("stop_threshold", "honoured", "0 … 1."),
        (
            "stop_history_eou",
            "honoured",
            "Shorter than stop_history; brings an interim result of stability 1, if wanted.",
        ),
        ("stop_threshold_eou", "honoured", "0 … 1; stop_threshold unless given."),
    ),
    *fields(
        "RecognizeRequest",
        ("config", "honoured", ""),
        (
            "audio",
            "honoured",
            "A file or raw samples, at most 384 MiB (`--max-megabytes`) with the rest of the message.",
        ),
        ("id", "honoured", "Returned in the response."),
    ),
    *fields(
        "StreamingRecognitionConfig",
        ("config", "honoured", ""),
        ("interim_results", "honoured", "False: final results only."),
    ),
    *fields(
        "StreamingRecognizeRequest",
        ("streaming_config", "honoured", "The first message, and no other."),
        ("audio_content", "honoured", "Pieces of any size; headers and samples may be cut anywhere."),
        ("runtime_config", "honoured", '`force_eou: "true"` ends the utterance; other keys are ignored.'),
        ("id", "honoured", "The latest is returned in each response."),
    ),
    *fields(
        "RivaSpeechRecognitionConfigRequest",
        ("model_name", "honoured", "Empty: all models. Unknown: an empty list."),
    ),
    *fields("RequestId", ("value", "honoured", "")),
]

RESPONSE_FIELDS = [
    *fields(
        "RecognizeResponse",
        ("results", "set", "One, or none where nothing was said."),
        ("id", "set", "The request's, if it had one."),
    ),
    *fields(
        "SpeechRecognitionResult",
        ("alternatives", "set", "Best first."),
        ("channel_tag", "set", "1."),
        ("audio_processed", "set", "Seconds."),
    ),
    *fields(
        "StreamingRecognizeResponse",
        ("results", "set", "At least one response for each chunk, often without results, and one at the end."),
        ("id", "set", "The request's, if it had one."),
    ),
    *fields(
        "StreamingRecognitionResult",
        ("alternatives", "set", "One in an interim result."),
        ("is_final", "set", ""),
        ("stability", "set", "Interim results only; 1 marks the early end of an utterance (stop_history_eou)."),
        ("channel_tag", "set", "1."),
        ("audio_processed", "set", "Seconds."),
        ("pipeline_states", "unset", "There is no neural voice activity detection to tell of."),
    ),
    *fields("PipelineStates", ("vad_probabilities", "unset", "See pipeline_states.")),
    *fields(
        "SpeechRecognitionAlternative",
        ("transcript", "set", "Ends with a space. An interim result holds the whole utterance so far."),
        ("confidence", "set", "Final results only: the mean of the words', 0 … 1 (a probability, no logarithm)."),
        ("words", "set", "If asked for: final results, first alternative."),
        ("language_code", "set", "The server's language."),
    ),
    *fields(
        "WordInfo",
        ("start_time", "set", "Milliseconds from the beginning of the audio or the stream."),
        ("end_time", "set", "Milliseconds."),
        ("word", "set", ""),
        ("confidence", "set", "0 … 1: the probability of the word's least sure token."),
        ("speaker_tag", "unset", "No diarization."),
        ("language_code", "set", "The server's language."),
    ),
    *fields("RivaSpeechRecognitionConfigResponse", ("model_config", "set", "One for each model and type.")),
    *fields(
        "Config",
        ("model_name", "set", "`<base>` or `<base>+<adapter>`; what RecognitionConfig.model takes."),
        (
            "parameters",
            "set",
            "`type` (online, offline), `language_code`, `sample_rate_hertz`, `streaming`, `decoder`, `base_model`, "
            "and of adapters `adapter`, `adapter_type`, `adapter_digest`.",
        ),
    ),
]

CUSTOM_KEYS = [
    CustomKey(
        name="adapter", treatment="honoured", note="Like `model`; where that names an adapter, it must mean the same."
    ),
    CustomKey(name="adapter_scale", treatment="rejected", note="INVALID_ARGUMENT: an adapter acts as it was trained."),
    CustomKey(
        name="att_context_size",
        treatment="honoured",
        note="Streams of a cache-aware model: one of its attention contexts, as `70/1`; recordings refuse it.",
    ),
    *(
        CustomKey(name=name, treatment="honoured", note=note)
        for name, note in (
            ("source_language", "Canary models: language of the speech; `language_code` unless given."),
            ("target_language", "Canary models: language of the text; that of the speech unless given."),
            ("task", "Canary models: `transcribe` or `translate`; by the languages unless given."),
            *((name, "Canary models whose prompts have it: `yes` or `no`.") for name in FLAGS),
            ("emotion", "Canary models whose prompts have it."),
            ("decodercontext", "Canary models whose prompts have it: text that comes before."),
        )
    ),
    *(
        CustomKey(name=name, treatment="ignored", note=note)
        for name, note in (
            ("apply_partial_itn", "No inverse text normalisation."),
            ("enable_automatic_language_detection", "One language."),
            ("enable_vad_endpointing", "Utterances end by blank frames."),
            ("get_vad_probabilities", "No neural voice activity detection."),
            ("neural_vad.*", "No neural voice activity detection."),
            ("stop_history_eou", "endpointing_config has it."),
            ("(any other)", "Unknown; the server's log names it."),
        )
    ),
]

IGNORED_FIELDS = frozenset(field.name for field in REQUEST_FIELDS if field.treatment == "ignored")


# The page


def field_number(field: Field) -> int:
    return int(full_descriptor(field.message).fields_by_name[field.name].number)


def full_descriptor(message: str) -> Any:
    """Descriptor of a message by its name in the table."""
    if message == "RequestId":
        return descriptor("nvidia.riva.RequestId")
    outer = "RivaSpeechRecognitionConfigResponse." if message == "Config" else ""
    return descriptor(f"nvidia.riva.asr.{outer}{message}")


def field_tables(rows: Iterable[Field]) -> list[str]:
    """Lines of a table for each message, in Markdown."""
    lines = []
    for message, members in groupby(rows, key=lambda field: field.message):
        lines += [f"### {message}", "", "| # | field | treatment | note |", "|--:|---|---|---|"]
        lines += [f"| {field_number(row)} | `{row.name}` | {row.treatment} | {row.note} |" for row in members]
        lines.append("")
    return lines


def tables() -> str:
    """All tables in Markdown."""
    lines = ["## Requests", "", *field_tables(REQUEST_FIELDS)]
    lines += ["### Keys of `custom_configuration`", "", "| key | treatment | note |", "|---|---|---|"]
    lines += [f"| `{key.name}` | {key.treatment} | {key.note} |" for key in CUSTOM_KEYS]
    known = ", ".join(f"{name} ({value.number})" for name, value in ENCODINGS.items())
    lines += ["", f"Encodings: {known}.", "", "## Responses", "", *field_tables(RESPONSE_FIELDS)]
    return "\n".join(lines)


def renew_tables(page: str) -> str:
    """Page with its tables written anew. Raises ValueError for one without their marks."""
    before, _, rest = page.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"the page lacks '{BEGIN}' … '{END}'")
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.write_text(renew_tables(target.read_text("utf-8")), "utf-8")

"""NeMo's `decoding` section, as far as a model that transcribes through NeMo's names can honour it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from overtone.errors import ConfigError, did_you_mean

STRATEGIES = ("greedy", "greedy_batch")
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "preserve_alignments": (None, False),
    "confidence_cfg": (None,),
    "compute_langs": (False,),
    "rnnt_timestamp_type": ("all", "word", "char", "segment"),
    "ctc_timestamp_type": ("all", "word", "char", "segment"),
    "temperature": (1.0, 1),
}
"""Keys that are taken with these values alone; others would ask for something that is not there."""
FREE = ("compute_timestamps", "word_seperator", "segment_seperators", "segment_gap_threshold", "fused_batch_size")
"""Keys that change no text."""
OF_OTHERS = ("beam", "wfst", "flashlight_cfg")
"""Sections of strategies that are not chosen."""
GREEDY_FREE = (
    "preserve_alignments", "preserve_frame_confidence", "compute_timestamps", "loop_labels",
    "use_cuda_graph_decoder", "max_symbols_per_step", "confidence_method_cfg", "max_symbols",
)  # fmt: skip
"""Keys of the section `greedy` whose neutral values are taken; they are about speed, or kept for every decoder."""


def choose_decoding(section: Mapping[str, Any]) -> None:
    """Check that a section asks for greedy decoding and nothing beside. Raises ConfigError by key."""
    strategy = section.get("strategy", "greedy_batch")
    if strategy not in STRATEGIES:
        raise ConfigError(
            f"decoding.strategy: '{strategy}' is not what `transcribe` does.{did_you_mean(str(strategy), STRATEGIES)} "
            f"Allowed: {', '.join(STRATEGIES)}."
        )
    known = {"strategy", "greedy", "durations", "model_type", *NEUTRAL, *FREE, *OF_OTHERS}
    for key, value in section.items():
        if key not in known:
            raise ConfigError(
                f"decoding.{key}: unknown key.{did_you_mean(key, known)} Known: {', '.join(sorted(known))}."
            )
        if key in NEUTRAL and value not in NEUTRAL[key] and not isinstance(value, Mapping):
            allowed = " or ".join(map(repr, NEUTRAL[key]))
            raise ConfigError(f"decoding.{key}: {value!r} is not supported; it is {allowed}.")
    greedy = section.get("greedy") or {}
    for key, value in greedy.items():
        if key not in GREEDY_FREE and value not in (None, False, 0, 0.0, ""):
            raise ConfigError(f"decoding.greedy.{key}: {value!r} is not supported; leave it out.")

"""`overtone evaluate dataset_manifest=…`: the way of NeMo's `speech_to_text_eval.py` through our commands."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from overtone.cli.screen import note
from overtone.errors import ConfigError, UsageError
from overtone.startup import fast_imports

MANIFEST_KEY = "dataset_manifest="
"""The setting that tells this way from others."""


def is_nemo_evaluation(words: Sequence[str]) -> bool:
    """True if the words are settings of NeMo's evaluation script."""
    return any(word.lstrip("+").startswith(MANIFEST_KEY) for word in words)


def evaluate_predictions(arguments: argparse.Namespace) -> int:
    """Write and score predictions; 1 where a rate is above the tolerance. Raises ConfigError, DataError, UsageError."""
    for option in ("adapter", "output", "config_path", "config_name"):
        if getattr(arguments, option):
            key = {"adapter": "adapter=NAME", "output": "output_filename=FILE"}.get(option, "settings key=value")
            raise UsageError(f"--{option.replace('_', '-')} does not go with {MANIFEST_KEY}…; give {key}.")
    with fast_imports():
        from overtone.checkpoints.adapters import find_adapter
        from overtone.cli.models import load
        from overtone.evaluation.speech_to_text import (
            check_tolerance,
            nemo_rate,
            predict,
            read_lines,
            read_prediction_settings,
            refuse_manifest_as_output,
            score,
        )
        from overtone.inference.transcribe import Transcriber

    settings = read_prediction_settings(nested(arguments.words))
    refuse_manifest_as_output(settings)
    lines = read_lines(settings.dataset_manifest or "")
    if not settings.only_score_manifest:
        device = arguments.device if settings.cuda is None else "cpu" if settings.cuda < 0 else "cuda"
        source = settings.model_path or settings.pretrained_name or ""
        model = load(source, device, decoder=settings.decoder_type, att_context_size=settings.att_context_size)
        adapter = find_adapter(model, settings.adapter)
        acting = "+".join(model.adapters.file_choice) if adapter == "@file" else adapter
        note(f"{model.name}: {'adapter ' + acting if acting else 'no adapter'}")
        with model.computing_in(settings.compute_dtype or arguments.dtype):
            predict(Transcriber(model), lines, settings, adapter)
    scores = score(lines, settings)
    passed = check_tolerance(scores, settings, note if arguments.json else print)
    if arguments.json:
        counted = {"wer": scores.words, "cer": scores.characters}
        rates = {name: nemo_rate(errors) if errors.reference_length else None for name, errors in counted.items()}
        print(json.dumps({**rates, "lines": scores.lines, "output": scores.written and str(scores.written)}))
    return 0 if passed else 1


def nested(words: Sequence[str]) -> dict[str, Any]:
    """Overrides as nested values. Raises ConfigError for what is no plain `key=value`."""
    from overtone.config.compose import parse

    values: dict[str, Any] = {}
    for override in parse(words):
        if override.is_delete() or override.is_sweep_override():
            raise ConfigError(f"'{override.input_line}' is not of the form key=value.")
        *path, last = override.key_or_group.split(".")
        place = values
        for key in path:
            place = place.setdefault(key, {})
        place[last] = override.value()
    return values

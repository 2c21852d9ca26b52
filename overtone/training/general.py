"""Damage to general speech: the base and a trained adapter on manifests of other speech than the domain's."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from overtone.data.manifest import Utterance, manifest_digest, read_manifest
from overtone.data.vocabulary import reference_text
from overtone.errors import DataError
from overtone.inference.recordings import recordings_of
from overtone.inference.transcribe import Transcriber
from overtone.models.asr_model import AsrModel
from overtone.training.base_errors import BaseErrors, base_facts, digest_of
from overtone.wer import ErrorCounts, word_errors

BASE_ERRORS: dict[str, ErrorCounts] = {}
"""Errors of bases, by the digest of all that they depend on: several trainings in a process measure them once."""


def read_general(paths: tuple[str, ...]) -> dict[str, list[Utterance]]:
    """Read the manifests of general speech, by path. Raises DataError for one that cannot be used."""
    return {path: read_manifest(Path(path).expanduser(), silence=True) for path in paths}


def measure_general(
    model: AsrModel, adapter: str, sets: dict[str, list[Utterance]], *, compute_dtype: str, shared: BaseErrors
) -> list[dict[str, Any]]:
    """Return WER before and after, 0..1, and the words, for each manifest. Raises DataError for unreadable audio.

    shared: errors of the base that other trainings have found.
    """
    found = []
    with model.evaluating(), model.computing_in(compute_dtype):
        for path, utterances in sets.items():
            before, after = base_errors(model, path, utterances, shared), count_errors(model, utterances, adapter)
            rates = {"wer_before": round(before.rate, 6), "wer_after": round(after.rate, 6)}
            found.append({"manifest": path, **rates, "words": after.reference_length})
    return found


def base_errors(model: AsrModel, path: str, utterances: list[Utterance], shared: BaseErrors) -> ErrorCounts:
    """Return the errors of the base, which this or another process may have counted. Raises as `count_errors`."""
    facts = base_facts(model, device=model.device.type, dtype=model.compute_dtype)
    identity = {**facts, "general": [str(Path(path).expanduser().absolute()), manifest_digest(utterances)]}
    key = digest_of(identity)
    if key not in BASE_ERRORS:
        counts = shared.measure(identity, lambda: list(vars(count_errors(model, utterances, None)).values()))
        names = (field.name for field in fields(ErrorCounts))
        BASE_ERRORS[key] = ErrorCounts(**{name: int(count) for name, count in zip(names, counts, strict=True)})
    return BASE_ERRORS[key]


def count_errors(model: AsrModel, utterances: list[Utterance], adapter: str | None) -> ErrorCounts:
    """Count word errors with an adapter, or of the base. Raises DataError for audio that cannot be read."""
    errors, tokenizer = ErrorCounts(), model.head_of(adapter).tokenizer
    stream = Transcriber(model).run(recordings_of(utterances), [adapter] * len(utterances))
    for utterance, result in zip(utterances, stream, strict=True):
        if result.hypothesis is None:
            raise DataError(f"{utterance.manifest}:{utterance.line}: {result.error}")
        said = reference_text(tokenizer, utterance.text or "", utterance.language)
        errors += word_errors(said, result.hypothesis.text)
    return errors

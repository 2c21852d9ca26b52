"""Manifests with predictions: written and scored by the settings of NeMo's `speech_to_text_eval.py`.

The numbers are NeMo's: errors of all lines over words or characters of all references, in the texts as they are or
after the steps of `text_processing`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from overtone.config.fields import Findings, build, only, section
from overtone.data.manifest import Utterance, read_manifest
from overtone.errors import ConfigError, DataError
from overtone.files import write_failure
from overtone.inference.recordings import recordings_of
from overtone.inference.transcribe import Transcriber
from overtone.wer import ErrorCounts, symbol_errors, word_errors

PREDICTION = "pred_text"


@dataclass(frozen=True, kw_only=True)
class TextSteps:
    """Changes of references and predictions before they are compared, in the order of these fields."""

    punctuation_marks: str = ".,?"
    """The marks that the steps know."""
    separate_punctuation: bool = False
    """Count a mark as a word of its own."""
    do_lowercase: bool = False
    rm_punctuation: bool = False
    """Leave the marks out."""
    substitutions: str = only("", instead="replace the words in the manifest")

    def apply(self, text: str) -> str:
        """The text after these steps."""
        if self.separate_punctuation:
            text = self.replace_marks(text, r" \1 ")
        if self.do_lowercase:
            text = text.lower()
        return self.replace_marks(text, " ") if self.rm_punctuation else text

    def replace_marks(self, text: str, new: str) -> str:
        """The text with every mark replaced, and single spaces between words; as it is where there are no marks."""
        if not self.punctuation_marks:
            return text
        marked = re.sub(f"([{re.escape(self.punctuation_marks)}])", new, text)
        return re.sub(r"\s{2,}", " ", marked).strip()


@dataclass(frozen=True, kw_only=True)
class PredictionSettings:
    """Settings by NeMo's names; those that could change a number and are not supported are refused."""

    model_path: str | None = None
    pretrained_name: str | None = None
    adapter: str | None = "@file"
    """Ours: the adapter; the ones that the file has enabled unless given, as in NeMo. null is the base."""
    dataset_manifest: str | None = None
    output_filename: str | None = "evaluation_transcripts.json"
    only_score_manifest: bool = False
    """Score the predictions that the manifest holds."""
    scores_per_sample: bool = False
    """Write WER and CER of every line, in percent."""
    use_cer: bool = False
    """`tolerance` is for characters."""
    tolerance: float | None = None
    """The highest rate that passes."""
    text_processing: TextSteps = section(TextSteps)
    gt_text_attr_name: str = "text"
    """Key of the reference."""
    decoder_type: Literal["ctc", "rnnt"] | None = None
    att_context_size: tuple[int, ...] | None = None
    compute_dtype: Literal["float32", "bfloat16"] | None = None
    """Unset: bfloat16 where the machine is fast at it."""
    cuda: int | None = None
    """A negative number is the processor."""
    amp: bool = False
    """Without effect: `compute_dtype` says what the base computes in."""
    amp_dtype: str = "float16"
    batch_size: int = 32
    """Without effect on the texts: batches hold seconds of audio."""
    num_workers: int = 0
    presort_manifest: bool = True
    overwrite_transcripts: bool = only(True, instead="give only_score_manifest=true to score what is there")
    calculate_wer: bool = True
    langid: str = "en"
    matmul_precision: str = "high"
    audio_type: str = "wav"
    allow_mps: bool = False
    random_seed: int | None = None
    return_hypotheses: bool = False
    use_punct_er: bool = only(False, instead="leave it out; WER with separate_punctuation counts marks as words")
    clean_groundtruth_text: bool = only(False, instead="use text_processing")
    audio_dir: None = only(None, instead="give dataset_manifest, or use `overtone transcribe`")
    channel_selector: None = only(None, instead="name the channel in the manifest")
    eval_config_yaml: None = only(None, instead="leave it out")
    append_pred: bool = only(False, instead="leave it out")
    pred_name_postfix: None = only(None, instead="leave it out")
    timestamps: bool | None = only(None, False, instead="use `overtone transcribe --format jsonl`")
    compute_langs: bool = only(False, instead="leave it out")
    extract_nbest: bool = only(False, instead="leave it out")
    confidence: bool = only(False, instead="use `overtone transcribe --format jsonl`")
    calculate_rtfx: bool = only(False, instead="`overtone evaluate MODEL MANIFEST` tells the real-time factor")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Errors of all lines of a manifest."""

    words: ErrorCounts
    characters: ErrorCounts
    lines: int
    written: Path | None
    """The manifest with predictions, where one was written."""


def read_prediction_settings(values: Mapping[str, Any]) -> PredictionSettings:
    """Checked settings. Raises ConfigError with all mistakes."""
    findings = Findings()
    settings = build(PredictionSettings, values, findings)
    if settings.dataset_manifest is None:
        findings.add("dataset_manifest", "has to be given: what to evaluate.")
    given = [name for name in ("model_path", "pretrained_name") if getattr(settings, name) is not None]
    if settings.only_score_manifest and given:
        findings.add(given[0], "is given beside only_score_manifest, which needs no model; leave one of them out.")
    if not settings.only_score_manifest and len(given) != 1:
        findings.add("model_path", "exactly one of model_path and pretrained_name has to be given.")
    findings.raise_if_any()
    return settings


def read_lines(path: Path | str) -> list[dict[str, Any]]:
    """The lines of a manifest as they stand. Raises DataError for a file or line that cannot be read."""
    path = Path(path).expanduser()
    try:
        texts = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    lines = []
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except ValueError as error:
            raise DataError(f"{path}:{number} is no JSON: {error}.") from error
        if not isinstance(line, dict):
            raise DataError(f"{path}:{number} is no mapping of keys to values.")
        lines.append(line)
    if not lines:
        raise DataError(f"{path} has no lines.")
    return lines


def predict(
    transcriber: Transcriber, lines: Sequence[dict[str, Any]], settings: PredictionSettings, adapter: str | None
) -> None:
    """Write the prediction of each line into it. Raises DataError for recordings that cannot be read."""
    manifest = Path(settings.dataset_manifest or "").expanduser()
    utterances: list[Utterance] = read_manifest(manifest, need_text=False)
    stream = transcriber.run(recordings_of(utterances), [adapter] * len(utterances))
    for line, utterance, result in zip(lines, utterances, stream, strict=True):
        if result.hypothesis is None:
            raise DataError(f"{utterance.manifest}:{utterance.line}: {result.error}")
        line[PREDICTION] = result.hypothesis.text


def score(lines: Sequence[dict[str, Any]], settings: PredictionSettings) -> Scores:
    """Count errors, and write the lines where predictions or scores are new.

    Raises DataError for a line without reference or prediction, and where the file cannot be written.
    """
    words, characters = ErrorCounts(), ErrorCounts()
    key, steps = settings.gt_text_attr_name, settings.text_processing
    for number, line in enumerate(lines, start=1):
        for needed in (key, PREDICTION):
            if not isinstance(line.get(needed), str):
                raise DataError(f"{settings.dataset_manifest}: line {number} has no text under '{needed}'.")
        if settings.scores_per_sample:  # of the texts as they are, as in NeMo
            line["wer"] = round(100 * nemo_rate(word_errors(line[key], line[PREDICTION])), 2)
            line["cer"] = round(100 * nemo_rate(symbol_errors(line[key], line[PREDICTION])), 2)
        reference, prediction = steps.apply(line[key]), steps.apply(line[PREDICTION])
        words += word_errors(reference, prediction)
        characters += symbol_errors(reference, prediction)
    target = settings.dataset_manifest if settings.only_score_manifest else settings.output_filename
    changed = settings.scores_per_sample or not settings.only_score_manifest
    written = Path(target).expanduser() if target is not None and changed else None
    if written is not None:
        write_lines(written, lines)
    return Scores(words=words, characters=characters, lines=len(lines), written=written)


def nemo_rate(errors: ErrorCounts) -> float:
    """Errors by reference words, infinite without any, as NeMo has it."""
    return errors.errors / errors.reference_length if errors.reference_length else float("inf")


def write_lines(path: Path | str, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write a manifest whole or not at all. Raises DataError."""
    path = Path(path).expanduser()
    temporary = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(write_failure(path, error)) from error


def check_tolerance(scores: Scores, settings: PredictionSettings, say: Callable[[str], None]) -> bool:
    """Say the rates; False where the one that was chosen is above the tolerance."""
    wer, cer = nemo_rate(scores.words), nemo_rate(scores.characters)
    say(f"Dataset WER/CER {wer:.2%}/{cer:.2%} ({scores.lines} lines)")
    if scores.written is not None:
        say(f"Written: {scores.written}")
    name, value = ("CER", cer) if settings.use_cer else ("WER", wer)
    if settings.tolerance is None or value <= settings.tolerance:
        return True
    say(f"{name} {value:.4f} is above the tolerance, {settings.tolerance}.")
    return False


def refuse_manifest_as_output(settings: PredictionSettings) -> None:
    """Raises ConfigError where the predictions would be written over the manifest."""
    paths = [Path(name or "").expanduser().resolve() for name in (settings.dataset_manifest, settings.output_filename)]
    if not settings.only_score_manifest and paths[0] == paths[1]:
        raise ConfigError("output_filename: is the manifest itself, which would be written over; name another file.")

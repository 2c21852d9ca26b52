"""Word and character error rates of a model and its adapters on manifests, with intervals."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from overtone.cli.arguments import (
    ADAPTER_HELP,
    ATTENTIONS,
    add_attention,
    add_computing,
    add_decoder,
    add_language,
    add_search,
    add_windows,
    attention_options,
    language_of,
    search_options,
)
from overtone.cli.overrides import add_configuration, is_override, read_settings
from overtone.cli.parts import add_crew, hearing_elsewhere
from overtone.cli.predictions import evaluate_predictions, is_nemo_evaluation
from overtone.cli.screen import note, results_console
from overtone.errors import ConfigError, UsageError, did_you_mean
from overtone.files import check_file, check_not_input
from overtone.progress import progress_bar
from overtone.startup import fast_imports

if TYPE_CHECKING:
    from overtone.config import Source
    from overtone.evaluation.results import Evaluation
    from overtone.wer import TextProcessing

COUNT_ALIKE = (
    "\nEach of them is an error of every model. --lower-case and --no-punctuation count without the difference."
)
FILES = ("report.html", "evaluation.json")

ACCELERATORS = {"auto": "auto", "cpu": "cpu", "gpu": "cuda", "cuda": "cuda", "mps": "mps"}
"""`trainer.accelerator` in NeMo's words -> `--device`."""

EXAMPLES = """examples:
  overtone evaluate adapted.nemo test.json general.json --output report
  overtone evaluate base.nemo test.json --adapter null --adapter runs/medical-best
  overtone evaluate base.nemo test.json --adapter runs/medical-best --general general.json
  overtone evaluate model.nemo_model=adapted.nemo model.adapter.adapter_name=medical \\
      model.test_ds.manifest_filepath=test.json
  overtone evaluate model_path=adapted.nemo dataset_manifest=test.json output_filename=predictions.json

The fourth is NeMo's way: settings as key=value, with --config-path and --config-name for a YAML of your own.
The last is that of NeMo's speech_to_text_eval.py: it writes predictions as a manifest, or scores those that a manifest
holds (only_score_manifest=true)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words", nargs="*", metavar="MODEL MANIFEST", help="a model and one or several manifests, or settings key=value"
    )
    parser.add_argument(
        "--adapter",
        action="append",
        metavar="NAME",
        help=f"{ADAPTER_HELP}; may be repeated, and the base is shown beside (default: each adapter of the model)",
    )
    parser.add_argument("--no-base", action="store_true", help="leave the base out where --adapter does not name it")
    parser.add_argument(
        "--general",
        action="append",
        default=[],
        metavar="MANIFEST",
        help="general speech, to set the gain on the other manifests against; may be repeated",
    )
    parser.add_argument("--lower-case", action="store_true", help="count errors in lower case")
    parser.add_argument("--no-punctuation", action="store_true", help="count errors without punctuation")
    parser.add_argument(
        "--replace",
        action="append",
        metavar="OLD=NEW",
        help="count OLD as NEW in what is said and heard; may be repeated",
    )
    parser.add_argument("--output", "-o", metavar="FOLDER", help="write report.html and evaluation.json there")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    add_windows(parser)
    add_computing(parser)
    add_decoder(parser)
    add_search(parser)
    add_language(parser)
    add_attention(parser)
    add_configuration(parser)
    add_crew(parser, "transcribe with workers of the Ray cluster of this address")


def run(arguments: argparse.Namespace) -> int:
    words = arguments.words
    if is_nemo_evaluation(words):
        return evaluate_predictions(arguments)
    for path in report_files(arguments):
        check_not_input(path, [*words, *(arguments.adapter or ())])
        check_file(path)
    nemo_way = arguments.config_path or arguments.config_name or (words and all(map(is_override, words)))
    evaluation = by_settings(arguments) if nemo_way else by_words(arguments)
    show(evaluation, arguments)
    return 0


def by_words(arguments: argparse.Namespace) -> Evaluation:
    """Evaluate as `overtone evaluate MODEL MANIFEST…` says. Raises UsageError where one of them is missing."""
    words = arguments.words
    settings = [word for word in words if is_override(word)]
    if settings:
        raise UsageError(f"'{settings[0]}' is a setting, '{words[0]}' is not; give either settings or MODEL MANIFEST….")
    if len(words) < 2:
        raise UsageError("A model and at least one manifest are needed: overtone evaluate MODEL MANIFEST….")
    model, *manifests = words
    if arguments.multirun:
        raise UsageError("--multirun is for training; an evaluation takes several adapters and manifests at once.")
    if looks_like_manifest(model) or any(map(looks_like_model, manifests)):
        raise UsageError(
            f"The model comes first, and manifests follow: overtone evaluate MODEL MANIFEST…. '{model}' stands in the "
            "model's place."
        )
    beside_base = not arguments.no_base
    return measure(arguments, model, manifests, arguments.adapter, dtype=arguments.dtype, beside_base=beside_base)


def looks_like_manifest(word: str) -> bool:
    """True for a file that is named as manifests are."""
    return Path(word).suffix in (".json", ".jsonl") and Path(word).is_file()


def looks_like_model(word: str) -> bool:
    """True for a word that names a model, and no file of another kind."""
    from overtone.checkpoints.load import EMBEDDED

    return word.endswith(".nemo") or (word in EMBEDDED and not Path(word).is_file())


def by_settings(arguments: argparse.Namespace) -> Evaluation:
    """Evaluate by the settings of NeMo's `eval_asr_adapter.py`. Raises UsageError where `--adapter` is given too."""
    from overtone.config import list_sources, split_name

    settings = read_settings(arguments, arguments.words, "evaluate")
    model = settings.model.nemo_model or settings.model.pretrained_model
    assert model is not None, "checked with the settings"
    if arguments.adapter:
        raise UsageError("--adapter does not go with settings; give model.adapter.adapter_name=NAME, or null.")
    name = settings.model.adapter.adapter_name or "null"
    if ":" in name and not Path(name).exists():
        name, _ = split_name(name, None)
    if arguments.device == "auto":
        arguments.device = device_of(settings.trainer.accelerator)
    encoder = settings.model.encoder
    if arguments.att_context_size is None:
        arguments.att_context_size = encoder.att_context_size
    if arguments.attention is None and encoder.self_attention_model is not None:
        arguments.attention = next(name for name, kind in ATTENTIONS.items() if kind == encoder.self_attention_model)
    dtype = arguments.dtype if arguments.dtype != "auto" else settings.compute_dtype
    sources = list_sources(settings.model.test_ds, key="model.test_ds").sources
    return measure(arguments, model, list(sources), [name], dtype=dtype)


def device_of(accelerator: str) -> str:
    """The device that NeMo's `trainer.accelerator` means. Raises ConfigError for any that is not ours."""
    if accelerator not in ACCELERATORS:
        raise ConfigError(
            f"trainer.accelerator: '{accelerator}' is not available.{did_you_mean(accelerator, ACCELERATORS)} "
            f"Known are {', '.join(ACCELERATORS)}."
        )
    return ACCELERATORS[accelerator]


def measure(
    arguments: argparse.Namespace,
    source: str,
    manifests: Sequence[str | Source],
    adapters: list[str] | None,
    *,
    dtype: str,
    beside_base: bool = False,
) -> Evaluation:
    """Evaluate a model and its adapters on manifests, which are all read before the model is loaded.

    beside_base: evaluate the base too, wherever it was not asked for.
    """
    with fast_imports():
        from overtone.cli.models import load
        from overtone.data.sources import read_source
        from overtone.evaluation.evaluate import evaluate, read_references

    for manifest in (*manifests, *arguments.general):
        if isinstance(manifest, str):
            read_references(Path(manifest))
        else:
            read_source(manifest, note)
    search = search_options(arguments)
    model = load(source, arguments.device, decoder=arguments.decoder, **attention_options(arguments))
    choices = [None, *model.adapters.names] if adapters is None else list(map(choice_of, adapters))
    if beside_base and None not in choices:
        choices.append(None)
    with hearing_elsewhere(arguments, source, dtype) as elsewhere, progress_bar("evaluating") as progress:
        return evaluate(
            model,
            manifests,
            elsewhere=elsewhere,
            adapters=choices,
            general=arguments.general,
            window=arguments.window or None,
            overlap=arguments.overlap,
            batch_seconds=arguments.batch_seconds,
            compute_dtype=dtype,
            language=language_of(arguments),
            text_processing=text_processing(arguments),
            **search,
            progress=progress,
        )


def choice_of(text: str) -> str | None:
    """The choice that a word of the command line means: None for the base."""
    from overtone.checkpoints.adapters import BASE

    return None if text.lower() in BASE else text


def text_processing(arguments: argparse.Namespace) -> TextProcessing:
    """The changes of texts that the options ask for. Raises UsageError for a replacement without `=`."""
    from overtone.wer import TextProcessing

    pairs = [text.partition("=") for text in arguments.replace or ()]
    wrong = next((old + sign + new for old, sign, new in pairs if not (old and sign)), None)
    if wrong is not None:
        raise UsageError(f"--replace {wrong!r} is not of the form OLD=NEW.")
    return TextProcessing(
        do_lowercase=arguments.lower_case,
        rm_punctuation=arguments.no_punctuation,
        replace=tuple((old, new) for old, _, new in pairs),
    )


def show(evaluation: Evaluation, arguments: argparse.Namespace) -> None:
    """Print the table or JSON, and write the report where one was asked for."""
    from overtone.evaluation.report.writer import print_table, write_html, write_json

    if arguments.json:
        print(json.dumps(evaluation.to_json(), ensure_ascii=False, indent=1))
    else:
        print_table(evaluation, results_console())
    for report in evaluation.unwritable.values():
        note(f"{report.message}{COUNT_ALIKE}")
    if arguments.output:
        page, data = report_files(arguments)
        note(f"Written: {write_html(evaluation, page)}, {write_json(evaluation, data)}")


def report_files(arguments: argparse.Namespace) -> list[Path]:
    """The paths of page and data; none unless they were asked for."""
    return [Path(arguments.output) / name for name in FILES] if arguments.output else []

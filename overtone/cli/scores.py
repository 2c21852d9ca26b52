"""Rank the runs of a search by gain on the domain against damage to general speech.

The runs below DIR need model.validation_ds and model.general_manifest. The score is that of Majumdar et al. 2022:
the relative gain, scaled down by the damage, and zero where general speech has lost more than --max-degradation points.
With --nemo-compat, PATH is the table that NeMo's scoring_and_analysis.py takes, and its numbers are added to it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from overtone.cli.arguments import number
from overtone.cli.screen import note
from overtone.errors import UsageError
from overtone.files import check_file
from overtone.startup import fast_imports

EXAMPLES = """examples:
  overtone scores runs/search
  overtone scores runs/search --csv scores.csv --plot scores.svg
  overtone scores results.csv --nemo-compat --dataset-type-column Group --base-original 5.118 \\
      --base-adapted irish_english_male=20.69 --base-adapted welsh_english_male=11.463"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="the folder of a search; a CSV with --nemo-compat")
    parser.add_argument(
        "--max-degradation",
        type=number(above=0),
        default=3.0,
        metavar="POINTS",
        help="points of WER by which general speech may become worse (default: 3)",
    )
    parser.add_argument("--csv", metavar="FILE", help="write the table there")
    parser.add_argument("--plot", metavar="FILE", help="write gain over damage as SVG")
    parser.add_argument("--json", action="store_true", help="print JSON")
    nemo = parser.add_argument_group("NeMo's table")
    nemo.add_argument("--nemo-compat", action="store_true", help="add NeMo's scores to its CSV, and rank by them")
    nemo.add_argument(
        "--dataset-type-column", metavar="COLUMN", help="column of the groups, each with a base of its own"
    )
    nemo.add_argument("--base-original", type=number(at_least=0), metavar="WER", help="base, original domain, percent")
    nemo.add_argument(
        "--base-adapted", action="append", default=[], metavar="GROUP=WER", help="base on a group, percent; repeated"
    )
    nemo.add_argument("--test-column", default="WER: Test", metavar="COLUMN")
    nemo.add_argument("--original-column", default="WER: Librispeech Test Other", metavar="COLUMN")
    nemo.add_argument(
        "--category-column", metavar="COLUMN", help="default: Adapter Position, or Frozen Module with -ft"
    )
    nemo.add_argument(
        "--hyperparameter", action="append", metavar="COLUMN", help="what configurations differ in; repeated"
    )
    nemo.add_argument("--constrained-args", "-cargs", nargs=2, action="append", default=[], metavar=("COLUMN", "VALUE"))
    nemo.add_argument(
        "--unconstrained-args", "-uargs", nargs=2, action="append", default=[], metavar=("COLUMN", "VALUE")
    )
    nemo.add_argument("--topk", "-k", type=int, default=1, help="best configurations that are shown (default: 1)")
    nemo.add_argument("--finetuning", "-ft", action="store_true", help="the table is of fine-tunings")
    nemo.add_argument("--show-analysis", "-s", action="store_true", help="show all configurations")


def run(arguments: argparse.Namespace) -> int:
    for name in (arguments.csv, arguments.plot):
        if name is not None:
            check_file(Path(name))
    return score_table(arguments) if arguments.nemo_compat else score_folder(arguments)


def score_folder(arguments: argparse.Namespace) -> int:
    """Rank the runs below a folder. Raises UsageError where there is nothing to rank."""
    with fast_imports():
        from overtone.evaluation.scores import as_csv, as_svg, as_table, count_runs, score_runs

    if arguments.dataset_type_column or arguments.base_adapted or arguments.base_original is not None:
        raise UsageError("Bases and columns are for --nemo-compat; runs carry the WER of their base in their cards.")
    allowed = arguments.max_degradation / 100
    folder = Path(arguments.path).expanduser()
    runs = score_runs(folder, allowed=allowed)
    if lacking := count_runs(folder) - len(runs):
        note(f"Left out: {lacking} runs without a measurement on domain and general speech, as pruned ones are.")
    print(
        json.dumps([each.to_json() for each in runs], indent=1, ensure_ascii=False)
        if arguments.json
        else as_table(runs)
    )
    for name, content in ((arguments.csv, as_csv(runs)), (arguments.plot, as_svg(runs, allowed=allowed))):
        if name is not None:
            Path(name).write_text(content, "utf-8")
            note(f"Written: {name}")
    return 0


def score_table(arguments: argparse.Namespace) -> int:
    """Add NeMo's scores to its table and show the best configurations. Raises UsageError for what is missing."""
    from overtone.evaluation.nemo_scores import TableSettings, add_scores, as_text, rank, read_table, write_table

    if arguments.plot or arguments.json:
        raise UsageError("--plot and --json are for the folder of a search; leave them out with --nemo-compat.")
    if arguments.dataset_type_column is None or arguments.base_original is None:
        raise UsageError("--nemo-compat needs --dataset-type-column and --base-original.")
    usual = ("Train Steps", "Learning Rate") if arguments.finetuning else TableSettings.hyperparameters
    settings = TableSettings(
        group=arguments.dataset_type_column,
        base_original=arguments.base_original,
        base_adapted=dict(map(read_base, arguments.base_adapted)),
        max_degradation=arguments.max_degradation,
        test=arguments.test_column,
        original=arguments.original_column,
        category=arguments.category_column or ("Frozen Module" if arguments.finetuning else TableSettings.category),
        hyperparameters=tuple(arguments.hyperparameter or usual),
    )
    rows = read_table(Path(arguments.path), settings)
    add_scores(rows, settings)
    target = Path(arguments.csv or arguments.path)
    write_table(rows, target)
    for title, by, fixed in (
        ("Constrained", "score", arguments.constrained_args),
        ("Unconstrained", "test", arguments.unconstrained_args),
    ):
        ranked = rank(rows, settings, by=by, fixed=[(column, value) for column, value in fixed])
        print(as_text(ranked, settings, title=title, top=arguments.topk, whole=arguments.show_analysis), end="\n\n")
    note(f"Written: {target}")
    return 0


def read_base(text: str) -> tuple[str, float]:
    """`GROUP=WER` as a pair. Raises UsageError."""
    group, equals, rate = text.rpartition("=")
    try:
        value = float(rate)
    except ValueError:
        value = 0.0
    if not equals or not group or not value > 0:
        raise UsageError(f"--base-adapted '{text}' is not of the form GROUP=WER, with a WER in percent.")
    return group, value

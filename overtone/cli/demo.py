"""Adapt the embedded model to telephone prompts, and see what changed and what did not.

An adapter is trained on embedded speech and measured on sentences that it has not seen; the base is proven to be
bit for bit what it was. Nothing is fetched from anywhere. It takes a few minutes on two CPU cores."""

from __future__ import annotations

import argparse
from pathlib import Path

from overtone.cli.screen import results_console
from overtone.startup import TRAINING_CACHED_KERNELS, fast_imports

DEFAULT_FOLDER = "overtone_demo"

EXAMPLES = """examples:
  overtone demo
  overtone demo --output somewhere/else"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", "-o", metavar="FOLDER", help=f"where to write (default: {DEFAULT_FOLDER}, or the next free number)"
    )


def run(arguments: argparse.Namespace) -> int:
    with fast_imports(kernels=TRAINING_CACHED_KERNELS):
        from overtone.cli.models import quiet_libraries
        from overtone.demo import demo
        from overtone.evaluation.report.writer import print_table

    quiet_libraries()
    found = demo(
        arguments.output or free_folder(Path(DEFAULT_FOLDER)),
        show=lambda evaluation: print_table(evaluation, results_console()),
        say=lambda text: print(text, flush=True),
    )
    return 0 if found.intact else 1


def free_folder(folder: Path) -> Path:
    """The folder, or the first of `folder-2`, `folder-3`, … that does not exist."""
    candidate, number = folder, 2
    while candidate.exists():
        candidate, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return candidate

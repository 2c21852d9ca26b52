"""Prove that adapters act, and that the base is bit for bit the same when they are off.

For each adapter: where it is applied and how often, how large its change is beside what it changes, what becomes of
the log-probabilities and the text; that the base's tensors and outputs stay the same before and after; and that the
rows of a mixed batch do not disturb each other. The exit code is 1 where something fails."""

from __future__ import annotations

import argparse
import json

from overtone.cli.arguments import ADAPTER_HELP
from overtone.startup import importing

EXAMPLES = """examples:
  overtone verify adapted.nemo
  overtone verify base.nemo --adapter runs/medical/best recordings/
Without audio, a few embedded telephone prompts are heard."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a .nemo file, a model folder, or a name")
    parser.add_argument("audio", nargs="*", metavar="AUDIO", help="audio files, folders or manifests to hear")
    parser.add_argument("--adapter", action="append", metavar="NAME", help=f"{ADAPTER_HELP}; may be repeated")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(arguments: argparse.Namespace) -> int:
    with importing():
        from overtone.cli.models import choose, load
        from overtone.cli.verify_text import as_text
        from overtone.evaluation.verify import verify

    model = load(arguments.model, "cpu")
    choices = [choose(model, text) for text in arguments.adapter or ()]
    found = verify(model, arguments.audio or None, adapters=[choice for choice in choices if choice] or None)
    print(json.dumps(found.to_json(), indent=2, ensure_ascii=False) if arguments.json else as_text(found))
    return 0 if found.passed else 1

"""Contents of a model or an adapter: architecture, parameters, points, adapters, fingerprint, card."""

from __future__ import annotations

import argparse
import json

from overtone.startup import fast_imports

EXAMPLES = """examples:
  overtone inspect fundamental
  overtone inspect adapted.nemo --json
  overtone inspect runs/medical/best"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="PATH", help="model (.nemo, folder, name), adapter folder, or adapters.pt")
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(arguments: argparse.Namespace) -> int:
    with fast_imports():
        from overtone.cli.models import quiet_libraries
        from overtone.evaluation.inspect import as_text, inspect

    quiet_libraries()
    found = inspect(arguments.source)
    print(json.dumps(found.to_json(), indent=2, ensure_ascii=False) if arguments.json else as_text(found))
    return 0

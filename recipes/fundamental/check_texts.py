"""Fail when a training text contains a held-out sentence, or anything but words of lower-case letters."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from held_out import load_held_out
from texts import SPEAKABLE


def read_texts(path: Path) -> list[str]:
    """The sentences of a `texts.py` file, or the transcripts of a `.jsonl` manifest."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if path.suffix == ".jsonl":
        return [str(json.loads(line)["text"]) for line in lines]
    return [line.split("\t")[-1] for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--speech", type=Path, required=True, help="folder with the real corpora (for the test texts)")
    parser.add_argument("files", type=Path, nargs="+", help="output of texts.py, or synthetic manifests")
    arguments = parser.parse_args()
    held_out = load_held_out(arguments.speech)
    checked, violations = 0, []
    for path in arguments.files:
        for text in read_texts(path):
            checked += 1
            found = held_out.violation(text)
            if found is not None:
                violations.append(f"{path}: {text!r} contains the held-out {found!r}")
            if not SPEAKABLE.fullmatch(text):
                violations.append(f"{path}: {text!r} has characters other than letters and apostrophes")
    if violations:
        sys.exit("\n".join(violations[:20]) + f"\n{len(violations)} violations in {checked} texts")
    if not checked:
        sys.exit("no texts to check")
    print(f"{checked} texts, no held-out sentence in them")


if __name__ == "__main__":
    main()

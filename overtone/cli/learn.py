"""Learning from corrections: the next version of an adapter, from transcripts that somebody has put right.

Corrections are JSON lines: "text", and "audio_filepath" where the recording is there ("offset", "duration" and "lang"
as in manifests). The words act at once. All that is learnt, and every version, is kept in ADAPTER.learning beside it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from overtone.cli.arguments import number
from overtone.cli.screen import note
from overtone.errors import UsageError
from overtone.startup import fast_imports
from overtone.text_table import columns

POLICIES = ("refuse", "drop", "keep")
EXAMPLES = """examples:
  overtone learn adapters/medical corrected.jsonl --model base.nemo
  overtone learn adapters/medical --versions
  overtone learn adapters/medical --back

An adapter that does not exist yet is made. One correction in five that has a recording is held out, by the digest of
its text: what is new is kept if these are not recognised worse."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", metavar="ADAPTER", help="folder of the adapter; its name is the adapter's")
    parser.add_argument("corrections", nargs="*", metavar="FILE", help="corrected transcripts, JSON lines")
    parser.add_argument("--model", default="fundamental", help="the base (default: fundamental)")
    parser.add_argument(
        "--unwritable",
        choices=POLICIES,
        default="refuse",
        help="what to do with text that the model cannot write: refuse it, drop the correction, or keep the rest of "
        "it (default: refuse)",
    )
    parser.add_argument(
        "--hours", type=number(above=0), default=20.0, help="most recordings that are kept, in hours (default: 20)"
    )
    parser.add_argument("--versions", action="store_true", help="list the versions, and change nothing")
    parser.add_argument(
        "--back",
        nargs="?",
        type=int,
        const=-1,
        metavar="N",
        help="go back to the version before, or to version N; what was learnt since is set aside",
    )
    parser.add_argument("--json", action="store_true", help="with --versions: as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Learn, list or go back. Raises UsageError for options that do not go together."""
    folder = Path(arguments.adapter).expanduser()
    if (arguments.versions or arguments.back is not None) and arguments.corrections:
        raise UsageError("--versions and --back take no corrections; leave the files out.")
    if arguments.versions and arguments.back is not None:
        raise UsageError("--versions lists, --back goes back; give one of them.")
    if arguments.json and not arguments.versions:
        raise UsageError("--json is for --versions; leave it out.")
    if arguments.versions:
        return list_versions(folder, as_json=arguments.json)
    if arguments.back is not None:
        return back(folder, arguments.back)
    if not arguments.corrections:
        raise UsageError("Nothing to learn from: give a file of corrections, JSON lines.")
    with fast_imports():
        from overtone.cli.models import load
        from overtone.learning.learn import Learner
        from overtone.learning.reading import read_corrections

    model = load(arguments.model, "cpu")
    learner = Learner(model=model, folder=folder, say=note)
    learner.check_base()
    corrections = [
        own
        for name in arguments.corrections
        for own in read_corrections(Path(name).expanduser(), model, policy=arguments.unwritable)
    ]
    with model.evaluating():
        learner.learn(corrections, hours=arguments.hours)
    print(f"Adapter: {folder}")
    return 0


def list_versions(folder: Path, *, as_json: bool) -> int:
    """Print the versions of an adapter, the oldest first. Raises UsageError where it has none."""
    from overtone.learning.versions import Versions

    versions = Versions(folder)
    every, current = versions.all(), versions.current()
    if not every:
        raise UsageError(f"{folder} has learnt nothing yet: it has no versions.")
    is_current = [current is not None and version.number == current.number for version in every]
    if as_json:
        rows = [
            {"version": version.number, "current": acts, "digest": version.digest, **version.learning}
            for version, acts in zip(every, is_current, strict=True)
        ]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return 0
    table = [["version", "from", "part", "corrections", "held-out WER", "made", ""]]
    for version, acts in zip(every, is_current, strict=True):
        own = version.learning
        held = own.get("held_out")
        rates = f"{held['wer_before']:.2%} → {held['wer_after']:.2%}" if held else ""
        parent = "" if version.parent is None else str(version.parent)
        what = str(own.get("part", "as it came"))
        made = str(own.get("made", ""))
        table.append(
            [str(version.number), parent, what, str(own.get("corrections", "")), rates, made, "acts" if acts else ""]
        )
    print("\n".join(columns(table)))
    return 0


def back(folder: Path, wanted: int) -> int:
    """Go back to a version; -1 is the one before."""
    from overtone.learning.learn import go_back

    target, aside = go_back(folder, None if wanted == -1 else wanted)
    note(f"Version {target.number} acts; {aside} corrections that were learnt since are set aside")
    print(f"Adapter: {folder}")
    return 0

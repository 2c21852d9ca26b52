"""Learning from corrections: the next version of an adapter, from transcripts that somebody has put right.

Corrections are JSON lines: "text", and "audio_filepath" where the recording is there ("offset", "duration" and "lang"
as in manifests). The words act at once, an acoustic part is trained then. All that is learnt is in ADAPTER.learning.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    parser.add_argument("--words-only", action="store_true", help="train no acoustic part")
    parser.add_argument(
        "--kind", choices=("linear", "lora", "tiny_attn"), help="of a new acoustic part, where there is none (linear)"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="steps of the training (default: by the recordings)")
    parser.add_argument(
        "--replay",
        action="append",
        metavar="MANIFEST",
        help="what the adapter was trained on before it learnt; may be repeated (default: what its card names)",
    )
    parser.add_argument(
        "--general", action="append", metavar="MANIFEST", help="general speech that must not suffer; may be repeated"
    )
    parser.add_argument(
        "--kappa", type=number(at_least=0), help="points of WER that general speech may lose (default: 0.5)"
    )
    parser.add_argument("--hours", type=number(above=0), help="most hours of recordings that are kept (default: 20)")
    parser.add_argument("--background", action="store_true", help="train in a process of its own, at low priority")
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
    if folder.name in ("", ".."):
        raise UsageError(
            f"'{arguments.adapter}' ends with no name, and the adapter's is that of its folder. Give it, as in "
            "adapters/medical."
        )
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
    if arguments.steps is not None and arguments.steps < 1:
        raise UsageError(f"--steps {arguments.steps} is not allowed; at least 1 is needed.")
    from overtone.learning.corrections import Corrections

    if not arguments.corrections and not Corrections(folder, sample_rate=0).lines():
        raise UsageError("Nothing to learn from: give a file of corrections, JSON lines.")
    learn(arguments, folder)
    print(f"Adapter: {folder}")
    return 0


def learn(arguments: argparse.Namespace, folder: Path) -> None:
    """Add the corrections of the files, and make versions of them; with --background the training goes on alone."""
    with fast_imports():
        from overtone.cli.models import load
        from overtone.learning.learn import Learner
        from overtone.learning.reading import read_corrections
        from overtone.learning.state import read_settings, remember, start_worker

    model = load(arguments.model, "cpu")
    learner = Learner(model=model, folder=folder, say=note)
    learner.check_base()
    with learner.writing():
        corrections = [
            own
            for name in arguments.corrections
            for own in read_corrections(Path(name).expanduser(), model, policy=arguments.unwritable)
        ]
    given = {
        "acoustic": False if arguments.words_only else None,
        "kind": arguments.kind,
        "steps": arguments.steps,
        "replay": absolute(arguments.replay),
        "general": absolute(arguments.general),
        "kappa": arguments.kappa,
        "hours": arguments.hours,
    }
    learner.check_general(given["general"] or read_settings(folder).general)
    with model.evaluating():
        settings = remember(folder, **{key: own for key, own in given.items() if key != "acoustic"})
        if arguments.words_only or arguments.background:
            learner.add(corrections, settings)
        else:
            from overtone.learning.training import learn as learn_all

            learn_all(learner, corrections, settings)
    if arguments.background and not arguments.words_only:
        log = start_worker(folder, arguments.model)
        note(f"Acoustic part: training in the background; {log} tells what becomes of it")


def absolute(names: list[str] | None) -> tuple[str, ...] | None:
    """Paths that are read again from another folder. Raises UsageError where there is no file."""
    if names is None:
        return None
    paths = [Path(name).expanduser() for name in names]
    for path in paths:
        if not path.is_file():
            raise UsageError(f"{path}: no such manifest. Check the path.")
    return tuple(str(path.resolve()) for path in paths)


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
    table = [["version", "from", "part", "corrections", "recordings", "held-out WER", "made", ""]]
    for version, acts in zip(every, is_current, strict=True):
        own = version.learning
        held = own.get("held_out")
        rates = f"{held['wer_before']:.2%} → {held['wer_after']:.2%}" if held else ""
        parent = "" if version.parent is None else str(version.parent)
        what = str(own.get("part", "as it came"))
        made = str(own.get("made", ""))
        counts = [str(own.get("corrections", "")), describe_recordings(own)]
        table.append([str(version.number), parent, what, *counts, rates, made, "acts" if acts else ""])
    print("\n".join(columns(table)))
    return 0


def describe_recordings(card: Mapping[str, Any]) -> str:
    """The number of a version's corrections with a recording, and of those that its acoustic part had."""
    heard = str(card.get("audio_lines", ""))
    trained = f" ({card['trained_lines']} trained, {card['judged_lines']} judged)" if "trained_lines" in card else ""
    return heard + trained


def back(folder: Path, wanted: int) -> int:
    """Go back to a version; -1 is the one before."""
    from overtone.learning.versions import go_back

    target, aside = go_back(folder, None if wanted == -1 else wanted)
    note(f"Version {target.number} acts; {aside} corrections that were learnt since are set aside")
    print(f"Adapter: {folder}")
    return 0

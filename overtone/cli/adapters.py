"""Adapters in a model, or in a folder of adapters: list, remove, rename, copy, enable.

list PATH                  what is there, and which of them the model's file has enabled
remove PATH NAME…          away with them
rename PATH OLD NEW        under another name
copy PATH NAME NEW         a second one; --to PLACE: in another model for the same base, or a folder
enable PATH NAME…          these and no others act when NeMo restores the file, and are `@file`; --none: none at all

PATH: a .nemo, a model folder, the folder of an adapter, or a folder that holds such folders. It is changed in place,
whole or not at all; --output writes a changed model elsewhere.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from overtone.errors import UsageError, did_you_mean
from overtone.startup import fast_imports
from overtone.text_table import columns

if TYPE_CHECKING:
    from overtone.checkpoints.adapter_places import AdapterEntry, AdapterPlace

ACTIONS = {"list": (0, 0), "remove": (1, None), "rename": (2, 2), "copy": (1, 2), "enable": (0, None)}
"""Each action with the least and the most names that it takes."""
EXAMPLES = """examples:
  overtone adapters list adapted.nemo
  overtone adapters rename adapted.nemo medical cardiology
  overtone adapters copy adapted.nemo medical --to adapters/medical
  overtone adapters enable adapted.nemo medical --output for_nemo.nemo"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", metavar="ACTION", help=", ".join(ACTIONS))
    parser.add_argument("path", metavar="PATH", help="a .nemo, a model folder, or a folder of adapters")
    parser.add_argument("names", nargs="*", metavar="NAME", help="names of adapters")
    parser.add_argument("--to", metavar="PLACE", help="with copy: another model or folder, or a new folder")
    parser.add_argument("--none", action="store_true", help="with enable: no adapter")
    parser.add_argument("--output", "-o", metavar="PATH", help="write the changed model there, and leave PATH as it is")
    parser.add_argument("--json", action="store_true", help="with list: as JSON")


def run(arguments: argparse.Namespace) -> int:
    check_words(arguments)
    with fast_imports():
        from overtone.checkpoints.adapter_places import find_place
        from overtone.cli.models import quiet_libraries

    quiet_libraries()
    output = None if arguments.output is None else Path(arguments.output).expanduser()
    place = find_place(Path(arguments.path).expanduser(), output=output)
    if arguments.action != "list":
        change(place, arguments)
    entries = place.entries()
    if arguments.json:
        print(json.dumps([asdict(entry) for entry in entries], indent=2, ensure_ascii=False))
    else:
        print(as_text(entries) if entries else "No adapters.")
    return 0


def check_words(arguments: argparse.Namespace) -> None:
    """Raises UsageError for an unknown action, and for names and options that it does not take."""
    action, names = arguments.action, arguments.names
    if action not in ACTIONS:
        raise UsageError(
            f"'{action}' is no action.{did_you_mean(action, ACTIONS)} The actions are {', '.join(ACTIONS)}."
        )
    least, most = ACTIONS[action]
    if len(names) < least or (most is not None and len(names) > most):
        wanted = {"rename": "OLD NEW", "copy": "NAME NEW", "remove": "NAME…"}.get(action, "no names")
        raise UsageError(f"`overtone adapters {action} PATH` takes {wanted}; got {' '.join(names) or 'none'}.")
    for option, own in (("to", "copy"), ("none", "enable")):
        if getattr(arguments, option) and action != own:
            raise UsageError(f"--{option} is for `overtone adapters {own}`; leave it out.")
    if action == "enable" and bool(names) == arguments.none:
        raise UsageError("`overtone adapters enable PATH` takes the names of adapters, or --none.")
    if action == "copy" and len(names) == 1 and not arguments.to:
        raise UsageError("`overtone adapters copy PATH NAME` takes the name of the copy, or --to with another place.")
    if arguments.output and (action == "list" or arguments.to):
        raise UsageError("--output is for a changed model; leave it out.")


def change(place: AdapterPlace, arguments: argparse.Namespace) -> None:
    """Carry out the action. Raises AdapterError, CheckpointError and UsageError."""
    from overtone.checkpoints.adapter_places import copy_between

    names = arguments.names
    match arguments.action:
        case "remove":
            place.remove(names)
        case "rename":
            place.rename(*names)
        case "copy" if arguments.to:
            copy_between(place, names[0], Path(arguments.to).expanduser(), names[-1])
        case "copy":
            place.copy(*names)
        case _:
            place.enable(names)


def as_text(entries: list[AdapterEntry]) -> str:
    """A table of the adapters."""
    head = ["name", "kind", "modules", "layers", "parameters", "vocabulary", "enabled", "WER", "folder"]
    rows = [
        [
            entry.name,
            entry.kind,
            entry.modules,
            str(entry.layers),
            f"{entry.parameters:,}",
            entry.vocabulary or "",
            {True: "yes", False: "no", None: ""}[entry.enabled],
            wer_text(entry),
            entry.folder or "",
        ]
        for entry in entries
    ]
    used = [number for number in range(len(head)) if any(row[number] for row in rows)]
    return "\n".join(columns([[row[number] for number in used] for row in [head, *rows]]))


def wer_text(entry: AdapterEntry) -> str:
    """`12.0% → 8.0%`, as far as the card tells."""
    rates = [rate for rate in (entry.wer_before, entry.wer_after) if rate is not None]
    return " → ".join(f"{rate:.2%}" for rate in rates)

"""Prove that adapters act, and that the base is bit for bit the same when they are off.

For each adapter: where it is applied and how often, how large its change is beside what it changes, what becomes of
the log-probabilities and the text; that the base's tensors and outputs stay the same before and after; and that the
rows of a mixed batch do not disturb each other. The exit code is 1 where something fails."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from overtone.cli.arguments import ADAPTER_HELP, add_attention, add_decoder, attention_options
from overtone.cli.screen import note
from overtone.errors import UsageError
from overtone.startup import fast_imports
from overtone.text_table import columns

if TYPE_CHECKING:
    from overtone.evaluation.verify import AdapterProof, Check, PointEffect, Verification

EXAMPLES = """examples:
  overtone verify adapted.nemo
  overtone verify base.nemo --adapter runs/medical/best recordings/
Without audio, a few embedded telephone prompts are heard."""


LINES_OF_POINTS = 20
"""More points than these are shown in groups that leave out the layer's number."""
LAYER = re.compile(r"\.\d+\.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a .nemo file, a model folder, or a name")
    parser.add_argument("audio", nargs="*", metavar="AUDIO", help="audio files, folders or manifests to hear")
    parser.add_argument("--adapter", action="append", metavar="NAME", help=f"{ADAPTER_HELP}; may be repeated")
    add_decoder(parser)
    add_attention(parser)
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Verify, and print what was found. Raises UsageError for an adapter among the recordings."""
    with fast_imports():
        from overtone.checkpoints.adapters import find_adapter, is_stored
        from overtone.cli.models import load
        from overtone.evaluation.verify import verify
        from overtone.models.attention import attention_text

    model = load(arguments.model, "cpu", decoder=arguments.decoder, **attention_options(arguments))
    stored = next((word for word in arguments.audio if is_stored(word)), None)
    if stored is not None:
        raise UsageError(f"{stored} is an adapter, and recordings are expected there. Name it with --adapter {stored}.")
    choices = [find_adapter(model, text) for text in arguments.adapter or ()]
    found = verify(model, arguments.audio or None, adapters=[choice for choice in choices if choice] or None)
    if attention := attention_text(model):
        note(f"{model.name or 'model'} · {attention}")
    print(json.dumps(found.to_json(), indent=2, ensure_ascii=False) if arguments.json else as_text(found))
    return 0 if found.passed else 1


def as_text(found: Verification) -> str:
    """The verification for a terminal."""
    lines = [
        f"{found.model or 'Model'} on {found.recordings} recordings ({found.seconds:.1f} s), in float32",
        f"fingerprint {found.fingerprint}",
    ]
    for proof in found.adapters:
        lines += ["", *proof_lines(proof)]
    lines += ["", "base", *check_lines(found.checks), "", verdict(found)]
    return "\n".join(lines)


def proof_lines(proof: AdapterProof) -> list[str]:
    """One adapter: its effects, its changes with examples, its checks."""
    lines = [proof.adapter, *effect_lines(proof.effects)]
    lines.append(
        f"  log-probabilities change by {proof.mean_change:.3g} on average, {proof.largest_change:.3g} at most; "
        f"the likeliest symbol on {100 * proof.symbols_changed:.1f} % of frames"
    )
    lines.append(f"  {proof.texts_changed} recordings are read differently" + (":" if proof.examples else ""))
    for example in proof.examples:
        rows = [("base", example.base or "(nothing)"), (proof.adapter, example.adapted or "(nothing)")]
        lines += [f"    {example.recording}", *columns(rows, indent="      ")]
    return [*lines, *check_lines(proof.checks)]


def effect_lines(effects: Sequence[PointEffect]) -> list[str]:
    """Each point and the size of the adapter's output there, relative to what it is added to."""
    if not effects:
        return ["  applied nowhere"]
    head = ("point", "rows", "relative adapter output")
    if len(effects) <= LINES_OF_POINTS:
        rows = [(effect.point, str(effect.applied), f"{100 * effect.relative_change:.3g} %") for effect in effects]
        return columns([head, *rows], right=(1, 2))
    groups: dict[str, list[PointEffect]] = {}
    for effect in effects:
        groups.setdefault(LAYER.sub(".*.", effect.point), []).append(effect)
    rows = []
    for pattern, members in groups.items():
        sizes = [100 * effect.relative_change for effect in members]
        span = f"{min(sizes):.3g} … {max(sizes):.3g} %"
        rows.append((f"{pattern} ({len(members)} points)", str(members[0].applied), span))
    return columns([head, *rows], right=(1, 2))


def check_lines(checks: Sequence[Check]) -> list[str]:
    return columns([("PASS" if check.passed else "FAIL", check.name, check.detail) for check in checks])


def verdict(found: Verification) -> str:
    """One sentence on all checks."""
    failed = [check for check in found.all_checks if not check.passed]
    if not failed:
        return f"All {len(found.all_checks)} checks passed."
    return f"{len(failed)} of {len(found.all_checks)} checks FAILED: {'; '.join(check.name for check in failed)}."

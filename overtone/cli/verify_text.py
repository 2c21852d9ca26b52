"""A verification on a terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence

from overtone.evaluation.verify import AdapterProof, Check, PointEffect, Verification
from overtone.text_table import columns

LINES_OF_POINTS = 20
"""More points than that are shown by groups, the layer's number left out."""
LAYER = re.compile(r"\.\d+\.")


def as_text(found: Verification) -> str:
    lines = [
        f"{found.model or 'Model'} on {found.recordings} recordings ({found.seconds:.1f} s), in float32",
        f"fingerprint {found.fingerprint}",
    ]
    for proof in found.adapters:
        lines += ["", *proof_lines(proof)]
    lines += ["", "base", *check_lines(found.checks), "", verdict(found)]
    return "\n".join(lines)


def proof_lines(proof: AdapterProof) -> list[str]:
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
    """Each point and the size of what is added there, beside what it is added to."""
    if not effects:
        return ["  applied nowhere"]
    head = ("point", "rows", "size of what is added")
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
    failed = [check for check in found.all_checks if not check.passed]
    if not failed:
        return f"All {len(found.all_checks)} checks passed."
    return f"{len(failed)} of {len(found.all_checks)} checks FAILED: {'; '.join(check.name for check in failed)}."

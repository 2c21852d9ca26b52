"""The sections of the report on how an adapter was trained, and on speakers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from overtone.adapters.card import reached_rates, reached_scale, reached_step
from overtone.evaluation.report.plots import curve_plot, element, percent
from overtone.evaluation.results import Evaluation, Result
from overtone.wer import ErrorCounts

LISTED_SPEAKERS = 30
NO_ERRORS = ErrorCounts(substitutions=0, deletions=0, insertions=0, hits=0)


def trainings(evaluation: Evaluation, series: Mapping[str, int]) -> str:
    """The making of each adapter: its facts, and the curve of its validations where its card has one."""
    shown = []
    for name, facts in evaluation.adapters.items():
        rows = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in told(facts))
        curve = [(int(step), float(wer)) for step, wer in facts["card"].get("curve") or ()]
        plot = ""
        if len(curve) > 1:
            plot = (
                f"<figure>{curve_plot(curve, series.get(name, 1))}"
                "<figcaption>Word error rate on the validation set during training; step 0 is the base."
                "</figcaption></figure>"
            )
        body = f'<dl class="facts">{rows}</dl>'
        shown.append(
            f'<article class="training"><h3><span class="chip series-{series.get(name, 1)}">{escape(name)}</span></h3>'
            f'<div class="pair">{body}{plot}</div></article>'
        )
    return "".join(shown)


def told(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values of what is known of an adapter."""
    card = facts["card"]
    data, (before, after), scale = card.get("data") or {}, reached_rates(card), reached_scale(card)
    rows = [
        ("Kind", str(facts["kind"])),
        (
            "Parameters",
            f"{facts['parameters']:,}".replace(",", "\u202f") + f", {percent(facts['share'], 2)} of the base",
        ),
    ]
    if "hours" in data:
        hours = float(data["hours"])
        amount = f"{60 * hours:.0f} min" if hours < 1.0 else f"{hours:.1f} h"
        rows.append(("Speech", f"{amount} in {data.get('utterances', '?')} utterances"))
    if isinstance(own := card.get("vocabulary"), Mapping):
        rows.append(("Vocabulary", f"its own, {own.get('size')} tokens ({own.get('kind')})"))
    if (step := reached_step(card)) is not None:
        rows.append(("Steps", str(step)))
    if scale != 1.0:
        rows.append(("Strength", f"{scale:.0%} of the acoustic part, for general speech"))
    if card.get("training_seconds"):
        rows.append(("Training", duration(float(card["training_seconds"]))))
    if before is not None and after is not None:
        rows.append(("Validation", f"{percent(before)} → {percent(after)} word error rate"))
    if card.get("trained"):
        rows.append(("Trained", str(card["trained"])))
    return rows


def duration(seconds: float) -> str:
    """`45 s`, `12 min` or `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def speakers(results: Sequence[Result], series: Mapping[str, int]) -> str:
    """Word error rates by speaker, those with the most words first; nothing where fewer than two are named."""
    rates = [by_speaker(result) for result in results]
    words = {name: counts.reference_length for name, counts in rates[0].items()}
    names = sorted(words, key=lambda name: (-words[name], name))
    if len(names) < 2:
        return ""
    head = "".join(
        f'<th scope="col"><span class="chip series-{series[result.label]}">{escape(result.label)}</span></th>'
        for result in results
    )
    rows = []
    for name in names[:LISTED_SPEAKERS]:
        cells = "".join(
            element("td", percent(counts[name].rate), data_label=result.label)
            for result, counts in zip(results, rates, strict=True)
        )
        rows.append(f'<tr><th scope="row">{escape(name)}</th><td data-label="words">{words[name]}</td>{cells}</tr>')
    rest = len(names) - len(rows)
    more = f'<p class="more">{rest} more are in the JSON file.</p>' if rest else ""
    caption = f"<caption>Word error rates of {len(names)} speakers</caption>"
    return (
        f'<h3>{escape(results[0].name)}</h3><div class="scroll"><table class="cards">{caption}<thead><tr>'
        f'<th scope="col">Speaker</th><th scope="col">Words</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{more}"
    )


def by_speaker(result: Result) -> dict[str, ErrorCounts]:
    """The word errors of each speaker that is named."""
    counts: dict[str, ErrorCounts] = defaultdict(lambda: NO_ERRORS)
    for utterance in result.utterances:
        if utterance.speaker is not None:
            counts[utterance.speaker] += utterance.words
    return dict(counts)

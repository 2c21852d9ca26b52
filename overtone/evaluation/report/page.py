"""The sections of the HTML page of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from overtone.evaluation.listening import mark_errors
from overtone.evaluation.report.audio import AudioBudget, player
from overtone.evaluation.report.details import speakers, trainings
from overtone.evaluation.report.plots import changes_plot, element, intervals_chart, percent, rates_plot, shorten
from overtone.evaluation.results import Evaluation, Result, UtteranceResult

SERIES = 6
"""Colours in the style sheet: the base's, and those of adapters, used in turn."""

MOST_CONFUSED = 12
LISTED_UTTERANCES = 100
"""Utterances with errors that are listed for each manifest."""

KINDS = {
    "substitute": ("Heard as another word", ("said", "heard")),
    "delete": ("Missed", ("said",)),
    "insert": ("Heard, but not said", ("heard",)),
}


@dataclass(frozen=True, kw_only=True)
class ManifestResults:
    """All results of one manifest."""

    base: Result | None
    results: tuple[Result, ...]

    @property
    def name(self) -> str:
        return self.results[0].name

    @property
    def focus(self) -> Result:
        """The result that the list of errors is sorted by: the last one asked for."""
        return self.results[-1]


def by_manifest(evaluation: Evaluation) -> list[ManifestResults]:
    """The results of each manifest together, in the order of the evaluation."""
    groups: dict[Path, list[Result]] = {}
    for result in evaluation.results:
        groups.setdefault(result.manifest, []).append(result)
    for group in groups.values():
        group.sort(key=lambda result: result.adapter is not None)
    return [
        ManifestResults(base=next((one for one in group if one.adapter is None), None), results=tuple(group))
        for group in groups.values()
    ]


def series_of(evaluation: Evaluation) -> dict[str, int]:
    """The colour of each adapter choice: 0 for the base, the others 1, 2, … in order, round and round."""
    labels = dict.fromkeys(result.label for result in evaluation.results if result.adapter is not None)
    return {"base": 0} | {label: 1 + index % (SERIES - 1) for index, label in enumerate(labels)}


def sections(evaluation: Evaluation, page: Path, budget: AudioBudget) -> dict[str, str]:
    """The contents of the template's places."""
    groups, series = by_manifest(evaluation), series_of(evaluation)
    model = evaluation.model or "model"
    adapters = [label for label in series if label != "base"]
    heading = f"{', '.join(adapters)} on {model}" if adapters else model
    return {
        "title": escape(f"{heading} · evaluation"),
        "heading": escape(heading),
        "findings": findings(groups, series),
        "facts": facts(evaluation),
        "summary": summary(groups, series, evaluation.level),
        "intervals": intervals_chart(evaluation.results, series, level=evaluation.level),
        "level": f"{evaluation.level:.0%}",
        "resamples": f"{evaluation.resamples:,}".replace(",", "\u202f"),
        "trainings": section("How it was trained", trainings(evaluation, series)),
        "speakers": section("By speaker", "".join(speakers(group.results, series) for group in groups)),
        "comparisons": section("Utterance by utterance", "".join(comparisons(group, series) for group in groups)),
        "confusions": "".join(confusions(group, series) for group in groups),
        "errors": "".join(errors(group, series, page, budget, number) for number, group in enumerate(groups)),
    }


def section(heading: str, content: str) -> str:
    """A section of the page; nothing where it has no content."""
    return f"<section><h2>{escape(heading)}</h2>{content}</section>" if content else ""


def findings(groups: Sequence[ManifestResults], series: dict[str, int]) -> str:
    """One card for each result: its rate, and its change from the base's."""
    cards = []
    for group in groups:
        shown = [result for result in group.results if result.difference] or list(group.results)
        cards += [_finding(group, result, series[result.label]) for result in shown]
    return element("ul", "".join(cards[:6]), class_="findings")


def _finding(group: ManifestResults, result: Result, series: int) -> str:
    low, high = result.wer_interval
    numbers = f"<strong>{percent(result.wer)}</strong>"
    words = f"word error rate, {percent(low)} to {percent(high)}"
    verdict = ""
    if result.difference is not None and group.base is not None:
        before = group.base.words.errors
        numbers = f'<span class="before">{percent(group.base.wer)}</span> <span class="arrow">→</span> ' + numbers
        change = (result.words.errors - before) / before if before else 0.0
        direction = "fewer" if change < 0 else "more"
        words = (
            f"word error rate · {percent(abs(change), 0)} {direction} errors"
            if change
            else "word error rate, unchanged"
        )
        verdict = pill(result.difference.verdict)
    head = f'<p class="finding-name"><span class="name">{chip(result.label, series)}</span>{verdict}</p>'
    body = f'<p class="finding-numbers">{numbers}</p><p class="finding-words">{words}</p>'
    return element("li", f'{head}{body}<p class="finding-set">{escape(group.name)}</p>')


def facts(evaluation: Evaluation) -> str:
    """The list of base, dtypes and date."""
    short = evaluation.fingerprint[:19] + ("…" if len(evaluation.fingerprint) > 19 else "")
    rows = (
        ("Base", f'<code title="{escape(evaluation.fingerprint)}">{escape(short)}</code>'),
        ("Precision", escape(evaluation.numbers)),
        *([("Counted", escape(evaluation.counted))] if evaluation.counted else []),
        *(
            ("Not writable", escape(f"{path}: {report.message.partition(chr(10))[0]}"))
            for path, report in evaluation.unwritable.items()
        ),
        (
            "Made",
            f'<time datetime="{escape(evaluation.created)}">{escape(evaluation.created[:16].replace("T", " "))}</time>',
        ),
    )
    return element("dl", "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in rows), class_="facts")


def summary(groups: Sequence[ManifestResults], series: dict[str, int], level: float) -> str:
    """The table of all results."""
    names = ("Adapter", "WER", f"{level:.0%} interval", "Difference from base", "", "CER", "Sub", "Del", "Ins", "RTF")
    head = "".join(f'<th scope="col">{escape(name)}</th>' if name else "<td></td>" for name in names)
    bodies = []
    for group in groups:
        first = group.results[0]
        spoken = f"{first.words.reference_length} words, {clock(first.audio_seconds)} of audio"
        extent = f"<small>{len(first.utterances)} utterances, {spoken}</small>"
        title = f'<th scope="rowgroup" colspan="{len(names)}">{escape(group.name)} {extent}</th>'
        best = min(result.wer for result in group.results)
        rows = "".join(_row(result, series[result.label], is_best=result.wer == best) for result in group.results)
        bodies.append(f'<tbody><tr class="group">{title}</tr>{rows}</tbody>')
    caption = (
        "<caption>Word and character error rates; substitutions, deletions and insertions in words. Differences are "
        "in points, adapter minus base. RTF: seconds of work for a second of audio.</caption>"
    )
    return f'<table class="cards">{caption}<thead><tr>{head}</tr></thead>{"".join(bodies)}</table>'


def _row(result: Result, series: int, *, is_best: bool) -> str:
    low, high = result.wer_interval
    wer, words = percent(result.wer, 2), result.words
    cells = (
        f"<strong>{wer}</strong>" if is_best else wer,
        f"{percent(low)} – {percent(high)}",
        _points(result),
        "" if result.difference is None else pill(result.difference.verdict),
        percent(result.cer, 2),
        *(str(count) for count in (words.substitutions, words.deletions, words.insertions)),
        f"{result.real_time_factor:.4f}",
    )
    labels = ("WER", "interval", "difference", "", "CER", "sub", "del", "ins", "RTF")
    row = f'<th scope="row">{chip(result.label, series)}</th>' + "".join(
        f'<td data-label="{label}">{cell}</td>' for label, cell in zip(labels, cells, strict=True)
    )
    return element("tr", row)


def _points(result: Result) -> str:
    """`−9.31 [−11.8, −6.9]`."""
    if result.difference is None:
        return "–"
    low, high = result.difference.interval
    return f"{100 * result.difference.wer:+.2f} [{100 * low:+.1f}, {100 * high:+.1f}]".replace("-", "\u2212")


def comparisons(group: ManifestResults, series: dict[str, int]) -> str:
    """For each adapter beside its base: the histogram of changes and the scatter of rates."""
    shown = []
    for result in group.results:
        if group.base is None or result.difference is None:
            continue
        difference = result.difference
        title = f"<h3>{chip(result.label, series[result.label])} on {escape(group.name)}</h3>"
        told = (
            f"<p>{difference.better} utterances better, {difference.same} the same, {difference.worse} worse. "
            f"Difference in points {_points(result)} {pill(difference.verdict)}</p>"
        )
        plots = (
            f"<figure>{changes_plot(group.base, result)}"
            "<figcaption>Utterances by how many word errors they gained or lost.</figcaption></figure>"
            f"<figure>{rates_plot(group.base, result, series[result.label])}"
            "<figcaption>Each utterance's rate with the base and with the adapter; "
            "below the diagonal the adapter is better. Larger dots are more utterances.</figcaption></figure>"
        )
        shown.append(f'<article class="comparison">{title}{told}<div class="pair">{plots}</div></article>')
    return "".join(shown)


def confusions(group: ManifestResults, series: dict[str, int]) -> str:
    """The most frequent confusions of each kind, with the counts of every adapter side by side."""
    tables = "".join(_confusion_table(group, series, kind) for kind in KINDS)
    trio = f'<div class="trio" style="--columns:{len(group.results)}">{tables}</div>'
    return f"<article><h3>{escape(group.name)}</h3>{trio}</article>"


def _confusion_table(group: ManifestResults, series: dict[str, int], kind: str) -> str:
    title, columns = KINDS[kind]
    most: dict[tuple[str | None, str | None], int] = {}
    for result in group.results:
        for pair, count in result.confusion_counts[kind].items():
            most[pair] = max(count, most.get(pair, 0))
    pairs = sorted(most, key=lambda pair: (-most[pair], pair[0] or "", pair[1] or ""))[:MOST_CONFUSED]
    if not pairs:
        return f"<table><caption>{title}</caption><tbody><tr><td>nothing</td></tr></tbody></table>"
    highest = max(most.values())
    head = "".join(f'<th scope="col">{name}</th>' for name in columns) + "".join(
        f'<th scope="col" title="{escape(result.label)}">{chip(shorten(result.label), series[result.label])}</th>'
        for result in group.results
    )
    rows = []
    for pair in pairs:
        words = [word for word in pair if word is not None]
        row = f'<th scope="row">{escape(words[0])}</th>' + "".join(f"<td>{escape(word)}</td>" for word in words[1:])
        for result in group.results:
            count = result.confusion_counts[kind][pair]
            row += f'<td class="count series-{series[result.label]}" style="--share:{count / highest:.2f}">{count}</td>'
        rows.append(f"<tr>{row}</tr>")
    return f"<table><caption>{title}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def errors(group: ManifestResults, series: dict[str, int], page: Path, budget: AudioBudget, number: int) -> str:
    """Utterances with errors, each as said and as heard by every adapter, with its sound.

    Those that gained most come first; without a base, those with the most errors.
    """
    focus, base = group.focus, group.base
    lines = list(zip(*(result.utterances for result in group.results), strict=True))
    reference = [then.words.errors for then in base.utterances] if base else [0] * len(lines)

    def place(index: int) -> tuple[int, int]:
        now = focus.utterances[index].words.errors
        return now - reference[index], -now

    wrong = [index for index, line in enumerate(lines) if any(heard.words.errors for heard in line)]
    wrong.sort(key=place)
    items = []
    for index in wrong[:LISTED_UTTERANCES]:
        change = focus.utterances[index].words.errors - reference[index]
        kind = "same" if base is None or not change else "worse" if change > 0 else "better"
        items.append(_utterance(group, lines[index], series, kind, player(lines[index][0], page, budget)))
    rest = len(wrong) - len(items)
    order = (
        f"sorted by what {chip(focus.label, series[focus.label])} changes: most gained first, worsened last"
        if base is not None and focus is not base
        else "most errors first"
    )
    told = f"{len(wrong)} of {len(lines)} utterances with errors, {order}."
    more = f'<p class="more">{rest} more are in the JSON file.</p>' if rest else ""
    choice = _filter(number) if base is not None and focus is not base else ""
    return (
        f'<article class="errors"><h3>{escape(group.name)}</h3><p>{told}</p>{choice}'
        f"<ol>{''.join(items)}</ol>{more}</article>"
    )


def _filter(number: int) -> str:
    """A choice of the utterances that are shown: plain radio buttons, which the style sheet reads."""
    options = (("all", "all"), ("worse", "worse than the base"), ("better", "better than the base"))
    return "<fieldset><legend>Show</legend>" + "".join(
        f'<label><input type="radio" name="show-{number}" value="{value}"{" checked" if value == "all" else ""}>'
        f"<span>{label}</span></label>"
        for value, label in options
    ) + "</fieldset>"  # fmt: skip


def _utterance(
    group: ManifestResults, line: Sequence[UtteranceResult], series: dict[str, int], kind: str, sound: str
) -> str:
    rows = [f'<div><dt>said</dt><dd class="said">{escape(line[0].reference) or "<i>nothing</i>"}</dd></div>']
    for result, heard in zip(group.results, line, strict=True):
        count = f'<span class="rate">{percent(heard.words.rate, 0)}</span>'
        words = mark_errors(heard.reference, heard.hypothesis)
        rows.append(f"<div><dt>{chip(result.label, series[result.label])}{count}</dt><dd>{words}</dd></div>")
    return f'<li class="{kind}"><div class="sound">{sound}</div><dl>{"".join(rows)}</dl></li>'


def chip(label: str, series: int) -> str:
    """An adapter's name with its colour."""
    return f'<span class="chip series-{series}">{escape(label)}</span>'


def pill(verdict: str) -> str:
    return f'<span class="pill {verdict.split()[0]}">{escape(verdict)}</span>'


def clock(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"

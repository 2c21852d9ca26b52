"""The results as a page in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from benchmarks.domains.corpora import HELD_OUT, LONGEST_SECONDS
from benchmarks.domains.measuring import DOMAIN
from benchmarks.domains.plan import METHODS, WORDS
from benchmarks.domains.table import is_intact
from overtone.adapters.words import words_text

PLOT = "domains.svg"
"""Beside the page."""

HEAD = """# Domain table

What adapting a base gains on a domain, what it costs on general speech, and whether switching off takes it back.
One command writes this page, the plot and `results.json`; a run that was cut off goes on with `--resume`.

```
python -m benchmarks.domains --speech SPEECH --model {model} --nemo-python NEMO/bin/python --page benchmarks/DOMAINS.md
python -m benchmarks.domains --speech SPEECH --model {model} --tune    # learning rates, on the validation parts
python -m benchmarks.domains --speech SPEECH --model {model} --sweep   # what the defaults should be, likewise
```

`SPEECH` holds `asterisk_prompts`, `fsdd`, `picovoice_wakewords`, `speechocean762` and `librispeech_resemblyzer`, each
with manifests. `--smoke` runs everything on noise, in seconds.
"""

READ = """Each dot is a method: further left it gains more on the domain, higher up it forgets more of general speech.
Whiskers are 95 % intervals.
"""

HOW = """## How it was measured

- **Base**: `{name}`, {parameters:,} parameters, `{fingerprint}…`.
- **Decoding** is greedy and without a language model, but in rows with words: a beam of 16 (8 without the base's
  general prior) with an n-gram of the training transcripts, mixed with that prior. From the text alone no recording
  chose anything: the weights are those that `overtone words` gives.
- **The same for all methods**: the training and validation utterances, {steps} steps of {batch_size} utterances,
  AdamW (0.9, 0.98), no weight decay, 10 % warm-up, cosine to 1e-5, no augmentation, the base's dropout on, seed {seed}.
  The order of utterances is each toolkit's own. The linear adapters, ours and NeMo's, have {dim} units.
- **Learning rates**, one a method: {rates}.
- **The best step** of {validations} is chosen by the word error rate on the validation part, which is taken from the
  training split: whole speakers where several are known, else every {held_out}th utterance. The test parts play no part
  in any choice. Training utterances over {longest:g} s are left out.
- **Intervals** are 95 %, by bootstrap over utterances; those of changes resample in pairs. Where one holds 0, there is
  no clear change.
- **General speech**: {general}.
  The changes are over both together.
- **Off**: the adapter is in the model and not used. Every transcript must equal the base's, log-probabilities and the
  base's weights bit for bit. Full fine-tuning overwrites the base: it has no off.
- **Arithmetic**: adapters train over a base in {dtype}, full fine-tuning and NeMo in float32. All rows are heard by
  Overtone, the base in {dtype}; NeMo's adapter is read from its `adapters.pt`.
- **Training** is wall time on {threads} threads ({processor}): data and validations
  included, start of the process and loading of the base not.
"""

WITHOUT_NEMO = "**Not compared with NeMo**: its row is missing.\n"


def page(
    results: Mapping[str, Any], extra: Sequence[str] = (), tuned: Mapping[str, float] = MappingProxyType({})
) -> str:
    """The whole page; extra sections (tuning, sweep) follow. tuned: learning rates that a tuning chose, by method."""
    parts = [HEAD.format(model=results["base"]["name"] or "fundamental"), f"![Forgetting against gain]({PLOT})\n", READ]
    parts += [section(name, results) for name in results["domains"]]
    parts += [how(results, tuned), *([] if "nemo" in results["rates"] else [WITHOUT_NEMO]), *extra]
    return "\n".join(parts)


def section(name: str, results: Mapping[str, Any]) -> str:
    domain, general = results["domains"][name], results["general"]
    train, valid, test = (domain[part] for part in ("train", "valid", "test"))
    facts = (
        f"Train {train['utterances']} utterances ({train['minutes']:.1f} min), validation {valid['utterances']} "
        f"({domain['valid_speakers']}), test {test['utterances']} ({test['words']} words; **{domain['speakers']}**). "
        f"{domain['texts_seen']} of the test transcripts are also trained on."
    )
    names = ["", "domain WER %", "change", *(f"{one['title']} %" for one in general.values()), "change", "off = base"]
    names += ["trained parameters", "training", "on disk", "best step"]
    rates = domain["base"]["rates"]
    base = ["base", rated(rates[DOMAIN]), "", *(rated(rates[key]) for key in general), "", "", "", "", "", ""]
    rows = [names, ["---"] * len(names), base]
    rows += [method_row(method, row, general) for method, row in domain["methods"].items()]
    notes = "".join(own_note(row) for row in domain["methods"].values() if row.get("own_test_wer") is not None)
    notes += "".join(
        words_note(method, row) for method, row in domain["methods"].items() if WORDS in METHODS[method].overrides
    )
    return f"## {domain['title']}\n\n{facts}\n\n{markdown(rows)}\n{notes}"


def method_row(method: str, row: Mapping[str, Any], general: Mapping[str, Any]) -> list[str]:
    rates = row["rates"]
    return [
        METHODS[method].title,
        rated(rates[DOMAIN], bold=True),
        changed(row["domain_change"]),
        *(rated(rates[name]) for name in general),
        changed(row["general_change"]),
        off_text(row),
        f"{row['trained_parameters']:,}",
        f"{row['seconds']:.0f} s" if row["seconds"] >= 10 else f"{row['seconds']:.1f} s",
        size(row["bytes"]),
        f"{row['best_step']} of {row['steps']}" if row["steps"] else "",
    ]


def own_note(row: Mapping[str, Any]) -> str:
    versions = row["versions"]
    return (
        f"\nNeMo {versions['nemo']} itself, in float32, makes {100 * row['own_test_wer']:.2f} % of its adapter on the "
        f"domain; its process took {row['process_seconds']:.0f} s from start to end.\n"
    )


def words_note(method: str, row: Mapping[str, Any]) -> str:
    chosen = row["words"]
    if chosen is None:
        return f"\n{METHODS[method].title}: on the validation part no words made fewer errors, so that it has none.\n"
    return f"\n{METHODS[method].title}: {words_text(chosen).rstrip(', ')}; chosen on the validation part.\n"


def off_text(row: Mapping[str, Any]) -> str:
    off = row["off"]
    if off is None:
        return "no off"
    if is_intact(row):
        return f"yes, {off['transcripts']} of {off['transcripts']}, bit for bit"
    return (
        f"**NO**: {off['transcripts_equal']} of {off['transcripts']} transcripts, log-probabilities "
        f"{'equal' if off['log_probs_equal'] else 'differ'}, weights {'equal' if off['weights_equal'] else 'differ'}"
    )


def how(results: Mapping[str, Any], tuned: Mapping[str, float]) -> str:
    plan, base = results["plan"], results["base"]
    origin = {
        name: "tuned below" if tuned.get(name) == rate else "not tuned"
        for name, rate in results["rates"].items()
        if METHODS[name].learning_rate
    }
    rates = results["rates"]
    if "nemo" in rates and "nemo" not in tuned and rates["nemo"] == rates.get("linear"):
        origin["nemo"] = "as ours"
    used = "; ".join(f"{METHODS[name].title} {rates[name]:g} ({told})" for name, told in origin.items())
    general = " and ".join(
        f"{one['utterances']} utterances of {one['title']} ({one['words']} words)"
        for one in results["general"].values()
    )  # fmt: skip
    machine = results["machine"]
    return HOW.format(
        **{**plan, **base, "fingerprint": base["fingerprint"][:23]},
        rates=used,
        general=general,
        held_out=HELD_OUT,
        longest=LONGEST_SECONDS,
        processor=f"{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}",
    )


def rated(rate: Mapping[str, Any], *, bold: bool = False) -> str:
    low, high = rate["interval"]
    shown = f"{100 * rate['wer']:.1f}"
    return f"{f'**{shown}**' if bold else shown} ({100 * low:.1f} – {100 * high:.1f})"


def changed(change: Mapping[str, Any]) -> str:
    low, high = change["interval"]
    return f"{points(change['wer'])} ({points(low)} … {points(high)})"


def points(rate: float) -> str:
    """`+3.2`, `−0.5`, in percentage points."""
    return f"{100 * rate:+.1f}".replace("-", "\u2212")


def size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"

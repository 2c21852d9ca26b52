"""The sentences that no training text may contain, and the test for it.

A synthetic text is refused when it contains a whole held-out sentence of three words or more. Books are quoted in
pieces, so it is refused as well when it shares five consecutive words with a sentence of a read-book test set.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

SHORTEST_SENTENCE = 3
"""Words; a shorter held-out sentence ("thank you", "seven") is too common to be forbidden."""

QUOTED_WORDS = 5
"""Consecutive words that count as a quotation from a test book."""

WHOLE_SENTENCE_MANIFESTS = (
    "speechocean762/test.jsonl",
    "librispeech_resemblyzer/test_other.jsonl",
    "ljtext_matthes/test.jsonl",
    "common_voice_rit100/test.jsonl",
    "asterisk_prompts/train.jsonl",
    "asterisk_prompts/test.jsonl",
)
QUOTED_MANIFESTS = ("librispeech_resemblyzer/test_other.jsonl", "ljtext_matthes/test.jsonl")

Words = tuple[str, ...]


def manifest_texts(manifest: Path) -> list[str]:
    """The transcripts of a JSON-lines manifest, in file order."""
    if not manifest.is_file():
        raise SystemExit(f"manifest {manifest} not found: --speech must name the folder with the speech corpora")
    with manifest.open(encoding="utf-8") as lines:
        return [str(json.loads(line)["text"]) for line in lines]


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Held-out sentences, indexed so that one text is tested in time proportional to its length."""

    by_opening: dict[Words, list[Words]]
    """Held-out sentences under their first three words."""
    quotations: frozenset[Words]
    """Every run of five words of the test books."""

    def violation(self, text: str) -> str | None:
        """The held-out words that `text` contains, or None when it is clean."""
        words = tuple(text.split())
        for start in range(len(words)):
            opening = words[start : start + SHORTEST_SENTENCE]
            for sentence in self.by_opening.get(opening, ()):
                if words[start : start + len(sentence)] == sentence:
                    return " ".join(sentence)
            quotation = words[start : start + QUOTED_WORDS]
            if quotation in self.quotations:
                return " ".join(quotation)
        return None


def load_held_out(speech: Path) -> HeldOut:
    """Index the test sentences below the folder `speech`."""
    by_opening: dict[Words, list[Words]] = {}
    for name in WHOLE_SENTENCE_MANIFESTS:
        for text in manifest_texts(speech / name):
            sentence = tuple(text.split())
            if len(sentence) >= SHORTEST_SENTENCE:
                by_opening.setdefault(sentence[:SHORTEST_SENTENCE], []).append(sentence)
    quotations: set[Words] = set()
    for name in QUOTED_MANIFESTS:
        for text in manifest_texts(speech / name):
            words = tuple(text.split())
            quotations.update(words[start : start + QUOTED_WORDS] for start in range(len(words) - QUOTED_WORDS + 1))
    return HeldOut(by_opening=by_opening, quotations=frozenset(quotations))

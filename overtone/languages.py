"""Languages of models by their tags, and the language that the text of a task is in."""

from __future__ import annotations

from collections.abc import Iterable

SPECIALS = "spl_tokens"
"""The part of a tokenizer of several languages that holds the special tokens of prompts."""


def match_language(asked: str, known: Iterable[str]) -> str | None:
    """The known tag that a tag means, whatever its case: the same, else the first one of the same language."""
    folded = asked.lower()
    same_case: str | None = None
    same_language: str | None = None
    for tag in known:
        if tag == asked:
            return tag
        if tag.lower() == folded:
            same_case = same_case or tag
        if tag.lower().partition("-")[0] == folded.partition("-")[0]:
            same_language = same_language or tag
    return same_case or same_language


def target_language(task: str) -> str:
    """The language that the text of a task is in: `en` of `de>en,pnc=no`."""
    return task.partition(",")[0].rpartition(">")[2].strip()

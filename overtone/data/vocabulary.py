"""Check before training that the model's vocabulary can write the transcripts."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from overtone.data.manifest import Utterance
from overtone.errors import DataError, UsageError
from overtone.nets.prompt import AUTO
from overtone.tokenizers import Tokenizer

SHOWN = 5
"""Examples in a message."""

SHOWN_CHARACTERS = 20


@dataclass(frozen=True, kw_only=True)
class VocabularyReport:
    """Parts of the transcripts that the model's vocabulary cannot write."""

    characters: dict[str, int]
    """Each character (or label) and how often it occurs, the most frequent first."""
    utterances: tuple[int, ...]
    """Indices of the utterances that hold one of them."""
    total: int
    """Number of all utterances."""
    examples: tuple[str, ...]
    """A few such utterances, as `manifest:line: transcript`."""
    writable_in_lower_case: int
    """Number of those utterances that could be written in lower case."""

    @property
    def message(self) -> str:
        """Several lines: characters with counts, examples, and advice."""
        listed = [f"{shown(character)} × {count}" for character, count in self.characters.items()]
        more = f", … {len(listed) - SHOWN_CHARACTERS} more" if len(listed) > SHOWN_CHARACTERS else ""
        lines = [
            f"{len(self.utterances)} of {self.total} transcripts hold what the model cannot write: "
            + ", ".join(listed[:SHOWN_CHARACTERS])
            + more,
            *(f"  {example}" for example in self.examples),
        ]
        if self.writable_in_lower_case:
            lines.append(
                f"In lower case {self.writable_in_lower_case} of them could be written; change the manifest so."
            )
        return "\n".join(lines)


def check_languages(languages: Sequence[str], utterances: Sequence[Utterance]) -> None:
    """Raises DataError, naming the line, for a language that a model of several languages does not have."""
    for utterance in utterances if languages else ():
        if utterance.language is not None and utterance.language not in languages:
            default = AUTO if AUTO in languages else languages[0]
            raise DataError(
                f"{utterance.manifest}:{utterance.line}: 'lang' is '{utterance.language}'; the model knows "
                f"{', '.join(languages)}. Correct it, or leave it out for {default}."
            )


def read_tasks(
    check: Callable[[str | None], str | None], tokenizer: Tokenizer, utterances: Sequence[Utterance]
) -> list[Utterance]:
    """The utterances for a multitask model: the language of each is its task, as the model writes it.

    check: spells a task, or raises UsageError for one that the model does not have. Raises DataError, naming the line,
    for such a task, and for one whose text the model cannot be taught.
    """
    known: dict[str | None, str | None] = {}
    for utterance in utterances:
        task = utterance.task or utterance.language
        if task not in known:
            try:
                known[task] = check(task)
                tokenizer.encode("", known[task])
            except UsageError as error:
                raise DataError(f"{utterance.manifest}:{utterance.line}: {error}") from error
    return [replace(own, language=known[own.task or own.language]) for own in utterances]


def check_vocabulary(tokenizer: Tokenizer, utterances: Sequence[Utterance]) -> VocabularyReport | None:
    """Report the characters that cannot be written; None if all can."""
    counts: Counter[str] = Counter()
    found: list[int] = []
    lower = 0
    for index, utterance in enumerate(utterances):
        unwritable = tokenizer.unwritable(utterance.text or "", utterance.language)
        if unwritable:
            counts.update(unwritable)
            found.append(index)
            lower += not tokenizer.unwritable((utterance.text or "").lower(), utterance.language)
    if not found:
        return None
    examples = (utterances[index] for index in found[:SHOWN])
    return VocabularyReport(
        characters=dict(counts.most_common()),
        utterances=tuple(found),
        total=len(utterances),
        examples=tuple(f"{example.manifest}:{example.line}: {example.text}" for example in examples),
        writable_in_lower_case=lower,
    )


def reference_text(tokenizer: Tokenizer, text: str, language: str | None = None) -> str:
    """A transcript in the form in which the model writes: its tokenizer may fold case, or have one sign for several.

    Words that it cannot write stay as they are, and count as errors.
    """
    if not tokenizer.unwritable(text, language):
        return tokenizer.decode(tokenizer.encode(text, language)).strip()
    return " ".join(
        word if tokenizer.unwritable(word, language) else tokenizer.decode(tokenizer.encode(word, language)).strip()
        for word in text.split()
    )


def apply_policy(
    report: VocabularyReport | None,
    utterances: Sequence[Utterance],
    policy: Literal["refuse", "drop", "keep"],
    *,
    key: str = "model.vocabulary_check",
) -> list[Utterance]:
    """The utterances to train on. Raises DataError with the report where the policy is to refuse."""
    if report is None or policy == "keep":
        return list(utterances)
    if policy == "refuse":
        raise DataError(
            f"{report.message}\nCorrect the manifest, or give {key}=drop (leave these utterances out) or "
            f"{key}=keep (train on what can be written)."
        )
    dropped = set(report.utterances)
    return [utterance for index, utterance in enumerate(utterances) if index not in dropped]


def shown(character: str) -> str:
    """A character for a message, `'é'`, with its Unicode name where it is invisible or easily mistaken."""
    name = unicodedata.name(character, "") if len(character) == 1 else ""
    plain = character.isascii() and character.isprintable() and character != " "
    return repr(character) if plain or not name else f"{character!r} ({name.lower()})"

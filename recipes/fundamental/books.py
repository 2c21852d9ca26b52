"""Short sentences out of public-domain books (Project Gutenberg plain texts)."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

LONGEST_SENTENCE = 24
"""Words."""

TITLES = {"Mr.": "mister", "Mrs.": "missus", "Dr.": "doctor", "St.": "saint", "Messrs.": "messieurs"}
PROSE = re.compile(r"\*\*\* ?START OF.*?\*\*\*(.*)\*\*\* ?END OF", re.DOTALL)
SENTENCE_END = re.compile(r"[.!?\"“”()\[\]]+")
CLAUSE_END = re.compile(r"[,;:]|--|—")
ROMAN_NUMERAL = re.compile(r"\b[IVXLC]{2,}\b")
SHOUTING = re.compile(r"\b[A-Z]{2,}\b")
WORD = re.compile(r"[a-z]+(?:'[a-z]+)*")
FIRST_SENTENCE = 100
"""Sentences left out at the front: title page and contents."""


def read_prose(path: Path) -> str:
    """The book without the distributor's header and footer, on one line."""
    text = path.read_bytes().decode("utf-8", errors="ignore")
    body = PROSE.search(text)
    if body is None:
        raise SystemExit(f"{path} has no START and END marks: --books takes Project Gutenberg plain texts")
    prose = body.group(1).replace("’", "'").replace("‘", "'").replace("_", "")
    for title, spoken in TITLES.items():
        prose = prose.replace(title, spoken)
    return " ".join(prose.split())


def clauses(sentence: str) -> Iterator[list[str]]:
    """Word lists between commas; a clause with digits, capitals or foreign letters ends the sentence."""
    for clause in CLAUSE_END.split(sentence):
        unspeakable = not clause.isascii() or any(character.isdigit() for character in clause)
        if unspeakable or ROMAN_NUMERAL.search(clause) or SHOUTING.search(clause) or "&" in clause or "*" in clause:
            return
        yield WORD.findall(clause.lower())


def sentences(path: Path, generator: random.Random) -> Iterator[str]:
    """Sentences of 1 to 24 words; long ones are cut between clauses, at a limit drawn for each piece."""
    for sentence in SENTENCE_END.split(read_prose(path))[FIRST_SENTENCE:]:
        limit = generator.randint(4, LONGEST_SENTENCE)
        piece: list[str] = []
        for clause in clauses(sentence):
            if piece and len(piece) + len(clause) > limit:
                yield " ".join(piece)
                piece = []
                limit = generator.randint(4, LONGEST_SENTENCE)
            piece = piece + clause
        yield " ".join(piece)


def book_sentences(folder: Path, seed: int) -> list[str]:
    """Distinct short sentences of all books in `folder`, shuffled."""
    generator = random.Random(seed)
    found: dict[str, None] = {}
    for path in sorted(folder.glob("*.txt")):
        for sentence in sentences(path, generator):
            if 1 <= len(sentence.split()) <= LONGEST_SENTENCE:
                found[sentence] = None
    shuffled = list(found)
    generator.shuffle(shuffled)
    return shuffled

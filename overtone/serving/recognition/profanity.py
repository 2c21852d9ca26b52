"""Words that a request may ask not to see: all but the first letter become asterisks."""

from __future__ import annotations

import re
from collections.abc import Collection

WORDS = frozenset(
    {
        "arsehole", "asshole", "bastard", "bitch", "bitches", "bollocks", "bullshit", "cock", "cunt", "dickhead",
        "fuck", "fucked", "fucker", "fuckers", "fucking", "motherfucker", "motherfucking", "shit", "shits", "shitty",
        "slut", "twat", "wanker", "whore",
    }
)  # fmt: skip
"""A server's own list replaces these."""

WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")


def masked(text: str, words: Collection[str] = WORDS) -> str:
    """`x**` for each of the words, whatever its case; words: lower case."""

    def mask(match: re.Match[str]) -> str:
        word = match.group()
        return word[0] + "*" * (len(word) - 1) if word.lower() in words else word

    return WORD.sub(mask, text)

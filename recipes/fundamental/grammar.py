"""Sentences from templates: `{name}` stands for an entry of the section `[name]` or for something computed.

An entry may have forms between slashes, `open/opened/opening`; `{verb}` takes the first, `{verb:2}` the third.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path

from spoken import SPOKEN

SLOT = re.compile(r"\{([a-z_]+)(?::(\d))?\}")
ARTICLE = re.compile(r"\ba (?=[aeiou][a-z])")
SECTION = re.compile(r"\[([a-z_]+)\]")


@dataclass(frozen=True)
class Grammar:
    """Named sections of entries."""

    sections: dict[str, list[str]]

    def expand(self, template: str, generator: random.Random) -> str:
        """Fill every slot of the template, slots inside entries included."""

        def fill(slot: re.Match[str]) -> str:
            name, form = slot.group(1), int(slot.group(2) or 0)
            if name in SPOKEN:
                return SPOKEN[name](generator)
            if name not in self.sections:
                raise SystemExit(f"the grammar has no section [{name}], named by {template!r}")
            forms = generator.choice(self.sections[name]).split("/")
            return self.expand(forms[min(form, len(forms) - 1)], generator)

        return ARTICLE.sub("an ", SLOT.sub(fill, template))


def load_grammar(folder: Path) -> Grammar:
    """Read all `*.txt` files of the folder: a section heading, then one entry a line or several between commas."""
    sections: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.txt")):
        entries: list[str] = []
        for line in path.read_text(encoding="utf-8").splitlines():
            heading = SECTION.fullmatch(line.strip())
            if heading:
                entries = sections.setdefault(heading.group(1), [])
            else:
                entries.extend(entry.strip() for entry in line.split(",") if entry.strip())
    return Grammar(sections)

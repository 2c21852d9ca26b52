"""Faults of the project's files by the rules of the house, in words.

PYTHONPATH=tests python -m support.house_faults overtone/nets overtone/decoding        # or all of the project
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from support.docstring_rules import docstring_faults, question_faults, raise_faults, shape_faults, word_faults
from support.house_rules import (
    Source,
    class_faults,
    export_faults,
    folder_faults,
    import_of_test_faults,
    name_faults,
    project_files,
    project_sources,
    size_faults,
    small_file_faults,
)

SINGLE_FILE_RULES: dict[str, Callable[[Source], list[str]]] = {
    "classes": class_faults,
    "sizes": size_faults,
    "names": name_faults,
    "exports": export_faults,
    "imports of tests": import_of_test_faults,
}

DOCSTRING_RULES: dict[str, Callable[[Source], list[str]]] = {
    "docstrings": docstring_faults,
    "questions": question_faults,
    "raises": raise_faults,
    "shapes": shape_faults,
    "words": word_faults,
}


def main(folders: list[str]) -> int:
    """Print the faults of every file, or of those in the folders; the exit status is 1 where there is one."""
    sources = project_sources()
    rules = [*SINGLE_FILE_RULES.values(), *DOCSTRING_RULES.values()]
    faults = [*folder_faults(project_files()), *small_file_faults(sources)]
    faults += [fault for source in sources for rule in rules for fault in rule(source)]
    wanted = [fault for fault in faults if fault.startswith(tuple(folders) or "")]
    print(*wanted, f"{len(wanted)} faults", sep="\n")
    return int(bool(wanted))


if __name__ == "__main__":
    sys.exit(main([folder.rstrip("/") for folder in sys.argv[1:]]))

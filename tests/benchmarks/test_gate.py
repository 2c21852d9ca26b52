"""What general speech can bear, and how much sooner: choices and tables of the two benchmarks, without any time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gate, sooner
from benchmarks.domains.cells import write_json
from overtone.adapters.words import WordPart
from overtone.errors import UsageError
from overtone.inference.retention import Strength
from overtone.wer import ErrorCounts

WORDS: Any = object.__new__(WordPart)


def counts(errors: int) -> ErrorCounts:
    return ErrorCounts(substitutions=errors, hits=100 - errors)


def strength(scale: float, general: int, domain: int, *, step: int | None = None, words: bool = False) -> Strength:
    return Strength(
        scale=scale,
        share=1.0 if words else 0.0,
        part=WORDS if words else None,
        general=counts(general),
        domain=counts(domain),
        step=step,
    )


def test_each_way_takes_the_best_of_its_own_that_is_allowed() -> None:
    found = [
        strength(1.0, 40, 2, words=True),
        strength(1.0, 45, 5),
        strength(0.4, 20, 30),
        strength(0.25, 9, 50),
        strength(1.0, 10, 40, step=25),
        strength(0.7, 8, 35, step=50),
        strength(0.7, 10, 20, step=50, words=True),
        strength(0.0, 10, 45, words=True),
        strength(0.0, 8, 60),
        replace(strength(0.55, 9, 10, words=True), mix=0.9),
    ]
    chosen = gate.ways(found, allowed=10.0)
    assert {way: (own.step, own.scale, own.domain and own.domain.errors) for way, own in chosen.items()} == {
        "whole adapter": (None, 1.0, 5),
        "whole adapter with words": (None, 1.0, 2),
        "weaker": (None, 0.25, 50),
        "earlier steps": (25, 1.0, 40),
        "both": (50, 0.7, 35),
        "words alone": (None, 0.0, 45),
        "both with words": (50, 0.7, 20),
        "both with words and the prior": (None, 0.55, 10),
    }


def test_the_table_says_how_much_sooner() -> None:
    rows = [
        {"domain": "digits", "name": sooner.NEMO, "reached": True, "steps": 250, "seconds": 50.0, "wer": 0.072},
        {
            "domain": "digits",
            "name": "words",
            "reached": False,
            "steps": 0,
            "seconds": 2.0,
            "processor_seconds": 3.0,
            "wer": 0.124,
        },
        {
            "domain": "digits",
            "name": "LoRA",
            "reached": True,
            "steps": 32,
            "seconds": 20.0,
            "processor_seconds": 10.0,
            "wer": 0.07,
        },
    ]
    lines = sooner.table(rows).splitlines()
    assert lines[-2:] == [
        "| digits | words |  | 2.0 | 3.0 | 12.4 | not reached |",
        "| digits | LoRA | 32 | 20.0 | 10.0 | 7.0 | 5.0 × sooner |",
    ]


def test_the_row_of_nemo_is_needed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--nemo-python"):
        sooner.read_nemo(tmp_path, "digits")
    heard = {"domain": {"counts": [[1, 0, 0, 3]]}}
    cell = {"identity": {}, "facts": {"steps": 250, "process_seconds": 50.0, "seconds": 40.0}, "heard": heard}
    write_json(tmp_path / "cells/digits/nemo.json", cell)
    found = sooner.read_nemo(tmp_path, "digits")
    assert found == {"steps": 250, "seconds": 50.0, "training": 40.0, "wer": 0.25}

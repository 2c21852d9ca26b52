"""Where utterances end, and the features of a stream beside the offline ones."""

from __future__ import annotations

from typing import Any

import pytest

from overtone.errors import UsageError
from overtone.serving.recognition.request import Endpointing
from overtone.serving.streaming.endpointing import Endpointer, Mark


def marks(flags: str, **options: Any) -> list[Mark]:
    """`x` speech, `.` blank; 40 ms a frame."""
    return Endpointer(Endpointing(**options), 0.04).push(flag == "." for flag in flags)


def test_rivas_defaults() -> None:
    assert marks("." * 100) == []
    assert marks("x" + "." * 19) == []
    assert marks("x" + "." * 20) == [Mark(21, "end")]
    assert marks("x" + "." * 10 + "x" + "." * 20) == [Mark(32, "end")]
    assert marks(("x" + "." * 30) * 2) == [Mark(21, "end"), Mark(52, "end")]


def test_thresholds_and_histories() -> None:
    assert marks("x" + "." * 10, stop_history=400) == [Mark(11, "end")]
    assert marks("x.x" + "." * 9, stop_history=400, stop_threshold=0.9) == [Mark(11, "end")]
    assert marks("x" + "." * 100, stop_history=0) == []
    assert marks("x" + "." * 30, start_threshold=0.5) == []
    assert marks("xxxx" + "." * 30, start_threshold=0.5) == [Mark(24, "end")]


def test_the_first_pass_is_told_once_and_earlier() -> None:
    early = {"stop_history_eou": 240}
    assert marks("x" + "." * 20, **early) == [Mark(7, "early"), Mark(21, "end")]
    assert marks("x" + "." * 10 + "x" + "." * 20, **early) == [Mark(7, "early"), Mark(18, "early"), Mark(32, "end")]


@pytest.mark.parametrize(
    "wrong", [{"stop_history": -1}, {"stop_threshold": 1.5}, {"stop_history_eou": 900}, {"start_history": 10**9}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Endpointing(**wrong)

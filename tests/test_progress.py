"""Progress shows on terminals and in notebooks, and nowhere else."""

from __future__ import annotations

import io
import sys
from types import ModuleType

import pytest

import overtone


class Stream(io.StringIO):
    """A standard error of a terminal, or of none."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


def shown(monkeypatch: pytest.MonkeyPatch, *, terminal: bool = False, notebook: bool = False) -> str:
    stream = Stream(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    if notebook:
        monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    with overtone.progress_bar("evaluating") as progress:
        progress(3.0, 60.0)
    return stream.getvalue()


def test_a_notebook_shows_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, notebook=True).split("\r")
    assert [line.strip() for line in lines] == ["", "evaluating 3 of 60 s of audio", "evaluating: done"]


def test_a_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert "of 60 s of audio" in shown(monkeypatch, terminal=True)


def test_a_file_or_a_pipe_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch) == ""

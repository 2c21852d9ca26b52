"""Nothing that a file holds reaches a terminal as an escape sequence."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from overtone.cli import main
from overtone.cli.screen import Terminal, note
from overtone.text_table import printable
from overtone.training.console import Reporter
from support.families import KIND_CASES, add_trained, family_model

ATTACK = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202etxt\r"


class Screen(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def make_screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """Have standard output and error on a terminal."""
    stream = Screen()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def is_clean(text: str) -> bool:
    return text == printable(text)


def test_control_characters_are_spelt_out_as_json_spells_them() -> None:
    assert printable("a\tb\nä €") == "a\tb\nä €"
    assert printable(ATTACK) == "\\u001b]0;owned\\u0007\\u001b[2J\\u009b31m\\u202etxt\\u000d"


def test_cards_names_and_messages_are_printed_without_escape_sequences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = make_screen(monkeypatch)
    model = family_model()
    add_trained(model, "mine", KIND_CASES["linear_pre"])
    model.adapters["mine"].card = {"note": ATTACK, "base": ATTACK}
    folder = model.adapters.save("mine", tmp_path / f"a{ATTACK}")
    for words in (["inspect", str(folder)], ["inspect", "--json", str(folder)], ["inspect", str(tmp_path / ATTACK)]):
        main(words)
    assert "owned" in screen.getvalue()
    assert is_clean(screen.getvalue())
    assert sys.stdout is screen


def test_other_streams_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes into a file or a pipe is whole."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    main(["--version"])
    assert sys.stdout is stream


def test_notes_and_the_lines_of_a_training_are_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = make_screen(monkeypatch)
    note(ATTACK)
    reporter = Reporter()
    reporter.log_to(tmp_path / "log.txt")
    reporter.say(ATTACK)
    assert "owned" in (tmp_path / "log.txt").read_text("utf-8")
    assert is_clean((tmp_path / "log.txt").read_text("utf-8"))
    assert "\x1b]" not in screen.getvalue()
    assert "\x07" not in screen.getvalue()


def test_rich_writes_to_the_terminal_itself() -> None:
    """It looks for the stream under this name, and its colours are its own."""
    from rich.console import Console

    stream = Screen()
    console = Console(file=Terminal(stream), force_terminal=True, color_system="standard")  # type: ignore[arg-type]
    console.print("[red]red[/red]")
    assert "\x1b[31m" in stream.getvalue()

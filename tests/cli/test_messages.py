"""Messages where words of a command line stand in the wrong place, or are those of another program."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from overtone.cli.train import program
from support.command_line import AUDIO, Overtone, one_line_error


def test_a_model_and_a_manifest_in_the_wrong_order(overtone: Overtone, folder: Path, manifest: Path) -> None:
    for words in ([manifest, folder / "model"], [folder / "model", "fundamental"], [manifest, "base.nemo"]):
        assert "The model comes first, and manifests follow" in one_line_error(overtone("evaluate", *words))


def test_a_search_is_no_evaluation(overtone: Overtone, folder: Path, manifest: Path) -> None:
    outcome = overtone("evaluate", "--multirun", folder / "model", manifest)
    assert "--multirun is for training" in one_line_error(outcome)


def test_an_adapter_is_no_recording(overtone: Overtone, folder: Path) -> None:
    outcome = overtone("verify", folder / "model", folder / "apart")
    assert f"Name it with --adapter {folder / 'apart'}" in one_line_error(outcome)


@pytest.mark.parametrize(("option", "key"), [("--model", "model.nemo_model"), ("--device", "trainer.accelerator")])
def test_settings_are_no_options(overtone: Overtone, option: str, key: str) -> None:
    message = one_line_error(overtone("train", option, "fundamental"))
    assert f"Unknown option '{option}'. Settings are written key=value: {key}=…." in message


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        (
            "+trainer.gpus=1",
            "trainer.gpus: unknown key. It is called trainer.devices (and trainer.accelerator=gpu) today.",
        ),
        ("+init_from_nemo_model=x", "init_from_nemo_model: unknown key. It is called model.nemo_model today."),
    ],
)
def test_former_keys_are_named(overtone: Overtone, manifest: Path, word: str, hint: str) -> None:
    words = ["model.pretrained_model=fundamental", "model.adapter.adapter_name=a"]
    words += [f"model.{name}.manifest_filepath={manifest}" for name in ("train_ds", "validation_ds")]
    assert hint in one_line_error(overtone("train", *words, word))


def test_help_on_a_command(overtone: Overtone) -> None:
    assert overtone("help", "train") == overtone("train", "--help")
    assert "'trian' is no command. Did you mean 'train'?" in one_line_error(overtone("help", "trian"))


def test_a_wav_is_no_manifest(overtone: Overtone, folder: Path) -> None:
    assert "a recording (Ogg) and no manifest" in one_line_error(overtone("evaluate", folder / "model", AUDIO[0]))


@pytest.mark.parametrize(
    ("called", "found", "words"),
    [
        ("/usr/bin/overtone", "/usr/bin/overtone", ["overtone"]),
        (".venv/bin/overtone", None, [".venv/bin/overtone"]),
        ("/lib/overtone/__main__.py", None, [sys.executable, "-m", "overtone"]),
        ("/lib/pytest/__main__.py", None, ["overtone"]),
    ],
)
def test_the_next_command_can_be_called(
    monkeypatch: pytest.MonkeyPatch, called: str, found: str | None, words: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [called])
    monkeypatch.setattr(shutil, "which", lambda name: found)
    assert program() == words

"""What a user types, told apart: settings and files."""

from __future__ import annotations

from pathlib import Path

import pytest

from overtone.cli.overrides import is_override


@pytest.mark.parametrize(
    ("word", "is_one"),
    [
        ("model.nemo_model=a.nemo", True),
        ("+model.x=1", True),
        ("++delete_ckpt_after_train=True", True),
        ("~trainer.strategy", True),
        ("model.train_ds.manifest_filepath=[a.json,b.json]", True),
        ("model.nemo", False),
        ("data/a=b/test.json", True),
        ("--adapter", False),
        ("./a=b.json", False),
    ],
)
def test_settings_are_told_from_paths(word: str, is_one: bool) -> None:
    assert is_override(word) is is_one


def test_a_file_is_a_file_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a=b.json").touch()
    assert not is_override("a=b.json")


def test_a_setting_may_be_longer_than_the_name_of_a_file() -> None:
    assert is_override(f"model.train_ds.manifest_filepath=[{','.join(['train.json'] * 1000)}]")

"""Processes that learn beside a server: they wait for their turn, and learn the adapter that they are told of."""

from __future__ import annotations

from pathlib import Path

import pytest

from overtone.errors import UsageError
from overtone.learning import versions as versions_module
from overtone.learning.corrections import Correction
from overtone.learning.learn import Learner
from overtone.learning.state import LearnSettings, worker_command
from overtone.learning.versions import WAITS, Versions
from overtone.serving.learning import GENTLE
from support.small_models import add_trained, small_model


def test_a_worker_waits_for_another_ones_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def lock(number: int, *, wait: bool) -> bool:
        asked.append(wait)
        if not wait:
            raise BlockingIOError
        return True

    monkeypatch.setattr(versions_module, "lock", lock)
    monkeypatch.setattr(versions_module, "TRIES", 1)
    versions = Versions(tmp_path / "mine")
    with pytest.raises(UsageError, match="is being changed already"), versions.change():
        pass
    monkeypatch.setenv(WAITS, GENTLE[WAITS])
    with versions.change():
        assert asked == [False, True]


def test_a_link_to_an_adapter_is_the_adapter_of_its_own_name(tmp_path: Path) -> None:
    model, link = small_model(), tmp_path / "mine"
    add_trained(model, "sound")
    link.symlink_to(model.adapters.save("sound", tmp_path / "elsewhere"))
    assert worker_command(link, "base")[4] == str(link)
    version = Learner(model=model, folder=link, say=lambda _: None).add([Correction(text="say this")], LearnSettings())
    assert version is not None
    assert Versions(link).has_in_place(version)
    assert version.folder.is_relative_to(tmp_path / "mine.learning")
    assert small_model().adapters.load(link).name == "mine"

"""The way back: what counted when a version was made counts again, with its recordings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from overtone.learning.corrections import Correction
from overtone.learning.learn import Learner
from overtone.learning.state import LearnSettings
from overtone.learning.versions import Versions, go_back
from support.small_models import small_model


def heard(text: str, seed: int) -> Correction:
    samples = np.random.default_rng(seed).integers(-3000, 3000, 8000).astype(np.int16)
    return Correction(text=text, samples=samples)


@pytest.fixture
def learner(tmp_path: Path) -> Learner:
    return Learner(model=small_model(), folder=tmp_path / "mine", say=lambda _: None)


def test_the_text_that_a_later_one_replaced_counts_again(learner: Learner) -> None:
    first = learner.add([heard("press one", 0), heard("hold on", 1)], LearnSettings())
    learner.add([heard("press won", 0)], LearnSettings())
    target, gone = go_back(learner.folder)
    assert first is not None
    assert (target.number, gone) == (first.number, 1)
    every = learner.store.read()
    assert {own.text for own in every} == {"press one", "hold on"}
    assert all(own.audio is not None for own in every), "the recordings are there"
    assert learner.add([], LearnSettings()) is None, "nothing is new"


def test_a_text_that_came_later_and_is_not_learnt_yet_stays(learner: Learner) -> None:
    learner.add([heard("press one", 0)], LearnSettings())
    learner.add([heard("press won", 0)], LearnSettings())
    learner.store.add([heard("press once", 0)])
    assert go_back(learner.folder)[1] == 0
    assert [own.text for own in learner.store.read()] == ["press once"]


def test_the_way_back_and_forth(learner: Learner) -> None:
    first = learner.add([heard("press one", 0)], LearnSettings())
    second = learner.add([heard("hold on", 1)], LearnSettings())
    assert first is not None
    assert second is not None
    go_back(learner.folder)
    assert [own.text for own in learner.store.read()] == ["press one"]
    assert go_back(learner.folder, second.number)[1] == 0
    assert [own.text for own in learner.store.read()] == ["press one", "hold on"]
    assert learner.add([], LearnSettings()) is None


def test_the_step_is_found_while_nobody_changes_the_adapter(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one that went back first: the step is from where that has gone."""
    first = learner.add([heard("press one", 0)], LearnSettings())
    learner.add([heard("hold on", 1)], LearnSettings())
    third = learner.add([heard("dial nine", 2)], LearnSettings())
    assert first is not None
    assert third is not None
    change = Versions.change

    def change_second(versions: Versions) -> object:
        monkeypatch.setattr(Versions, "change", change)
        go_back(learner.folder)
        return change(versions)

    monkeypatch.setattr(Versions, "change", change_second)
    assert go_back(learner.folder)[0].number == first.number
    assert [own.text for own in learner.store.read()] == ["press one"]

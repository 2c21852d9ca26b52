"""The recordings that an acoustic part has heard: counted, listed, and none passed over where lines come and go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from overtone.learning import acoustic
from overtone.learning import training as learning
from overtone.learning.corrections import Correction
from overtone.learning.learn import Learner
from overtone.learning.training import learn
from support.learning_samples import SHORT, correction, held_out, judge_with, some
from support.small_models import small_model


@pytest.fixture(autouse=True)
def few_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judgement of few held-out words, for tests of few recordings."""
    monkeypatch.setattr(acoustic, "LEAST_HELD_OUT_WORDS", 20)


@pytest.fixture
def lines() -> list[str]:
    """What the learner has said."""
    return []


@pytest.fixture
def learner(tmp_path: Path, lines: list[str]) -> Learner:
    return Learner(model=small_model(), folder=tmp_path / "mine", say=lines.append)


def test_lines_that_are_removed_hide_no_recording(
    learner: Learner, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines that go and as many that come: the new recordings are trained on, what was heard before is not news."""
    judge_with(monkeypatch, *[4] * 6)
    given = [*some(5, held=False), *some(6, held=True)]
    first = learn(learner, given, SHORT)[-1]
    journal = learner.store.journal
    written = journal.read_text("utf-8").splitlines(keepends=True)
    journal.write_text("".join(written[2:]), "utf-8")
    fresh = some(2, held=False, word="fresh")
    made = learn(learner, fresh, SHORT)
    assert len(learner.store.lines()) == first.acoustic_lines == 11
    assert [own.learning["part"] for own in made] == ["words", "acoustic"]
    assert learner.versions.recordings_of(made[-1], learner.store) == {own.id for own in learner.store.read()}
    assert learn(learner, [], SHORT) == []
    assert lines[-1] == "Acoustic part: no new recordings"
    again = learner.add(given[:2], SHORT)
    assert again is not None, "the words know them no longer"
    assert [own.learning["part"] for own in learn(learner, [], SHORT)] == ["acoustic"]


def test_lines_that_change_after_a_judgement_hide_no_recording(
    learner: Learner, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a part that was not kept: the same number of lines is not the same lines."""
    judge_with(monkeypatch, 4, 5, 4, 4)
    judge, times = learning.AcousticLearner.judge, []

    def judge_and_change(*arguments: Any) -> Any:
        made = judge(*arguments)
        times.append(made)
        if len(times) == 1:
            learner.store.add(some(1, held=False, word="fresh"))
            journal = learner.store.journal
            left = [line for line in journal.read_text("utf-8").splitlines(keepends=True) if "say this" not in line]
            journal.write_text("".join(left), "utf-8")
        return made

    monkeypatch.setattr(learning.AcousticLearner, "judge", judge_and_change)
    made = learn(learner, [Correction(text="say this"), *some(5, held=False), *some(6, held=True)], SHORT)
    assert len(learner.store.lines()) == 12
    assert [own is None for own in times] == [True, False]
    assert made[-1].learning["audio_lines"] == 12


def test_recordings_that_go_after_a_judgement_are_no_news(
    learner: Learner, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part that was not kept is not trained once more on less."""
    judge_with(monkeypatch, 4, 5)
    judge = learning.AcousticLearner.judge

    def judge_and_remove(*arguments: Any) -> Any:
        made = judge(*arguments)
        gone = next(own.audio for own in learner.store.read() if not own.is_held_out)
        assert gone is not None
        gone.unlink()
        return made

    monkeypatch.setattr(learning.AcousticLearner, "judge", judge_and_remove)
    made = learn(learner, [*some(6, held=False), *some(6, held=True)], SHORT)
    assert [own.learning["part"] for own in made] == ["words"]
    assert sum("training on" in line for line in lines) == 1


def test_a_version_without_a_list_of_recordings_has_heard_the_first_lines(
    learner: Learner, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge_with(monkeypatch, 4, 4, 4, 4)
    _, acoustic = learn(learner, [*some(5, held=False), *some(6, held=True)], SHORT)
    (acoustic.folder / "recordings.txt").unlink()
    assert learn(learner, [], SHORT) == []
    assert lines[-1] == "Acoustic part: no new recordings"
    assert [own.learning["part"] for own in learn(learner, [correction("one more")], SHORT)] == ["words", "acoustic"]


def test_report_and_card_count_the_recordings(
    learner: Learner, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without a recording, too short for the text, trained on, judged on."""
    judge_with(monkeypatch, 4, 4)
    texts = ("hold the line " * count for count in range(8, 40))
    short = next(text.strip() for text in texts if not held_out(text.strip()))
    given = [*some(5, held=False), *some(6, held=True), Correction(text="say this"), correction(short, seconds=0.3)]
    words, acoustic = learn(learner, given, SHORT)
    counts = {"audio_lines": 12, "trained_lines": 5, "judged_lines": 6}
    assert {key: acoustic.learning[key] for key in counts} == counts
    assert words.learning["audio_lines"] == 12
    assert "trained_lines" not in words.learning
    told = "training on 5 of the 12 corrections with a recording, judged on 6 that are held out"
    assert f"Acoustic part: {told}" in lines
    assert "Acoustic part: 1 recordings left out, they are too short for their texts" in lines

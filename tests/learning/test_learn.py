"""The acoustic part of a learning adapter: trained on what is not held out, judged, kept or not, and never lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from overtone.adapters.storage import read_description
from overtone.checkpoints.load import save_model
from overtone.cli.models import learning_copy
from overtone.errors import DataError, UsageError
from overtone.learning import acoustic
from overtone.learning import learn as words_module
from overtone.learning import training as learning
from overtone.learning.acoustic import replay_of_card, replayed
from overtone.learning.corrections import Correction, Learnt
from overtone.learning.learn import Learner
from overtone.learning.state import LearnSettings, read_settings, read_state, remember, write_state
from overtone.learning.training import learn
from overtone.learning.versions import TRAINING_LOCK, Versions, go_back
from overtone.models.asr_model import AsrModel
from support.learning_samples import SHORT, correction, judge_with, some
from support.small_models import add_trained, small_model
from support.train_samples import write_corpus


@pytest.fixture(autouse=True)
def few_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judgement of few held-out words, for tests of few recordings."""
    monkeypatch.setattr(acoustic, "LEAST_HELD_OUT_WORDS", 20)


@pytest.fixture
def learner(tmp_path: Path) -> Learner:
    said: list[str] = []
    return Learner(model=small_model(), folder=tmp_path / "mine", say=said.append)


def lines(learner: Learner) -> list[str]:
    found: list[str] = learner.say.__self__  # type: ignore[attr-defined]
    return found


def test_words_come_first_and_the_acoustic_part_then(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    judge_with(monkeypatch, 5, 4)
    trained: list[list[str]] = []
    train = learning.train_acoustic_part

    def watch(*arguments: Any, corrections: Sequence[Learnt], **options: Any) -> Any:
        trained.append([own.text for own in corrections if own.audio is not None and not own.is_held_out])
        assert read_state(learner.folder)["phase"] == "training"
        assert learner.folder.is_dir(), "the words act already"
        return train(*arguments, corrections=corrections, **options)

    monkeypatch.setattr(learning, "train_acoustic_part", watch)
    given = [*some(5, held=False), *some(6, held=True)]
    words, acoustic = learn(learner, given, SHORT)
    assert (words.learning["part"], acoustic.learning["part"]) == ("words", "acoustic")
    assert trained == [[own.text for own in given[:5]]]
    assert acoustic.learning["held_out"] == {"words": 25, "wer_before": 0.2, "wer_after": round(4 / 24, 6)}
    assert read_state(learner.folder)["version"] == acoustic.number
    stored = small_model().adapters.load(learner.folder)
    assert stored.kind.name == "linear"
    assert stored.words is not None
    assert not (learner.store.folder / "run").exists()
    assert learn(learner, [], SHORT) == []
    assert lines(learner)[-1] == "Acoustic part: no new recordings"


def test_what_is_worse_is_not_kept_and_counts_with_the_next(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    judge_with(monkeypatch, 4, 5, 4, 4)
    (words,) = learn(learner, [*some(5, held=False), *some(6, held=True)], SHORT)
    assert read_description(learner.folder)["kind"] == "words"
    assert "not kept" in lines(learner)[-1]
    first, second = learn(learner, [correction("one more")], SHORT)
    assert (first.parent, second.parent) == (words.number, first.number)
    assert second.acoustic_lines == 12


def test_an_adapter_goes_on_from_what_it_is(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    judge_with(monkeypatch, 4, 4, 4, 4)
    add_trained(learner.model, "mine")
    learner.model.adapters.save("mine", learner.folder)
    learn(learner, [*some(5, held=False), *some(6, held=True)], SHORT)
    stored = small_model().adapters.load(learner.folder)
    origin = small_model().adapters.load(learner.versions.folder / "0")
    assert stored.tensors().keys() == origin.tensors().keys()
    changes = [float((stored.tensors()[name] - own).abs().max()) for name, own in origin.tensors().items()]
    assert 0 < max(changes) < 0.05
    assert any(line.startswith("Replay: none") for line in lines(learner))
    learn(learner, [correction("one more")], SHORT)
    card = small_model().adapters.load(learner.folder, name="again").card
    assert set(card["start_from"]) == {"name", "digest"}, "a card does not hold all those before it"


def test_what_it_learnt_before_is_replayed(learner: Learner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    judge_with(monkeypatch, 4, 4)
    corpus = write_corpus(tmp_path, count=6, name="before")
    add_trained(learner.model, "mine")
    learner.model.adapters["mine"].card = {"data": {"manifest": str(corpus)}}
    learner.model.adapters.save("mine", learner.folder)
    seen: list[dict[str, Any]] = []
    train = learning.train_acoustic_part

    def watch(*arguments: Any, **options: Any) -> Any:
        seen.extend({"text": own.text} for own in options["replay"])
        return train(*arguments, **options)

    monkeypatch.setattr(learning, "train_acoustic_part", watch)
    learn(learner, [*some(5, held=False), *some(6, held=True)], SHORT)
    wanted = [json.loads(line)["text"] for line in corpus.read_text("utf-8").splitlines()]
    assert sorted(own["text"] for own in seen) == sorted(wanted)
    assert f"Replay: 6 utterances of {corpus}" in lines(learner)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"spoken": {"voice": "espeak-ng en", "utterances": 2}}, "text that a voice spoke"),
        ({"manifest": "gone.json"}, "not where its card says"),
        (None, "does not say"),
    ],
)
def test_why_nothing_is_replayed(data: Any, reason: str) -> None:
    assert reason in learning.describe_missing({"data": data})


def test_the_draw_of_what_is_replayed_is_the_same_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overtone.learning.acoustic.LEAST_REPLAY", 3)
    corpus = write_corpus(tmp_path, count=6, name="before")
    few, many = (replayed(small_model(), [str(corpus)], count) for count in (1, 5))
    assert [own.text for own in many][:3] == [own.text for own in few]
    assert len(many) == 5
    assert replay_of_card({"data": {"manifest": f"{corpus}, {tmp_path / 'gone.json'}"}}) == []
    with pytest.raises(DataError, match="no such manifest"):
        replayed(small_model(), [str(tmp_path / "gone.json")], 1)


@pytest.mark.parametrize("what", ["back", "aside", "kept"])
def test_an_adapter_that_changed_while_it_was_trained(
    what: str, learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gone back to another acoustic part, or with corrections set aside: what was trained is not it any more."""
    judge_with(monkeypatch, 4, 4, 4, 4)
    learn(learner, [*some(5, held=False), *some(6, held=True)], SHORT)
    train = learning.train_acoustic_part

    def change(*arguments: Any, **options: Any) -> Any:
        adapter = train(*arguments, **options)
        if what == "back":
            go_back(learner.folder, 0)
        elif what == "aside":
            learner.store.set_aside([learner.store.read()[0].id])
        return adapter

    monkeypatch.setattr(learning, "train_acoustic_part", change)
    made = learn(learner, [correction("one more")], SHORT)
    assert [own.learning["part"] for own in made] == (["words", "acoustic"] if what == "kept" else ["words"])
    if what == "back":
        current = learner.versions.current()
        assert current is not None
        assert current.number == 0


def test_a_training_that_is_cut_off_loses_nothing(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(learning, "train_acoustic_part", killed)
        with pytest.raises(KeyboardInterrupt):
            learn(learner, [*some(5, held=False), *some(6, held=True)], SHORT)
    assert read_state(learner.folder)["phase"] == "ended"
    judge_with(monkeypatch, 4, 4)
    (acoustic,) = learn(learner, [], SHORT)
    assert acoustic.learning["part"] == "acoustic"


def test_one_training_at_a_time(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The words are learnt all the same."""
    monkeypatch.setattr("overtone.learning.versions.FEW_TRIES", 1)
    learner.folder.mkdir()
    learner.folder.rmdir()
    with Versions(learner.folder).training():
        write_state(learner.folder, "training", step=3)
        assert read_state(learner.folder)["phase"] == "training"
        with pytest.raises(UsageError, match="is being trained already"):
            learn(learner, [*some(5, held=False), *some(6, held=True)], SHORT)
    current = learner.versions.current()
    assert current is not None
    assert current.learning["part"] == "words"
    write_state(learner.folder, "training", step=3)
    assert read_state(learner.folder)["phase"] == "ended"
    assert (learner.store.folder / TRAINING_LOCK).exists()


def test_too_little_is_not_trained_on(learner: Learner) -> None:
    learn(learner, some(3, held=False), SHORT)
    assert lines(learner)[-1] == "Acoustic part: not yet, there are 3 of the 4 recordings that a training needs"
    learn(learner, some(5, held=False), SHORT)
    assert "0 of the 20 held-out words" in lines(learner)[-1]


@pytest.mark.parametrize(("errors", "expected"), [((0, 0, 9, 9, 9, 0), True), ((0, 0, 9, 9, 9, 9, 9), False)])
def test_words_that_general_speech_cannot_bear(
    errors: tuple[int, ...], expected: bool, learner: Learner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Errors of the base, with the words of before, and with less and less of the new ones."""
    judge_with(monkeypatch, *errors)
    general = write_corpus(tmp_path, count=2, name="general")
    made = learn(learner, [Correction(text="say this")], LearnSettings(general=(str(general),)))
    assert bool(made) is expected
    if expected:
        part = small_model().adapters.load(learner.folder).words
        assert part is not None
        assert part.weight == pytest.approx(0.1 * 0.35)


def test_settings_are_remembered(tmp_path: Path) -> None:
    remember(tmp_path / "mine", kappa=1.0, general=("a.json",), kind=None)
    assert remember(tmp_path / "mine", steps=5) == LearnSettings(kappa=1.0, general=("a.json",), steps=5)
    (tmp_path / "mine.learning" / "settings.json").write_text('{"kappa": 2.0, "later": 1}', "utf-8")
    assert read_settings(tmp_path / "mine") == LearnSettings(kappa=2.0)
    (tmp_path / "mine.learning" / "settings.json").write_text("[]", "utf-8")
    with pytest.raises(DataError, match="damaged"):
        read_settings(tmp_path / "mine")


def test_held_out_texts_choose_the_weights(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    """With enough of them: the n-gram that is judged does not know them, the one that is kept does."""
    monkeypatch.setattr("overtone.learning.words.ENOUGH_WORDS", 20)
    counted: list[list[list[int]]] = []
    grow: Callable[..., Any] = words_module.choose_words.__globals__["extend_ngram"]

    def watch(first: Any, sentences: list[list[int]], **options: Any) -> Any:
        counted.append(sentences)
        return grow(first, sentences, **options)

    monkeypatch.setattr("overtone.learning.words.extend_ngram", watch)
    held = some(6, held=True)
    alone = [Correction(text=own.text) for own in held]
    made = learner.add([*some(5, held=False), *held, *alone], LearnSettings())
    encode = learner.model.tokenizer.encode
    secret = [encode(own.text) for own in held]
    assert [sum(own in secret for own in sentences) for sentences in counted] == [12, 0]
    if made is not None:
        assert made.learning["held_out"]["words"] == 30


def test_the_base_is_untouched(learner: Learner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    judge_with(monkeypatch, 4, 4)
    model: AsrModel = learner.model
    before = {name: own.clone() for name, own in model.base_state_dict().items()}
    save_model(model, tmp_path / "base.nemo")
    learn(learner, [*some(5, held=False), *some(6, held=True)], SHORT)
    assert all(torch.equal(own, before[name]) for name, own in model.base_state_dict().items())


def test_a_copy_of_an_adapter_learns_in_its_place(learner: Learner) -> None:
    """The demo's adapter stays what its run made of it, and what its copy has learnt stays too."""
    add_trained(learner.model, "mine")
    learner.model.adapters.save("mine", learner.folder)
    copied = learning_copy(learner.folder) / "mine"
    before = read_description(learner.folder)["parameters_digest"]
    Learner(model=learner.model, folder=copied, say=lines(learner).append).add([Correction(text="say this")], SHORT)
    assert learning_copy(learner.folder) == copied.parent
    assert "word_part" in read_description(copied)
    assert "word_part" not in read_description(learner.folder)
    assert read_description(learner.folder)["parameters_digest"] == before


def test_what_is_added_while_words_are_learnt_is_the_next_ones(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = words_module.choose_words

    def choose_slowly(*arguments: Any, **options: Any) -> Any:
        learner.store.add([Correction(text="said meanwhile")])
        return choose(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(words_module, "choose_words", choose_slowly)
        first = learner.add([Correction(text="say this")], SHORT)
    assert first is not None
    assert (first.learning["corrections"], first.journal_lines) == (1, 1)
    second = learner.add([], SHORT)
    assert second is not None
    assert (second.learning["corrections"], second.journal_lines) == (2, 2)
    assert learner.add([], SHORT) is None
    journal = learner.store.journal
    journal.write_text(journal.read_text("utf-8").splitlines(keepends=True)[1], "utf-8")
    third = learner.add([], SHORT)
    assert third is not None
    assert third.learning["corrections"] == 1


def test_an_acoustic_part_learns_no_words(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Corrections that came while it was trained are still new to the words."""
    judge_with(monkeypatch, 4, 4)
    train = learning.train_acoustic_part

    def train_slowly(*arguments: Any, **options: Any) -> Any:
        learner.store.add([Correction(text="said meanwhile")])
        return train(*arguments, **options)

    monkeypatch.setattr(learning, "train_acoustic_part", train_slowly)
    words, acoustic = learn(learner, [*some(5, held=False), *some(6, held=True)], SHORT)
    assert (acoustic.learnt, acoustic.learning["corrections"]) == (words.learnt, 11)
    assert learner.add([], SHORT) is not None


def test_an_adapter_that_is_put_in_place_while_words_are_learnt(
    learner: Learner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is an origin, and its words are learnt; one that is removed stays removed."""
    other = small_model()
    add_trained(other, "mine")
    other.adapters.save("mine", tmp_path / "uploaded" / "mine")
    choose, times = words_module.choose_words, []

    def choose_slowly(*arguments: Any, **options: Any) -> Any:
        times.append(1)
        if len(times) == 1:
            learner.versions.put(tmp_path / "uploaded" / "mine", learner.folder)
        elif len(times) == 3:
            shutil.rmtree(learner.folder)
        return choose(*arguments, **options)

    monkeypatch.setattr(words_module, "choose_words", choose_slowly)
    version = learner.add([Correction(text="say this")], SHORT)
    assert version is not None
    assert (version.number, version.parent, len(times)) == (1, 0, 2)
    uploaded = read_description(tmp_path / "uploaded" / "mine")["parameters_digest"]
    assert read_description(learner.folder)["parameters_digest"] == uploaded
    with pytest.raises(UsageError, match="was removed while it learnt"):
        learner.add([Correction(text="and that")], SHORT)
    assert not learner.folder.exists()
    assert [own.number for own in learner.versions.all()] == [0, 1]
    assert len(learner.store.read()) == 2


def test_an_adapter_that_is_put_in_place_while_an_acoustic_part_is_judged(
    learner: Learner, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge_with(monkeypatch, 4, 4)
    other = small_model()
    add_trained(other, "mine")

    def judge(*arguments: Any) -> dict[str, Any]:
        other.adapters.save("mine", learner.folder, overwrite=True)
        return {}

    monkeypatch.setattr(learning, "judged", judge)
    made = learn(learner, [*some(5, held=False), *some(6, held=True)], SHORT)
    assert [own.learning["part"] for own in made] == ["words"]
    assert lines(learner)[-1] == "Acoustic part: not kept, the adapter is another one by now"
    assert "word_part" not in read_description(learner.folder)

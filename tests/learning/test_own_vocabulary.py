"""Learning with a vocabulary of the adapter's own: its tokens everywhere, and the base's nowhere."""

from __future__ import annotations

import string
import threading
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from overtone import cli
from overtone.adapters.kinds.linear import LinearAdapter
from overtone.adapters.storage import PARAMETERS, described_digest, read_description, read_folder
from overtone.checkpoints.load import save_model
from overtone.errors import AdapterError, DataError, UsageError
from overtone.learning import acoustic
from overtone.learning import training as learning
from overtone.learning.corrections import Correction, Learnt
from overtone.learning.learn import Learner
from overtone.learning.reading import Readings, languages_of, read_corrections
from overtone.learning.state import LearnSettings, read_settings
from overtone.learning.training import learn
from overtone.learning.versions import go_back, own_tokenizer
from overtone.models.asr_model import AsrModel
from overtone.models.vocabulary import writing_with
from overtone.serving.adapter_store.store import AdapterStore
from overtone.serving.learning import LearningJobs
from overtone.tokenizers import CharTokenizer
from overtone.wer import ErrorCounts
from support.small_models import small_model, small_transducer_model
from support.train_samples import write_corpus

LABELS = [" ", *string.ascii_uppercase, "É", "?"]
"""Capital letters, and signs that the base has not at all."""
SHORT = LearnSettings(steps=2)


def correction(text: str) -> Correction:
    noise = np.random.default_rng(zlib.crc32(text.encode())).integers(-3000, 3000, 24_000)
    return Correction(text=text, samples=noise.astype(np.int16))


def some(count: int, held: bool) -> list[Correction]:
    """Corrections that are held out, or are not."""
    texts = (f"CAFÉ {'ABCDEFGHIJ'[place % 10]} {'KLMNOPQRST'[place // 10]} OF TEN?" for place in range(100))
    made = (Learnt(id="", key="", text=text, language=None, audio=Path("x"), seconds=1.0) for text in texts)
    return [correction(own.text) for own in made if own.is_held_out is held][:count]


def save_own(model: AsrModel, folder: Path) -> Path:
    """Write an adapter with a vocabulary of its own, which has been trained a little."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        adapter = model.adapters.add(folder.name, LinearAdapter(dim=4), tokenizer=CharTokenizer(LABELS))
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.05)
    model.adapters.save(folder.name, folder)
    model.adapters.remove(folder.name)
    return folder


def learner_of(model: AsrModel, tmp_path: Path) -> tuple[Learner, list[str]]:
    said: list[str] = []
    return Learner(model=model, folder=save_own(model, tmp_path / "mine"), say=said.append), said


@pytest.mark.parametrize("make", [small_model, small_transducer_model])
def test_words_are_of_its_own_tokens(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, weighed on held-out corrections, and kept over the adapter's tokens, whatever head the base has."""
    monkeypatch.setattr("overtone.learning.words.ENOUGH_WORDS", 20)
    learner, said = learner_of(make(), tmp_path)
    held = some(6, held=True)
    kept = learner.add([*some(5, held=False), *held, Correction(text="AND SO?")], SHORT)
    own = CharTokenizer(LABELS)
    if kept is None:
        assert any("Words: not kept" in line for line in said)
        monkeypatch.setattr("overtone.learning.learn.choose_words", judged_equal)
        kept = learner.add([], SHORT)
    assert kept is not None
    words = read_folder(kept.folder, learner.model.adapters.identity()).words
    assert words is not None
    assert words.ngram is not None
    assert words.tokenizer_digest == own.digest()
    assert words.prior is None, "the general prior is over the base's tokens"
    likely, unlikely = (words.ngram.sentence_log_prob(own.encode(text)) for text in ("CAFÉ OF TEN?", "QZJXV QZJXV Q"))
    assert likely > unlikely + 10
    assert "12 in all, 11 with a recording" in said[0]


def test_its_tokenizer_is_read_without_its_parameters(tmp_path: Path) -> None:
    model = small_model()
    folder = save_own(model, tmp_path / "mine")
    (folder / PARAMETERS).unlink()
    found = own_tokenizer(folder, model.adapters.identity())
    assert found is not None
    assert found.digest() == CharTokenizer(LABELS).digest()
    with pytest.raises(AdapterError, match="for another base"):
        own_tokenizer(folder, small_model(layers=1).adapters.identity())


def test_a_text_is_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the journal is read, and anew for other tokens."""
    encoded: list[str] = []

    class Tokens(CharTokenizer):
        def encode(self, text: str, language: str | None = None) -> list[int]:
            encoded.append(text)
            return super().encode(text, language)

    journal = [Learnt(id=text, key=text, text=text, language=None, audio=None, seconds=0.0) for text in ("ab", "é?")]
    readings = Readings()
    for _ in range(3):
        assert [own.text for own in readings.read(Tokens(LABELS), journal)] == ["AB", "É?"]
    assert encoded == ["AB", "É?"]
    assert [own.text for own in readings.read(Tokens(list("ab ")), journal)] == ["ab"]
    assert encoded == ["AB", "É?", "ab"]


def test_languages_are_those_of_the_tokens_or_of_the_model() -> None:
    model = small_model()
    assert languages_of(model.tokenizer, model) == ()
    told = SimpleNamespace(languages=("en", "de"))
    assert languages_of(CharTokenizer(LABELS), told) == ("en", "de")  # type: ignore[arg-type]


def judged_equal(*arguments: Any, **options: Any) -> Any:
    """The word part with its weights of today, and no judgement."""
    from overtone.learning.words import WordChoice, grow_part

    return WordChoice(part=grow_part(arguments[0], options["origin"], options["now"], options["current"]))


def test_the_acoustic_part_goes_on_with_its_own_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its adapter and its head are trained and judged on its own letters; the base stays, and the way back leads."""
    monkeypatch.setattr(acoustic, "LEAST_HELD_OUT_WORDS", 20)
    texts: list[list[str]] = []
    count = learning.count_errors

    def count_equal(model: AsrModel, heard: Any, *arguments: Any, **options: Any) -> ErrorCounts:
        """What it would count, so that it is computed, and the same of everything."""
        assert count(model, heard, *arguments, **options).reference_length == 30
        texts.append([text for batch in heard for text in batch.texts])
        return ErrorCounts(substitutions=5, hits=25)

    monkeypatch.setattr(learning, "count_errors", count_equal)
    monkeypatch.setattr("overtone.learning.learn.choose_words", judged_equal)
    model = small_model()
    before = {name: own.clone() for name, own in model.base_state_dict().items()}
    learner, said = learner_of(model, tmp_path)
    as_it_came = described_digest(learner.folder, read_description(learner.folder))
    held = some(6, held=True)
    words, trained = learn(learner, [*some(5, held=False), *held], SHORT)
    assert (words.learning["part"], trained.learning["part"]) == ("words", "acoustic")
    assert (trained.learning["trained_lines"], trained.learning["judged_lines"]) == (5, 6)
    assert len(texts) == 2, "of before and after"
    assert all(sorted(own) == sorted(each.text for each in held) for own in texts)
    identity = model.adapters.identity()
    origin, now = (read_folder(learner.versions.folder / number, identity).tensors for number in ("0", "2"))
    changed = {name for name, tensor in now.items() if not torch.equal(tensor, origin[name])}
    assert any(name.startswith("vocabulary.") for name in changed)
    assert any(not name.startswith("vocabulary.") for name in changed)
    stored = read_folder(learner.folder, identity)
    assert stored.vocabulary is not None
    assert stored.vocabulary.tokenizer.digest() == CharTokenizer(LABELS).digest()
    assert stored.words is not None
    assert all(torch.equal(own, before[name]) for name, own in model.base_state_dict().items())
    assert learn(learner, [], SHORT) == []
    assert said[-1] == "Acoustic part: no new recordings"
    assert go_back(learner.folder, 0)[0].number == 0
    assert described_digest(learner.folder, read_description(learner.folder)) == as_it_came


def test_replay_is_what_its_own_tokens_write(tmp_path: Path) -> None:
    model = small_model()
    lower = write_corpus(tmp_path, count=6, name="lower")
    upper = tmp_path / "upper.json"
    upper.write_text(lower.read_text("utf-8").replace('"text": "', '"text": "É'), "utf-8")
    with writing_with(model, CharTokenizer([*"é", *"É", " ", *string.ascii_lowercase])):
        assert len(acoustic.replayed(model, [str(lower), str(upper)], 1)) == 12
    with pytest.raises(DataError, match="cannot write its transcripts"):
        acoustic.replayed(model, [str(upper)], 1)


def test_general_speech_does_not_measure_it(tmp_path: Path) -> None:
    """It is refused before anything is written, in words and in a training."""
    learner, _ = learner_of(small_model(), tmp_path)
    general = write_corpus(tmp_path, count=2, name="general")
    with pytest.raises(UsageError, match="'mine' has a vocabulary of its own, and is not the base at any strength"):
        learn(learner, some(2, held=False), LearnSettings(general=(str(general),)))
    assert not learner.store.folder.exists()
    version = learner.add(some(2, held=False), SHORT)
    assert version is not None
    with pytest.raises(UsageError, match="Leave --general out"):
        learning.AcousticLearner(learner, LearnSettings(general=(str(general),))).train(2)


def test_the_command_learns_in_its_letters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = small_model()
    save_model(model, tmp_path / "base.nemo")
    save_own(model, tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    Path("some.jsonl").write_text('{"text": "café au lait?"}\n{"text": "é"}\n', "utf-8")
    Path("odd.jsonl").write_text('{"text": "50 %"}\n', "utf-8")
    general = write_corpus(tmp_path, count=2, name="general")
    assert cli.main(["learn", "mine", "some.jsonl", "--model", "base.nemo", "--general", str(general)]) == 2
    assert "Leave --general out" in capsys.readouterr().err
    assert read_settings(Path("mine")).general == (), "it is not remembered"
    assert cli.main(["learn", "mine", "odd.jsonl", "--model", "base.nemo"]) == 2
    assert "cannot write" in capsys.readouterr().err
    assert cli.main(["learn", "mine", "some.jsonl", "--model", "base.nemo"]) == 0
    assert "2 new, 2 in all" in capsys.readouterr().err
    words = model.adapters.load("mine").words
    assert words is not None
    assert words.tokenizer_digest == CharTokenizer(LABELS).digest()


def test_a_server_takes_texts_in_its_letters(tmp_path: Path) -> None:
    model = small_model()
    folder = save_own(model, tmp_path / "own")
    with AdapterStore(model, tmp_path, lock=threading.RLock(), poll_seconds=0) as store:
        jobs = LearningJobs("base", store, sample_rate=16_000)
        assert jobs.tokenizer_of("own", model).digest() == CharTokenizer(LABELS).digest()
        assert jobs.tokenizer_of("new", model) is model.tokenizer
        assert jobs.add("own", [correction("CAFÉ?")]) == 1
        assert jobs.state("own")["recordings"] == 1
    assert folder.with_name("own.learning").is_dir()


# Another adapter in its place


def learnt(text: str) -> Learnt:
    return Learnt(id=text, key=text, text=text, language=None, audio=None, seconds=0.0)


def test_texts_are_read_in_the_letters_of_whoever_learns_them() -> None:
    upper, lower = CharTokenizer(LABELS), small_model().tokenizer
    every = [learnt("press one"), learnt("CAFÉ?"), learnt("HOLD ON")]
    assert [own.text for own in Readings().read(upper, every)] == ["PRESS ONE", "CAFÉ?", "HOLD ON"]
    assert [own.text for own in Readings().read(lower, every)] == ["press one", "hold on"]
    plain = [learnt("press one")]
    assert Readings().read(lower, plain)[0] is plain[0], "what can be written stays as it is"


def test_an_adapter_of_the_bases_tokens_takes_its_place(tmp_path: Path) -> None:
    """What its tokens cannot write is left out, and said; the rest is learnt."""
    model = small_model()
    learner, said = learner_of(model, tmp_path)
    assert learner.add([Correction(text="CAFÉ?"), Correction(text="HOLD ON")], SHORT) is not None
    model.adapters.remove("mine")
    model.adapters.add("mine", LinearAdapter(dim=4))
    model.adapters.save("mine", learner.folder, overwrite=True)
    version = learner.add([Correction(text="press one")], SHORT)
    assert version is not None
    assert version.learning["corrections"] == 2
    assert "3 in all, 0 with a recording (0.0 min; 0 held out); 1 are left out, for the adapter's tokens" in "".join(
        said
    )
    words = read_folder(version.folder, model.adapters.identity()).words
    assert words is not None
    assert words.tokenizer_digest == model.tokenizer.digest()


def test_corrections_of_a_file_are_in_the_tokens_of_the_block(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text('{"text": "café?"}\n', "utf-8")
    model = small_model()
    with writing_with(model, CharTokenizer(LABELS)):
        assert [own.text for own in read_corrections(path, model, policy="refuse")] == ["CAFÉ?"]
    with pytest.raises(DataError, match="cannot write"):
        read_corrections(path, model, policy="refuse")

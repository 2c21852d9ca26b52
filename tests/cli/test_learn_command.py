"""`overtone learn`: versions of an adapter from corrected transcripts, the way back, and mistakes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from overtone import cli
from overtone.adapters.storage import described_digest, read_description
from overtone.checkpoints.load import load_model, save_model
from overtone.files import lock
from overtone.learning.versions import LOCK
from support.small_models import add_trained, small_model

SENTENCES = ["press the pound key", "hold the line", "your call is important", "dial nine for help", "goodbye"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a base, an adapter that has both parts, and corrections."""
    model = small_model()
    save_model(model, tmp_path / "base.nemo")
    add_trained(model, "sound")
    model.adapters.save("sound", tmp_path / "sound")
    write_corrections(tmp_path / "one.jsonl", SENTENCES[:3])
    write_corrections(tmp_path / "two.jsonl", SENTENCES[3:])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_corrections(path: Path, texts: list[str], *, heard: bool = False) -> None:
    lines = []
    for number, text in enumerate(texts):
        entry = {"text": text}
        if heard:
            samples = 0.1 * np.random.default_rng(number).standard_normal(8000)
            soundfile.write(path.parent / f"{path.stem}{number}.wav", samples, 16_000)
            entry["audio_filepath"] = f"{path.stem}{number}.wav"
        lines.append(json.dumps(entry) + "\n")
    path.write_text("".join(lines), "utf-8")


def digest_of(folder: Path) -> str:
    return described_digest(folder, read_description(folder))


def learn(*words: str) -> int:
    return cli.main(["learn", *words, "--model", "base.nemo"])


def versions(folder: str, capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    capsys.readouterr()
    assert cli.main(["learn", folder, "--versions", "--json"]) == 0
    found: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return found


def test_an_adapter_learns_and_goes_back(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    as_it_came = digest_of(place / "sound")
    assert learn("sound", "one.jsonl") == 0
    first = digest_of(place / "sound")
    assert learn("sound", "two.jsonl") == 0
    second = digest_of(place / "sound")
    assert len({as_it_came, first, second}) == 3
    assert [(own["version"], own["current"]) for own in versions("sound", capsys)] == [
        (0, False),
        (1, False),
        (2, True),
    ]
    model = load_model("base.nemo")
    adapter = model.adapters.load("sound")
    assert adapter.words is not None
    assert adapter.words.ngram is not None
    ids = [model.tokenizer.encode(text) for text in (SENTENCES[3], "zebras quit jazz")]
    assert adapter.words.ngram.sentence_log_prob(ids[0]) > adapter.words.ngram.sentence_log_prob(ids[1]) + 10
    assert len(adapter.points) == 2
    assert cli.main(["learn", "sound", "--back"]) == 0
    assert digest_of(place / "sound") == first
    assert "2 corrections that were learnt since are set aside" in capsys.readouterr().err
    assert learn("sound", "two.jsonl") == 0
    assert digest_of(place / "sound") == second
    assert cli.main(["learn", "sound", "--back", "0"]) == 0
    assert digest_of(place / "sound") == as_it_came
    assert cli.main(["learn", "sound", "--back"]) == 2
    assert "no earlier version" in capsys.readouterr().err


def test_what_is_known_makes_no_version(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert learn("sound", "one.jsonl") == 0
    assert learn("sound", "one.jsonl") == 0
    assert "0 new, 3 in all" in capsys.readouterr().err
    assert len(versions("sound", capsys)) == 2


def test_a_new_adapter_is_made(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corrections(place / "heard.jsonl", SENTENCES, heard=True)
    assert learn("adapters/fresh", "heard.jsonl") == 0
    assert "5 with a recording" in capsys.readouterr().err
    assert load_model("base.nemo").adapters.load("adapters/fresh").words is not None
    assert len(list((place / "adapters" / "fresh.learning" / "audio").glob("*.flac"))) == 5


def test_an_adapter_that_something_else_made_is_an_origin(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert learn("sound", "one.jsonl") == 0
    assert cli.main(["words", "sound", "--text", "one.jsonl", "--unwritable", "keep", "--adapter", "sound",
                     "--model", "base.nemo", "--overwrite"]) == 0  # fmt: skip
    remade = digest_of(place / "sound")
    assert learn("sound", "two.jsonl") == 0
    found = versions("sound", capsys)
    assert [own["version"] for own in found] == [0, 1, 2, 3]
    assert found[2]["digest"] == remade
    assert found[3]["parent"] == 2
    assert "parent" not in found[2]


def test_two_learners_do_not_meet(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a refused one was given is learnt by the next."""
    monkeypatch.setattr("overtone.learning.versions.TRIES", 2)
    assert learn("sound", "one.jsonl") == 0
    before = digest_of(place / "sound")
    with (place / "sound.learning" / LOCK).open("a") as file:
        assert lock(file.fileno(), wait=False)
        assert learn("sound", "two.jsonl") == 2
        assert cli.main(["learn", "sound", "--back"]) == 2
    assert "is being changed already" in capsys.readouterr().err
    assert digest_of(place / "sound") == before
    assert learn("sound") == 0
    assert "0 new, 5 in all" in capsys.readouterr().err


def test_a_version_that_was_not_put_in_its_place_harms_nothing(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    before = digest_of(place / "sound")
    with monkeypatch.context() as patch:
        patch.setattr("overtone.learning.versions.Versions.serve", killed)
        assert learn("sound", "one.jsonl") == 130
    assert digest_of(place / "sound") == before
    write_corrections(place / "three.jsonl", ["one more"])
    assert learn("sound", "three.jsonl") == 0
    assert "4 in all" in capsys.readouterr().err
    assert [own["version"] for own in versions("sound", capsys)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sound"], "Nothing to learn from"),
        (["sound", "none.jsonl"], "no such manifest"),
        (["sound", "odd.jsonl"], "1 of 1 sentences hold what the model cannot write"),
        (["sound", "empty.jsonl"], "there is nothing in it"),
        (["sound", "blank.jsonl"], "3 of 3 lines of blank.jsonl"),
        (["sound", "one.jsonl", "--back"], "take no corrections"),
        (["sound", "--versions"], "has learnt nothing yet"),
        (["sound", "--back"], "no earlier version"),
        (["sound", "--back", "7"], "no earlier version"),
        (["sound", "--versions", "--back"], "give one of them"),
        (["sound", "--json"], "--json is for --versions"),
        ([".", "one.jsonl"], "'.' ends with no name"),
        (["..", "one.jsonl"], "'..' ends with no name"),
        (["base", "one.jsonl"], "cannot be an adapter's name"),
        (["sound", "one.jsonl", "--hours", "0"], "too small"),
    ],
)
def test_mistakes_change_nothing(
    words: list[str], message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_corrections(place / "odd.jsonl", ["50 %"])
    (place / "empty.jsonl").write_text("\n", "utf-8")
    (place / "blank.jsonl").write_text(
        '{"text": " "}\n{"odd": 1}\n{"text": "x", "audio_filepath": "no.wav"}\n', "utf-8"
    )
    before = digest_of(place / "sound")
    assert learn(*words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.startswith("overtone: error:")
    assert digest_of(place / "sound") == before
    assert not (place / "sound.learning" / "versions").exists()


def test_a_version_that_is_not_there(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert learn("sound", "one.jsonl") == 0
    assert cli.main(["learn", "sound", "--back", "7"]) == 2
    assert "no version 7. There are 0, 1" in capsys.readouterr().err


def test_an_adapter_of_another_base_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(small_model(seed=3), place / "other.nemo")
    assert cli.main(["learn", "sound", "one.jsonl", "--model", "other.nemo"]) == 2
    assert "base" in capsys.readouterr().err
    assert not os.path.lexists(place / "sound.learning")

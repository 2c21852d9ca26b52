"""`overtone words`: adapters from text, and its mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from overtone import cli
from overtone.adapters.storage import WORDS
from overtone.adapters.words import WordPart
from overtone.checkpoints.load import load_model, save_model
from overtone.inference.word_weights import WEIGHTS, PartsChoice
from overtone.training.spoken_text import as_letters
from overtone.wer import ErrorCounts
from support.small_models import add_trained, small_model, small_transducer_model
from support.train_samples import write_corpus


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a base, the folder of an adapter, and texts."""
    model = small_model()
    save_model(model, tmp_path / "base.nemo")
    add_trained(model, "sound")
    model.adapters.save("sound", tmp_path / "sound")
    (tmp_path / "notes.txt").write_text("press the pound key\nplease hold the line.\n", "utf-8")
    (tmp_path / "terms.txt").write_text("voicemail\npound key\t20\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_adapter_from_text(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["words", "medical", "--text", "notes.txt", "--phrases", "terms.txt", "--model", "base.nemo"]
    assert cli.main([*words, "--unwritable", "keep", "--weight", "0.5"]) == 0
    out, err = capsys.readouterr()
    assert "--adapter medical" in out
    assert "'.' × 1" in err
    assert "Text: 2 of 2 sentences, 39 tokens" in err
    model = load_model("base.nemo")
    adapter = model.adapters.load("medical")
    assert adapter.words is not None
    assert (adapter.words.weight, adapter.words.phrases, adapter.points) == (0.5, 2, [])
    assert cli.main([*words, "--unwritable", "keep"]) == 2
    assert "holds an adapter already" in capsys.readouterr().err
    assert cli.main([*words, "--unwritable", "drop", "--overwrite", "--order", "2"]) == 0
    assert model.adapters.load("medical", name="again").digest() != adapter.digest()


def test_words_are_put_beside_an_acoustic_part(place: Path) -> None:
    words = ["words", "both", "--phrases", "terms.txt", "--adapter", "sound", "--model", "base.nemo"]
    assert cli.main(words) == 0
    model = load_model("base.nemo")
    both, sound = model.adapters.load("both"), model.adapters.load("sound")
    assert both.words is not None
    assert both.tensors().keys() == sound.tensors().keys()
    assert not (place / "sound" / WORDS).exists()
    assert cli.main([*words[:-3], "null", *words[-2:], "--output", "more"]) == 2


def test_an_ngram_goes_out_and_comes_in(place: Path) -> None:
    base = ["--model", "base.nemo"]
    words = ["words", "one", "--text", "notes.txt", "--unwritable", "drop", "--export", "one.arpa", *base]
    assert cli.main(words) == 0
    assert cli.main(["words", "two", "--ngram", "one.arpa", "--arpa-tokens", "offset", *base]) == 0
    model = load_model("base.nemo")
    one, two = (model.adapters.load(name).words for name in ("one", "two"))
    assert one is not None
    assert two is not None
    ids = model.tokenizer.encode("press the pound key")
    assert one.ngram is not None
    assert two.ngram is not None
    assert two.ngram.sentence_log_prob(ids) == pytest.approx(one.ngram.sentence_log_prob(ids), abs=1e-3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["medical"], "Nothing to expect"),
        (["medical", "--text", "notes.txt"], "1 of 2 sentences hold what the model cannot write"),
        (["medical", "--text", "none.txt"], "cannot be read"),
        (["medical", "--text", "notes.txt", "--ngram", "a.arpa"], "two n-grams"),
        (["medical", "--text", "notes.txt", "--order", "11"], "1 to 10"),
        (["medical", "--phrases", "terms.txt", "--weight", "-1"], "too small"),
        (["medical", "--phrases", "terms.txt", "--boost", "200"], "from -100 to 100"),
        (["medical", "--phrases", "terms.txt", "--export", "a.arpa"], "phrases alone are none"),
        (["base", "--phrases", "terms.txt"], "cannot be an adapter's name"),
        (["medical", "--ngram", "notes.txt"], "begins with"),
    ],
)
def test_mistakes_write_nothing(
    words: list[str], message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["words", *words, "--model", "base.nemo"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.startswith("overtone: error:")
    assert not (place / "medical").exists()


def test_text_is_mixed_with_the_general_prior(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["words", "medical", "--text", "notes.txt", "--unwritable", "keep", "--overwrite"]
    assert cli.main(words) == 0
    assert "general prior " in capsys.readouterr().err
    model = load_model("fundamental")
    mixed = model.adapters.load("medical").words
    assert mixed is not None
    assert mixed.prior is not None
    assert (mixed.weight, mixed.token_bonus) == (mixed.prior.weight, mixed.prior.token_bonus)
    assert 0.8 < mixed.prior_share < 1
    assert cli.main([*words, "--prior", "0.25", "--weight", "0.3"]) == 0
    given = model.adapters.load("medical", name="given").words
    assert given is not None
    assert (given.prior_share, given.weight) == (0.25, 0.3)
    assert cli.main([*words, "--prior", "0"]) == 0
    alone = model.adapters.load("medical", name="alone").words
    assert alone is not None
    assert (alone.prior, alone.weight, alone.token_bonus) == (None, 0.4, 1.0)


def test_the_general_prior_alone_becomes_an_adapter(place: Path) -> None:
    assert cli.main(["words", "english", "--prior", "only", "--phrases", "terms.txt"]) == 0
    words = load_model("fundamental").adapters.load("english").words
    assert words is not None
    assert words.phrases == 2
    assert words.ngram is not None
    assert len(words.ngram) > 200_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prior", "only", "--text", "notes.txt"], "--prior only is the general prior alone"),
        (["--prior", "only", "--model", "base.nemo"], "has no general prior"),
        (["--prior", "0.3", "--text", "notes.txt", "--model", "base.nemo"], "has no general prior"),
        (["--prior", "1", "--text", "notes.txt"], "1 is too large"),
        (["--prior", "some", "--text", "notes.txt"], "'some' is no number"),
    ],
)
def test_priors_that_cannot_be_are_refused(
    options: list[str], message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["words", "medical", *options]) == 2
    assert message in capsys.readouterr().err
    assert not (place / "medical").exists()


PROMPTS = Path(__file__).parents[2] / "overtone" / "prompts"


def write_prompts(folder: Path) -> None:
    """A manifest of six short prompts, and what they say as text."""
    lines = [json.loads(line) for line in (PROMPTS / "train.jsonl").read_text("utf-8").splitlines()]
    chosen = [line for line in lines if 1 < line["duration"] < 3][:6]
    own = [{**line, "audio_filepath": str(PROMPTS / line["audio_filepath"])} for line in chosen]
    (folder / "valid.json").write_text("".join(f"{json.dumps(line)}\n" for line in own), "utf-8")
    (folder / "said.txt").write_text("".join(f"{line['text']}\n" for line in own), "utf-8")


def test_weights_are_chosen_on_recordings(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_prompts(place)
    assert cli.main(["words", "medical", "--text", "said.txt", "--valid", "valid.json"]) == 0
    assert "Chosen on 6 recordings: weight" in capsys.readouterr().err
    found = load_model("fundamental").adapters.load("medical").words
    assert found is not None
    assert found.weight in WEIGHTS


def test_what_gains_nothing_on_recordings_is_not_written(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_prompts(place)
    (place / "other.txt").write_text("zzz qqq xxx\n", "utf-8")
    words = ["words", "medical", "--text", "other.txt", "--valid", "valid.json", "--prior", "0", "--order", "1"]
    assert cli.main([*words, "--model", "base.nemo"]) == 2
    assert "no adapter is written" in capsys.readouterr().err
    assert not (place / "medical").exists()


def test_the_prediction_network_learns_from_text_too(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(small_transducer_model(), place / "transducer.nemo")
    (place / "long.txt").write_text("press the pound key\nhold the line please\n" * 10, "utf-8")
    words = ["words", "medical", "--text", "long.txt", "--prediction"]
    assert cli.main([*words, "--model", "transducer.nemo"]) == 0
    assert "Prediction network: perplexity of a token of 3 held-out sentences" in capsys.readouterr().err
    adapter = load_model("transducer.nemo").adapters.load("medical")
    assert adapter.points == ["decoder.output"]
    assert adapter.words is not None
    assert cli.main([*words, "--overwrite", "--model", "base.nemo"]) == 2
    assert "no prediction network" in capsys.readouterr().err
    assert cli.main(["words", "more", "--phrases", "terms.txt", "--prediction", "--model", "transducer.nemo"]) == 2
    assert cli.main([*words, "--adapter", "sound", "--model", "base.nemo"]) == 2


# Spoken text


def put_voice(folder: Path, monkeypatch: pytest.MonkeyPatch, *, fails: bool = False) -> Path:
    """Put a program on PATH that writes a second of noise where espeak-ng would speak, and what it was given."""
    folder.mkdir()
    program = folder / "espeak-ng"
    program.write_text(
        f"""#!{sys.executable}
import sys, wave, random
if {fails}:
    sys.exit("Error: The specified espeak-ng voice does not exist.")
options = dict(zip(sys.argv[1:-1:2], sys.argv[2::2]))
random.seed(0)
with wave.open(options["-w"], "wb") as file:
    file.setparams((1, 2, 22050, 0, "NONE", ""))
    file.writeframes(random.randbytes(2 * 44100))
with open({str(folder / "said.txt")!r}, "a") as said:
    said.write(options["-v"] + ": " + sys.stdin.read() + "\\n")
""",
        "utf-8",
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder / "said.txt"


SPEAK = ["words", "medical", "--text", "notes.txt", "--model", "base.nemo", "--unwritable", "keep"]


@pytest.mark.skipif(os.name == "nt", reason="the program is a script")
def test_text_is_spoken_and_trained_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("overtone.training.spoken_text.LEAST_STEPS", 2)
    said = put_voice(place / "bin", monkeypatch)
    assert cli.main([*SPEAK, "--speak", "en-gb"]) == 0
    assert said.read_text("utf-8").splitlines() == ["en-gb: press the pound key", "en-gb: please hold the line"]
    assert "Spoken: 2 of 2 sentences, 0.1 min; an acoustic part is trained on 2 of them" in capsys.readouterr().err
    adapter = load_model("base.nemo").adapters.load("medical")
    assert adapter.words is not None
    assert any(bool(tensor.any()) for name, tensor in adapter.tensors().items() if name.endswith("up.weight"))
    assert adapter.card["data"] == {"spoken": {"voice": "espeak-ng en-gb", "utterances": 2, "seconds": 4.0}}


@pytest.mark.skipif(os.name == "nt", reason="the program is a script")
def test_the_spoken_part_is_named_where_it_is_judged(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def choose_words(model: object, recordings: object, words: WordPart, *_: object, **__: object) -> PartsChoice:
        return PartsChoice(part=words, acoustic=False, base=ErrorCounts(hits=1), errors=ErrorCounts(hits=1))

    monkeypatch.setattr("overtone.training.spoken_text.LEAST_STEPS", 2)
    monkeypatch.setattr("overtone.inference.word_weights.choose_parts", choose_words)
    put_voice(place / "bin", monkeypatch)
    assert cli.main([*SPEAK, "--speak", "--valid", str(write_corpus(place, count=2, name="valid"))]) == 0
    assert ", spoken part left out." in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="the program is a script")
def test_a_voice_that_is_not_there(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put_voice(place / "bin", monkeypatch, fails=True)
    assert cli.main([*SPEAK, "--speak", "nobody"]) == 2
    assert "voice 'nobody' (Error: The specified" in capsys.readouterr().err
    assert not (place / "medical").exists()


@pytest.mark.skipif(os.name == "nt", reason="the program is a script")
def test_a_command_that_is_ended_leaves_no_recordings(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program ends the command that has it speak, and then waits to be ended itself."""
    (place / "bin").mkdir()
    program = place / "bin/espeak-ng"
    program.write_text(
        f"#!{sys.executable}\nimport os, signal, sys\nsys.stdin.read()\nos.kill(os.getppid(), signal.SIGTERM)\n"
        "signal.pause()\n",
        "utf-8",
    )
    program.chmod(0o755)
    (place / "tmp").mkdir()
    environment = {**os.environ, "PATH": f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    environment["TMPDIR"] = str(place / "tmp")
    command = [sys.executable, "-m", "overtone", *SPEAK, "--speak"]
    done = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, timeout=300)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert not list((place / "tmp").glob("overtone-spoken-*"))


def test_brackets_are_read_aloud_and_not_taken_for_phonemes() -> None:
    assert as_letters("[[h@l'oU]] x [a] [[[b") == "[ [h@l'oU] ] x [a] [ [ [b"


def test_a_name_that_was_taken_for_a_voice(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["words", "--speak", "medical", "--text", "notes.txt", "--model", "base.nemo"]) == 2
    assert "NAME is missing, the adapter's. --speak took 'medical' for a voice: write NAME first" in (
        capsys.readouterr().err
    )
    assert cli.main(["words", "--text", "notes.txt", "--model", "base.nemo"]) == 2
    assert "NAME is missing, the adapter's. Give it: overtone words NAME" in capsys.readouterr().err


def test_a_program_that_is_not_there(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(place))
    assert cli.main([*SPEAK, "--speak"]) == 2
    assert "needs the program espeak-ng, which is not on PATH. Install it" in capsys.readouterr().err
    assert cli.main(["words", "medical", "--phrases", "terms.txt", "--model", "base.nemo", "--speak"]) == 2
    assert "--speak trains an acoustic part on --text" in capsys.readouterr().err
    assert not (place / "medical").exists()

"""Training of adapters with a vocabulary of their own, over every head."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
import sentencepiece
import yaml

from overtone.adapters.kinds.lora import LoraAdapter
from overtone.adapters.words import WordPart
from overtone.checkpoints.huggingface.peft import save_peft
from overtone.checkpoints.load import load_model, save_model
from overtone.cli import main
from overtone.decoding.phrase_boost import Boost
from overtone.errors import AdapterError, CheckpointError, ConfigError, DataError
from overtone.evaluation.evaluate import evaluate
from overtone.evaluation.inspect import as_text, inspect
from overtone.evaluation.verify import verify
from overtone.inference.transcribe import transcribe
from overtone.lightning import AdapterModule
from overtone.tokenizers import CharTokenizer
from overtone.training.console import Reporter
from overtone.training.train import run_training, train
from support.own_vocabulary import LABELS, MODELS, add_own
from support.small_models import add_trained, small_model
from support.train_samples import TEXTS, settings_for, write_corpus

LETTERS = [" ", *string.ascii_lowercase]
OWN = "model.adapter.vocabulary"
NEW = f"{OWN}.labels=[{','.join(repr(letter) for letter in LETTERS)}]"


def write_pieces(folder: Path, size: int = 30) -> Path:
    """A sentencepiece model of the training texts."""
    (folder / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "texts.txt"), model_prefix=str(folder / "tokenizer"), vocab_size=size, model_type="bpe"
    )
    return folder / "tokenizer.model"


@pytest.mark.parametrize("head", MODELS)
def test_every_head_learns_new_tokens(head: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = MODELS[head]()
    before = model.fingerprint()
    settings = settings_for(tmp_path, NEW, "trainer.max_steps=4", "model.optim.lr=0.01")
    result = run_training(settings, model=model, reporter=Reporter())
    said = capsys.readouterr().out
    assert "Vocabulary of its own: 27 tokens (char" in said
    assert "11 of them begin with the base's values" in said
    assert model.fingerprint() == before
    assert result.card["vocabulary"]["digest"] == CharTokenizer(LETTERS).digest()
    written = yaml.safe_load((result.best / "adapter.yaml").read_text())
    assert written["vocabulary"]["size"] == 27
    assert written["card"]["loss_after"] > 0
    evaluation = evaluate(model, tmp_path / "valid.json", adapters=[None, "mine"])
    assert evaluation.results[1].wer == pytest.approx(result.wer_after)
    assert evaluation.results[1].utterances[1].reference == TEXTS[1]  # the base has no w
    assert transcribe(MODELS[head](), tmp_path / "valid0.wav", adapter=result.best)


def test_errors_of_the_base_are_shared_by_trainings_of_the_same_tokens(tmp_path: Path) -> None:
    """The references are what the tokens can write: other tokens have other errors."""
    few = f"{OWN}.labels=[{','.join(repr(letter) for letter in LETTERS[:-4])}]"
    shared = f"model.base_errors={tmp_path / 'base'}"
    counts = []
    for number, options in enumerate(((NEW, shared), (few, shared), (few,), (NEW, shared))):
        run = (f"exp_manager.explicit_log_dir={tmp_path / str(number)}", "model.vocabulary_check=keep")
        settings = settings_for(tmp_path, *options, *run, "trainer.max_steps=1")
        counts.append(run_training(settings, model=small_model(), reporter=Reporter(quiet=True)).wer_before)
    assert counts[1] == counts[2]
    assert counts[0] == counts[3]
    assert len(list((tmp_path / "base").glob("*.json"))) == 2


def test_a_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    pieces = write_pieces(tmp_path)
    own = f"{OWN}.tokenizer={pieces}"
    whole = run_training(settings_for(tmp_path, own), model=small_model(), reporter=Reporter(quiet=True))
    run = f"exp_manager.explicit_log_dir={tmp_path / 'again'}"
    resume = ("exp_manager.resume_if_exists=true", "exp_manager.resume_ignore_no_checkpoint=true")
    for steps in (3, 6):
        again = run_training(
            settings_for(tmp_path, own, run, *resume, f"trainer.max_steps={steps}", "model.optim.sched.max_steps=6"),
            model=small_model(),
            reporter=Reporter(quiet=True),
        )
    digests = [
        yaml.safe_load((result.last / "adapter.yaml").read_text())["parameters_digest"] for result in (whole, again)
    ]
    assert digests[0] == digests[1]
    with pytest.raises(CheckpointError, match="vocabulary was sha256"):
        run_training(
            settings_for(tmp_path, NEW, run, *resume, "trainer.max_steps=7"),
            model=small_model(),
            reporter=Reporter(quiet=True),
        )


def test_an_adapter_goes_on_with_the_vocabulary_that_it_has(tmp_path: Path) -> None:
    model = small_model()
    corpus = write_corpus(tmp_path)
    options = {"train_manifest": corpus, "max_steps": 2, "batch_size": 4, "quiet": True}
    first = train(model, adapter_name="first", vocabulary=LETTERS, output_dir=tmp_path / "a", **options)  # type: ignore[arg-type]
    train(model, adapter_name="second", start_from=first.best, output_dir=tmp_path / "b", **options)  # type: ignore[arg-type]
    second = model.adapters["second"].vocabulary
    assert second is not None
    assert second.tokenizer.vocabulary == LETTERS
    folder = tmp_path / "pieces"
    folder.mkdir()
    write_pieces(folder)
    train(
        model,
        adapter_name="third",
        start_from=first.best,
        vocabulary=folder,
        output_dir=tmp_path / "c",
        **options,  # type: ignore[arg-type]
    )
    third = model.adapters["third"]
    assert third.vocabulary is not None
    assert third.vocabulary.tokenizer.size == 30
    assert third.card["start_from"]["name"] == "first"


def test_it_is_shown_and_proven_like_any_other(tmp_path: Path) -> None:
    model = small_model()
    run_training(settings_for(tmp_path, NEW), model=model, reporter=Reporter(quiet=True))
    add_trained(model, "plain")
    proof = verify(model, sorted(tmp_path.glob("valid*.wav")))
    assert proof.passed
    own = next(each for each in proof.adapters if each.adapter == "mine")
    assert 0.0 <= own.symbols_changed <= 1.0
    assert "vocabulary" in as_text(inspect(tmp_path / "run/checkpoints/mine-best"))
    assert "its own, 27 symbols (char)" in as_text(inspect(model))


@pytest.mark.parametrize("head", MODELS)
def test_every_head_is_proven(head: str, tmp_path: Path) -> None:
    model = MODELS[head]()
    add_own(model, "own", LETTERS)
    add_own(model, "other", LABELS, modules="encoder+decoder", seed=2)
    write_corpus(tmp_path)
    proof = verify(model, sorted(tmp_path.glob("train*.wav")))
    assert proof.passed, [check for check in proof.all_checks if not check.passed]
    assert {each.adapter for each in proof.adapters} == {"own", "other"}
    assert all(0.0 < each.symbols_changed <= 1.0 for each in proof.adapters)


def test_words_are_counted_in_the_new_tokens(tmp_path: Path) -> None:
    model = small_model()
    settings = settings_for(tmp_path, NEW, "model.adapter.words=auto", validation=False)
    run_training(settings, model=model, reporter=Reporter(quiet=True))
    adapter = model.adapters["mine"]
    assert adapter.words is not None
    assert adapter.vocabulary is not None
    assert adapter.words.tokenizer_digest == adapter.vocabulary.digest()
    again = model.adapters.load(tmp_path / "run/checkpoints/mine-best", name="again")
    assert again.digest() == adapter.digest()
    assert transcribe(model, tmp_path / "train0.wav", adapter="again")


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ((f"{OWN}.labels=[a,b]",), DataError, "12 of 12 transcripts hold what the model cannot write"),
        ((f"{OWN}.labels=[a,a]",), ConfigError, "double labels"),
        ((f"{OWN}.tokenizer=nowhere.model",), ConfigError, "nowhere.model cannot be read"),
        ((f"{OWN}.tokenizer=damaged.model",), ConfigError, "damaged.model: The tokenizer"),
        ((f"{OWN}.tokenizer=.",), ConfigError, "holds none of them"),
    ],
)
def test_a_vocabulary_that_cannot_be_is_refused(
    overrides: tuple[str, ...],
    error: type[Exception],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "damaged.model").write_bytes(b"no model")
    model = small_model()
    with pytest.raises(error, match=message):
        run_training(settings_for(tmp_path, *overrides), model=model, reporter=Reporter(quiet=True))
    assert not model.adapters.names
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((f"{OWN}.reuse=true",), "has neither of tokenizer and labels"),
        ((f"{OWN}.labels=[a]", f"{OWN}.tokenizer=x.model"), "has both of tokenizer and labels"),
        ((f"{OWN}.labels=[a]", "model.train=everything"), "is an adapter's"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    overrides: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    write_corpus(tmp_path)
    with pytest.raises(ConfigError, match=message):
        settings_for(tmp_path, *overrides)


def test_the_adapted_model_for_nemo_has_the_new_vocabulary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = small_model()
    add_trained(model, "plain")
    nemo = ("model.adapter.adapter_state_dict_name=adapters.pt", "exp_manager.checkpoint_callback_params.save_top_k=1")
    result = run_training(settings_for(tmp_path, NEW, *nemo), model=model, reporter=Reporter())
    assert result.adapters_file is None
    assert "No adapters.pt: Adapter 'mine' has a vocabulary of its own" in capsys.readouterr().out
    assert result.nemo is not None
    whole = load_model(result.nemo)
    assert whole.tokenizer.vocabulary == LETTERS
    assert whole.adapters.file_choice == ("mine",)
    assert whole.adapters.names == ["plain", "mine"]
    for choice, own in (("mine", "@file"), ("plain+mine", "plain+mine")):
        expected = transcribe(model, tmp_path / "valid0.wav", adapter=choice)[0].text
        assert transcribe(whole, tmp_path / "valid0.wav", adapter=own)[0].text == expected


def test_words_are_made_for_the_tokens_of_an_adapter(tmp_path: Path) -> None:
    model = small_model()
    save_model(model, tmp_path / "base")
    add_own(model, "own", LETTERS)
    model.adapters.save("own", tmp_path / "own")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    words = ["words", "spoken", "--text", str(tmp_path / "texts.txt"), "--adapter", str(tmp_path / "own")]
    assert main([*words, "--model", str(tmp_path / "base"), "--output", str(tmp_path / "spoken")]) == 0
    made = model.adapters.load(tmp_path / "spoken")
    assert made.words is not None
    assert made.words.tokenizer_digest == CharTokenizer(LETTERS).digest()
    other = WordPart(tokenizer_digest=model.tokenizer.digest(), boosts=(Boost(phrases=("a",), boost=1.0),))
    made.words = other
    with pytest.raises(AdapterError, match="word part is over other tokens"):
        model.adapters.save("spoken", tmp_path / "wrong")


def test_a_trainer_of_ones_own_reads_the_tokens_of_the_adapter(tmp_path: Path) -> None:
    model = small_model()
    add_own(model, "own", LETTERS)
    corpus = write_corpus(tmp_path)
    module = AdapterModule(model, "own", train=corpus, compute_dtype="float32")
    ids = module.speech["train_ds"][0].dataset.tokens[0]
    assert CharTokenizer(LETTERS).decode(ids) == TEXTS[0]


def test_what_writes_the_bases_tokens_refuses_such_an_adapter(tmp_path: Path) -> None:
    model = small_model()
    made = model.adapters.add("lora", LoraAdapter(rank=2), tokenizer=CharTokenizer(LETTERS))
    with pytest.raises(CheckpointError, match="vocabulary of its own"):
        save_peft(made, tmp_path / "peft")


@pytest.mark.parametrize("head", ["ctc", "rnnt"])
def test_processes_that_share_the_rows_learn_the_same(head: str, tmp_path: Path) -> None:
    losses = []
    for processes in (1, 2):
        run = f"exp_manager.explicit_log_dir={tmp_path / str(processes)}"
        settings = settings_for(tmp_path, NEW, run, f"compute_processes={processes}", "model.base_dropout=false")
        result = run_training(settings, model=MODELS[head](), reporter=Reporter(quiet=True))
        losses.append(yaml.safe_load((result.last / "adapter.yaml").read_text())["card"]["loss_after"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)

"""The refit: a second training on training and validation data, with what validation has chosen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from overtone.adapters.words import WordPart
from overtone.checkpoints.load import save_model
from overtone.errors import ConfigError, DataError
from overtone.inference.word_weights import Heard, WordsChoice
from overtone.models.asr_model import AsrModel
from overtone.training import validation
from overtone.training.console import Reporter
from overtone.training.data import read_training_set
from overtone.training.model import make_word_part
from overtone.training.plan import plan_training
from overtone.training.run import TrainingResult
from overtone.training.train import run_plan, run_training
from overtone.training.weights import WeightsStore
from overtone.wer import ErrorCounts
from support.small_models import small_model
from support.train_samples import kill_at_step, let_batches_take_a_second, same_adapters, settings_for, write_corpus

QUIET = Reporter(quiet=True)
OPTIONS = (
    "trainer.max_steps=6",
    "trainer.val_check_interval=3",
    "exp_manager.checkpoint_callback_params.every_n_train_steps=1",
    "exp_manager.resume_if_exists=true",
    "exp_manager.resume_ignore_no_checkpoint=true",
)


def train(folder: Path, *overrides: str) -> TrainingResult:
    return run_training(settings_for(folder, *OPTIONS, *overrides), model=small_model(), reporter=QUIET)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainingResult]:
    """A training with a refit that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(folder, "model.refit=true", "model.adapter.words=auto")


def test_the_second_training_is_one_on_both_sets_for_the_best_steps(
    whole: tuple[Path, TrainingResult], tmp_path: Path
) -> None:
    """The same adapter comes from a plain training on the two manifests with that many steps and no validation."""
    folder, result = whole
    files = ",".join(str(folder / name) for name in ("train.json", "valid.json"))
    settings = settings_for(
        tmp_path, f"model.train_ds.manifest_filepath='{files}'", f"trainer.max_steps={result.best_step}",
        validation=False,
    )  # fmt: skip
    plain = run_training(settings, model=small_model(), reporter=QUIET)
    assert same_adapters(result.best, plain.best)
    log = (folder / "run/refit/log.txt").read_text()
    assert "nothing validates this training" in log
    assert "nothing chose" not in log
    assert not same_adapters(result.best, folder / "run/checkpoints/mine-best")
    assert result.best == folder / "run/refit/checkpoints/mine-best"


def test_the_first_training_is_as_without_a_refit(whole: tuple[Path, TrainingResult], tmp_path: Path) -> None:
    folder, result = whole
    plain = train(tmp_path)
    for name in ("mine-best", "mine-last"):
        assert same_adapters(folder / "run/checkpoints" / name, tmp_path / "run/checkpoints" / name)
    assert (plain.best_step, plain.wer_before, plain.wer_after) == (
        result.best_step,
        result.wer_before,
        result.wer_after,
    )


def test_the_card_says_what_errors_are_of(whole: tuple[Path, TrainingResult]) -> None:
    folder, result = whole
    card = yaml.safe_load((result.best / "adapter.yaml").read_text())["card"]
    before = yaml.safe_load((folder / "run/checkpoints/mine-best/adapter.yaml").read_text())["card"]
    assert card["wer_after"] is None
    assert card["data"]["utterances"] == 15
    assert card["refit"]["wer_after"] == before["wer_after"]
    assert card["refit"]["validation"] == before["validation"][0]
    written = json.loads((folder / "run/result.json").read_text())
    assert written["best"] == str(result.best)
    assert written["refit"] == card["refit"], "the rates beside it are of another adapter"


@pytest.mark.parametrize("chosen", [{"weight": 0.3, "token_bonus": 1.0}, None])
def test_words_are_counted_on_both_sets_with_the_chosen_weights(
    tmp_path: Path, chosen: dict[str, float] | None
) -> None:
    write_corpus(tmp_path)
    write_corpus(tmp_path, count=3, name="valid")
    text = (tmp_path / "valid.json").read_text().replace("two words", "nobody else says this")
    (tmp_path / "valid.json").write_text(text)
    model, settings = small_model(), settings_for(tmp_path, "model.adapter.words=auto")
    plan = plan_training(settings, model=model)
    counted = make_word_part(plan, model, read_training_set(model, plan, QUIET), QUIET)
    assert counted is not None
    assert counted.ngram is not None
    facts = {} if chosen is None else {"words": chosen}
    words = run_plan(replace(plan, refit_of=facts), QUIET).card.get("words")
    if chosen is None:
        assert words is None
    else:
        assert words["ngrams"] > len(counted.ngram)
        assert {key: words[key] for key in chosen} == chosen


def test_words_alone_are_refitted_with_the_chosen_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(model: AsrModel, heard: Sequence[Heard], part: WordPart, **_: object) -> WordsChoice:
        return WordsChoice(part=part.weighted(0.3, 1.0), without=ErrorCounts(), best=ErrorCounts(), tried=())

    monkeypatch.setattr(validation, "choose_weights", choose)
    write_corpus(tmp_path)
    write_corpus(tmp_path, count=3, name="valid")
    text = (tmp_path / "valid.json").read_text().replace("two words", "nobody else says this")
    (tmp_path / "valid.json").write_text(text)
    found = {}
    for refit in ("false", "words"):
        folder = f"exp_manager.explicit_log_dir={tmp_path / refit}"
        settings = settings_for(tmp_path, "model.adapter.words=auto", f"model.refit={refit}", folder)
        found[refit] = run_training(settings, model=small_model(), reporter=QUIET)
    assert same_adapters(found["false"].best, found["words"].best)
    before, after = (found[refit].card["words"] for refit in ("false", "words"))
    assert after["ngrams"] > before["ngrams"]
    assert (after["weight"], after["token_bonus"]) == (0.3, 1.0)
    assert after["counted_on"] == "training and validation data"
    assert after["wer"] == before["wer"]


def test_killed_in_the_second_training_and_resumed(whole: tuple[Path, TrainingResult], tmp_path: Path) -> None:
    """A complete training is refitted; killed there, it goes on as if nothing had happened."""
    _, result = whole
    train(tmp_path, "model.adapter.words=auto")
    save_model(small_model(), tmp_path / "base")
    overrides = [*OPTIONS, "model.refit=true", "model.adapter.words=auto"]
    kill_at_step(tmp_path, overrides, at_step=2)
    assert (tmp_path / "run/refit/checkpoints").is_dir()
    assert not (tmp_path / "run/result.json").exists()
    again = train(tmp_path, "model.refit=true", "model.adapter.words=auto")
    assert same_adapters(again.best, result.best)
    assert again.card["refit"]["wer_after"] == result.card["refit"]["wer_after"]


def test_a_new_training_leaves_nothing_of_an_older_refit(tmp_path: Path) -> None:
    stale = tmp_path / "run/refit/checkpoints"
    stale.mkdir(parents=True)
    (stale / "ASR-Adapter-last.ckpt").write_text("of another training")
    assert train(tmp_path, "model.refit=true").best.is_dir()


@pytest.mark.parametrize("ended_by", ["time", "search"])
def test_a_training_that_was_cut_off_is_not_refitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended_by: str
) -> None:
    """Also where early stopping might have ended it, and did not."""
    let_batches_take_a_second(monkeypatch)
    early = ("model.refit=true", "exp_manager.create_early_stopping_callback=true")
    limit = ["exp_manager.max_time_per_run=00:00:00:03"] if ended_by == "time" else []
    settings = settings_for(tmp_path, *OPTIONS, *early, *limit)
    prune = (lambda validation: True) if ended_by == "search" else None
    result = run_training(settings, model=small_model(), reporter=QUIET, prune=prune)
    assert result.was_cut_off
    assert result.steps == 3
    assert result.best == tmp_path / "run/checkpoints/mine-best"
    assert not (tmp_path / "run/refit").exists()
    assert "No refit: the training was cut off" in (tmp_path / "run/log.txt").read_text()
    assert "refit" not in json.loads((tmp_path / "run/result.json").read_text())


def test_early_stopping_is_followed_by_a_refit(tmp_path: Path) -> None:
    stopping = "exp_manager.early_stopping_callback_params"
    result = train(
        tmp_path,
        "model.refit=true",
        "trainer.max_steps=50",
        "trainer.val_check_interval=1",
        "exp_manager.create_early_stopping_callback=true",
        f"{stopping}.monitor=val_wer",
        f"{stopping}.min_delta=1.0",
        f"{stopping}.patience=2",
        "exp_manager.max_time_per_run=01:00:00:00",
    )
    assert not result.was_cut_off
    assert result.best == tmp_path / "run/refit/checkpoints/mine-best"
    said = (tmp_path / "run/log.txt").read_text()
    assert (
        "The refit has no time limit of its own: exp_manager.max_time_per_run was that of the first training." in said
    )


def test_a_resumed_training_with_another_best_step_is_refitted_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given more steps, the first training finds a better one: the refit is as if there had been none before."""

    def rank(self: WeightsStore, metrics: object) -> tuple[float, float]:
        """Each validated step is better than the best so far."""
        return (0.0 if self.best is not None and metrics is self.best.metrics else -1.0), 0.0

    monkeypatch.setattr(WeightsStore, "rank", rank)
    more = ("model.refit=true", "trainer.max_steps=9")
    assert train(tmp_path / "parts", "model.refit=true").best_step == 6
    again, whole = train(tmp_path / "parts", *more), train(tmp_path / "whole", *more)
    assert again.best_step == whole.best_step == 9
    assert same_adapters(again.best, whole.best)


def test_what_cannot_be_learnt_is_found_before_the_work_begins(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    write_corpus(tmp_path, count=3, name="valid")
    (tmp_path / "valid.json").write_text((tmp_path / "valid.json").read_text().replace("one", "ünï"))
    with pytest.raises(DataError, match="cannot write"):
        train(tmp_path, "model.refit=true")
    assert not (tmp_path / "run").exists()
    assert train(tmp_path, "model.refit=true", "model.vocabulary_check=drop").best.is_dir()


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["model.validation_ds.manifest_filepath=null"], "needs validation data"),
        (["trainer.limit_val_batches=0"], "needs validation data"),
        (["model.train=everything"], "is for an adapter"),
        (["model.adapter.retention={manifest: general.json}"], "leave one out"),
        (["model.refit=words"], "words need model.adapter.words=auto"),
        (["model.train_ds.manifest_filepath=[[a.json,0.7],[b.json,0.3]]"], "model.train_ds has others"),
    ],
)
def test_settings_that_leave_no_refit(tmp_path: Path, overrides: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=f"model.refit: .*{told}"):
        train(tmp_path, "model.refit=true", *overrides)

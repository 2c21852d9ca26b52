"""General speech: the base and the best adapter are measured on it, and the card tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from overtone import cli
from overtone.checkpoints.load import save_model
from overtone.data.manifest import read_manifest
from overtone.errors import ConfigError, DataError
from overtone.evaluation.evaluate import evaluate
from overtone.evaluation.scores import score_runs
from overtone.training.console import Reporter
from overtone.training.train import run_training
from support.small_models import small_model
from support.train_samples import settings_for, write_corpus

QUIET = Reporter(quiet=True)


def test_the_card_tells_the_damage(tmp_path: Path) -> None:
    """The numbers are those of `evaluate`, of the best adapter, and do not change what was trained."""
    general = write_corpus(tmp_path, count=4, name="general")
    model = small_model()
    settings = settings_for(tmp_path, f"model.general_manifest={general}", "model.optim.lr=0.05")
    result = run_training(settings, model=model, reporter=QUIET)
    (entry,) = result.card["general"]
    measured = evaluate(model, general, adapters=[None, "mine"], resamples=10)
    assert entry["wer_before"] == pytest.approx(measured.results[0].wer, abs=1e-6)
    assert entry["wer_after"] == pytest.approx(measured.results[1].wer, abs=1e-6)
    assert entry["words"] == sum(len((line.text or "").split()) for line in read_manifest(general))
    loaded = small_model().adapters.load(result.best)
    assert loaded.card["general"] == result.card["general"]
    assert loaded.digest() == model.adapters["mine"].digest()
    assert not model.training


def test_a_search_is_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(small_model(), tmp_path / "base")
    general = write_corpus(tmp_path, count=3, name="general")
    words = [
        f"model.nemo_model={tmp_path / 'base'}",
        "model.adapter.adapter_name=mine",
        "model.adapter.linear.dim=2,4",
        f"model.train_ds.manifest_filepath={write_corpus(tmp_path)}",
        f"model.validation_ds.manifest_filepath={write_corpus(tmp_path, count=3, name='valid')}",
        f"model.general_manifest={general}",
        "model.train_ds.num_workers=0",
        "model.validation_ds.num_workers=0",
        "trainer.max_steps=1",
        "trainer.devices=1",
        f"exp_manager.explicit_log_dir={tmp_path / 'runs'}",
    ]
    assert cli.main(["train", "-m", *words]) == 0
    assert capsys.readouterr().out.count("General WER") == 2
    runs = score_runs(tmp_path / "runs")
    assert sorted(run.chosen["model.adapter.linear.dim"] for run in runs) == ["2", "4"]
    assert len({run.general_before for run in runs}) == 1


def test_general_speech_that_cannot_be_measured(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing"):
        run_training(
            settings_for(tmp_path, f"model.general_manifest={tmp_path / 'nothing.json'}"),
            model=small_model(),
            reporter=QUIET,
        )
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="general_manifest"):
        settings_for(tmp_path, "model.general_manifest=a.json", "model.train=everything")

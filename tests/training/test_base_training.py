"""A training of every weight of a base: from nothing, over another vocabulary, and with what helps it to begin."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from overtone.checkpoints.load import load_model, save_model
from overtone.errors import ConfigError
from overtone.models.asr_model import AsrModel
from overtone.training.console import Reporter
from overtone.training.train import run_training
from support.nemo_samples import piece_tokenizer
from support.small_models import LABELS, small_model
from support.train_samples import environment, losses, script, settings_for

QUIET = Reporter(quiet=True)
FAMILY = "nemo.collections.asr.modules"
ENCODER = {
    "preprocessor": {"_target_": f"{FAMILY}.AudioToMelSpectrogramPreprocessor", "features": 80},
    "encoder": {
        "_target_": f"{FAMILY}.ConformerEncoder",
        "feat_in": 80,
        "n_layers": 2,
        "d_model": 16,
        "n_heads": 2,
        "conv_kernel_size": 5,
        "subsampling_factor": 4,
    },
}
"""Sections of a small fresh model, to which heads are added."""


@pytest.fixture
def model() -> AsrModel:
    return small_model()


def test_every_weight_of_a_fresh_model(tmp_path: Path) -> None:
    """A base of its own: configuration and labels in, a model folder and a `.nemo` out."""
    config = {
        **ENCODER,
        "decoder": {"_target_": f"{FAMILY}.ConvASRDecoder", "feat_in": 16, "num_classes": 0, "vocabulary": []},
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "labels.txt").write_text("\n".join(LABELS) + "\n")
    settings = settings_for(
        tmp_path,
        "name=base",
        "model.nemo_model=null",
        f"model.init={tmp_path / 'base.yaml'}",
        f"model.tokenizer={tmp_path / 'labels.txt'}",
        "model.train=everything",
        "trainer.precision=bf16-mixed",
        "model.base_dropout=false",
        "model.interctc={apply_at_layers: [0], loss_weights: [0.3]}",
    )
    result = run_training(settings, reporter=QUIET)
    assert result.adapter is None
    assert result.wer_before is None
    assert result.nemo is not None
    shown = [value for _, value in losses(tmp_path / "run")["train_loss"]]
    assert shown[-1] < shown[0]
    best, last = load_model(result.best), load_model(result.last)
    assert best.fingerprint() == load_model(result.nemo).fingerprint()
    assert best.tokenizer.vocabulary == LABELS
    norms = [tensor for name, tensor in last.base_state_dict().items() if name.endswith("running_mean")]
    assert norms
    assert all(tensor.abs().max() > 0 for tensor in norms)


@pytest.mark.parametrize(
    ("override", "message"),
    [("[5]", "5 is no inner layer of this encoder; allowed are 0 to 0"), ("[1]", "1 is no inner layer")],
)
def test_inner_layers_that_the_encoder_has_not(tmp_path: Path, override: str, message: str) -> None:
    settings = settings_for(
        tmp_path, "model.train=everything", f"model.interctc={{apply_at_layers: {override}, loss_weights: [0.3]}}"
    )
    with pytest.raises(ConfigError, match=message):
        run_training(settings, model=small_model(), reporter=QUIET)


def test_inner_losses_and_the_flat_start_act(tmp_path: Path) -> None:
    shown = {}
    for name, overrides in {
        "plain": [],
        "inner": ["model.interctc={apply_at_layers: [0], loss_weights: [0.5]}"],
        "flat": ["model.flat_start.steps=2"],
    }.items():
        settings = settings_for(tmp_path / name, "model.train=everything", *overrides, validation=False)
        run_training(settings, model=small_model(), reporter=QUIET)
        shown[name] = [value for _, value in losses(tmp_path / name / "run")["train_loss"]]
    assert shown["inner"][0] != shown["plain"][0]
    assert shown["flat"][0] > shown["plain"][0] * 0.5
    assert shown["flat"][0] != shown["plain"][0]


def test_another_vocabulary_keeps_the_encoder(tmp_path: Path, model: AsrModel) -> None:
    from overtone.training.model import change_vocabulary, read_tokenizer

    (tmp_path / "labels.txt").write_text("a\nb\n")
    changed = change_vocabulary(model, read_tokenizer(tmp_path / "labels.txt"), seed=0)
    assert changed.tokenizer.vocabulary == ["a", "b"]
    assert changed.decoder.projection.weight.shape[0] == 3
    own = changed.base_state_dict()
    same = [
        torch.equal(tensor, own[name]) for name, tensor in model.base_state_dict().items() if name.startswith("enc")
    ]
    assert all(same)
    with pytest.raises(ConfigError, match=r"model\.tokenizer: .*absent\.txt cannot be read"):
        read_tokenizer(tmp_path / "absent.txt")


def test_a_vocabulary_of_languages_is_a_folder_of_each(tmp_path: Path) -> None:
    from overtone.training.model import read_tokenizer

    special, pieces = piece_tokenizer(30), piece_tokenizer()
    for language, part in {"en": pieces, "spl_tokens": special, "de": special}.items():
        (tmp_path / language).mkdir()
        (tmp_path / language / "tokenizer.model").write_bytes(part.model_bytes)
    (tmp_path / ".git").mkdir()
    found = read_tokenizer(tmp_path)
    assert found.languages == ("de", "en")
    assert found.vocabulary == special.vocabulary + special.vocabulary + pieces.vocabulary
    (tmp_path / "fr").mkdir()
    with pytest.raises(ConfigError, match=r"model\.tokenizer: the folder .*fr holds none of them"):
        read_tokenizer(tmp_path)
    (tmp_path / "fr" / "vocab.txt").write_text("[UNK]\na\n")
    with pytest.raises(ConfigError, match=r"model\.tokenizer: .*fr holds no tokenizer\.model"):
        read_tokenizer(tmp_path)


def test_two_processors(tmp_path: Path) -> None:
    """Synchronised batch norms, which NeMo asks for, exist on GPUs only: the processors go on without."""
    save_model(small_model(), tmp_path / "base")
    settings_for(tmp_path)
    overrides = ["model.train=everything", "trainer.devices=2", "trainer.accelerator=cpu", "trainer.max_steps=2"]
    finished = subprocess.run(
        script(tmp_path, [*overrides, "trainer.sync_batchnorm=true"]),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert "for each of 2 processes" in finished.stdout
    (best,) = (tmp_path / "run/checkpoints").glob("*-best")
    assert load_model(best).fingerprint() != small_model().fingerprint()


def test_a_fresh_hybrid_learns(tmp_path: Path) -> None:
    """Both heads of it, with durations, from nothing."""
    config = {
        **ENCODER,
        "decoder": {"_target_": f"{FAMILY}.RNNTDecoder", "prednet": {"pred_hidden": 12, "pred_rnn_layers": 1}},
        "joint": {"_target_": f"{FAMILY}.RNNTJoint", "jointnet": {"joint_hidden": 12}, "num_extra_outputs": 3},
        "aux_ctc": {"ctc_loss_weight": 0.3, "decoder": {"_target_": f"{FAMILY}.ConvASRDecoder"}},
        "model_defaults": {"tdt_durations": [0, 1, 2]},
        "loss": {"loss_name": "tdt", "tdt_kwargs": {"durations": [0, 1, 2], "sigma": 0.02}},
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "labels.txt").write_text("\n".join(LABELS) + "\n")
    settings = settings_for(
        tmp_path,
        "name=base",
        "model.nemo_model=null",
        f"model.init={tmp_path / 'base.yaml'}",
        f"model.tokenizer={tmp_path / 'labels.txt'}",
        "model.train=everything",
        "model.base_dropout=false",
        "trainer.max_steps=20",
        "model.optim.lr=0.01",
    )
    result = run_training(settings, reporter=QUIET)
    shown = [value for _, value in losses(tmp_path / "run")["train_loss"]]
    assert shown[-1] < 0.8 * shown[0]
    last = load_model(result.last)
    assert list(last.heads) == ["rnnt", "ctc", "hybrid"]
    assert result.nemo is not None
    assert load_model(result.best).fingerprint() == load_model(result.nemo).fingerprint()

"""Plain fine-tuning of all or of parts of a base, with its own vocabulary or another."""

from __future__ import annotations

import shutil
import string
from pathlib import Path

import pytest
import torch
from torch import Tensor

from overtone.checkpoints.load import load_model, save_model
from overtone.errors import ConfigError
from overtone.inference.transcribe import transcribe
from overtone.models.asr_model import AsrModel
from overtone.models.trained_parts import parameters_of
from overtone.training.console import Reporter
from overtone.training.train import run_training
from support.own_vocabulary import MODELS
from support.small_models import add_trained, small_model
from support.train_samples import settings_for

QUIET = Reporter(quiet=True)


def values(model: AsrModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.base_state_dict().items()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in after.items() if not torch.equal(before[name], tensor)}


@pytest.mark.parametrize(
    ("parts", "begins"),
    [
        ("[decoder]", ("decoder.",)),
        ("[encoder.layers.1-]", ("encoder.layers.1.",)),
        ("[decoder,encoder.layers.0-0]", ("decoder.", "encoder.layers.0.")),
        ("[encoder]", ("encoder.",)),
    ],
)
def test_what_is_named_is_trained_and_nothing_else(
    parts: str, begins: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = small_model()
    before = values(model)
    settings = settings_for(tmp_path, f"model.train={parts}", "trainer.max_steps=2", "model.optim.lr=0.01")
    result = run_training(settings, model=model, reporter=Reporter())
    changed = moved(before, values(model))
    assert changed
    assert all(name.startswith(begins) for name in changed)
    for begin in begins:
        assert any(name.startswith(begin) for name in changed)
    norms = {name for name in before if "running_" in name}
    assert (changed & norms) == {name for name in norms if name.startswith(begins)}
    said = capsys.readouterr().out.splitlines()[0]
    assert said.startswith(f"Base 'small': {parts.strip('[]').replace(',', ', ')} ")
    assert said.endswith("everything else is frozen")
    assert result.adapter is None
    assert load_model(result.best).fingerprint() == model.fingerprint()


@pytest.mark.parametrize("head", MODELS)
def test_every_head_gets_another_vocabulary_in_a_whole_model(head: str, tmp_path: Path) -> None:
    model = MODELS[head]()
    save_model(model, tmp_path / "base.nemo")
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join([" ", *string.ascii_lowercase]) + "\n")
    own = [part for part in ("decoder", "joint", "ctc_decoder") if part in model.parts]
    settings = settings_for(
        tmp_path,
        f"model.nemo_model={tmp_path / 'base.nemo'}",
        f"model.train=[{','.join(own)}]",
        f"model.tokenizer={labels}",
        "trainer.max_steps=2",
    )
    content = (tmp_path / "base.nemo").read_bytes()
    result = run_training(settings, reporter=QUIET)
    assert (tmp_path / "base.nemo").read_bytes() == content
    assert result.nemo is not None
    whole = load_model(result.nemo)
    assert whole.tokenizer.vocabulary == [" ", *string.ascii_lowercase]
    before, after = model.base_state_dict(), whole.base_state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("encoder."))
    assert whole.config["train_ds"]["labels"] == whole.tokenizer.vocabulary
    assert transcribe(whole, tmp_path / "valid0.wav")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.train=[decodr]",), "no part 'decodr' .* Did you mean 'decoder'"),
        (("model.train=[encoder.layers.2-]",), "encoder.layers has 0 … 1"),
        (("model.train=[preprocessor]",), "no part 'preprocessor'"),
        (("model.train=[encoder]", "model.tokenizer=labels.txt"), "makes decoder anew"),
    ],
)
def test_parts_that_cannot_be_are_refused(
    overrides: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.txt").write_text("\n".join([" ", *string.ascii_lowercase]) + "\n")
    save_model(small_model(), tmp_path / "base.nemo")
    settings = settings_for(tmp_path, "model.nemo_model=base.nemo", *overrides)
    with pytest.raises(ConfigError, match=message):
        run_training(settings, reporter=QUIET)
    assert not (tmp_path / "run").exists()


def test_the_base_is_never_overwritten(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, "model.train=[decoder]", "trainer.max_steps=2")
    result = run_training(settings, model=small_model(), reporter=QUIET)
    base = tmp_path / "again/checkpoints" / result.best.name.replace("run", "again")
    shutil.copytree(result.best, base)
    again = settings_for(
        tmp_path,
        "model.train=[decoder]",
        f"model.nemo_model={base}",
        f"exp_manager.explicit_log_dir={tmp_path / 'again'}",
        "exp_manager.resume_if_exists=true",
        "exp_manager.resume_ignore_no_checkpoint=true",
    )
    with pytest.raises(ConfigError, match="would be overwritten"):
        run_training(again, reporter=QUIET)


@pytest.mark.parametrize("trained", ["everything", "[decoder]"])
def test_adapters_are_not_carried_over_to_another_base(trained: str, tmp_path: Path) -> None:
    model = small_model()
    add_trained(model, "old")
    before = values(model)
    with pytest.raises(ConfigError, match="adapters old were made for the base as it is"):
        run_training(settings_for(tmp_path, f"model.train={trained}"), model=model, reporter=QUIET)
    assert not moved(before, values(model))
    assert not (tmp_path / "run").exists()


def test_an_empty_list_is_no_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names no part"):
        settings_for(tmp_path, "model.train=[]")
    with pytest.raises(ConfigError, match=r"model\.train"):
        settings_for(tmp_path, "model.train=nothing")


def test_a_part_is_named_by_whole_words() -> None:
    model = small_model(layers=11)
    one = parameters_of(model, "encoder.layers.1")
    assert len(parameters_of(model, "encoder.layers.1-1")) == len(one)
    assert len(parameters_of(model, "encoder.layers.1-")) == 10 * len(one)

"""An adapter that is trained further: it begins with the values of another, of the model or on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from overtone.adapters.kinds.linear import LinearAdapter
from overtone.adapters.kinds.lora import LoraAdapter
from overtone.adapters.strategies import ResidualAdd
from overtone.adapters.words import WordPart
from overtone.checkpoints.huggingface.peft import save_peft
from overtone.checkpoints.nemo.adapters import save_adapters
from overtone.config import load_settings
from overtone.decoding.phrase_boost import Boost
from overtone.errors import AdapterError, ConfigError, OvertoneError
from overtone.models.asr_model import AsrModel
from overtone.training.console import Reporter
from overtone.training.model import add_adapter
from overtone.training.plan import plan_adapter
from overtone.training.train import run_training, train
from support.small_models import add_trained, small_model
from support.train_samples import kill_at_step, same_adapters, settings_for

QUIET = Reporter(quiet=True)


@pytest.fixture
def model() -> AsrModel:
    model = small_model()
    add_trained(model, "medical", LinearAdapter(dim=4))
    model.adapters["medical"].card = {"steps": 7}
    return model


def plan(start: object, *overrides: str) -> object:
    words = ["model.nemo_model=given", "model.adapter.adapter_name=mine", f"model.adapter.start_from={start}"]
    words.append("model.train_ds.manifest_filepath=train.json")
    return plan_adapter(load_settings([*words, *overrides]).model.adapter)


def begun(model: AsrModel, start: object, *overrides: str) -> dict[str, torch.Tensor]:
    """The parameters of the new adapter before the first step."""
    adapter = add_adapter(model, plan(start, *overrides), seed=0, base_dropout=True)  # type: ignore[arg-type]
    tensors = adapter.tensors()
    model.adapters.remove("mine")
    return tensors


def test_it_begins_with_the_values_of_any_form(model: AsrModel, tmp_path: Path) -> None:
    """A name in the model, a folder, a file of NeMo's; form and values are the other's, and the other stays."""
    own = {name: tensor.clone() for name, tensor in model.adapters["medical"].tensors().items()}
    model.adapters.save("medical", tmp_path / "folder")
    save_adapters(model, tmp_path / "adapters.pt")
    for start in ("medical", tmp_path / "folder", tmp_path / "adapters.pt"):
        found = begun(model, start)
        assert found.keys() == own.keys()
        assert all(torch.equal(tensor, own[name]) for name, tensor in found.items())
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.adapters["medical"].tensors().items())


def test_other_kinds_and_places(tmp_path: Path) -> None:
    model = small_model(layers=4)
    add_trained(model, "low", LoraAdapter(rank=2, alpha=4.0))
    save_peft(model.adapters["low"], tmp_path / "peft")
    assert begun(model, tmp_path / "peft").keys() == model.adapters["low"].tensors().keys()
    model.adapters.add("upper", LinearAdapter(dim=3), layers="last:2", strategy=ResidualAdd(stochastic_depth=0.5))
    adapter = add_adapter(model, plan("upper"), seed=0, base_dropout=True)  # type: ignore[arg-type]
    assert (adapter.layers, adapter.strategy) == ("last:2", ResidualAdd(stochastic_depth=0.5))


def test_words_come_along(model: AsrModel) -> None:
    """An adapter's words are kept; words alone cannot be trained."""
    words = WordPart(tokenizer_digest=model.tokenizer.digest(), boosts=(Boost(phrases=("overtone",), boost=2.0),))
    model.adapters["medical"].words = words
    adapter = add_adapter(model, plan("medical"), seed=0, base_dropout=True)  # type: ignore[arg-type]
    assert adapter.words == words
    model.adapters.add_words("names", words)
    with pytest.raises(ConfigError, match="has words alone"):
        begun(model, "names")


def test_settings_may_change_what_only_training_sees(model: AsrModel) -> None:
    plan_with_dropout = plan("medical", "model.adapter.linear.dim=4", "model.adapter.linear.dropout=0.5")
    adapter = add_adapter(model, plan_with_dropout, seed=0, base_dropout=True)  # type: ignore[arg-type]
    assert adapter.kind == LinearAdapter(dim=4, dropout=0.5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.adapter.linear.dim=8"], "dim is 4 there, 8 in the settings"),
        (["model.adapter.adapter_type=lora"], "kind is linear there, lora in the settings"),
        (["model.adapter.linear.dim=4", "model.adapter.layers=last:1"], "places is encoder, layers all there"),
    ],
)
def test_another_form_is_refused(model: AsrModel, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        begun(model, "medical", *overrides)


def test_starts_that_cannot_be(model: AsrModel, tmp_path: Path) -> None:
    other = small_model(seed=5)
    add_trained(other, "foreign")
    other.adapters.save("foreign", tmp_path / "foreign")
    add_trained(model, "second")
    save_adapters(model, tmp_path / "two.pt")
    for start, message in (
        (tmp_path / "foreign", "made for another base"),
        (tmp_path / "two.pt", "several adapters enabled, medical, second"),
        ("medcal", "Did you mean 'medical'"),
        (tmp_path, "is not an adapter"),
    ):
        with pytest.raises(AdapterError, match=message):
            begun(model, start)


def test_a_training_goes_on_from_another(tmp_path: Path) -> None:
    """The first loss is the other's; the card tells it; the base stays the base of `wer_before`."""
    first = train(
        small_model(), adapter_name="mine", kind=LinearAdapter(dim=4), output_dir=tmp_path / "first",
        train_manifest=settings_for(tmp_path).model.train_ds.manifest_filepath or "", max_steps=2, quiet=True,
        learning_rate=0.1,
    )  # fmt: skip
    settings = settings_for(
        tmp_path, f"model.adapter.start_from={first.last}", "model.optim.lr=0.0", "trainer.max_steps=1"
    )
    result = run_training(settings, model=small_model(), reporter=QUIET)
    assert same_adapters(first.last, result.last), "with a learning rate of zero nothing moves"
    assert result.card["start_from"]["name"] == "mine"
    assert result.card["start_from"]["card"]["steps"] == 2
    loaded = small_model().adapters.load(result.last)
    assert loaded.card["start_from"] == result.card["start_from"]
    assert loaded.digest() == result.card["start_from"]["digest"]


def test_a_failed_training_leaves_the_start_as_it_was(model: AsrModel, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, "model.adapter.start_from=medical", "model.adapter.linear.dim=9")
    with pytest.raises(OvertoneError):
        run_training(settings, model=model, reporter=QUIET)
    assert model.adapters.names == ["medical"]


def test_resuming_is_exact(tmp_path: Path) -> None:
    """A run that was killed goes on with its own values, and refuses another start."""
    from overtone.checkpoints.load import save_model

    for name, seed in (("start", 1), ("other", 2)):
        model = small_model()
        add_trained(model, name, seed=seed)
        model.adapters.save(name, tmp_path / name)
    save_model(small_model(), tmp_path / "base")
    start = f"model.adapter.start_from={tmp_path / 'start'}"
    whole = run_training(settings_for(tmp_path, start), model=small_model(), reporter=QUIET)
    (tmp_path / "run").rename(tmp_path / "whole")
    whole_last = tmp_path / "whole/checkpoints" / whole.last.name
    resume = ["exp_manager.resume_if_exists=true", "exp_manager.resume_ignore_no_checkpoint=true"]
    every = "exp_manager.checkpoint_callback_params.every_n_train_steps=1"
    kill_at_step(tmp_path, [start, every], at_step=3)
    other = f"model.adapter.start_from={tmp_path / 'other'}"
    with pytest.raises(OvertoneError, match="start_from was"):
        run_training(settings_for(tmp_path, other, *resume), model=small_model(), reporter=QUIET)
    resumed = run_training(settings_for(tmp_path, start, *resume), model=small_model(), reporter=QUIET)
    assert same_adapters(resumed.last, whole_last)

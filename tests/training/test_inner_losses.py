"""Adapters over a base that was trained with losses on inner layers: they are trained with these losses, as in NeMo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from overtone.adapters.kinds.linear import LinearAdapter
from overtone.audio.load import load_audio
from overtone.checkpoints.load import load_model, save_model
from overtone.data.manifest import read_manifest
from overtone.errors import CheckpointError, ConfigError
from overtone.models.asr_model import AsrModel, build_model
from overtone.tokenizers import CharTokenizer
from overtone.training.console import Reporter
from overtone.training.train import run_training
from support.families import batch
from support.small_models import LABELS
from support.train_samples import losses, settings_for

QUIET = Reporter(quiet=True)
SHARES = {0: 0.2, 1: 0.3}


def base(*, hybrid: bool = False, transducer: bool = False, **shares: Any) -> AsrModel:
    """A FastConformer of three layers without dropout and dither, trained with losses on two of them."""
    rates = dict.fromkeys(("dropout", "dropout_pre_encoder", "dropout_emb", "dropout_att"), 0.0)
    projection = {"width": 32, "classes": len(LABELS)}
    settings: dict[str, dict[str, Any]] = {
        "preprocessor": {"dither": 0.0},
        "encoder": {
            "width": 32, "layers": 3, "heads": 4, "kernel_size": 5, "subsampling": "dw_striding",
            "subsampling_channels": 32, "scale_input": False, **rates,
        },
        "decoder": projection,
        "interctc": {"losses": SHARES, **shares},
    }  # fmt: skip
    if hybrid or transducer:
        settings["decoder"] = {"kind": "rnnt", "classes": len(LABELS), "width": 24}
        settings["joint"] = {
            "encoder_width": 32, "prediction_width": 24, "width": 20, "classes": len(LABELS), "durations": (),
        }  # fmt: skip
        settings["transducer"] = {"ctc_weight": 0.3} if hybrid else {}
        if hybrid:
            settings["ctc_decoder"] = projection
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model(settings=settings, tokenizer=CharTokenizer(LABELS), name="inner")


def expected_losses(model: AsrModel, manifest: Path) -> tuple[float, float]:
    """The loss of the model's own output over a whole manifest, and of the mixture with those of inner layers."""
    lines = read_manifest(manifest)
    waveforms = [torch.from_numpy(load_audio(line.audio_path)) for line in lines]
    targets = [torch.tensor(model.tokenizer.encode(line.text or "")) for line in lines]
    sizes, lengths = (torch.tensor([len(each) for each in group]) for group in (targets, waveforms))
    padded = pad_sequence(targets, batch_first=True)
    ctc = model.heads["ctc"]
    whole = model.heads["hybrid" if "hybrid" in model.heads else "ctc"]
    with torch.no_grad():
        mel, frames = model.preprocessor(pad_sequence(waveforms, batch_first=True), lengths)
        x, frames, context = model.encoder.embed(mel, frames)
        inner = 0.0
        for number in range(3):
            x = model.encoder.run_layers(x, context, number, number + 1)
            if number in SHARES:
                inner += SHARES[number] * float(ctc.loss(ctc.emit(x, frames), frames, padded, sizes))
        own = float(whole.loss(whole.emit(x, frames), frames, padded, sizes))
    return own, (1.0 - sum(SHARES.values())) * own + inner


def first_loss(folder: Path, model: AsrModel, *overrides: str) -> float:
    settings = settings_for(
        folder, "model.train_ds.batch_size=12", "trainer.max_steps=1", "model.optim.lr=0.0", *overrides
    )
    result = run_training(settings, model=model, reporter=QUIET)
    assert result.steps == 1
    return losses(folder / "run")["train_loss"][0][1]


@pytest.mark.parametrize("hybrid", [False, True])
def test_the_loss_is_the_mixture(hybrid: bool, tmp_path: Path) -> None:
    settings_for(tmp_path / "plain")
    own, mixed = expected_losses(base(hybrid=hybrid), tmp_path / "plain/train.json")
    assert abs(own - mixed) > 0.01
    for way, overrides in {
        "plain": ["compute_processes=1"],
        "two": ["compute_processes=2"],
        "above": ["compute_processes=2", "model.adapter.layers=[2]"],
        "bf16": ["compute_dtype=bfloat16"],
        "cache": ["model.prefix_cache.enabled=auto", "trainer.max_steps=1"],
    }.items():
        tolerance = 2e-2 if way == "bf16" else 1e-4
        assert first_loss(tmp_path / way, base(hybrid=hybrid), *overrides) == pytest.approx(mixed, rel=tolerance), way
    assert first_loss(tmp_path / "null", base(hybrid=hybrid), "model.interctc=null") == pytest.approx(own, rel=1e-4)


def test_adapters_learn_from_inner_layers(tmp_path: Path) -> None:
    """An adapter below an inner layer gets other gradients; one above all of them only smaller ones."""
    trained = {}
    for name, words in {"with": [], "without": ["model.interctc=null"]}.items():
        model = base()
        settings = settings_for(tmp_path / name, "trainer.max_steps=3", "model.adapter.layers=[0]", *words)
        run_training(settings, model=model, reporter=QUIET)
        trained[name] = [parameter.detach().clone() for parameter in model.adapters["mine"].parameters()]
    assert any(not torch.equal(one, other) for one, other in zip(trained["with"], trained["without"], strict=True))


def test_files_keep_the_losses_and_inference_ignores_them(tmp_path: Path) -> None:
    model, plain = base(), base(losses={})
    plain.load_state_dict(model.state_dict())
    assert model.fingerprint() == plain.fingerprint()
    waveforms, lengths = batch(20_000)
    assert torch.equal(model(waveforms, lengths)[0], plain(waveforms, lengths)[0])
    for path in (tmp_path / "x.nemo", tmp_path / "folder"):
        save_model(model, path)
        again = load_model(path)
        assert again.inner_losses == SHARES
        save_model(again, path, overwrite=True)
        assert load_model(path).inner_losses == SHARES


def test_a_transducer_alone_ignores_them_and_takes_none(tmp_path: Path) -> None:
    model = base(transducer=True)
    result = run_training(settings_for(tmp_path, "trainer.max_steps=1"), model=model, reporter=QUIET)
    assert result.steps == 1
    given = "model.interctc={apply_at_layers: [0], loss_weights: [0.3]}"
    settings = settings_for(
        tmp_path, "model.train=everything", given, f"exp_manager.explicit_log_dir={tmp_path / 'other'}"
    )
    with pytest.raises(ConfigError, match="no CTC head"):
        run_training(settings, model=base(transducer=True), reporter=QUIET)


def test_the_prefix_cache_names_them_as_the_obstacle(tmp_path: Path) -> None:
    enabled = "model.prefix_cache.enabled=true"
    with pytest.raises(ConfigError, match="losses on inner layers"):
        run_training(settings_for(tmp_path, enabled), model=base(), reporter=QUIET)
    settings = settings_for(tmp_path, enabled, "model.interctc=null", "trainer.max_steps=1")
    assert run_training(settings, model=base(), reporter=QUIET).steps == 1


def test_a_resumed_training_keeps_its_losses(tmp_path: Path) -> None:
    resume = ["exp_manager.resume_if_exists=true", "exp_manager.resume_ignore_no_checkpoint=true"]
    run_training(settings_for(tmp_path, *resume, "trainer.max_steps=2"), model=base(), reporter=QUIET)
    other = settings_for(tmp_path, *resume, "trainer.max_steps=4", "model.interctc=null")
    with pytest.raises(CheckpointError, match=r"inner_losses was \[\[0, 0.2\], \[1, 0.3\]\], now \[\]"):
        run_training(other, model=base(), reporter=QUIET)


def test_an_adapter_of_the_head_acts_on_inner_layers_too() -> None:
    model = base()
    adapter = model.adapters.add("head", LinearAdapter(dim=4), modules="decoder")
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.3)
    mel, lengths = model.preprocessor(*batch(20_000))
    with torch.no_grad():
        before, _ = model.recognise_within(mel, lengths, [0, 1])
        with model.adapters.use("head"):
            after, _ = model.recognise_within(mel, lengths, [0, 1])
    assert len(before) == 3
    assert all(not torch.equal(one, other) for one, other in zip(before, after, strict=True))

"""The frozen part below an adapter is computed once for each utterance, and the training does not tell."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from overtone.adapters.kinds.base import Kind
from overtone.adapters.kinds.linear import LinearAdapter
from overtone.adapters.kinds.lora import LoraAdapter
from overtone.adapters.kinds.tiny_attention import TinyAttentionAdapter
from overtone.checkpoints.load import save_model
from overtone.data.batching import BatchPlan, StepSampler
from overtone.data.dataset import SpeechDataset
from overtone.data.manifest import read_manifest
from overtone.errors import ConfigError, OvertoneError
from overtone.models.asr_model import AsrModel, build_model
from overtone.training.console import Reporter
from overtone.training.plan import plan_training
from overtone.training.prefix_cache.loader import cycle_variants, make_key
from overtone.training.prefix_cache.plan import FEATURES, PrefixPlan, find_cut, plan_prefix
from overtone.training.train import run_training
from overtone.training.trainer import Machine, RunLength
from support.small_models import add_trained, small_model
from support.train_samples import kill_at_step, losses, same_adapters, settings_for, write_corpus

Curve = dict[str, list[tuple[int, float]]]
QUIET = Reporter(quiet=True)
STEPS = ["trainer.max_steps=7", "trainer.val_check_interval=4"]
LAST = ["model.adapter.layers=last:1", "model.base_dropout=false"]
OFF, ON = "model.prefix_cache.enabled=false", "model.prefix_cache.enabled=true"


def steady_model(**encoder: Any) -> AsrModel:
    """The small model without dither; `encoder`: other settings of its encoder."""
    model = small_model()
    settings = {part: dict(values) for part, values in model.settings.items()}
    settings["preprocessor"]["dither"] = 0.0
    settings["encoder"].update(encoder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model(settings=settings, tokenizer=model.tokenizer, name="steady")


def curve(folder: Path, *overrides: str, model: AsrModel | None = None) -> Curve:
    """What every step and validation of a training gives."""
    run_training(settings_for(folder, *STEPS, *overrides), model=model or steady_model(), reporter=QUIET)
    return losses(folder / "run")


def assert_close(first: Curve, second: Curve, tolerance: float) -> None:
    assert first.keys() == second.keys()
    for name in first:
        a, b = (torch.tensor([value for _, value in values[name]]) for values in (first, second))
        torch.testing.assert_close(a, b, rtol=tolerance, atol=0.0, msg=name)


# The cut


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("position", ["rel_pos", "abs_pos"])
def test_both_parts_make_the_whole(prepared: bool, position: str) -> None:
    """At every cut, with an adapter behind it, and with dropout above the first layer's input."""
    model = steady_model(layers=3, position=position, dropout_emb=0.1, dropout_att=0.1)
    add_trained(model, "last")
    model.set_compute_dtype("float32", prepared=prepared)
    mel, lengths = torch.randn(2, 80, 48), torch.tensor([48, 30])
    for cut in range(3):
        with torch.no_grad(), model.adapters.use("last" if cut < 2 else None):
            whole, _ = model.recognise(mel, lengths)
            with model.adapters.use(None):
                x, frames = model.encoder_in_use.below(mel, lengths, cut)
            if cut < 2:  # behind the first layer the adapter acts above the cut
                assert torch.equal(model.recognise_above(x, frames, cut)[0], whole)
    model.train_only("last", base_dropout=True)
    with torch.no_grad():
        torch.manual_seed(1)
        whole, _ = model.recognise(mel, lengths)
        torch.manual_seed(1)
        assert torch.equal(model.recognise_above(*model.encoder_in_use.below(mel, lengths, 0), 0)[0], whole)


@pytest.mark.parametrize(
    ("kind", "modules", "layers", "cut"),
    [
        (LinearAdapter(dim=4), "encoder", "all", 1),
        (LinearAdapter(dim=4), "encoder", "last:1", 2),
        (LinearAdapter(dim=4), "decoder", "all", 2),
        (LinearAdapter(dim=4), "encoder+decoder", "[0]", 1),
        (TinyAttentionAdapter(), "encoder", "last:1", 1),
        (LoraAdapter(rank=2), "encoder", "last:1", 1),
        (LoraAdapter(rank=2), "encoder", "all", 0),
    ],
)
def test_the_cut_is_below_the_first_place_of_the_adapter(kind: Kind, modules: str, layers: str, cut: int) -> None:
    model = small_model()
    adapter = model.adapters.add("mine", kind, modules=modules, layers=layers)
    assert find_cut(model, adapter) == cut


# The same training


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(LAST, id="layers"),
        pytest.param([*LAST, "model.adapter.adapter_type=lora", "model.adapter.lora.dropout=0.2"], id="inside a layer"),
        pytest.param(["model.adapter.layers=last:1"], id="subsampling, with the base's dropout"),
        pytest.param(["model.spec_augment.time_masks=2", "model.spec_augment.freq_masks=1"], id="features, with masks"),
    ],
)
def test_a_cached_training_is_the_uncached_one(tmp_path: Path, overrides: list[str]) -> None:
    """Without dither `auto` keeps what nothing random lies below; the curves agree to rounding, over three epochs."""
    without = curve(tmp_path / "off", *overrides, OFF)
    cached = curve(tmp_path / "auto", *overrides)
    assert "Prefix cache: " in (tmp_path / "auto/run/log.txt").read_text("utf-8")
    assert_close(without, cached, 1e-5)


def test_in_bfloat16(tmp_path: Path) -> None:
    without = curve(tmp_path / "off", *LAST, OFF, "compute_dtype=bfloat16")
    cached = curve(tmp_path / "on", *LAST, ON, "compute_dtype=bfloat16")
    assert_close(without, cached, 1e-2)


def test_room_makes_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All in memory, some, none but in a folder; and a second run from there, which reads audio only where it must."""
    ample = curve(tmp_path, *LAST, ON)
    runs = {name: f"exp_manager.explicit_log_dir={tmp_path / name}" for name in ("some", "none", "again")}
    folder = ["model.prefix_cache.memory_gb=0", f"model.prefix_cache.folder={tmp_path / 'kept'}"]
    curve(tmp_path, *LAST, ON, "model.prefix_cache.memory_gb=0.00001", runs["some"])
    curve(tmp_path, *LAST, ON, *folder, runs["none"])
    files = sorted((tmp_path / "kept").rglob("*.safetensors"))
    assert len(files) == 12 + 3
    files[0].write_bytes(b"")
    read: list[str] = []
    load = SpeechDataset.load

    def counted(self: SpeechDataset, index: int) -> Any:
        read.append(self.utterances[index].audio_path.name)
        return load(self, index)

    monkeypatch.setattr(SpeechDataset, "load", counted)
    curve(tmp_path, *LAST, ON, *folder, runs["again"])
    assert 1 <= len(read) <= 2
    assert len(set(read)) == 1
    assert all(losses(tmp_path / name) == ample for name in runs)


def test_killed_and_resumed(tmp_path: Path) -> None:
    """With several draws of each utterance, of which some are computed by one part of the run, some by the other."""
    options = [
        *LAST,
        ON,
        "model.prefix_cache.variants=2",
        "model.spec_augment.time_masks=2",
        "model.train_ds.augmentor={gain: {prob: 0.5}}",
        "model.adapter.linear.dropout=0.2",
        "trainer.max_steps=12",
        "trainer.val_check_interval=5",
        "exp_manager.checkpoint_callback_params.every_n_train_steps=3",
        "exp_manager.resume_if_exists=true",
        "exp_manager.resume_ignore_no_checkpoint=true",
    ]
    save_model(steady_model(), tmp_path / "base")
    settings_for(tmp_path)
    kill_at_step(tmp_path, [*options, "model.train_ds.num_workers=2"], at_step=7)
    whole = f"exp_manager.explicit_log_dir={tmp_path / 'whole'}"
    for run in ([], [whole]):
        settings = settings_for(tmp_path, *options, *run)
        run_training(settings, model=steady_model(), reporter=QUIET)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    last = "checkpoints/mine-last"
    assert same_adapters(tmp_path / "run" / last, tmp_path / "whole" / last)
    with pytest.raises(OvertoneError, match=r"belongs to another run: prefix_cache\.variants was 2, now 3"):
        run_training(
            settings_for(tmp_path, *options, "model.prefix_cache.variants=3"), model=steady_model(), reporter=QUIET
        )


def test_missing_audio_ends_the_run(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, *STEPS, *LAST, ON, validation=False)
    (tmp_path / "train7.wav").unlink()
    with pytest.raises(OvertoneError, match=r"train7\.wav"):
        run_training(settings, model=steady_model(), reporter=QUIET)


def test_a_run_goes_on_as_it_began(tmp_path: Path) -> None:
    """`auto` kept nothing for a single epoch; further ones are computed alike."""
    options = [*LAST, "exp_manager.resume_if_exists=true", "exp_manager.resume_ignore_no_checkpoint=true"]
    for steps in (2, 8):
        settings = settings_for(tmp_path, *options, f"trainer.max_steps={steps}")
        result = run_training(settings, model=steady_model(), reporter=QUIET)
    assert result.steps == 8
    assert "Prefix cache" not in (tmp_path / "run/log.txt").read_text("utf-8")


# What is kept, and when


def planned(folder: Path, *overrides: str, model: AsrModel | None = None, epochs: int = 3) -> PrefixPlan | None:
    settings = settings_for(folder, *overrides)
    model = model or steady_model()
    adapter = None
    if settings.model.train == "adapter":
        adapter = model.adapters.add("mine", LinearAdapter(dim=4), layers=settings.model.adapter.layers)  # type: ignore[arg-type]
    length = RunLength(batches=3 * epochs, steps=3 * epochs, batches_per_epoch=3, validate_every=None)
    machine = Machine(accelerator="cpu", devices=1, num_nodes=1)
    return plan_prefix(plan_training(settings), model, adapter, machine=machine, length=length)


MASKS, WAVES = "model.spec_augment.time_masks=1", "model.train_ds.augmentor={gain: {prob: 1.0}}"


def test_by_itself_it_changes_nothing(tmp_path: Path) -> None:
    """`auto` keeps what nothing random lies below, and only where there is a second epoch."""
    cuts = {
        (): 0,  # the base's dropout acts from there on
        ("model.base_dropout=false",): 1,
        ("model.base_dropout=false", "model.adapter.layers=last:1"): 2,
        ("model.base_dropout=false", MASKS): FEATURES,
    }
    for overrides, cut in cuts.items():
        plan = planned(tmp_path, *overrides)
        assert plan is not None
        assert plan.cut == cut
        assert "without" not in plan.note
    assert planned(tmp_path, epochs=1) is None
    assert planned(tmp_path, WAVES) is None
    assert planned(tmp_path, model=small_model()) is None, "its features have dither"
    assert planned(tmp_path, "model.train=everything") is None
    assert planned(tmp_path, model=steady_model(conv_norm="group_norm4")) is None
    assert planned(tmp_path, model=steady_model(subsampling="stacking")) is None


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    plan = planned(tmp_path, ON, "model.adapter.layers=last:1", model=small_model())
    assert plan is not None
    assert plan.note == (
        "Prefix cache: features, subsampling and 2 of 2 layers are computed once for each utterance, "
        "without dropout and dither there"
    )
    plan = planned(tmp_path, ON, MASKS, WAVES, "model.prefix_cache.variants=4", "model.adapter.layers=last:1")
    assert plan is not None
    assert plan.cut == 2
    assert "in 4 draws" in plan.note


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([ON, "model.train=everything"], "no part of the base stays the same"),
        ([ON, WAVES], "model.train_ds.augmentor changes the audio anew"),
        ([ON, "model.prefix_cache.variants=3"], "neither model.train_ds.augmentor nor model.spec_augment"),
        ([MASKS, "model.prefix_cache.variants=3"], "need model.prefix_cache.enabled=true"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=r"^model\.prefix_cache\.") as caught:
        planned(tmp_path, *overrides)
    assert message in str(caught.value)


def test_a_base_whose_values_depend_on_the_batch_is_refused(tmp_path: Path) -> None:
    for model in (steady_model(conv_norm="group_norm4"), steady_model(subsampling="stacking")):
        with pytest.raises(ConfigError, match=r"other values in every batch, by its padding"):
            planned(tmp_path, ON, model=model)


def test_a_refused_cache_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = steady_model(conv_norm="group_norm4")
    with pytest.raises(ConfigError):
        run_training(settings_for(tmp_path, ON), model=model, reporter=QUIET)
    assert model.adapters.names == []
    assert not (tmp_path / "run").exists()


def test_the_owner_knows_what_the_values_depend_on(tmp_path: Path) -> None:
    kept = f"model.prefix_cache.folder={tmp_path}"
    cases = [
        planned(tmp_path, ON, kept),
        planned(tmp_path, ON, kept, "model.adapter.layers=last:1"),
        planned(tmp_path, ON, kept, "compute_dtype=bfloat16"),
        planned(tmp_path, ON, kept, model=steady_model(kernel_size=7)),
    ]
    owners = [plan.owner for plan in cases if plan is not None]
    assert len(set(owners)) == 4


def test_the_key_knows_the_audio_and_the_draw(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, count=2)
    first, second = read_manifest(manifest)
    plan = planned(tmp_path / "run", ON, MASKS, "model.prefix_cache.variants=2")
    other = planned(tmp_path / "run", ON, MASKS, "model.prefix_cache.variants=2", "seed=1")
    assert plan is not None
    assert other is not None
    keys = [
        make_key(first, plan, ()),
        make_key(second, plan, ()),
        make_key(replace(first, offset=0.1), plan, ()),
        make_key(replace(first, duration=0.5), plan, ()),
        make_key(first, plan, (0,)),
        make_key(first, plan, (1,)),
        make_key(first, other, (1,)),
    ]
    assert make_key(first, other, ()) == keys[0]
    os.utime(first.audio_path, ns=(0, 0))
    keys.append(make_key(first, plan, ()))
    assert len(set(keys)) == 8
    first.audio_path.unlink()
    assert make_key(first, plan, ()) == ""


def test_the_draws_know_the_recordings_of_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    noise = "model.train_ds.augmentor={noise: {prob: 0.5, manifest_path: '~/noise.json'}}"
    plans = []
    for content in ("", "more"):
        (tmp_path / "noise.json").write_text(content)
        plans.append(planned(tmp_path, ON, noise, "model.prefix_cache.variants=2"))
    assert len({plan.draws for plan in plans if plan is not None}) == 2


def test_draws_take_turns_over_the_epochs() -> None:
    plan = BatchPlan(durations=(1.0, 2.0, 3.0), batch_size=2)
    whole = list(cycle_variants(StepSampler(plan, total=6), 2))
    assert [sorted({row.key for row in batch}) for batch in whole] == [[(0,)]] * 2 + [[(1,)]] * 2 + [[(0,)]] * 2  # type: ignore[union-attr]
    assert list(cycle_variants(StepSampler(plan, total=6, start=3), 2)) == whole[3:]
    assert list(cycle_variants(StepSampler(plan, total=6), 1)) == list(StepSampler(plan, total=6))


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    override = f"model.prefix_cache.folder={tmp_path / 'file'}"
    with pytest.raises(OvertoneError, match=r"Cannot write .*model\.prefix_cache\.folder"):
        run_training(settings_for(tmp_path, ON, override), model=steady_model(), reporter=QUIET)

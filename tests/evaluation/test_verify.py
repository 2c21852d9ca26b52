"""Verification: what holds passes, and each thing that can be wrong is seen and said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from overtone.adapters.kinds.base import Kind
from overtone.adapters.kinds.linear import LinearAdapter
from overtone.adapters.kinds.registry import KINDS
from overtone.checkpoints.load import load_model
from overtone.cli.verify import as_text
from overtone.errors import AdapterError, DataError, UsageError
from overtone.evaluation.verify import PROMPTS, Verification, verify
from overtone.models.asr_model import AsrModel
from overtone.nets.taps import Chains, TapContext
from support.fixtures import fixture_file
from support.small_models import add_trained, small_model

AUDIO = [PROMPTS / "audio" / name for name in ("activated.ogg", "added.ogg", "telephone-number.ogg")]


@pytest.fixture
def model() -> AsrModel:
    model = small_model()
    add_trained(model, "medical")
    return model


def failures(found: Verification) -> list[str]:
    return [f"{check.name}: {check.detail}" for check in found.all_checks if not check.passed]


@pytest.mark.parametrize("kind", [known.kind() for known in KINDS.values()], ids=list(KINDS))
def test_a_good_adapter_of_each_kind_passes(kind: Kind) -> None:
    model = small_model()
    add_trained(model, "medical", kind)
    found = verify(model, AUDIO)
    assert failures(found) == []
    assert found.passed
    (proof,) = found.adapters
    assert [effect.point for effect in proof.effects] != []
    assert {effect.point for effect in proof.effects} == set(model.adapters["medical"].points)
    assert all(effect.applied == len(AUDIO) and effect.relative_change > 0 for effect in proof.effects)
    assert 0 < proof.mean_change <= proof.largest_change


def test_several_adapters_and_chains_together(model: AsrModel) -> None:
    add_trained(model, "noise", seed=2)
    found = verify(model, AUDIO, adapters=["medical", "noise", "noise+medical"])
    assert failures(found) == []
    assert [proof.adapter for proof in found.adapters] == ["medical", "noise", "noise+medical"]
    assert len(found.adapters[2].effects) == 2 * len(found.adapters[0].effects)
    assert "all adapters in one batch, each row its own" in [check.name for check in found.checks]


def test_embedded_prompts_are_heard_when_nothing_is_given(model: AsrModel) -> None:
    found = verify(model)
    assert found.passed
    assert found.recordings == 6
    assert found.seconds > 6


def test_one_recording_is_enough(model: AsrModel) -> None:
    assert verify(model, AUDIO[:1]).passed


def test_an_adapter_that_changes_nothing_is_said_plainly() -> None:
    model = small_model()
    model.adapters.add("fresh", LinearAdapter(dim=4))
    found = verify(model, AUDIO)
    assert not found.passed
    assert failures(found) == [
        "fresh changes the output: changes nothing: identity, as every adapter is before training"
    ]
    assert "1 of 6 checks FAILED: fresh changes the output." in as_text(found)


def test_an_adapter_that_is_applied_nowhere_is_said_plainly(model: AsrModel) -> None:
    for layer in model.encoder.layers:
        layer.after_block.plug = None
    found = verify(model, AUDIO)
    assert failures(found)[0] == "medical is applied: applied nowhere: the model never calls its points"
    assert "applied nowhere" in as_text(found)


def test_an_adapter_that_is_left_out_at_one_point_is_seen(model: AsrModel) -> None:
    model.encoder.layers[1].after_block.plug = None
    assert failures(verify(model, AUDIO)) == ["medical is applied: 1 of 2 points; not at encoder.layers.1.after_block"]


def test_numbers_that_are_none_are_seen(model: AsrModel) -> None:
    with torch.no_grad():
        next(model.adapters["medical"].parameters()).fill_(float("nan"))
    assert "medical changes the output: the output is not finite" in failures(verify(model, AUDIO))


class Spoiler:
    """An adapter's place that spoils the base while it acts."""

    def __init__(self, model: AsrModel, what: str) -> None:
        self.model, self.what = model, what
        self.plug = model.encoder.layers[0].after_block.plug

    def acts(self) -> bool:
        return True

    def chains(self, rows: int) -> Chains:
        return self.plug.chains(rows)

    def __call__(self, x: Tensor, y: Tensor, context: TapContext, *, in_place: bool = False) -> Tensor:
        active = self.model.adapters.selection is not None and self.model.adapters.selection.chain != ()
        if active and self.what == "weights":
            self.model.decoder.projection.bias.data[0] += 1.0
        if active and self.what == "counter":
            self.model.encoder.layers[0].conv.batch_norm.num_batches_tracked += 1
        y = self.plug(x, y, context)
        mixed = self.model.adapters.selection is not None and self.model.adapters.selection.rows is not None
        return y + y.flip(0) * 0.1 if mixed and self.what == "rows" else y


@pytest.fixture
def spoiled(model: AsrModel, request: pytest.FixtureRequest) -> AsrModel:
    tap = model.encoder.layers[0].after_block
    tap.plug = Spoiler(model, request.param)
    return model


@pytest.mark.parametrize(
    ("spoiled", "seen"),
    [
        ("weights", ["base bit-identical with medical off again", "base tensors untouched"]),
        ("counter", ["base tensors untouched"]),
        ("rows", ["rows with and without medical in one batch are independent"]),
    ],
    indirect=["spoiled"],
)
def test_a_base_that_is_touched_is_seen(spoiled: AsrModel, seen: list[str]) -> None:
    found = failures(verify(spoiled, AUDIO))
    assert all(any(failure.startswith(name) for failure in found) for name in seen), found


def test_the_model_is_left_as_it_was(model: AsrModel) -> None:
    model.train()
    model.set_compute_dtype("bfloat16")
    verify(model, AUDIO)
    assert model.training
    assert model.compute_dtype == "bfloat16"


def test_json_is_plain(model: AsrModel) -> None:
    data = json.loads(json.dumps(verify(model, AUDIO).to_json()))
    assert data["passed"] is True
    assert data["adapters"][0]["effects"][0]["point"] == "encoder.layers.0.after_block"


def test_text_shows_each_point_and_groups_many(model: AsrModel) -> None:
    text = as_text(verify(model, AUDIO))
    assert "encoder.layers.1.after_block" in text
    assert "All 6 checks passed." in text
    deep = small_model(layers=24)
    add_trained(deep, "deep")
    assert "encoder.layers.*.after_block (24 points)" in as_text(verify(deep, AUDIO[:1]))


def test_bad_input_is_one_clear_error(model: AsrModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no adapter to verify"):
        verify(small_model())
    with pytest.raises(AdapterError, match="Did you mean 'medical'"):
        verify(model, AUDIO, adapters=["medicla"])
    with pytest.raises(DataError, match=r"missing\.wav"):
        verify(model, [tmp_path / "missing.wav"])
    with pytest.raises(UsageError, match="holds no audio"):
        verify(model, [tmp_path])


@pytest.mark.parametrize("name", ["conformer_ctc_bpe", "conformer_ctc_char", "fastconformer_ctc_bpe"])
def test_models_that_nemo_adapted_pass(name: str) -> None:
    assert failures(verify(load_model(fixture_file(f"{name}/adapted.nemo")), AUDIO)) == []

"""Kinds by name: each has a file of its own, and one that a user writes goes every way that ours go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import overtone
from overtone.adapters.kinds.base import WIDTH, Kind
from overtone.adapters.kinds.linear import LinearAdapter
from overtone.adapters.kinds.lora import LoraAdapter
from overtone.adapters.kinds.registry import KINDS, kind_of, register_kind, section_of
from overtone.adapters.kinds.tiny_attention import TinyAttentionAdapter
from overtone.adapters.strategies import ResidualAdd
from overtone.checkpoints.load import load_model, save_model
from overtone.checkpoints.nemo.adapters import save_adapters
from overtone.config import LinearSettings, LoraSettings, TinyAttentionSettings
from overtone.errors import AdapterError, CheckpointError
from overtone.evaluation.inspect import ModelInspection, as_text, inspect
from overtone.evaluation.verify import verify
from overtone.models.asr_model import AsrModel
from overtone.nets.ctc import ctc_loss
from support.families import KindCase, add_trained, batch, family_model
from support.own_kind import ScaleAdapter, registered
from support.small_models import small_model
from support.train_samples import settings_for

CASE = KindCase(kind=ScaleAdapter(), last=("scale", "shift.weight", "shift.bias"))
LENGTHS = (8_000, 6_000, 8_000, 4_500)


@pytest.fixture
def own_kind() -> Iterator[None]:
    with registered(ScaleAdapter):
        yield


def log_probs(model: AsrModel, choice: object = None, *, rows: slice = slice(None)) -> Tensor:
    waveforms, lengths = batch(*LENGTHS)
    with torch.no_grad(), model.adapters.use(choice):  # type: ignore[arg-type]
        return model(waveforms[rows], lengths[rows])[0]


# Ours


def test_every_kind_has_a_name_and_defaults() -> None:
    assert list(KINDS) == ["linear", "tiny_attn", "lora"]
    for name, known in KINDS.items():
        assert known.name == name == known.kind().name


def test_every_name_in_a_table_is_that_of_a_setting() -> None:
    for known in KINDS.values():
        settings = set(vars(known.kind()))
        assert known.section is not None
        keys = set(vars(known.section.settings()))
        assert set(known.section.names) <= keys
        assert set(known.section.names.values()) <= settings
        assert set(known.section.width_keys) <= keys
        assert all(set(implied) <= settings for implied in known.section.targets.values())
        for form in known.nemo:
            assert {key.ours for key in form.keys} <= settings | {WIDTH}
            assert [key.ours for key in form.keys].count(WIDTH) == 1
            assert form.targets.items() <= known.section.targets.items()
        for form in known.nemo[:1]:  # whose names the section has
            assert {key.theirs for key in form.keys if key.ours == WIDTH} == set(known.section.width_keys)


@pytest.mark.parametrize(
    "section",
    [
        LinearSettings(dim=3, activation="relu", norm_position="post", dropout=0.1),
        TinyAttentionSettings(n_head=2, proj_dim=4, dropout_rate=0.2),
        LoraSettings(rank=2, alpha=3.0, targets=("q",)),
    ],
)
def test_sections_and_kinds_are_each_others_inverse(
    section: LinearSettings | TinyAttentionSettings | LoraSettings,
) -> None:
    assert section_of(kind_of(section), ResidualAdd()) == section


@pytest.mark.parametrize("position", ["auto", "rel_pos", "abs_pos"])
def test_positions_show_in_the_target_of_a_section(position: str) -> None:
    kind, strategy = TinyAttentionAdapter(heads=2, position=position), ResidualAdd(l2_lambda=0.5)
    section = section_of(kind, strategy)
    assert kind_of(section) == kind
    assert section.adapter_strategy.l2_lambda == 0.5


# A user's own


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_with_an_own_kind_equal_the_rows_alone(dtype: str) -> None:
    model = family_model().set_compute_dtype(dtype)
    base = log_probs(model)
    model.adapters.add("fresh", ScaleAdapter())
    assert torch.equal(log_probs(model, "fresh"), base)
    for seed, name in enumerate("ab"):
        add_trained(model, name, CASE, seed=seed)
    add_trained(model, "linear", KindCase(kind=LinearAdapter(dim=4), last=("up.weight",)))
    choice = ["a", None, "b", "linear+a"]
    mixed = log_probs(model, choice)
    assert torch.equal(mixed[1], base[1])
    for row in (0, 2):  # as long as the batch, so that the padding is the same
        alone = log_probs(model, choice[row], rows=slice(row, row + 1))
        torch.testing.assert_close(mixed[row], alone[0], rtol=0, atol=1e-5 if dtype == "float32" else 0.05)
        assert not torch.equal(mixed[row], base[row])
    for adapter in model.adapters:
        adapter.freeze()
    assert torch.equal(log_probs(model, choice), mixed)


def test_an_own_kind_is_saved_and_loaded(own_kind: None, tmp_path: Path) -> None:
    model = family_model()
    kind = ScaleAdapter(strength=2.0, places=("after_block", "input"))
    add_trained(model, "a", replace(CASE, kind=kind, modules="encoder+decoder"))
    folder = model.adapters.save("a", tmp_path / "a")
    again = model.adapters.load(folder, name="again")
    assert again.kind == kind
    assert (again.digest(), again.points) == (model.adapters["a"].digest(), model.adapters["a"].points)
    assert torch.equal(log_probs(model, "again"), log_probs(model, "a"))
    model.adapters.remove("again")
    whole = load_model(save_model(model, tmp_path / "model"))
    assert torch.equal(log_probs(whole, "a"), log_probs(model, "a"))
    found = inspect(whole)
    assert isinstance(found, ModelInspection)
    assert found.adapters[0].settings == {"strength": 2.0, "places": ("after_block", "input")}
    assert "scale: strength 2, places after_block, input" in as_text(found)
    assert {group.pattern for group in found.points if "scale" in group.kinds} == {"encoder.layers.*.after_block"}


def test_an_adapter_of_a_kind_that_is_not_registered_is_not_loaded(tmp_path: Path) -> None:
    model = family_model()
    model.adapters.add("a", ScaleAdapter())
    folder = model.adapters.save("a", tmp_path / "a")
    model.adapters.remove("a")
    with pytest.raises(AdapterError, match=r"kind 'scale' is unknown.*call overtone\.register_kind\(CLASS\)"):
        model.adapters.load(folder)
    assert len(model.adapters) == 0


def test_an_own_kind_is_trained_by_a_loop_of_ten_lines() -> None:
    model = family_model()
    model.adapters.add("a", ScaleAdapter())
    model.train_only("a")
    optimiser = torch.optim.AdamW(model.adapters.parameters_of("a"), lr=1e-2)
    losses = []
    for _ in range(10):
        with model.adapters.use("a"):
            emissions, frames = model(*batch(*LENGTHS))
        loss = ctc_loss(emissions, frames, torch.tensor([[1, 2, 3]] * 4), torch.tensor([3, 3, 3, 2]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert verify(model.eval(), adapters=["a"]).passed


def test_an_own_kind_is_trained_from_settings_to_files(own_kind: None, tmp_path: Path) -> None:
    model = small_model()
    settings_for(tmp_path)
    options: dict[str, Any] = {
        "adapter_name": "mine",
        "kind": ScaleAdapter(strength=1.0),
        "strategy": ResidualAdd(stochastic_depth=0.1),
        "train_manifest": tmp_path / "train.json",
        "validation_manifest": tmp_path / "valid.json",
        "output_dir": tmp_path / "run",
        "batch_size": 4,
        "quiet": True,
    }
    overtone.train(model, **options, max_steps=2)
    result = overtone.train(small_model(), **options, max_steps=4, resume=True)
    loaded = small_model().adapters.load(result.best)
    assert (loaded.kind, loaded.strategy) == (ScaleAdapter(strength=1.0), ResidualAdd(stochastic_depth=0.1))
    assert "support.own_kind.ScaleAdapter" in (tmp_path / "run/hparams.yaml").read_text("utf-8")


def test_a_training_asks_for_the_registration_first(tmp_path: Path) -> None:
    settings_for(tmp_path)
    with pytest.raises(AdapterError, match=r"ScaleAdapter is not registered.*overtone\.register_kind\(ScaleAdapter\)"):
        overtone.train(
            small_model(),
            adapter_name="mine",
            kind=ScaleAdapter(),
            train_manifest=tmp_path / "train.json",
            output_dir=tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


def test_nemo_has_no_own_kind(own_kind: None, tmp_path: Path) -> None:
    model = family_model()
    add_trained(model, "a", CASE)
    for write in (lambda: save_adapters(model, tmp_path / "a.pt"), lambda: save_model(model, tmp_path / "a.nemo")):
        with pytest.raises(CheckpointError, match="'a' is of kind scale, which NeMo does not have"):
            write()
    assert list(tmp_path.iterdir()) == []


# What is refused


def make_kind(**body: Any) -> type[Kind]:
    """ScaleAdapter with another body."""
    made = type("Made", (), {**{name: value for name, value in vars(ScaleAdapter).items() if "__" not in name}, **body})
    made.__annotations__ = body.get("__annotations__", {"strength": float})
    return dataclass(frozen=True, kw_only=True)(made)  # type: ignore[return-value]


@pytest.mark.parametrize("kind", [None, 3, LinearAdapter, nn.Linear(2, 2)])
def test_what_is_no_kind_is_not_added(kind: Any) -> None:
    with pytest.raises(AdapterError, match="is no kind of adapter; give one such as LinearAdapter"):
        family_model().adapters.add("a", kind)


def test_a_name_is_the_kind_with_its_defaults() -> None:
    model = family_model()
    assert model.adapters.add("a", "lora").kind == LoraAdapter()
    with pytest.raises(AdapterError, match=r"kind 'lore' is unknown. Did you mean 'lora'\? Known are linear, "):
        model.adapters.add("b", "lore")


@pytest.mark.parametrize("kind", [LinearAdapter(), "lora", int])
def test_what_is_no_class_of_a_kind_is_not_registered(kind: Any) -> None:
    with pytest.raises(AdapterError, match="is no class of a kind"):
        register_kind(kind)


@dataclass(kw_only=True)
class Melting:
    name: ClassVar[str] = "melting"
    acts_at, parts, delta, prepare = (
        getattr(ScaleAdapter, name) for name in ("acts_at", "parts", "delta", "prepare")
    )  # fmt: skip


def test_a_kind_is_frozen() -> None:
    with pytest.raises(AdapterError, match="Melting is no frozen dataclass"):
        register_kind(Melting)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"name": "linear"}, "the name 'linear' belongs to LinearAdapter already"),
        ({"name": "card"}, "'card' cannot be the name of a kind"),
        ({"name": "My kind"}, "'My kind' cannot be the name of a kind"),
        ({"strength": object()}, "have to be plain values"),
        ({"strength": field(default_factory=list)}, "and tuples of such"),
        ({"__annotations__": {"depth": int}}, "Made: give every setting a default; depth has none"),
    ],
)
def test_a_kind_that_files_could_not_hold_is_refused(body: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        register_kind(make_kind(**body))
    assert list(KINDS) == ["linear", "tiny_attn", "lora"]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"kind": nn.Parameter(torch.zeros(2))}, "a part cannot be called 'kind'"),
        ({"a.b": nn.Parameter(torch.zeros(2))}, "a part cannot be called 'a.b'"),
        ({"net": nn.Sequential(nn.Linear(2, 2))}, "without modules inside"),
        ({"norm": nn.BatchNorm1d(2)}, "without buffers"),
    ],
)
def test_parts_that_an_adapter_cannot_hold_are_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        family_model().adapters.add("a", make_kind(parts=lambda self, point: parts)())


def test_a_class_that_is_made_anew_takes_its_own_place() -> None:
    first, second = (make_kind(name="made") for _ in range(2))
    with registered(first):
        register_kind(second)
        assert KINDS["made"].kind is second
        model = family_model()
        model.adapters.add("a", second())
    assert "made" not in KINDS


def test_lora_and_attention_are_told_apart_in_one_batch() -> None:
    model = family_model()
    for name, kind in (("lora", LoraAdapter(rank=2)), ("attention", TinyAttentionAdapter()), ("own", ScaleAdapter())):
        add_trained(model, name, replace(CASE, kind=kind))
    mixed = log_probs(model, ["lora", "attention", "own", None])
    for row, name in enumerate(("lora", "attention", "own")):
        torch.testing.assert_close(mixed[row], log_probs(model, name)[row], rtol=0, atol=1e-5)

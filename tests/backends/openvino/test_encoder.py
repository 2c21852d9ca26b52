"""OpenVINO computes the same encoder, with the adapters of every row among its inputs."""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from overtone import cli
from overtone.adapters.kinds.base import Kind
from overtone.adapters.kinds.linear import LinearAdapter
from overtone.adapters.kinds.lora import LoraAdapter
from overtone.backends.openvino import encoder as openvino
from overtone.backends.openvino.adapters import bottlenecks_at
from overtone.backends.openvino.encoder import OpenVinoEncoder
from overtone.errors import AdapterError, ConfigError, UsageError
from overtone.models.asr_model import AsrModel
from overtone.nets.taps import Tap, TapContext
from support.small_models import add_trained, small_model

INSTALLED = importlib.util.find_spec("openvino") is not None
needs_openvino = pytest.mark.skipif(not INSTALLED, reason="openvino is not installed (the extra `openvino`)")
POINT = "encoder.layers.0.after_block"
FRAMES = torch.tensor([101, 64, 38, 9])
CHOICES = ["wide", None, "narrow", "wide"]
ENCODERS: dict[str, dict[str, Any]] = {
    "fastconformer": {"subsampling_factor": 8},
    "conformer": {"subsampling": "striding", "scale_input": True},
    "causal": {"causal_downsampling": True, "conv_context": [4, 0]},
    "limited": {"attention_context": [5, 2]},
    "chunked": {"attention_context": [6, 2], "attention_context_style": "chunked_limited"},
    "plain": {"use_bias": False, "untie_biases": False},
    "projected": {"output_width": 32, "width": 16},
}


def make_model(**settings: Any) -> AsrModel:
    """With two adapters, one of them in the last layer alone, and statistics that leave nothing without effect."""
    model = small_model(**settings)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, tensor in model.encoder.state_dict().items():
            if "batch_norm.weight" in name or "running_var" in name:
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif "batch_norm.b" in name or "running_mean" in name or "pos_bias" in name or "norm_" in name:
                tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator))
    add_trained(model, "wide", LinearAdapter(dim=6))
    model.adapters.add("narrow", LinearAdapter(dim=2), layers="last:1")
    with torch.no_grad():
        for parameter in model.adapters.parameters_of("narrow"):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def make_mel() -> Tensor:
    return torch.randn(len(FRAMES), 80, int(FRAMES.max()), generator=torch.Generator().manual_seed(3))


def encode(model: AsrModel, choice: Any) -> list[Tensor]:
    """The encoder's output of each row, without its padding."""
    with torch.no_grad(), model.adapters.use(choice):
        x, lengths = model.encoder_in_use(make_mel(), FRAMES)
    return [row[:length] for row, length in zip(x, lengths.tolist(), strict=True)]


def compute_by_openvino(model: AsrModel, dtype: torch.dtype = torch.float32) -> AsrModel:
    model.backend = OpenVinoEncoder(model.encoder, dtype)
    return model


# Adapters as tensors


def tap_of(model: AsrModel, point: str) -> Tap:
    tap = model.get_submodule(point)
    assert isinstance(tap, Tap)
    return tap


@pytest.mark.parametrize("choice", ["wide", CHOICES, [None, None, "narrow", None]], ids=str)
def test_adapters_as_tensors_add_what_they_add(choice: Any) -> None:
    model = make_model()
    y = torch.randn(len(FRAMES), 7, 32, generator=torch.Generator().manual_seed(4))
    context = TapContext(valid=torch.ones(len(FRAMES), 7, dtype=torch.bool))
    point = "encoder.layers.1.after_block"
    tap = tap_of(model, point)
    with torch.no_grad(), model.adapters.use(choice) as selection:
        expected = selection.apply(point, y, y, context)
        down, bias, up = bottlenecks_at(tap, point, len(FRAMES), torch.float32)
    added = F.silu(F.layer_norm(y, [32]) @ down.transpose(1, 2) + bias) @ up.transpose(1, 2)
    assert torch.allclose(y + added, expected, atol=1e-5)
    if isinstance(choice, list):
        for row, name in enumerate(choice):
            assert name is not None or not added[row].any()


@pytest.mark.parametrize(
    ("kind", "choice", "message"),
    [
        (LoraAdapter(rank=2), "other", "Adapter 'other' cannot be computed by OpenVINO: it is LoraAdapter"),
        (LinearAdapter(dim=2, activation="relu"), "other", "activation 'swish'"),
        (LinearAdapter(dim=2, norm_position="post"), "other", "norm_position 'pre'"),
        (LinearAdapter(dim=2), "wide+other", "Chains of adapters at one point"),
        (LinearAdapter(dim=2), ["other"], "1 adapter choices for a batch of 4 rows"),
    ],
)
def test_adapters_that_are_no_such_tensors_are_refused(kind: Kind, choice: Any, message: str) -> None:
    model = make_model()
    add_trained(model, "other", kind)
    point = "encoder.layers.0.self_attn.q" if isinstance(kind, LoraAdapter) else POINT
    tap = tap_of(model, point)
    with model.adapters.use(choice), pytest.raises(AdapterError, match=message):
        bottlenecks_at(tap, point, 4, torch.float32)


def test_adapters_in_training_or_observed_are_refused() -> None:
    model = make_model()
    tap = tap_of(model, POINT)
    with model.adapters.use("wide", observe=lambda *told: None), pytest.raises(AdapterError, match="observed"):
        bottlenecks_at(tap, POINT, 4, torch.float32)
    model.train_only("wide")
    with model.adapters.use("wide"), pytest.raises(AdapterError, match="being trained"):
        bottlenecks_at(tap, POINT, 4, torch.float32)


# Choosing it


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(openvino, "find_spec", lambda name: None)
    model = make_model()
    with pytest.raises(UsageError, match=r"pip install 'overtone\[openvino\]'"):
        model.set_compute_dtype("openvino")
    assert model.compute_dtype == "float32"
    assert cli.main(["transcribe", str(Path(__file__).parents[2] / "fixtures"), "--dtype", "openvino"]) == 2
    assert "overtone[openvino]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"position": "abs_pos"}, "relative positions"),
        ({"subsampling": "stacking"}, "subsampling by convolutions"),
        ({"conv_norm": "layer_norm"}, "batch norm"),
    ],
)
def test_unknown_encoders_are_told(settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "find_spec", lambda name: object())
    with pytest.raises(UsageError, match=f"it needs {message}.*--dtype"):
        small_model(**settings).set_compute_dtype("openvino")


def test_training_and_unknown_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "find_spec", lambda name: object())
    model = make_model().set_compute_dtype("openvino")
    assert model.compute_dtype.endswith(" (OpenVINO)")
    model.train_only("wide", base_dropout=True)
    with pytest.raises(UsageError, match="no gradients"):
        model.recognise(make_mel(), FRAMES)
    assert model.train_base().compute_dtype == "float32"
    with pytest.raises(ConfigError, match="Allowed: auto, float32, bfloat16, openvino"):
        model.set_compute_dtype("onnx")


# Computing


@needs_openvino
@pytest.mark.parametrize("name", ENCODERS)
def test_it_is_the_same_function(name: str) -> None:
    settings = dict(ENCODERS[name])
    model = make_model(**settings)
    for choice in (None, "wide", "narrow", CHOICES):
        model.backend = None
        expected = encode(model, choice)
        found = encode(compute_by_openvino(model), choice)
        for row, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert one.shape == other.shape
            assert torch.allclose(one, other, atol=1e-3, rtol=1e-3), (choice, row)


@needs_openvino
def test_bfloat16_is_as_near_as_the_copy_of_pytorch() -> None:
    model = make_model()
    expected = torch.cat(encode(model, CHOICES))
    fast = torch.cat(encode(compute_by_openvino(model, torch.bfloat16), CHOICES))
    model.set_compute_dtype("bfloat16")
    ours = torch.cat(encode(model, CHOICES))
    assert (fast - expected).norm() < max(1.5 * (ours - expected).norm(), 0.01 * expected.norm())


@needs_openvino
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_without_adapters_are_the_base_bit_for_bit(dtype: torch.dtype) -> None:
    model = compute_by_openvino(make_model(), dtype)
    base, mixed = encode(model, None), encode(model, CHOICES)
    for choice, one, other in zip(CHOICES, base, mixed, strict=True):
        assert torch.equal(one, other) == (choice is None)
    assert all(map(torch.equal, encode(model, None), base))


@needs_openvino
def test_off_it_is_the_base_bit_for_bit_and_a_changed_base_is_noticed() -> None:
    model = make_model()
    before = encode(model, None)
    first = encode(compute_by_openvino(model), None)
    fast = model.backend
    model.backend = None
    assert all(map(torch.equal, encode(model, None), before))
    with torch.no_grad():
        model.encoder.layers[1].get_parameter("norm_out.bias").add_(1.0)
    expected = encode(model, None)
    model.backend = fast
    changed = encode(model, None)
    assert not torch.allclose(changed[0], first[0], atol=0.1)
    assert torch.allclose(changed[0], expected[0], atol=1e-3)
    assert all(map(torch.equal, encode(copy.deepcopy(model), None), changed))


@needs_openvino
def test_a_refused_forward_leaves_the_next_one_whole() -> None:
    model = compute_by_openvino(make_model())
    add_trained(model, "lora", LoraAdapter(rank=2))
    with pytest.raises(AdapterError, match="LoraAdapter"):
        encode(model, "lora")
    with torch.no_grad():
        model.recognise(torch.randn(1, 80, 300), torch.tensor([300]))
    found = encode(model, None)
    model.backend = None
    assert torch.allclose(found[1], encode(model, None)[1], atol=1e-3)


SIGNALLED = """
import gc, signal, subprocess, torch
from support.small_models import small_model
signal.signal(signal.SIGCHLD, lambda number, frame: None)
models = []
for _ in range(3):
    models.append(small_model().set_compute_dtype("openvino"))
    with torch.inference_mode():
        models[-1](torch.zeros(1, 8000), torch.tensor([8000]))
while models:
    models.pop(0)
    gc.collect()
    subprocess.run(["true"])
    print("alive", flush=True)
"""


@needs_openvino
def test_signals_arrive_when_models_have_gone() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SIGNALLED],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout.split()) == (0, ["alive"] * 3), ended.stderr

"""Convolutional encoders beside NeMo, beside plain PyTorch, and what must hold of them whatever the weights are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from overtone.checkpoints.load import load_model
from overtone.errors import ConfigError
from overtone.nets.jasper import JasperBlock, JasperEncoder, frames_of
from support.families import CONVOLUTIONAL, family_model
from support.fixtures import fixture_file, recordings

NEMO_CASES = [
    *(("citrinet_ctc_bpe", combo) for combo in ("base", "none", "an4", "two", "an4+two", "dec", "all")),
    *(("contextnet_rnnt_bpe", combo) for combo in ("base", "none", "an4", "an4+two", "an4+xdec+xjoint", "all")),
]


def reference(arrays: Any, name: str) -> Tensor:
    """[B, D, T] -> [B, T, D]"""
    return torch.from_numpy(arrays[name]).transpose(1, 2)


def assert_close(x: Tensor, expected: Tensor, lengths: Tensor, *, atol: float) -> None:
    """x and expected [B, T, D], each row below its length."""
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(x[row, :length], expected[row, :length], rtol=0, atol=atol)


@pytest.mark.parametrize(("name", "combo"), NEMO_CASES)
def test_every_combination_of_adapters_equals_nemo(name: str, combo: str) -> None:
    """On NeMo's own features, whose differences from ours the adapters make a hundred times larger.

    In one frame the norm of `two` sees next to no variance: NeMo itself is 4e-4 from its float64 result there.
    """
    model = load_model(fixture_file(f"{name}/adapted.nemo"))
    arrays = np.load(fixture_file(f"{name}/ref_{combo}.npz"))
    choice = {"base": None, "none": None, "all": "+".join(model.adapters.names)}.get(combo, combo)
    mels = np.load(fixture_file(f"{name}/ref_base.npz"))
    compared = [tag for tag in "012b" if f"enc_{tag}" in arrays and f"mel_{tag}" in mels]
    assert compared
    for tag in compared:
        with torch.no_grad(), model.adapters.use(choice):
            x, frames = model.encoder(*(torch.from_numpy(mels[f"{key}_{tag}"]) for key in ("mel", "mel_len")))
        if f"enc_len_{tag}" in arrays:
            assert frames.tolist() == arrays[f"enc_len_{tag}"].tolist()
        assert_close(x, reference(arrays, f"enc_{tag}"), frames, atol=5e-4 if "two" in str(choice) else 2e-4)


def test_every_block_equals_nemo() -> None:
    model = load_model(fixture_file("citrinet_ctc_bpe/model.nemo"))
    arrays = np.load(fixture_file("citrinet_ctc_bpe/ref_base.npz"))
    mel, lengths = model.preprocessor(*recordings())
    blocks = [key for key in arrays if key.startswith("dbg_block_")]
    assert len(blocks) == model.encoder.depth
    for cut in range(1, model.encoder.depth + 1):
        with torch.no_grad():
            x, frames = model.encoder.below(mel, lengths, cut)
        assert_close(x, reference(arrays, f"dbg_block_{cut - 1}"), frames, atol=2e-4)


# Beside plain PyTorch


def plain_block(block: JasperBlock, inputs: list[Tensor], length: int, settings: dict[str, Any]) -> Tensor:
    """One row without padding, [1, D, T], through the block as its papers describe it."""
    tensors = block.state_dict()
    stride, groups, act = settings["stride"], settings["groups"], F.relu

    def norm(x: Tensor, key: str) -> Tensor:
        mean, var, gain, bias = (tensors[f"{key}.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, gain, bias, eps=1e-3)

    x, place = inputs[-1], 0
    for number in range(settings["repeat"]):
        if number:
            x, place = act(x), place + 2
        steps = stride if number == settings["repeat"] - 1 or not settings["stride_last"] else 1
        weight = tensors[f"mconv.{place}.conv.weight"]
        span = settings["dilation"] * (settings["kernel"] - 1)
        right = settings["future"] if settings["future"] >= 0 else span // 2
        over_time = x.size(1) if settings["separable"] else groups
        x = F.conv1d(F.pad(x, (span - right, right)), weight, None, steps, 0, settings["dilation"], over_time)
        place += 1
        if settings["separable"]:
            x = F.conv1d(x, tensors[f"mconv.{place}.conv.weight"], groups=groups)
            place += 1
        x = norm(x, f"mconv.{place}")
        place += 1
        if groups > 1:
            x, place = x.view(1, groups, -1, x.size(2)).transpose(1, 2).reshape(x.shape), place + 1
    if settings["squeeze_excite"]:
        scale = act(x.mean(2) @ tensors[f"mconv.{place}.fc.0.weight"].T) @ tensors[f"mconv.{place}.fc.2.weight"].T
        x = x * scale.sigmoid().unsqueeze(2)
    for number, source in enumerate(inputs if settings["dense"] else inputs[-1:]):
        if settings["residual"]:
            steps = stride if settings["residual_mode"] == "stride_add" else 1
            added = norm(F.conv1d(source, tensors[f"res.{number}.0.conv.weight"], None, steps), f"res.{number}.1")
            x = torch.maximum(x, added) if settings["residual_mode"] == "max" else x + added
    return act(x)


PLAIN = {
    "filters": 12, "repeat": 3, "kernel": 5, "stride": 1, "dilation": 1, "residual": True, "dense": False,
    "residual_mode": "add", "groups": 1, "separable": False, "squeeze_excite": False, "reduction": 4,
    "stride_last": False, "future": -1,
}  # fmt: skip
BLOCKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dense": {"dense": True},
    "largest": {"residual_mode": "max"},
    "dilated": {"dilation": 3},
    "strides": {"stride": 2, "residual": False},
    "last stride": {"stride": 3, "stride_last": True, "residual_mode": "stride_add", "separable": True},
    "groups": {"groups": 4},
    "groups between channels": {"groups": 2, "separable": True},
    "little future": {"future": 1},
    "no future": {"future": 0, "separable": True, "stride": 2, "residual": False},
    "squeeze": {"squeeze_excite": True, "separable": True, "kernel": 1},
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_what_plain_convolutions_give(name: str) -> None:
    settings = {**PLAIN, **BLOCKS[name]}
    widths = [6, 10, 8] if settings["dense"] else [8]
    torch.manual_seed(0)
    block = JasperBlock(widths, "relu", **settings).eval()
    with torch.no_grad():
        for tensor in block.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn_like(tensor) if tensor.dim() > 1 else torch.rand_like(tensor) + 0.5)
        inputs = [torch.randn(2, 23, width) for width in widths]
        lengths = torch.tensor([23, 17])
        y = block(inputs, frames_of(lengths, inputs[0]))
        for row, length in enumerate(lengths.tolist()):
            own = [x[row : row + 1, :length].transpose(1, 2) for x in inputs]
            expected = plain_block(block, own, length, settings).transpose(1, 2)
            torch.testing.assert_close(y[row : row + 1, : expected.size(1)], expected, rtol=1e-4, atol=1e-4)


# Published models


def separable(filters: int, kernel: int, repeat: int = 5, **more: Any) -> dict[str, Any]:
    return {"filters": filters, "kernel": kernel, "repeat": repeat, "separable": True, **more}


def odd(kernel: int) -> int:
    return kernel + 1 - kernel % 2


END = {"repeat": 1, "residual": False}
SQUEEZE = {"squeeze_excite": True}
STRIDE = {"stride": 2, "stride_last": True, "residual_mode": "stride_add"}
CITRINET_KERNELS = [11, 13, 15, 17, 19, 21, 13, 15, 17, 19, 21, 23, 25, 25, *range(27, 40, 2)]
PUBLISHED: dict[str, tuple[list[dict[str, Any]], float, int]] = {
    "quartznet_15x5": (
        [
            separable(256, 33, stride=2, **END),
            *(separable(filters, kernel) for filters, kernel in ((256, 33), (256, 39), (512, 51), (512, 63), (512, 75))
              for _ in range(3)),
            separable(512, 87, dilation=2, **END),
            {"filters": 1024, "kernel": 1, **END},
        ],
        18.9,
        2,
    ),
    "jasper_10x5dr": (
        [
            {"filters": 256, "kernel": 11, "stride": 2, **END},
            *({"filters": filters, "kernel": kernel, "repeat": 5, "dense": True}
              for filters, kernel in ((256, 11), (384, 13), (512, 17), (640, 21), (768, 25)) for _ in range(2)),
            {"filters": 896, "kernel": 29, "dilation": 2, **END},
            {"filters": 1024, "kernel": 1, **END},
        ],
        332.6,
        2,
    ),
    "citrinet_1024": (
        [
            separable(1024, 5, **END, **SQUEEZE),
            *(separable(1024, odd(kernel // 4), **SQUEEZE, **(STRIDE if number in (0, 6, 13) else {}))
              for number, kernel in enumerate(CITRINET_KERNELS)),
            separable(1024, 11, **END, **SQUEEZE),
        ],
        140.0,
        8,
    ),
    "contextnet_1024": (
        [
            separable(1024, 5, **END, **SQUEEZE),
            *(separable(1024, 5, **SQUEEZE, **(STRIDE if number in (3, 7, 14) else {})) for number in range(1, 22)),
            separable(640, 5, **END, **SQUEEZE),
        ],
        138.6,
        8,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_number_of_parameters(name: str) -> None:
    blocks, millions, factor = PUBLISHED[name]
    with torch.device("meta"):
        encoder = JasperEncoder(features=64 if factor == 2 else 80, blocks=blocks)
    assert sum(parameter.numel() for parameter in encoder.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)
    assert encoder.subsampling_factor == factor
    assert encoder.describe()[0].lower() == name.partition("_")[0]


# What must hold


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kernel": 4}, "no odd number"),
        ({"stride": 2, "dilation": 2, "residual": False}, "stride and dilation"),
        ({"dilation": 2, "future": 1}, "limited future"),
        ({"groups": 5}, "5 groups do not divide"),
        ({"squeeze_excite": True, "reduction": 16}, "leaves none"),
        ({"stride": 2}, "needs the mode stride_add"),
        ({"stride": 2, "residual_mode": "stride_add"}, "needs stride_last"),
        ({"stride": 2, "residual_mode": "stride_add", "stride_last": True, "dense": True}, "dense residual"),
    ],
)
def test_blocks_that_cannot_be_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=rf"encoder.blocks\[1\]: .*{words}"):
        JasperEncoder(features=8, blocks=[{**PLAIN}, {**PLAIN, **change}])
    with pytest.raises(ConfigError, match="plain residual cannot follow dense"):
        JasperEncoder(features=8, blocks=[{**PLAIN, "dense": True}, PLAIN])
    with pytest.raises(ConfigError, match="at least one block"):
        JasperEncoder(blocks=[])
    with pytest.raises(ConfigError, match=r"'mish' is unknown. Allowed: relu"):
        JasperEncoder(blocks=[PLAIN], activation="mish")


def test_the_parts_on_both_sides_of_every_cut_make_the_whole() -> None:
    model = family_model("citrinet")
    encoder = model.encoder
    mel, lengths = torch.randn(3, 20, 64), torch.tensor([64, 41, 20])
    with torch.no_grad():
        whole, frames = encoder(mel, lengths)
        for cut in range(encoder.depth + 1):
            x, there = encoder.below(mel, lengths, cut)
            width, factor = encoder.size_at(cut)
            assert x.size(2) == width
            assert there.tolist() == [-(-length // factor) for length in lengths.tolist()]
            y, count = encoder.above(x, there, cut)
            assert torch.equal(y, whole)
            assert torch.equal(count, frames)
    assert not encoder.uncut
    assert "dense residuals" in family_model("jasper").encoder.uncut


@pytest.mark.parametrize("family", CONVOLUTIONAL)
def test_padding_is_not_heard(family: str) -> None:
    encoder = family_model(family).encoder
    mel, lengths = torch.randn(2, 20, 64), torch.tensor([64, 37])
    with torch.no_grad():
        x, frames = encoder(mel, lengths)
        mel[1, :, 37:] = 1000.0
        again, _ = encoder(mel, lengths)
        alone, count = encoder(mel[1:, :, :37], lengths[1:])
    assert torch.equal(x[1, : frames[1]], again[1, : frames[1]])
    assert count.tolist() == [int(frames[1])] == [alone.size(1)]
    torch.testing.assert_close(alone[0], x[1, : frames[1]], rtol=0, atol=1e-5)
    empty, none = encoder(mel, torch.tensor([64, 0]))
    assert int(none[1]) == 0
    assert bool(empty.isfinite().all())


def test_inner_outputs_are_those_of_the_same_size() -> None:
    same = {"filters": 8, "repeat": 1, "kernel": 3, "residual": False}
    encoder = JasperEncoder(features=20, blocks=[{**same, "filters": 6}, {**same, "stride": 2}, same, same]).eval()
    assert list(encoder.inner_layers) == [1, 2]
    mel, lengths = torch.randn(1, 20, 31), torch.tensor([31])
    with torch.no_grad():
        (first, last), frames = encoder.within(mel, lengths, [1])
        assert torch.equal(first, encoder.below(mel, lengths, 2)[0])
        assert torch.equal(last, encoder(mel, lengths)[0])
    assert frames.tolist() == [16]

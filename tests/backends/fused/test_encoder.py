"""The fast copy of a frozen encoder is the same function as the encoder."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overtone.adapters.kinds.base import Kind
from overtone.adapters.kinds.linear import LinearAdapter
from overtone.adapters.kinds.lora import LoraAdapter
from overtone.adapters.kinds.registry import KINDS
from overtone.adapters.kinds.tiny_attention import TinyAttentionAdapter
from overtone.backends.fused.encoder import FusedEncoder
from overtone.backends.fused.subsampling import FusedSubsampling
from overtone.models.asr_model import AsrModel, build_model
from overtone.nets import attention, conformer
from overtone.nets.conformer import ConformerEncoder
from overtone.nets.ctc import ctc_loss
from overtone.nets.taps import NO_CHAINS, Chains, Tap, TapContext
from overtone.tokenizers import CharTokenizer

LETTERS = [chr(ord("a") + index) for index in range(20)]
SMALL: dict[str, Any] = {"width": 32, "layers": 2, "heads": 4, "kernel_size": 7}
ENCODERS: dict[str, dict[str, Any]] = {
    "conformer": {},
    "fastconformer": {"subsampling": "dw_striding", "subsampling_factor": 8},
    "absolute": {"position": "abs_pos"},
    "layer_norm": {"conv_norm": "layer_norm"},
    "group_norm": {"conv_norm": "group_norm4"},
    "stacking": {"subsampling": "stacking"},
    "stacking_norm": {"subsampling": "stacking_norm"},
    "causal": {"causal_downsampling": True, "conv_context": [6, 0]},
    "limited": {"attention_context": [5, 2]},
    "chunked": {"attention_context": [6, 2], "attention_context_style": "chunked_limited"},
    "projected": {"output_width": 20},
    "plain": {"use_bias": False, "scale_input": False, "untie_biases": False},
    "width_16": {"width": 16, "heads": 2},
    "width_80": {"width": 80},
}
ADAPTERS: dict[str, Kind] = {
    "linear": LinearAdapter(dim=4),
    "lora": LoraAdapter(rank=2, alpha=2.0),
    "tiny_attn": TinyAttentionAdapter(),
}
SAMPLES = torch.tensor([16_000, 12_000, 7_000])


def make_model(**settings: Any) -> AsrModel:
    torch.manual_seed(1)
    encoder = {**SMALL, **settings}
    width = encoder.get("output_width") or encoder["width"]
    decoder = {"width": width, "classes": len(LETTERS)}
    model = build_model(
        settings={"preprocessor": {}, "encoder": encoder, "decoder": decoder}, tokenizer=CharTokenizer(LETTERS)
    )
    with torch.no_grad():
        for name, tensor in model.encoder.state_dict().items():
            if "batch_norm.weight" in name or "running_var" in name:
                tensor.uniform_(0.5, 1.5)
            elif "batch_norm" in name or "pos_bias" in name:
                tensor.copy_(0.3 * torch.randn(tensor.shape))
        for name, kind in ADAPTERS.items():
            model.adapters.add(name, kind)
            for parameter in model.adapters.parameters_of(name):
                parameter.copy_(0.2 * torch.randn(parameter.shape))
    return model


@pytest.fixture(scope="module")
def waveforms() -> Tensor:
    return torch.randn(3, int(SAMPLES.max()), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module", params=list(ENCODERS))
def model(request: pytest.FixtureRequest) -> AsrModel:
    return make_model(**ENCODERS[request.param])


def prepare(model: AsrModel, dtype: torch.dtype | None) -> AsrModel:
    model.backend = None if dtype is None else FusedEncoder(model.encoder, dtype)
    return model


def outputs_and_gradients(model: AsrModel, waveforms: Tensor, adapter: str) -> tuple[Tensor, Tensor]:
    """The log-probabilities of a training forward and all gradients of the adapter, end to end."""
    model.train_only(adapter)
    mel, lengths = model.preprocessor.eval()(waveforms, SAMPLES)
    targets = torch.arange(9).view(3, 3)
    with model.adapters.use(adapter):
        log_probs, lengths = model.recognise(mel, lengths)
        ctc_loss(log_probs, lengths, targets, torch.tensor([3, 2, 1])).backward()
    gradients = [parameter.grad for parameter in model.adapters.parameters_of(adapter)]
    flat = torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])
    assert len(gradients) == sum(gradient is not None for gradient in gradients)
    model.zero_grad()
    return log_probs.detach(), flat


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_every_kind_is_tried() -> None:
    assert ADAPTERS.keys() == KINDS.keys()


@pytest.mark.parametrize("adapter", list(ADAPTERS))
def test_equals_the_encoder(model: AsrModel, waveforms: Tensor, adapter: str) -> None:
    expected, expected_gradients = outputs_and_gradients(prepare(model, None), waveforms, adapter)
    before = {name: tensor.clone() for name, tensor in model.base_state_dict().items()}
    for dtype, output_error, gradient_error in ((torch.float32, 1e-5, 1e-4), (torch.bfloat16, 0.1, 0.3)):
        outputs, gradients = outputs_and_gradients(prepare(model, dtype), waveforms, adapter)
        assert outputs.dtype is torch.float32
        assert (outputs - expected).abs().max() < output_error
        assert relative(gradients, expected_gradients) < gradient_error
    for name, tensor in model.base_state_dict().items():
        assert torch.equal(tensor, before[name])
        assert tensor.dtype is before[name].dtype


@pytest.mark.parametrize("adapter", list(ADAPTERS))
def test_many_scores_are_attended_to_like_few(
    model: AsrModel, waveforms: Tensor, adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16, long inputs are computed in another dtype than short ones where something is learnt, only there."""
    prepare(model, torch.bfloat16)
    few, few_gradients = outputs_and_gradients(model, waveforms, adapter)
    with torch.no_grad():
        few_heard, _ = model.eval()(waveforms, SAMPLES)
    monkeypatch.setattr("overtone.backends.fused.attention.FEW_SCORES", 0)
    many, many_gradients = outputs_and_gradients(model, waveforms, adapter)
    with torch.no_grad():
        assert torch.equal(model.eval()(waveforms, SAMPLES)[0], few_heard)
    assert not torch.equal(few, many)
    assert (few - many).abs().max() < 0.1
    assert relative(many_gradients, few_gradients) < 0.3


@pytest.mark.parametrize("adapter", [None, "linear", "linear+lora+tiny_attn"])
def test_inference_equals_the_encoder(model: AsrModel, waveforms: Tensor, adapter: str | None) -> None:
    model.eval()
    with torch.inference_mode(), model.adapters.use(adapter):
        expected, lengths = prepare(model, None)(waveforms, SAMPLES)
        outputs, prepared_lengths = prepare(model, torch.float32)(waveforms, SAMPLES)
        reduced, _ = prepare(model, torch.bfloat16)(waveforms, SAMPLES)
    assert torch.equal(lengths, prepared_lengths)
    assert (outputs - expected).abs().max() < 1e-5
    assert (reduced - expected).abs().max() < 0.3
    if adapter is None:
        valid = torch.arange(expected.size(1)) < lengths.unsqueeze(1)
        best, second = expected.topk(2, dim=-1).values.unbind(-1)
        clear = (best - second > 0.03)[valid]  # noise on random weights: many tokens are about as likely
        agree = (reduced.argmax(-1) == expected.argmax(-1))[valid]
        assert clear.float().mean() > 0.5
        assert agree[clear].all()


def test_one_length_needs_no_mask(waveforms: Tensor) -> None:
    model = make_model()
    mel = torch.randn(2, 80, 100)
    lengths = torch.tensor([100, 100])
    with torch.inference_mode():
        x, counts = model.encoder(mel, lengths)
        y, _ = FusedEncoder(model.encoder, torch.float32)(mel, lengths)
    assert counts.tolist() == [x.size(1)] * 2
    assert (x - y).abs().max() < 1e-5


def test_rows_do_not_touch_each_other(waveforms: Tensor) -> None:
    model = make_model().eval()
    choices = [None, "linear", "lora+linear"]
    for dtype, error in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        prepare(model, dtype)
        with torch.no_grad():
            with model.adapters.use(choices):
                mixed, _ = model(waveforms, SAMPLES)
            base, _ = model(waveforms, SAMPLES)
            assert torch.equal(mixed[0], base[0])
            for kind in (known.kind for known in KINDS.values()):
                model.adapters.add("fresh", kind())
                with model.adapters.use("fresh"):
                    assert torch.equal(model(waveforms, SAMPLES)[0], base)
                model.adapters.remove("fresh")
            for row, choice in enumerate(choices):
                with model.adapters.use(choice):
                    alone, _ = model(waveforms[row : row + 1], SAMPLES[row : row + 1])
                assert (mixed[row] - alone[0]).abs().max() < error


def test_rows_are_subsampled_in_chunks_alike(waveforms: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = prepare(make_model().eval(), torch.float32)
    whole, _ = model(waveforms, SAMPLES)
    monkeypatch.setattr("overtone.backends.fused.subsampling.CHUNK_BYTES", 1)
    chunked, _ = model(waveforms, SAMPLES)
    assert (whole - chunked).abs().max() < 1e-6


def test_longer_inputs_extend_the_encodings() -> None:
    model = make_model()
    prepared = FusedEncoder(model.encoder, torch.float32)
    for frames in (40, 2_200, 100):  # 550 encoder frames are more than are prepared at first
        mel, lengths = torch.randn(1, 80, frames), torch.tensor([frames])
        with torch.no_grad():
            assert (prepared(mel, lengths)[0] - model.encoder(mel, lengths)[0]).abs().max() < 1e-5


def test_layers_below_the_first_adapter_keep_nothing(waveforms: Tensor) -> None:
    model = prepare(make_model(layers=3), torch.float32)
    model.adapters.add("top", LinearAdapter(dim=4), layers="last:1")
    model.train_only("top")
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), model.adapters.use("top"):
        log_probs, _ = model(waveforms, SAMPLES)
    assert log_probs.requires_grad
    # What attention and feed-forwards would keep is wider than the stream.
    assert kept
    assert not any(tensor.dim() == 3 and tensor.size(-1) == 4 * SMALL["width"] for tensor in kept)


def test_checkpointing_gives_the_same_gradients(waveforms: Tensor) -> None:
    model = prepare(make_model(), torch.float32)
    expected = outputs_and_gradients(model, waveforms, "linear")
    model.encoder.gradient_checkpointing = True
    for ours, other in zip(outputs_and_gradients(model, waveforms, "linear"), expected, strict=True):
        assert torch.equal(ours, other)


def test_follows_the_base(waveforms: Tensor) -> None:
    model = prepare(make_model().eval(), torch.float32)
    first, _ = model(waveforms, SAMPLES)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model.encoder.layers[0].norm_out.weight.mul_(1.5)  # type: ignore[union-attr, operator]
        model.encoder.layers[1].conv.batch_norm.running_mean.add_(0.5)  # type: ignore[union-attr, operator]
    changed, _ = model(waveforms, SAMPLES)
    assert (changed - first).abs().max() > 1e-2
    assert (changed - prepare(model, None)(waveforms, SAMPLES)[0]).abs().max() < 1e-5

    assert twin.backend is not None
    assert twin.backend.encoder is twin.encoder
    assert torch.equal(twin(waveforms, SAMPLES)[0], first)
    with twin.adapters.use("linear"):
        assert (twin(waveforms, SAMPLES)[0] - first).abs().max() > 1e-3
    with torch.no_grad():
        twin.encoder.layers[0].norm_out.weight.zero_()  # type: ignore[union-attr, operator]
    assert (twin(waveforms, SAMPLES)[0] - first).abs().max() > 1e-2


def test_the_model_chooses(waveforms: Tensor) -> None:
    model = make_model()
    assert model.set_compute_dtype("float32").backend is None
    for dtype, prepared in (("float32", True), ("bfloat16", False), ("auto", False)):
        model.set_compute_dtype(dtype, prepared=prepared)
        assert model.backend is not None
        assert model.compute_dtype == dtype or dtype == "auto"
    assert model.train_base().backend is None


def test_training_follows_inference_mode(waveforms: Tensor) -> None:
    model = prepare(make_model().eval(), torch.bfloat16)
    with torch.inference_mode():
        model(waveforms, SAMPLES)
    _, gradients = outputs_and_gradients(model, waveforms, "linear")
    assert gradients.isfinite().all()


def test_autocast_changes_nothing(waveforms: Tensor) -> None:
    model = prepare(make_model().eval(), torch.float32)
    mel, lengths = model.preprocessor(waveforms, SAMPLES)
    assert model.backend is not None
    expected, _ = model.backend(mel, lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, _ = model.backend(mel, lengths)
    assert torch.equal(outputs, expected)


# Dropout


def encoder_with(**dropouts: float) -> ConformerEncoder:
    none = dict.fromkeys(("dropout", "dropout_pre_encoder", "dropout_emb", "dropout_att"), 0.0)
    torch.manual_seed(3)
    return ConformerEncoder(**{**SMALL, **none, **dropouts})


@pytest.mark.parametrize("where", ["dropout", "dropout_pre_encoder", "dropout_emb", "dropout_att"])
@pytest.mark.parametrize("taps_act", [False, True])
def test_dropout_is_where_the_encoder_has_it(where: str, taps_act: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The spread over many draws is that of torch's own dropout, with plain and prepared parts; without training mode
    there is none."""
    encoder = encoder_with(**{where: 0.1})
    prepared = FusedEncoder(encoder, torch.float32)
    if taps_act:  # the parts run as separate modules then
        plug_everywhere(encoder)
    mel, lengths = torch.randn(4, 80, 64), torch.tensor([64, 64, 60, 40])
    with torch.no_grad():
        still = encoder.eval()(mel, lengths)[0]
        assert (prepared(mel, lengths)[0] - still).abs().max() < 1e-5
        encoder.train()
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        ours, plain = (spread(net, mel, lengths, still) for net in (prepared, encoder))
        monkeypatch.setattr(conformer, "apply_dropout", lambda x, dropout: dropout(x))
        monkeypatch.setattr(attention, "drop", F.dropout)
        theirs = spread(encoder, mel, lengths, still)
    assert theirs > 1e-3
    assert (ours, plain) == (pytest.approx(theirs, rel=0.15), pytest.approx(theirs, rel=0.15))


class Through:
    """What acts, and adds nothing."""

    def __call__(self, x: Tensor, y: Tensor, context: TapContext, *, in_place: bool = False) -> Tensor:
        return y

    def acts(self) -> bool:
        return True

    def chains(self, rows: int) -> Chains:
        return NO_CHAINS


def plug_everywhere(encoder: ConformerEncoder) -> None:
    for module in encoder.modules():
        if isinstance(module, Tap):
            module.plug = Through()


def spread(
    net: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], mel: Tensor, lengths: Tensor, still: Tensor
) -> float:
    torch.manual_seed(4)
    return float(torch.stack([(net(mel, lengths)[0] - still).square().mean() for _ in range(12)]).mean().sqrt())


@pytest.mark.parametrize("taps_act", [False, True])
def test_gradients_go_through_the_masks_of_the_forward(taps_act: bool) -> None:
    """With dropout the gradient is that of the very function that the forward computed: a finite difference."""
    encoder = encoder_with(dropout=0.3, dropout_att=0.3).train()
    prepared = FusedEncoder(encoder, torch.float32)
    if taps_act:
        plug_everywhere(encoder)
    prepared.refresh()
    start, _, shared = prepared.embed(torch.randn(2, 80, 48), torch.tensor([48, 30]))

    def run(x: Tensor) -> Tensor:
        torch.manual_seed(7)
        y: Tensor = prepared.layers[0](x, shared)
        return y

    x = start.detach().requires_grad_(True)
    y = run(x)
    weights, direction = torch.randn_like(y), torch.randn_like(x)
    y.backward(weights)
    assert x.grad is not None
    with torch.no_grad():
        difference = (run(x + 0.01 * direction).double() - run(x - 0.01 * direction).double()) / 0.02
    assert float((x.grad * direction).sum()) == pytest.approx(float((difference * weights).sum()), rel=0.01)


# A kernel that may never return


def test_widths_whose_kernel_hangs_are_avoided() -> None:
    """Channels-last bfloat16 depthwise kernels of D ≡ 16 (mod 64) may never return: a watchdog would end this."""
    encoder = ConformerEncoder(width=144, layers=1, heads=4, kernel_size=31, subsampling="dw_striding").eval()
    prepared = FusedEncoder(encoder, torch.bfloat16)
    finished = threading.Event()

    def run() -> None:
        with torch.no_grad():
            prepared(torch.randn(15, 80, 560), torch.full((15,), 560))
        finished.set()

    threading.Thread(target=run, daemon=True).start()
    assert finished.wait(60)
    assert isinstance(prepared.pre_encode, FusedSubsampling)
    assert not prepared.pre_encode.stages[0].channels_last
    convolution = prepared.layers[0].convolution
    assert convolution is not None
    assert convolution.filter.kernel.dtype is torch.float32

"""A frozen encoder computed by OpenVINO, for inference with linear adapters.

The graph is made from the base's weights when it is first needed, and anew when the base has changed. Adapters are
among its inputs, one set a row, so that other adapters are other numbers and nothing is compiled for them.
Legend: B batch, T mel frames, T' encoder frames, F mel bins, D width, A adapters (1 or B), R bottleneck.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overtone.backends.fused.attention import FORBIDDEN, AttentionCore
from overtone.backends.fused.encoder import SHORTEST_ENCODINGS, FusedEncoder
from overtone.backends.openvino.adapters import OTHERWISE, BottleneckInputs, bottlenecks_at
from overtone.backends.openvino.graph import EncoderGraph
from overtone.errors import UsageError
from overtone.nets.conformer import ConformerEncoder
from overtone.nets.encoder import Encoder
from overtone.nets.layers import valid_frames
from overtone.nets.subsampling import ConvSubsampling
from overtone.nets.taps import Tap

STEP = 32
"""Mel frames: lengths are filled up to a multiple, since kernels are made and kept for every length."""
KERNELS_KEPT = 500
"""OpenVINO's own five thousand grew by hundreds of megabytes with rows of any number and length."""


@cache
def the_core() -> Any:
    """OpenVINO's core, one for the whole process and never released.

    With each core OpenVINO gives its thread a stack for signals, and restores the previous one when it is released.
    Several that are released in another order than they were made leave a stack that no longer exists, and the next
    signal ends the process.
    """
    import openvino

    return openvino.Core()


class OpenVinoEncoder:
    """mel [B, F, T] float32, lengths [B] -> x [B, T', D] float32, lengths [B], computed in `dtype`.

    The same function as the encoder's, for inference: no gradient flows through it. Raises UsageError for encoders
    that the graph does not know, where openvino is not installed, and in training.
    """

    def __init__(self, encoder: Encoder, dtype: torch.dtype) -> None:
        check_installed()
        self.encoder = check_encoder(encoder)
        self.dtype = dtype
        self.source = FusedEncoder(self.encoder, torch.float32)
        """It derives the weights and notices when the base has changed, and holds none of them in between."""
        self.made_from: tuple[object, int] | None = None
        self.lock = threading.Lock()
        self.request: Any = None
        self.held: dict[str, Tensor] = {}
        """The tensors whose memory the request reads; it does not keep them alive itself."""
        self.nothing: BottleneckInputs = (torch.empty(0), torch.empty(0), torch.empty(0))
        """Inputs of a layer behind which no adapter acts: they add zero."""
        self.cores: list[AttentionCore] = []
        self.taps: list[Tap] = []
        self.others: dict[str, Tap] = {}
        """Taps by name where no adapter may act."""
        self.distances_for = 0
        """The number of encoder frames of the request's encodings of distances."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)(copy.deepcopy(self.encoder, memo), self.dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.encoder, self.dtype)  # a pickle has no copy: it is derived anew

    def forget(self) -> None:
        """Compile the graph anew at the next forward, also where no write to the base has been noticed."""
        self.source.forget()

    def __call__(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if self.encoder.window is not None:
            raise UsageError(f"OpenVINO does not compute local attention. {OTHERWISE}")
        if self.encoder.training:
            raise UsageError(f"OpenVINO computes no gradients; the model is in training mode. {OTHERWISE}")
        with self.lock, torch.no_grad():
            self.refresh()
            inputs = self.adapters_for(mel.size(0)) | self.frames_of(mel, lengths)
            return self.infer(inputs, mel.size(2)), self.halvings(lengths)[-1]

    def below(self, mel: Tensor, lengths: Tensor, cut: int) -> tuple[Tensor, Tensor]:
        """The same as `Encoder.below`, computed by PyTorch: mel [B, F, T], lengths [B] -> x [B, T', D]."""
        return self.encoder.below(mel, lengths, cut)

    def above(self, x: Tensor, lengths: Tensor, cut: int) -> tuple[Tensor, Tensor]:
        """The same as `Encoder.above`, by PyTorch: x [B, T', D], lengths [B] -> the output [B, T', D], lengths [B]."""
        return self.encoder.above(x, lengths, cut)

    def within(self, mel: Tensor, lengths: Tensor, layers: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """The same as `ConformerEncoder.within`, computed by PyTorch: mel [B, F, T], lengths [B] -> [B, T', D] each."""
        return self.encoder.within(mel, lengths, layers)

    @property
    def pre_encode(self) -> ConvSubsampling:
        module = self.encoder.pre_encode
        assert isinstance(module, ConvSubsampling)
        return module

    def refresh(self) -> None:
        """Make the graph anew where the base or the number of threads has changed since."""
        self.source.refresh()
        threads = torch.get_num_threads()
        if self.made_from is not None and self.made_from[0] is self.source.state and self.made_from[1] == threads:
            return
        if not self.source.layers:
            self.source.derive()
        layers = self.source.layers
        graph = EncoderGraph(self.encoder, layers, self.dtype)
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if self.dtype is torch.bfloat16 else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,
            "CPU_RUNTIME_CACHE_CAPACITY": KERNELS_KEPT,
        }
        self.request = the_core().compile_model(graph.model, "CPU", settings).create_infer_request()
        self.cores = [
            AttentionCore(layer.attention.module, layer.attention.padded_width, self.dtype) for layer in layers
        ]
        self.taps = [layer.layer.after_block for layer in layers]
        chosen = set(map(id, self.taps))
        self.others = {
            f"encoder.{name}": module
            for name, module in self.encoder.named_modules()
            if isinstance(module, Tap) and id(module) not in chosen
        }
        self.source.layers = []
        width = self.taps[0].out_width
        zeros = torch.zeros(1, 1, width, dtype=self.dtype)
        self.nothing = (zeros, zeros[..., :1], zeros.view(1, width, 1))
        self.held, self.distances_for = {}, 0
        self.made_from = (self.source.state, threads)

    def frames_of(self, mel: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """mel [B, F, T], lengths [B] -> frames filled up to a multiple of STEP, their masks, the distances."""
        mel = F.pad(mel.float(), (0, -mel.size(2) % STEP))
        inputs = {"mel": mel}
        frames, valid = mel.size(2), None
        for stage, counts in enumerate(self.halvings(lengths)):
            frames = frames if stage == 0 else self.pre_encode.halved(frames)
            valid = valid_frames(counts, frames)
            inputs[f"frames{stage}"] = valid.float()[:, None, :, None]
        assert valid is not None
        allowed = valid[:, None, None, :]
        if self.encoder.attention_context != (-1, -1):
            context = self.encoder.tap_context(self.halvings(lengths)[-1], frames, None)
            assert context.attention is not None
            allowed = context.attention
        inputs["speech"] = valid.float().unsqueeze(-1)
        inputs["marks"] = torch.zeros(allowed.shape).masked_fill_(~allowed, FORBIDDEN)
        if frames != self.distances_for:
            inputs |= self.distances(frames)
        return inputs

    def halvings(self, lengths: Tensor) -> list[Tensor]:
        """lengths [B] before and after every stage of the subsampling, each [B]."""
        found = [lengths]
        for _ in range(self.pre_encode.stages):
            found.append(self.pre_encode.halved_lengths(found[-1]))
        return found

    def distances(self, frames: int) -> dict[str, Tensor]:
        """Every layer's encodings of distances for so many encoder frames T', each [1, H, 2T'-1, P]."""
        if frames > self.cores[0].longest:
            known = max(SHORTEST_ENCODINGS, 1 << (frames - 1).bit_length())
            positions = self.encoder.positions(known, torch.device("cpu"))
            for core in self.cores:
                core.prepare(positions)
        return {
            f"distances{number}": core.encoded(frames, core.dtype).unsqueeze(0)
            for number, core in enumerate(self.cores)
        }

    def adapters_for(self, rows: int) -> dict[str, Tensor]:
        """The inputs for the adapters behind each layer, zeros where none acts.

        Raises AdapterError for adapters that the graph cannot compute, UsageError for those at other points.
        """
        inputs: dict[str, Tensor] = {}
        for name, tap in self.others.items():
            if tap.acts():
                bottlenecks_at(tap, name, rows, self.dtype)
                raise UsageError(f"OpenVINO computes adapters behind whole layers only. {OTHERWISE}")
        for number, tap in enumerate(self.taps):
            name = f"encoder.layers.{number}.after_block"
            found = bottlenecks_at(tap, name, rows, self.dtype) if tap.acts() else self.nothing
            inputs |= zip((f"down{number}", f"bias{number}", f"up{number}"), found, strict=True)
        return inputs

    def infer(self, inputs: Mapping[str, Tensor], mel_frames: int) -> Tensor:
        """Run the graph: x [B, T', D] for so many mel frames before they were filled up."""
        for name, tensor in inputs.items():
            tensor = tensor.detach().contiguous()
            held = self.held.get(name)
            if held is None or held.data_ptr() != tensor.data_ptr() or held.shape != tensor.shape:
                self.held[name] = tensor
                self.request.set_tensor(name, share_memory(tensor))
        self.distances_for = inputs["speech"].size(1)
        self.request.infer()
        frames = mel_frames
        for _ in range(self.pre_encode.stages):
            frames = self.pre_encode.halved(frames)
        return torch.from_numpy(self.request.get_output_tensor(0).data[:, :frames].copy())


def share_memory(tensor: Tensor) -> Any:
    """A tensor of any shape on the CPU -> the same memory as a tensor of OpenVINO."""
    import openvino

    if tensor.dtype is not torch.bfloat16:
        return openvino.Tensor(tensor.numpy(), shared_memory=True)
    words = tensor.view(torch.int16).numpy().view(np.uint16)
    return openvino.Tensor(words, openvino.Shape(list(tensor.shape)), openvino.Type.bf16)


def check_installed() -> None:
    """Raises UsageError where openvino is not installed."""
    if find_spec("openvino") is None:
        raise UsageError(
            "compute_dtype 'openvino' needs the package openvino, which is not installed. "
            "Install the extra: pip install 'overtone[openvino]'."
        )


def check_encoder(encoder: Encoder) -> ConformerEncoder:
    """The encoder itself. Raises UsageError for one that the graph does not know."""
    if not isinstance(encoder, ConformerEncoder):
        raise UsageError(
            f"OpenVINO cannot compute this model: it knows Conformer encoders, not {encoder.describe()[0]}. {OTHERWISE}"
        )
    device = next(encoder.parameters()).device
    known = {
        f"computing on a CPU, not on {device}": device.type == "cpu",
        "subsampling by convolutions (striding, dw_striding)": isinstance(encoder.pre_encode, ConvSubsampling),
        "relative positions (rel_pos)": encoder.relative,
        "attention that is not local": encoder.window is None,
        "batch norm in the convolutions (batch_norm)": all(
            isinstance(layer.get_submodule("conv.batch_norm"), nn.BatchNorm2d) for layer in encoder.layers
        ),
    }
    missing = [name for name, holds in known.items() if not holds]
    if missing:
        raise UsageError(f"OpenVINO cannot compute this model; it needs {'; '.join(missing)}. {OTHERWISE}")
    return encoder

"""A recogniser: features, encoder, head, tokenizer, and the adapters that colour it.

Legend: B batch, S samples, F mel bins, T mel frames, T' encoder frames, D width, V vocabulary.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from overtone.adapters.adapter_set import AdapterSet
from overtone.adapters.storage import BaseIdentity
from overtone.audio.features import LogMel
from overtone.backends.fused.encoder import PreparedEncoder, fast_dtype
from overtone.backends.openvino.encoder import OpenVinoEncoder
from overtone.errors import ConfigError, UsageError
from overtone.nets.conformer import ConformerEncoder
from overtone.nets.ctc import CtcHead
from overtone.tokenizers import Tokenizer

Settings = Mapping[str, Mapping[str, Any]]
"""Plain keyword arguments of the parts: `preprocessor` (LogMel), `encoder` and `decoder` (CtcHead)."""

PARTS = {"preprocessor": LogMel, "encoder": ConformerEncoder, "decoder": CtcHead}
COMPUTE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OPENVINO = "openvino"
"""What `set_compute_dtype` takes besides these and `auto`."""
NUMBERLESS = ("dither", "pad_to", "position_max_len")
"""Settings, besides all dropouts, that change no number of an inference."""


class AsrModel(nn.Module):
    """waveforms [B, S] at the model's sample rate, lengths [B] -> log_probs [B, T', V+1], lengths [B].

    The base is the preprocessor, the encoder and the decoder; `adapters` owns everything that is added.
    """

    preprocessor: LogMel
    encoder: ConformerEncoder
    decoder: CtcHead

    def __init__(
        self,
        settings: Settings,
        tokenizer: Tokenizer,
        *,
        config: Mapping[str, Any] | None = None,
        name: str = "",
    ) -> None:
        super().__init__()
        self.settings = settings
        self.tokenizer = tokenizer
        self.config = config or {}
        """The configuration of the checkpoint it came from, as it stood there."""
        self.checkpoint_files: dict[str, bytes] = {}
        """Further files of that checkpoint, by name, kept for writing back."""
        self.name = name
        for part, build in PARTS.items():
            setattr(self, part, build(**settings[part]))
        self.adapters = AdapterSet(self)
        self.adapters.base_identity = BaseIdentity(fingerprint=self.fingerprint, tokenizer_digest=tokenizer.digest)
        self.prepared: PreparedEncoder | OpenVinoEncoder | None = None
        self.base_is_frozen = False
        self.base_dropout = True
        self.fingerprint_of: tuple[object, str] | None = None
        self.eval()

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if waveforms.dim() != 2 or lengths.shape != waveforms.shape[:1]:
            raise UsageError(
                f"waveforms {list(waveforms.shape)} and lengths {list(lengths.shape)}: [B, S] and [B] are needed; "
                "one waveform is waveform.unsqueeze(0)."
            )
        mel, lengths = self.preprocessor(waveforms, lengths)  # [B, F, T]
        return self.recognise(mel, lengths)

    def recognise(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """mel [B, F, T], lengths [B] -> log_probs [B, T', V+1] float32, lengths [B]."""
        x, lengths = self.computing(mel, lengths)  # [B, T', D]
        return self.decoder(x, lengths), lengths

    def recognise_above(self, x: Tensor, lengths: Tensor, cut: int) -> Tensor:
        """The input x [B, T', D] of the layer `cut`, lengths [B] -> log_probs [B, T', V+1] float32."""
        log_probs: Tensor = self.decoder(self.computing.above(x, lengths, cut), lengths)
        return log_probs

    @property
    def computing(self) -> ConformerEncoder | PreparedEncoder | OpenVinoEncoder:
        """The encoder, or the copy that computes in its place."""
        return self.encoder if self.prepared is None else self.prepared

    def recognise_within(self, mel: Tensor, lengths: Tensor, layers: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """log_probs [B, T', V+1] of the head on the outputs of inner layers, in rising order, then the model's own."""
        if not layers:
            log_probs, lengths = self.recognise(mel, lengths)
            return [log_probs], lengths
        encoder, heads, done = self.encoder, [], 0
        x, lengths, context = encoder.embed(mel, lengths)
        for end in (*(layer + 1 for layer in layers), len(encoder.layers)):
            x, done = encoder.run_layers(x, context, done, end), end
            heads.append(self.decoder(encoder.project(x), lengths))
        return heads, lengths

    @property
    def device(self) -> torch.device:
        return self.preprocessor.fb.device

    @property
    def sample_rate(self) -> int:
        return int(self.setting("preprocessor", "sample_rate"))

    @property
    def seconds_per_frame(self) -> float:
        """The distance of two encoder frames."""
        return float(self.setting("preprocessor", "window_stride")) * self.encoder.subsampling_factor

    @property
    def ctc_reduction(self) -> str:
        """How the checkpoint's own training adds the losses of a batch up."""
        return str(self.config.get("ctc_reduction") or "mean_batch")

    def setting(self, part: str, key: str) -> Any:
        """A keyword argument of a part, its default where the settings do not name it."""
        return complete(part, self.settings[part])[key]

    def base_state_dict(self) -> dict[str, Tensor]:
        """The tensors of the base alone, the same objects whatever adapters come and go."""
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("adapters.")}

    def base_parameters(self) -> list[nn.Parameter]:
        return [parameter for part in PARTS for parameter in getattr(self, part).parameters()]

    def fingerprint(self) -> str:
        """SHA-256 of the base: every tensor as (key, shape, float32 values), and the settings that change numbers.

        Equal for the same values in whatever file and storage precision, with and without adapters.
        """
        tensors = {
            name: tensor for name, tensor in self.base_state_dict().items() if not name.endswith("num_batches_tracked")
        }
        seen = tuple((tensor.data_ptr(), sum_of_bits(tensor)) for tensor in tensors.values())
        if self.fingerprint_of is None or self.fingerprint_of[0] != seen:
            digest = hashlib.sha256()
            for name, tensor in sorted(tensors.items()):
                digest.update(f"{name}{list(tensor.shape)}".encode())
                digest.update(tensor.detach().float().cpu().contiguous().numpy().astype("<f4").tobytes())
            digest.update(canonical_text(self.settings).encode())
            self.fingerprint_of = (seen, f"sha256:{digest.hexdigest()}")
        return self.fingerprint_of[1]

    @property
    def compute_dtype(self) -> str:
        """What the base computes in: `float32` or `bfloat16`, followed by ` (OpenVINO)` where that computes."""
        if self.prepared is None:
            return "float32"
        engine = " (OpenVINO)" if isinstance(self.prepared, OpenVinoEncoder) else ""
        return str(self.prepared.dtype).removeprefix("torch.") + engine

    def set_compute_dtype(self, dtype: str, *, prepared: bool = False) -> Self:
        """Compute the frozen base in `float32`, `bfloat16`, or the faster of both on this machine (`auto`).

        The weights stay what they are; the base computes with a private copy made from them, whose products are
        fused for frozen weights. In `float32` it computes with the weights themselves unless `prepared` asks for
        such a copy: a quarter faster or more, equal to 1e-5. `openvino` is `auto` computed by OpenVINO, for inference
        with linear adapters; raises UsageError where it is not installed or does not know the encoder. On `mps`,
        which has no float64 to make a copy with, the base computes in float32 with the weights themselves.
        """
        allowed = ("auto", *COMPUTE_DTYPES, OPENVINO)
        if dtype not in allowed:
            raise ConfigError(f"compute_dtype '{dtype}' is unknown. Allowed: {', '.join(allowed)}.")
        if dtype == OPENVINO:
            self.prepared = OpenVinoEncoder(self.encoder, fast_dtype(self.device))
            return self
        chosen = fast_dtype(self.device) if dtype == "auto" else COMPUTE_DTYPES[dtype]
        copied = prepared or dtype == "auto" or chosen is not torch.float32
        if self.device.type == "mps":
            if chosen is not torch.float32:
                raise ConfigError(f"compute_dtype '{dtype}' is not for the device mps. Use float32 or auto there.")
            copied = False
        self.prepared = PreparedEncoder(self.encoder, chosen) if copied else None
        return self

    def train_only(self, adapter: str, *, base_dropout: bool = False) -> Self:
        """Freeze everything but one adapter and enter training mode.

        The base's batch norms keep their statistics; its dropout is active only with `base_dropout`. Other adapters
        are part of what is frozen: theirs is not.
        """
        chosen = self.adapters[adapter]
        self.requires_grad_(False)
        chosen.requires_grad_(True)
        self.base_is_frozen = True
        self.base_dropout = base_dropout
        return self.train()

    def train_base(self, *, base_dropout: bool = True) -> Self:
        """Make the base trainable, every adapter not, and enter training mode: for training from scratch."""
        self.set_compute_dtype("float32")
        self.requires_grad_(True)
        self.adapters.requires_grad_(False)
        self.base_is_frozen = False
        self.base_dropout = base_dropout
        return self.train()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if not self.base_is_frozen and not self.base_dropout:
            self.encoder.eval()
            for module in self.encoder.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.train(mode)
        if self.base_is_frozen:
            for part in PARTS:
                getattr(self, part).train(mode and self.base_dropout)
            for module in self.encoder.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
            # Dither is the data's noise, not the base's: it follows the mode of the model.
            self.preprocessor.train(mode)
            for adapter in self.adapters:
                adapter.train(mode and any(parameter.requires_grad for parameter in adapter.parameters()))
        return self


def sum_of_bits(tensor: Tensor) -> int:
    """The sum of a tensor's elements read as whole numbers: a quick sign that something has been written to it."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return int(tensor.detach().contiguous().view(whole).sum(dtype=torch.int64))


def complete(part: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a part with its defaults filled in."""
    parameters = inspect.signature(PARTS[part]).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    return {**defaults, **settings}


def canonical_text(settings: Settings) -> str:
    """The settings that change numbers, complete with defaults, as one line of JSON."""
    meaningful = {
        part: {
            name: canonical(value)
            for name, value in complete(part, settings[part]).items()
            if name not in NUMBERLESS and not name.startswith("dropout")
        }
        for part in PARTS
    }
    return json.dumps(meaningful, sort_keys=True, separators=(",", ":"))


def canonical(value: Any) -> Any:
    """Equal numbers and equal sequences look the same, whatever type they came in."""
    if isinstance(value, Mapping):
        return {key: canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def build_model(
    *, settings: Settings, tokenizer: Tokenizer, config: Mapping[str, Any] | None = None, name: str = ""
) -> AsrModel:
    """A model with fresh weights."""
    return AsrModel(settings, tokenizer, config=config, name=name)

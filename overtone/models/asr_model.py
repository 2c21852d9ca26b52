"""A recogniser: features, encoder, heads, tokenizer, and the adapters that are added to it.

Legend: B batch, S samples, F mel bins, T mel frames, T' encoder frames, D width, C channels of an emission.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from overtone.adapters.adapter_set import AdapterSet
from overtone.adapters.storage import BaseIdentity
from overtone.audio.features import LogMel
from overtone.backends.cast import CastEncoder, copy_encoder
from overtone.backends.fused.encoder import FusedEncoder, fast_dtype
from overtone.backends.openvino.encoder import OpenVinoEncoder
from overtone.decoding.decoder import GREEDY, Alignment, DecodingOptions, Head, Reading, find_readings
from overtone.decoding.hypothesis import Hypothesis
from overtone.decoding.task import TaskPrompts
from overtone.errors import ConfigError, UsageError
from overtone.models.fingerprint import Fingerprint
from overtone.models.heads import make_heads
from overtone.models.parts import Settings, build_part, complete, parts_of
from overtone.models.vocabulary import head_in_use, heads_of_rows, make_vocabulary
from overtone.nets.encoder import Encoder
from overtone.nets.prompt import Languages, PromptKernel
from overtone.scope import Scope
from overtone.tokenizers import Tokenizer

COMPUTE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OPENVINO = "openvino"
"""The further value of `set_compute_dtype`, besides these and `auto`."""

Backend = FusedEncoder | CastEncoder | OpenVinoEncoder
"""Another way to compute the encoder, with private copies of its weights."""
heads_in_use: Scope[str] = Scope("overtone_heads")
"""The name of the head of every model in a `decoding_with` block."""
backends_in_use: Scope[Backend | None] = Scope("overtone_backends")
"""The backend of every model in a `computing_in` block."""
MODES = threading.Lock()
"""Held while modules change their modes."""


class AsrModel(nn.Module):
    """waveforms [B, S] at the model's sample rate, lengths [B] -> emissions [B, T', C] of its head, lengths [B].

    The emissions of a CTC head are log-probabilities [B, T', V+1]. The base is the preprocessor, the encoder and the
    decoder; `adapters` owns everything that is added.
    """

    preprocessor: LogMel
    encoder: Encoder

    def __init__(
        self, settings: Settings, tokenizer: Tokenizer, *, config: Mapping[str, Any] | None = None, name: str = ""
    ) -> None:
        super().__init__()
        self.settings = settings
        self.tokenizer = tokenizer
        self.config = config or {}
        """The configuration of the checkpoint it came from, as written there."""
        self.checkpoint_files: dict[str, bytes] = {}
        """Further files of that checkpoint, by name, kept for writing back."""
        self.name = name
        self.parts = parts_of(settings)
        """The names of the base's parts, in order."""
        self.whole_settings = {part: complete(part, settings[part]) for part in self.parts}
        for part in self.parts:
            setattr(self, part, build_part(part, settings[part]))
        nets = {part: getattr(self, part) for part in self.parts}
        options: dict[str, Any] = {part: settings.get(part, {}) for part in ("transducer", "multitask")}
        options["ctc_reduction"] = str(self.config.get("ctc_reduction") or "mean_batch")
        make: Callable[..., dict[str, Head]] = partial(make_heads, seconds_per_frame=self.seconds_per_frame, **options)
        self.heads = make(nets, tokenizer)
        """Heads by name; a hybrid model has several."""
        self.head_name = next(iter(self.heads))
        """The head that recognises."""
        self.adapters = AdapterSet(self)
        self.adapters.base_identity = BaseIdentity(fingerprint=self.fingerprint, tokenizer_digest=tokenizer.digest)
        self.adapters.make_vocabulary = partial(make_vocabulary, nets, tokenizer, make)
        self.backend: Backend | None = None
        """The backend that computes the encoder outside of a `computing_in` block; None: the encoder itself."""
        self.base_is_frozen = True
        """The base is not in training, until `train_base` says so: its batch norms keep their statistics."""
        self.base_dropout = True
        self.evaluations = 0
        """Open `evaluating` blocks, of all threads."""
        self.modes: list[tuple[nn.Module, bool]] = []
        """The mode of every module before the first of them."""
        self.last_fingerprint = Fingerprint()
        self.eval()

    @property
    def head(self) -> Head:
        """The head that recognises: the base's, or that of an adapter in use with a vocabulary of its own."""
        return head_in_use(self.heads, self.head_in_use, self.adapters)

    def heads_of_rows(self, rows: int) -> list[Head]:
        """The head of each row of a batch, with the adapters in use."""
        return heads_of_rows(self.heads, self.head_in_use, self.adapters, rows)

    def head_of(self, choice: str | None) -> Head:
        """The head of a row with a choice of adapters. Raises AdapterError as `AdapterSet.use`."""
        with self.adapters.use(choice):
            return self.head

    @property
    def head_in_use(self) -> str:
        """The name of the head of the innermost `decoding_with` block around the caller, else `head_name`."""
        return heads_in_use.get(self, self.head_name)

    @contextmanager
    def decoding_with(self, name: str | None) -> Iterator[Self]:
        """Recognise with a head of the model by its name inside the block; None changes nothing.

        Nothing outside of the block sees the choice. Raises UsageError for a head that the model does not have.
        """
        if name is None:
            yield self
            return
        self.check_head(name)
        with heads_in_use.choose(self, name):
            yield self

    def check_head(self, name: str) -> None:
        """Raises UsageError for a head that the model does not have."""
        own = [known for known in self.heads if known != "hybrid"]
        if name not in own:
            raise UsageError(
                f"decoder is '{name}', and {self.name or 'this model'} has no such head. Allowed: {', '.join(own)}."
            )

    @property
    def told(self) -> PromptKernel | TaskPrompts | None:
        """The part that is told the language or the task of each row; None where there is none."""
        return cast(PromptKernel, self.prompt_kernel) if "prompt_kernel" in self.parts else self.head.prompts

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that a request may name; none where the model is not told the language."""
        return () if self.told is None else tuple(self.told.languages)

    def check_language(self, language: str | None) -> str | None:
        """The language as the model spells it. Raises UsageError for one that it is not told, or does not have."""
        if self.told is not None:
            return self.told.check(language)
        if language is not None:
            name = self.name or "this model"
            raise UsageError(f"language is '{language[:40]}', but {name} is not told the language. Leave it out.")
        return None

    def speaking(self, languages: Languages) -> AbstractContextManager[object]:
        """Tell the model, in this thread, the language of all rows, or of each; models without prompts ignore it."""
        return nullcontext() if self.told is None else self.told.speaking(languages)

    def prompt(self, x: Tensor) -> Tensor:
        """The encoder's output x [B, T', D] -> [B, T', D] for the heads, with the languages in use.

        Raises UsageError for a language that the model does not have, and for a list that does not fit the batch.
        """
        return x if self.told is None else self.told.prompt(x)

    def transcribe(self, waveforms: Tensor, lengths: Tensor) -> list[Hypothesis]:
        """Waveforms [B, S], lengths [B] -> one hypothesis for each row, with the adapters in use and their words."""
        heads = self.heads_of_rows(len(waveforms))
        return [head.read(each) for head, each in zip(heads, self.align(waveforms, lengths), strict=True)]

    def align(self, waveforms: Tensor, lengths: Tensor) -> list[Alignment]:
        """Waveforms [B, S], lengths [B] -> the tokens and the silence of each row, frame by frame, as `transcribe`."""
        return [readings[0].alignment for readings in self.find_readings(waveforms, lengths)]

    def find_readings(
        self, waveforms: Tensor, lengths: Tensor, options: DecodingOptions = GREEDY
    ) -> list[list[Reading]]:
        """Waveforms [B, S], lengths [B] -> the best readings of each row, best first.

        They are searched for where the options or the words of the adapters in use ask for it, else greedy.
        """
        with torch.no_grad():
            emissions, frames = self(waveforms.to(self.device), lengths.to(self.device))
        words = self.adapters.words_of_rows(len(waveforms), self.tokenizer)
        heads = self.heads_of_rows(len(waveforms))
        each = [options.written_by(head.tokenizer).with_words(own) for head, own in zip(heads, words, strict=True)]
        return find_readings(self.head, emissions, frames, each)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """waveforms [B, S], lengths [B] -> emissions [B, T', C] float32, lengths [B].

        Raises UsageError for other shapes.
        """
        if waveforms.dim() != 2 or lengths.shape != waveforms.shape[:1]:
            shapes = f"waveforms {list(waveforms.shape)} and lengths {list(lengths.shape)}"
            raise UsageError(f"{shapes}: [B, S] and [B] are needed; one waveform is waveform.unsqueeze(0).")
        mel, lengths = self.preprocessor(waveforms, lengths)  # [B, F, T]
        return self.recognise(mel, lengths)

    def recognise(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """mel [B, F, T], lengths [B] -> emissions [B, T', C] float32, lengths [B]."""
        x, lengths = self.encoder_in_use(mel, lengths)  # [B, T', D]
        return self.head.emit(self.prompt(x), lengths), lengths

    def recognise_above(self, x: Tensor, lengths: Tensor, cut: int) -> tuple[Tensor, Tensor]:
        """The input x [B, frames, width] of the layer `cut`, lengths [B] -> emissions [B, T', C] float32, lengths."""
        x, lengths = self.encoder_in_use.above(x, lengths, cut)
        return self.head.emit(self.prompt(x), lengths), lengths

    def recognise_within(self, mel: Tensor, lengths: Tensor, layers: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """mel [B, F, T], lengths [B] -> emissions [B, T', C] of the inner head on the outputs of inner layers, in
        rising order, then the model's own; lengths [B].
        """
        if not layers:
            emissions, lengths = self.recognise(mel, lengths)
            return [emissions], lengths
        head, inner = self.head, self.head.inner
        assert inner is not None, "the training has checked that the head can stand on inner layers"
        (*outputs, last), lengths = self.encoder_in_use.within(mel, lengths, layers)
        return [*(inner.emit(x, lengths) for x in outputs), head.emit(self.prompt(last), lengths)], lengths

    @property
    def inner_losses(self) -> Mapping[int, float]:
        """The checkpoint's own losses on inner layers: the share of each in the whole loss, by the layer's index."""
        return cast(Mapping[int, float], self.settings.get("interctc", {}).get("losses", {}))

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

    def setting(self, part: str, key: str) -> Any:
        """A keyword argument of a part, its default where the settings do not name it."""
        return self.whole_settings[part][key]

    def base_state_dict(self) -> dict[str, Tensor]:
        """The tensors of the base alone, the same objects whatever adapters come and go."""
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("adapters.")}

    def base_parameters(self) -> list[nn.Parameter]:
        return [parameter for part in self.parts for parameter in getattr(self, part).parameters()]

    def fingerprint(self) -> str:
        """SHA-256 of the base: every tensor as (key, shape, float32 values), and the settings that change numbers.

        Equal for the same values in whatever file and storage precision, with and without adapters.
        """
        return self.last_fingerprint.of(self.base_state_dict(), self.settings)

    # Backends

    @property
    def backend_in_use(self) -> Backend | None:
        """The backend of the innermost `computing_in` block around the caller, the model's own outside of one."""
        return backends_in_use.get(self, self.backend)

    @property
    def encoder_in_use(self) -> Encoder | Backend:
        """The encoder, or the backend that computes in its place."""
        return self.backend_in_use or self.encoder

    @property
    def compute_dtype(self) -> str:
        """The dtype that the base computes in: `float32` or `bfloat16`, with ` (OpenVINO)` where that computes."""
        backend = self.backend_in_use
        if backend is None:
            return "float32"
        engine = " (OpenVINO)" if isinstance(backend, OpenVinoEncoder) else ""
        return str(backend.dtype).removeprefix("torch.") + engine

    def set_compute_dtype(self, dtype: str, *, prepared: bool = False) -> Self:
        """Compute the frozen base in `float32`, `bfloat16`, or the faster of both on this machine (`auto`).

        The weights stay; the base computes with a private copy of them, a Conformer's with fused products. In
        `float32` it computes with the weights themselves unless `prepared` asks for such a copy: a quarter faster or
        more, equal to 1e-5. `openvino` is `auto` computed by OpenVINO, for inference with linear adapters. On `mps`,
        which has no float64 to make a copy with, it is float32 with the weights themselves. Raises ConfigError for an
        unknown dtype, UsageError where OpenVINO is not installed or does not know the encoder.
        """
        self.backend = self.make_backend(dtype, prepared=prepared)
        return self

    def make_backend(self, dtype: str, *, prepared: bool = False) -> Backend | None:
        """The backend for a dtype of `set_compute_dtype`, None for the encoder itself. Raises ConfigError."""
        allowed = ("auto", *COMPUTE_DTYPES, OPENVINO)
        if dtype not in allowed:
            raise ConfigError(f"compute_dtype '{dtype}' is unknown. Allowed: {', '.join(allowed)}.")
        if dtype == OPENVINO:
            return OpenVinoEncoder(self.encoder, fast_dtype(self.device))
        chosen = fast_dtype(self.device) if dtype == "auto" else COMPUTE_DTYPES[dtype]
        copied = prepared or dtype == "auto" or chosen is not torch.float32
        if self.device.type == "mps":
            if chosen is not torch.float32:
                raise ConfigError(f"compute_dtype '{dtype}' is not for the device mps. Use float32 or auto there.")
            copied = False
        return copy_encoder(self.encoder, chosen) if copied else None

    @contextmanager
    def computing_in(self, dtype: str | None) -> Iterator[Self]:
        """Compute every forward of the block in a dtype, as `set_compute_dtype`, and raise as that does.

        None changes nothing, and nothing outside of the block sees the choice.
        """
        backend = self.backend_in_use if dtype is None else self.make_backend(dtype)
        with self.computing_with(backend):
            yield self

    @contextmanager
    def computing_with(self, backend: Backend | None) -> Iterator[Self]:
        """Compute every forward of the block with a backend made before; None is the encoder itself."""
        with backends_in_use.choose(self, backend):
            yield self

    def refresh(self) -> Self:
        """Derive all private copies anew: writes through `data`, NumPy or a fused optimiser leave no trace."""
        for backend in (self.backend, self.backend_in_use):
            if backend is not None:
                backend.forget()
        self.adapters.refresh()
        return self

    # Modes

    @contextmanager
    def evaluating(self) -> Iterator[Self]:
        """Every module in evaluation mode inside the block; the last of all threads' blocks brings the modes back."""
        with MODES:
            self.modes = self.modes or [(module, module.training) for module in self.modules()]
            self.evaluations += 1
            self.eval()
        try:
            yield self
        finally:
            with MODES:
                self.evaluations -= 1
                if not self.evaluations:
                    for module, mode in self.modes:
                        module.training = mode
                    self.modes = []

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
        if not self.base_is_frozen:
            if not self.base_dropout:
                self.encoder.eval()
            for module in self.encoder.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.train(mode and all(parameter.requires_grad for parameter in module.parameters()))
        if self.base_is_frozen:
            for part in self.parts:
                getattr(self, part).train(mode and self.base_dropout)
            for module in self.encoder.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
            # Dither is the data's noise, not the base's: it follows the mode of the model.
            self.preprocessor.train(mode)
            for adapter in self.adapters:
                adapter.train(mode and any(parameter.requires_grad for parameter in adapter.parameters()))
        return self


def build_model(
    *, settings: Settings, tokenizer: Tokenizer, config: Mapping[str, Any] | None = None, name: str = ""
) -> AsrModel:
    """A model with fresh weights."""
    return AsrModel(settings, tokenizer, config=config, name=name)

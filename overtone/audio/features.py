"""Log-mel features: waveforms [B, S] -> [B, F, T], one frame every `window_stride` seconds.

The numbers are those of NeMo's AudioToMelSpectrogramPreprocessor, whose checkpoints this project reads. Every row
is computed from its own samples alone: its features are the same bits in every batch and at every padding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from overtone.audio.mel import (
    analysis_window,
    check_flag,
    check_pad_to,
    check_preemphasis,
    fft_length,
    mel_filter_bank,
    read_log_zero_guard,
    read_normalization,
    require_equal,
    require_finite,
    require_one_of,
    require_positive_integers,
    whole_samples,
)
from overtone.errors import UsageError

STD_FLOOR = 1e-5
"""Added to every standard deviation before the division."""

LOG_ZERO_GUARDS = ("add", "clamp")
FRAMES_PER_BLOCK = 1024
"""Frames transformed at once: windowed samples and spectrum take a few megabytes, however long the audio."""


class LogMel(nn.Module):
    """Waveforms to normalised log-mel frames, always in float32 and without gradients.

    sample_rate: Hz. window_size, window_stride: seconds, cut to whole samples.
    window: hann | hamming | blackman | bartlett | none, symmetric (not periodic).
    normalize: per_feature (mean 0 and deviation 1 of each mel bin over the row's frames) | all_features (over all
        bins together) | NA or None | {"fixed_mean": [F], "fixed_std": [F]}.
    n_fft: samples of the transform; None is the next power of two of the window.
    preemphasis: x[s] - preemphasis * x[s - 1]; None leaves it out.
    features: mel bins F. low_frequency, high_frequency: Hz; None is half the sample rate.
    log: whether to take the logarithm. log_zero_guard_type: add | clamp; log_zero_guard_value: what is added to
        the mel energies, or their floor, before it: a number, tiny or eps.
    dither: deviation of the white noise added in training mode, drawn from torch's global generator.
    pad_to: the frame axis is padded to a multiple of it, 0 leaves it alone. pad_value: what padding frames hold.
    frame_splicing, exact_pad: only 1 and False.
    magnitude_power: 2 is the power spectrum.
    mel_norm: slaney (filters of equal area) or None.

    Raises ConfigError, naming the key, for a value that cannot be honoured.
    """

    window: Tensor
    fb: Tensor
    fixed_mean: Tensor | None
    fixed_std: Tensor | None

    def __init__(
        self,
        *,
        sample_rate: int = 16_000,
        window_size: float = 0.025,
        window_stride: float = 0.01,
        window: str = "hann",
        normalize: str | Mapping[str, Sequence[float]] | None = "per_feature",
        n_fft: int | None = 512,
        preemphasis: float | None = 0.97,
        features: int = 80,
        low_frequency: float = 0.0,
        high_frequency: float | None = None,
        log: bool = True,
        log_zero_guard_type: str = "add",
        log_zero_guard_value: float | str = 2**-24,
        dither: float = 1e-5,
        pad_to: int = 16,
        pad_value: float = 0.0,
        frame_splicing: int = 1,
        magnitude_power: float = 2.0,
        exact_pad: bool = False,
        mel_norm: str | None = "slaney",
    ) -> None:
        super().__init__()
        require_positive_integers(sample_rate=sample_rate, features=features)
        require_finite(dither=dither, pad_value=pad_value, magnitude_power=magnitude_power, at_least=None)
        require_finite(dither=dither, magnitude_power=magnitude_power, at_least=0.0)
        self.sample_rate = sample_rate
        self.hop_length = whole_samples("window_stride", window_stride, sample_rate)
        self.window_length = whole_samples("window_size", window_size, sample_rate)
        self.n_fft = fft_length(n_fft, self.window_length)
        self.features = features
        self.preemphasis = check_preemphasis(preemphasis)
        self.log = check_flag("log", log)
        self.log_zero_guard_type = require_one_of("log_zero_guard_type", log_zero_guard_type, LOG_ZERO_GUARDS)
        self.log_zero_guard = read_log_zero_guard(log_zero_guard_value)
        self.dither = float(dither)
        self.pad_to = check_pad_to(pad_to)
        self.pad_value = float(pad_value)
        self.magnitude_power = float(magnitude_power)
        require_equal("frame_splicing", frame_splicing, 1)
        require_equal("exact_pad", exact_pad, False)
        self.normalize, fixed_mean, fixed_std = read_normalization(normalize, features)

        bank = mel_filter_bank(
            sample_rate=sample_rate,
            n_fft=self.n_fft,
            features=features,
            low_frequency=low_frequency,
            high_frequency=high_frequency,
            norm=mel_norm,
        )
        self.register_buffer("window", analysis_window(window, self.window_length))
        self.register_buffer("fb", bank.unsqueeze(0))
        self.register_buffer("fixed_mean", fixed_mean, persistent=False)
        self.register_buffer("fixed_std", fixed_std, persistent=False)

    @property
    def seconds_per_frame(self) -> float:
        """Seconds from one frame to the next."""
        return self.hop_length / self.sample_rate

    def frame_lengths(self, lengths: Tensor) -> Tensor:
        """Samples [B] int64 -> valid frames [B] int64."""
        frames = torch.div(lengths - self.n_fft % 2, self.hop_length, rounding_mode="floor")
        return torch.where(lengths > 0, frames, 0).to(torch.int64)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms [B, S] in -1..1, samples of each [B] -> features [B, F, T] float32, frames of each [B] int64.

        T is one more than the frames of S samples, then a multiple of `pad_to`; frames past a row's own hold
        `pad_value`. Raises UsageError for a length that is longer than the batch.
        """
        device = self.fb.device.type
        with torch.no_grad(), torch.autocast(device_type=device, enabled=False):
            longest = int(lengths.max()) if lengths.numel() else 0
            if longest > waveforms.shape[1]:
                raise UsageError(f"A length of {longest} samples in a batch of {waveforms.shape[1]} samples.")
            waveforms = waveforms.to(torch.float32)
            if self.training and self.dither > 0.0:
                waveforms = waveforms + self.dither * torch.randn_like(waveforms)
            frames = self.frame_lengths(lengths)
            shape = (waveforms.shape[0], self.features, self._padded_frames(waveforms.shape[1]))
            mel = waveforms.new_full(shape, self.pad_value)
            for row, (samples, valid) in enumerate(zip(lengths.tolist(), frames.tolist(), strict=True)):
                if valid > 0:
                    mel[row, :, :valid] = self._normalized(self._mel(waveforms[row, :samples], valid))
            return mel, frames

    def _padded_frames(self, samples: int) -> int:
        """The frame axis for S samples."""
        frames = (samples - self.n_fft % 2) // self.hop_length + 1
        return frames if self.pad_to == 0 else math.ceil(frames / self.pad_to) * self.pad_to

    def _mel(self, waveform: Tensor, frames: int) -> Tensor:
        """One waveform [S] -> its first `frames` log-mel frames [F, frames], not normalised."""
        if self.preemphasis is not None:
            waveform = torch.cat((waveform[:1], waveform[1:] - self.preemphasis * waveform[:-1]))
        half = self.n_fft // 2
        padded = nn.functional.pad(waveform, (half, half))
        left = (self.n_fft - self.window_length) // 2
        window = nn.functional.pad(self.window.float(), (left, self.n_fft - self.window_length - left))
        bank = self.fb[0].float()

        mel = waveform.new_empty((self.features, frames))
        windows = padded.unfold(0, self.n_fft, self.hop_length)  # [T, N], a view
        for start in range(0, frames, FRAMES_PER_BLOCK):
            block = slice(start, min(start + FRAMES_PER_BLOCK, frames))
            spectrum = torch.fft.rfft(windows[block] * window)  # [t, N/2 + 1] complex
            squares = torch.view_as_real(spectrum).square_()  # [t, N/2 + 1, 2]
            power = squares[..., 0] + squares[..., 1]
            if self.magnitude_power != 2.0:
                power = power.pow_(self.magnitude_power / 2.0)
            torch.matmul(bank, power.T, out=mel[:, block])
        if self.log and self.log_zero_guard_type == "add":
            mel = mel.add_(self.log_zero_guard).log_()
        elif self.log:
            mel = mel.clamp_(min=self.log_zero_guard).log_()
        return mel

    def _normalized(self, mel: Tensor) -> Tensor:
        """All valid frames of one row [F, T] -> the same, normalised."""
        if self.fixed_mean is not None and self.fixed_std is not None:
            return (mel - self.fixed_mean) / self.fixed_std
        if self.normalize == "NA":
            return mel
        axes = (1,) if self.normalize == "per_feature" else (0, 1)
        count = mel.shape[1] if self.normalize == "per_feature" else mel.numel()
        centred = mel - mel.mean(axes, keepdim=True)
        # A single frame has no deviation: its features are 0, as in NeMo.
        deviation = (centred.square().sum(axes, keepdim=True) / max(count - 1, 1)).sqrt_()
        return centred.div_(deviation.add_(STD_FLOOR))

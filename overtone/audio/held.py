"""Recordings in memory as Python programs hold them: samples, files' bytes, open files, Hugging Face's dictionaries.

Legend: S samples, C channels.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from overtone.audio.containers import Source
from overtone.audio.pcm import BLOCK, Block
from overtone.audio.sources import Held, sound_of
from overtone.errors import UsageError

INTEGERS = ("int8", "uint8", "int16", "int32")
"""Types of whole samples; each has its full range as scale."""
LOUDEST = 64.0
"""Floats have full scale 1. A sample of more than this is a whole number that was made a float."""
HIGHEST_RATE = 10_000_000
"""Hz"""
MOST_CHANNELS = 64
TAKEN = (
    "a path, the bytes of a file or an open file, samples as an array or tensor [S] or [S, C], (samples, rate), a "
    'dictionary with "array" and "sampling_rate" or with "bytes" or "path" as of Hugging Face, a line of a manifest as '
    "a dictionary, or a list of such"
)
"""Sources of sound, for messages."""


@runtime_checkable
class Readable(Protocol):
    """A file that is open for reading bytes."""

    def read(self) -> bytes:
        """The bytes that are left."""


@runtime_checkable
class Decoder(Protocol):
    """The decoder that a Hugging Face data set gives (torchcodec's)."""

    def get_all_samples(self) -> Any:
        """The sound, with `data` [C, S] and `sample_rate`."""


@dataclass(frozen=True, eq=False)
class HeldFile:
    """The content of a file of any container."""

    name: str
    content: bytes

    def __str__(self) -> str:
        return self.name

    def open(self) -> AbstractContextManager[Source]:
        """Its sound. Raises AudioError."""
        return sound_of(io.BytesIO(self.content))

    def digest(self) -> bytes:
        """SHA-256 of the content."""
        return hashlib.sha256(self.content).digest()


@dataclass(frozen=True, eq=False)
class HeldSamples:
    """Samples [S, C] at a rate in Hz."""

    name: str
    samples: NDArray[Any]
    rate: int

    def __str__(self) -> str:
        return self.name

    def open(self) -> nullcontext[Source]:
        """The samples themselves."""
        return nullcontext(self)

    def digest(self) -> bytes:
        """SHA-256 of the samples, their type, shape and rate."""
        form = f"{self.samples.dtype.str} {self.samples.shape} {self.rate} ".encode()
        return hashlib.sha256(form + np.ascontiguousarray(self.samples).tobytes()).digest()

    def blocks(self, start: float = 0.0) -> Iterator[Block]:
        """The samples from `start` seconds to the end."""
        step = max(1, BLOCK // self.samples.shape[1])
        for first in range(round(start * self.rate), len(self.samples), step):
            yield Block(self.samples[first : first + step], self.rate)

    def seconds(self) -> float:
        """Seconds of sound."""
        return len(self.samples) / self.rate


def is_sound(value: object) -> bool:
    """True for one recording, in memory or by its path; False for a list of them, and for anything else."""
    if isinstance(
        value, str | os.PathLike | bytes | bytearray | memoryview | np.ndarray | Mapping | Readable | Decoder
    ):
        return True
    return is_tensor(value) or is_rated(value) or is_numbers(value)


def hold(value: Any, rate: int, *, name: str = "the recording") -> Path | Held:
    """A path, or the recording in memory that a value is.

    rate: Hz of samples that come without one. name: of the recording in messages, where it has none of its own.
    Raises UsageError for a value that is no recording.
    """
    if isinstance(value, HeldFile | HeldSamples):
        return value
    if isinstance(value, str | os.PathLike):
        return Path(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return HeldFile(name, bytes(value))
    if isinstance(value, Mapping):
        return hold_mapping(value, rate, name)
    if is_rated(value):
        samples, own_rate = reversed(value) if is_number(value[0]) else value
        return hold_samples(samples, own_rate, name)
    if isinstance(value, np.ndarray) or is_tensor(value) or is_numbers(value):
        return hold_samples(value, rate, name)
    if isinstance(value, Decoder):
        sound = value.get_all_samples()
        return hold_samples(np.asarray(sound.data).T, sound.sample_rate, name)
    if isinstance(value, Readable):
        return hold_open_file(value, name)
    raise UsageError(f"{name} is of type {type(value).__name__}; allowed is {TAKEN}.")


def hold_open_file(file: Readable, name: str) -> Held:
    """The bytes that are left of an open file. Raises UsageError for a file of text."""
    content = file.read()
    own = getattr(file, "name", None)
    if not isinstance(content, bytes):
        raise UsageError(f"{name} is a file that was opened for text; open it with 'rb'.")
    return HeldFile(Path(own).name if isinstance(own, str) and own else name, content)


def hold_mapping(value: Mapping[Any, Any], rate: int, name: str) -> Path | Held:
    """The recording of a dictionary as Hugging Face's data sets and pipelines have it. Raises UsageError for others."""
    path = value.get("path")
    named = Path(path).name if isinstance(path, str) and path else name
    if isinstance(value.get("audio"), Mapping | Decoder):
        return hold(value["audio"], rate, name=name)
    for key in ("array", "raw"):
        if value.get(key) is not None:
            if value.get("sampling_rate") is None:
                raise UsageError(f"{named} has '{key}' without 'sampling_rate'; add the rate in Hz.")
            return hold_samples(value[key], value["sampling_rate"], named)
    if value.get("bytes") is not None:
        return HeldFile(named, bytes(value["bytes"]))
    if isinstance(path, str) and path:
        return Path(path)
    raise UsageError(
        f"{name} is a dictionary with the keys {', '.join(map(repr, value)) or 'none'}; allowed is {TAKEN}."
    )


def hold_samples(value: Any, rate: Any, name: str) -> HeldSamples:
    """Samples [S], [S, C] or [1, S] as they are checked. Raises UsageError for other shapes, types and rates."""
    if not is_number(rate) or not 0 < rate <= HIGHEST_RATE or rate != int(rate):
        raise UsageError(f"{name} has the rate {rate!r}; a whole number of Hz is needed.")
    samples = plain_array(value, name)
    if samples.ndim == 2 and samples.shape[0] == 1:
        samples = samples.T
    if samples.ndim == 1:
        samples = samples[:, None]
    if samples.ndim == 2 and 1 < len(samples) < samples.shape[1]:
        raise UsageError(
            f"{name} has the shape {list(np.shape(value))}. Channels come last, [S, C]: transpose it; or, if it is a "
            "batch, give a list of its rows."
        )
    if samples.ndim != 2 or not 1 <= samples.shape[1] <= MOST_CHANNELS:
        raise UsageError(
            f"{name} has the shape {list(np.shape(value))}; samples of one channel are [S], of several [S, C]. "
            "Of several recordings, and of a batch, give a list with one array each."
        )
    return HeldSamples(name, samples, int(rate))


def plain_array(value: Any, name: str) -> NDArray[Any]:
    """The samples as float32 or as whole numbers of a known scale. Raises UsageError for others."""
    if is_tensor(value):
        value = value.detach().cpu()
        value = value.float().numpy() if value.is_floating_point() else value.numpy()
    try:
        samples = np.asarray(value)
    except ValueError as error:
        raise UsageError(f"{name} is a list of lists of several lengths; give a list with one array each.") from error
    if samples.dtype.name in INTEGERS:
        return samples
    if samples.dtype.kind != "f":
        raise UsageError(
            f"{name} has samples of type {samples.dtype.name}; allowed are floats with full scale 1, and "
            f"{', '.join(INTEGERS)} with their own."
        )
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused when it is read
        samples = samples.astype(np.float32, copy=False)
        peak = float(np.abs(samples).max(initial=0.0))
    if LOUDEST < peak < np.inf:
        raise UsageError(f"{name} has floats up to {peak:g}; full scale is 1. Divide samples of 16 bits by 32768.")
    return samples


def is_tensor(value: object) -> bool:
    """True for a tensor of PyTorch's, which is not imported for the question."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_number(value: object) -> bool:
    """True for a number of Python's or NumPy's."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def is_numbers(value: object) -> bool:
    """True for a list of samples."""
    return isinstance(value, list | tuple) and len(value) > 2 and is_number(value[0])


def is_rated(value: object) -> bool:
    """True for (samples, rate), and for (rate, samples) as SciPy and Gradio have them."""
    if not isinstance(value, tuple) or len(value) != 2:
        return False
    return any(
        is_number(rate) and (isinstance(samples, np.ndarray | list) or is_tensor(samples))
        for samples, rate in (value, value[::-1])
    )

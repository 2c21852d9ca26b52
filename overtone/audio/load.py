"""Recordings from disk: any format that soundfile reads, any rate and channel count -> mono float32 samples."""

from __future__ import annotations

import math
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from overtone.errors import DataError

Waveform = NDArray[np.float32]
"""[S], full scale 1"""
SAMPLE_RATE = 16_000
"""Hz; what models are trained with unless they say otherwise."""

RUN_UP_FORMATS = frozenset({"MP3", "OGG"})
"""Formats whose decoders need what lies before: MP3 gives silence for up to half a second after a jump."""


def load_audio(
    path: str | Path,
    *,
    offset: float = 0.0,
    duration: float | None = None,
    sample_rate: int = SAMPLE_RATE,
) -> NDArray[np.float32]:
    """The samples [S] of a recording in -1..1, channels averaged, at `sample_rate` Hz.

    offset, duration: seconds; only that part is read. A duration past the end stops at the end.
    16-bit samples are their integer / 32768, exactly, unless they are resampled.
    Raises DataError, naming the path, for a file that is missing, not audio, silent of samples, or not finite.
    """
    path = Path(path)
    _check_range(path, offset, duration)
    with _opened(path) as file:
        first = round(offset * file.samplerate)
        if first >= file.frames:
            raise DataError(_beyond_the_end(path, offset, file.frames / file.samplerate))
        run_up = min(first, file.samplerate) if file.format in RUN_UP_FORMATS else 0
        wanted = -1 if duration is None else run_up + max(1, round(duration * file.samplerate))
        file.seek(first - run_up)
        samples: NDArray[np.float32] = file.read(wanted, dtype="float32", always_2d=True)[run_up:]
        rate: int = file.samplerate
    if len(samples) == 0:
        raise DataError(f"{path}: no samples could be decoded; the file is damaged. Replace it or leave it out.")
    if not np.isfinite(samples).all():
        bad = int(np.count_nonzero(~np.isfinite(samples)))
        raise DataError(f"{path}: {bad} samples are NaN or infinite. Repair the file or leave it out.")
    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1, dtype=np.float32)
    return _resampled(path, mono, rate, sample_rate)


def audio_duration(path: str | Path) -> float:
    """Seconds, as the header tells. Raises DataError, naming the path, for a file that is missing or not audio."""
    with _opened(Path(path)) as file:
        seconds: float = file.frames / file.samplerate
        return seconds


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The open soundfile.SoundFile; what it finds wrong becomes a DataError. It holds at least one sample."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise DataError(f"{path}: no such audio file. Check the path.") from error
        raise _unreadable(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path}: not a file. Name an audio file.")
    if status.st_size == 0:
        raise DataError(f"{path}: the file is empty. Replace it or leave it out.")
    try:
        opened = soundfile.SoundFile(path)
    except (soundfile.SoundFileError, TypeError, OSError) as error:  # TypeError: a suffix of headerless samples
        raise _unreadable(path, error) from error
    with opened as file:
        if file.frames <= 0:
            raise DataError(f"{path}: the recording holds no samples, or is cut short. Replace it or leave it out.")
        try:
            yield file
        except (soundfile.SoundFileError, MemoryError) as error:
            raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = str(error).removeprefix(f"Error opening {str(path)!r}: ").rstrip(".")
    if reason.startswith("File does not exist"):  # what libsndfile says of an MP3 without a whole frame
        reason = "nothing in it can be decoded"
    return DataError(
        f"{path}: cannot be read as audio ({reason}). "
        "Convert it to WAV, FLAC, Ogg (Vorbis, Opus) or MP3, or leave it out."
    )


def _check_range(path: Path, offset: float, duration: float | None) -> None:
    if not (math.isfinite(offset) and offset >= 0.0):
        raise DataError(f"{path}: offset is {offset}; seconds from the start, 0 or more, are needed.")
    if duration is not None and not (math.isfinite(duration) and duration > 0.0):
        raise DataError(f"{path}: duration is {duration}; more than 0 seconds are needed.")


def _beyond_the_end(path: Path, offset: float, seconds: float) -> str:
    return f"{path}: offset is {offset} s, but the recording ends after {seconds:.3f} s. Correct the offset."


def _resampled(path: Path, mono: NDArray[np.float32], rate: int, sample_rate: int) -> NDArray[np.float32]:
    """Samples [S] at `rate` Hz -> [S'] at `sample_rate` Hz."""
    if rate == sample_rate:
        return np.ascontiguousarray(mono)
    import soxr

    resampled: NDArray[np.float32] = soxr.resample(mono, rate, sample_rate, quality="HQ")
    if len(resampled) == 0:
        raise DataError(f"{path}: {len(mono)} samples at {rate} Hz are nothing at {sample_rate} Hz. Leave it out.")
    return resampled

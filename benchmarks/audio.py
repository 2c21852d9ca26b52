"""Reading recordings: short files, long files, and long files window by window, beside libsndfile where it reads them.

python -m benchmarks.audio
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import soundfile

from benchmarks.harness import parse, print_machine, write_json
from overtone.audio.load import SAMPLE_RATE, AudioReader, audio_duration, load_audio

FORMS: dict[str, tuple[str, str]] = {
    "wav": ("wav", "pcm_s16le"), "flac": ("flac", "flac"), "mp3": ("mp3", "libmp3lame"), "ogg": ("ogg", "libopus"),
    "m4a": ("ipod", "aac"), "webm": ("webm", "libopus"),
}  # fmt: skip
"""Suffix -> FFmpeg's container and coding."""
WINDOW, STEP = 30.0, 26.0
"""Seconds of a window, and from one to the next."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120.0, help="length of the long files")
    parser.add_argument("--rounds", type=int, default=30, help="how often a short file is read")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--smoke", action="store_true", help="a minute instead of hours, one round")
    arguments = parse(parser)
    if arguments.smoke:
        arguments.minutes, arguments.rounds = 1.0, 1
    print_machine()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        print("\n| file | libsndfile | load_audio | audio_duration | windows in order | last window alone |")
        print("|---|--:|--:|--:|--:|--:|")
        for seconds, rounds in ((5.0, arguments.rounds), (60 * arguments.minutes, 1)):
            for suffix in FORMS:
                path = Path(folder) / f"{seconds:g}.{suffix}"
                write(path, *FORMS[suffix], speech_like(seconds))
                figures[path.name] = row = measure(path, seconds, rounds)
                cells = [f"{1000 * value:.2f} ms" if value is not None else "" for value in row.values()]
                print(f"| {path.name} | {' | '.join(cells)} |", flush=True)
                path.unlink()
    write_json(arguments.json, figures)


def measure(path: Path, seconds: float, rounds: int) -> dict[str, float | None]:
    """Processor seconds that each way of reading a file takes, at its best."""

    def windows() -> None:
        with AudioReader(path) as reader:
            start = 0.0
            while start < seconds - 1.0:
                reader.read(start, start + WINDOW)
                start += STEP

    ways: dict[str, Callable[[], object] | None] = {
        "libsndfile": None if path.suffix in (".m4a", ".webm") else lambda: soundfile.read(path, dtype="float32"),
        "load_audio": lambda: load_audio(path),
        "audio_duration": lambda: count(path),
        "windows in order": windows if seconds > WINDOW else None,
        "last window alone": (lambda: load_audio(path, offset=seconds - STEP)) if seconds > WINDOW else None,
    }
    return {name: None if way is None else min(timed(way) for _ in range(rounds)) for name, way in ways.items()}


def count(path: Path) -> float:
    """Seconds of the file, counted anew."""
    path.touch()  # another version of the file
    return audio_duration(path)


def timed(way: Callable[[], object]) -> float:
    began = time.process_time()
    way()
    return time.process_time() - began


def speech_like(seconds: float) -> npt.NDArray[np.int16]:
    """[S] int16: noise that comes and goes four times a second, loud and soft."""
    generator, size = np.random.default_rng(0), round(seconds * SAMPLE_RATE)
    noise = generator.standard_normal(SAMPLE_RATE * 60).astype(np.float32)
    shaped = np.convolve(noise, np.hanning(24) / 12, mode="same")
    envelope = np.abs(np.sin(np.arange(shaped.size) * (4 * np.pi / SAMPLE_RATE))) ** 3
    minute = (shaped * envelope * 6000).clip(-32768, 32767).astype(np.int16)
    return np.resize(minute, size)


def write(path: Path, form: str, coding: str, samples: npt.NDArray[np.int16]) -> None:
    """Samples [S] -> a file of FFmpeg's, at 32 kbit/s where it is lossy."""
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(coding, rate=SAMPLE_RATE, layout="mono", bit_rate=32_000)
        fitting = av.AudioResampler(format=stream.format.name, layout="mono", rate=stream.rate, frame_size=1024)
        for first in range(0, samples.size, SAMPLE_RATE):
            frame = av.AudioFrame.from_ndarray(samples[None, first : first + SAMPLE_RATE], format="s16", layout="mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE, first
            for part in fitting.resample(frame):
                container.mux(stream.encode(part))
        for part in [*fitting.resample(None), None]:
            container.mux(stream.encode(part))


if __name__ == "__main__":
    main()

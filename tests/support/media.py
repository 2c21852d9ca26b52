"""Sound files of every kind, as bytes: as libsndfile writes them, and as phones, browsers and editors do (FFmpeg)."""

from __future__ import annotations

import io
import tempfile
from functools import cache
from pathlib import Path

import av
import numpy as np
import soundfile

WRITTEN = {
    "wav16": ("WAV", "PCM_16", 16_000),
    "wav24": ("WAV", "PCM_24", 44_100),
    "wav8": ("WAV", "PCM_U8", 8_000),
    "wav32": ("WAV", "PCM_32", 16_000),
    "wavfloat": ("WAV", "FLOAT", 48_000),
    "wavdouble": ("WAV", "DOUBLE", 16_000),
    "wavmulaw": ("WAV", "ULAW", 8_000),
    "wavalaw": ("WAV", "ALAW", 8_000),
    "extensible": ("WAVEX", "PCM_16", 16_000),
    "rf64": ("RF64", "PCM_16", 16_000),
    "flac16": ("FLAC", "PCM_16", 16_000),
    "flac24": ("FLAC", "PCM_24", 48_000),
    "opus": ("OGG", "OPUS", 48_000),
    "opus16": ("OGG", "OPUS", 16_000),
    "vorbis": ("OGG", "VORBIS", 44_100),
    "mp3": ("MP3", "MPEG_LAYER_III", 44_100),
}
"""Kind -> libsndfile's format, coding and rate."""

FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "frag_duration": "200000"}
ENCODED: dict[str, tuple[str, str, int, dict[str, str]]] = {
    "webm": ("webm", "libopus", 48_000, {}),
    "mkv": ("matroska", "aac", 44_100, {}),
    "m4a": ("ipod", "aac", 44_100, {}),
    "m4a-fast": ("ipod", "aac", 16_000, {"movflags": "faststart"}),
    "mp4-fragments": ("mp4", "aac", 48_000, FRAGMENTS),
    "alac": ("ipod", "alac", 16_000, {}),
    "mov": ("mov", "pcm_s16le", 16_000, {}),
    "aac": ("adts", "aac", 16_000, {}),
    "mp3-bare": ("mp3", "libmp3lame", 16_000, {"write_xing": "0", "id3v2_version": "0"}),
    "mp3-tagged": ("mp3", "libmp3lame", 44_100, {"write_id3v1": "1"}),
    "wma": ("asf", "wmav2", 44_100, {}),
    "caf": ("caf", "pcm_s16be", 16_000, {}),
    "aiff": ("aiff", "pcm_s16be", 16_000, {}),
    "au": ("au", "pcm_mulaw", 8_000, {}),
    "w64": ("w64", "pcm_s16le", 16_000, {}),
    "wav-adpcm": ("wav", "adpcm_ms", 16_000, {}),
}
"""Kind -> FFmpeg's container, coding, rate and options."""


def sound(rate: int, seconds: float = 1.5, channels: int = 1) -> np.ndarray:
    """[S, C] float32: a tone for each channel, swelling, so that every moment is told from the others."""
    time = np.arange(int(rate * seconds)) / rate
    tones = [
        0.4 * np.sin(2 * np.pi * 300 * (index + 1) * time) * (0.6 + 0.4 * np.sin(7 * time)) for index in range(channels)
    ]
    return np.stack(tones, axis=1).astype(np.float32)


@cache
def packed(kind: str, *, channels: int = 1, seconds: float = 1.5) -> bytes:
    """`sound` as a file of one of the kinds."""
    stream = io.BytesIO()
    if kind in WRITTEN:
        form, coding, rate = WRITTEN[kind]
        with soundfile.SoundFile(stream, "w", rate, channels, format=form, subtype=coding) as file:
            for part in np.array_split(sound(rate, seconds, channels), max(1, int(seconds))):
                file.write(part)  # libsndfile crashes over long Vorbis at once
    else:
        form, coding, rate, options = ENCODED[kind]
        with tempfile.TemporaryDirectory() as folder:  # FFmpeg opens a file again to put its index first
            path = Path(folder) / "sound"
            write_media(path, sound(rate, seconds, channels), rate, form=form, coding=coding, options=options)
            return path.read_bytes()
    return stream.getvalue()


def write_media(
    path: Path, samples: np.ndarray, rate: int, *, form: str, coding: str, options: dict[str, str], video: bool = False
) -> None:
    """samples [S, C] -> a file of FFmpeg's, with a short film before the sound where `video`."""
    with av.open(str(path), "w", format=form, options=options) as container:
        picture = container.add_stream("mpeg4", rate=10) if video else None
        stream = container.add_stream(coding, rate=rate, layout="mono" if samples.shape[1] == 1 else "stereo")
        stream.bit_rate = 96_000
        if picture is not None:
            picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
            for _ in range(10):
                image = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
                container.mux(picture.encode(image))
            container.mux(picture.encode(None))
        integers = np.ascontiguousarray((samples * 32767).astype(np.int16).reshape(1, -1))
        frame = av.AudioFrame.from_ndarray(integers, format="s16", layout=stream.layout.name)
        frame.sample_rate, frame.pts = rate, 0
        fitting = av.AudioResampler(
            format=stream.format.name, layout=stream.layout.name, rate=rate, frame_size=stream.frame_size or None
        )
        for part in [*fitting.resample(frame), *fitting.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))

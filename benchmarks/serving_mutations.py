"""Damaged inputs for a server: sound files, protobuf messages, forms, JSON, archives, and raw bytes."""

from __future__ import annotations

import base64
import copy
import io
import json
import random
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import soundfile

from overtone.serving.riva import protobuf

RATE = 16_000
FORMATS = (("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "ULAW"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"),
           ("MP3", "MPEG_LAYER_III"))  # fmt: skip
RECORDERS: tuple[tuple[str, str, str], ...] = (
    ("webm", "libopus", ""), ("matroska", "aac", ""), ("mp4", "aac", "frag_keyframe+empty_moov"), ("mov", "alac", ""),
    ("ipod", "aac", ""), ("adts", "aac", ""), ("ogg", "flac", ""),
)  # fmt: skip
"""Container, coding and movflags of what browsers, phones and editors write."""
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
ODD_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, -(2**63), 2**70, 1e308, -1e308, float("nan"), float("inf"), "", "x" * 300, "ä\0\ud7ff",
    [], {}, [[]], {"": {}}, [None] * 50, "../../etc/passwd", "a+b+c", "-1", "9" * 400,
)  # fmt: skip
PHRASES = ("metoprolol", "", "a" * 500, "ä", "the the", "\0", "x y z")


@cache
def sounds() -> list[bytes]:
    """A second of noise, bare and in every format that is decoded in pieces."""
    noise = np.random.default_rng(0).standard_normal((RATE, 2)).astype(np.float32) * 0.1
    found = [noise[:, 0].astype("<i2").tobytes()]
    for index, (format, subtype) in enumerate(FORMATS):
        file = io.BytesIO()
        soundfile.write(file, noise[:, : 1 + index % 2], RATE, format=format, subtype=subtype)
        found.append(file.getvalue())
    return found + [recorded(noise[:, 0], *recorder) for recorder in RECORDERS]


def recorded(samples: npt.NDArray[np.float32], form: str, coding: str, movflags: str) -> bytes:
    """Samples [S] as a file of FFmpeg's."""
    file = io.BytesIO()
    with av.open(file, "w", format=form, options={"movflags": movflags} if movflags else {}) as container:
        stream = container.add_stream(coding, rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray((samples * 32767).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = RATE, 0
        fitting = av.AudioResampler(format=stream.format.name, layout="mono", rate=stream.rate, frame_size=1024)
        for part in [*fitting.resample(frame), *fitting.resample(None), None]:
            container.mux(stream.encode(part))
    return file.getvalue()


@dataclass(kw_only=True)
class Mutations:
    """Each call gives another input; the same seed gives the same ones."""

    seed: int
    names: Sequence[str] = ("base",)
    """Names of adapters that exist."""
    adapter: Path | None = None
    """A good adapter's folder, for damaged uploads."""
    generator: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.generator = random.Random(self.seed)

    def damaged(self, data: bytes, *, most: int = 6) -> bytes:
        """Bytes changed, cut out, put in, repeated; sizes made extreme; the end cut off; now and then nothing."""
        changed, generator = bytearray(data), self.generator
        for _ in range(generator.randint(0, most)):
            # Headers are where parsers go wrong.
            reach = min(len(changed), 80) if generator.random() < 0.6 else len(changed)
            place = generator.randrange(reach + 1)
            length = generator.choice((1, 2, 4, 16, 200))
            match generator.randrange(6):
                case 0:
                    changed[place : place + 1] = generator.randbytes(1)
                case 1:
                    del changed[place : place + length]
                case 2:
                    changed[place:place] = generator.randbytes(length)
                case 3:
                    changed[place:place] = changed[place : place + length]
                case 4:
                    width = generator.choice((1, 2, 4))
                    value = generator.choice(EXTREMES) % 256**width
                    changed[place : place + width] = value.to_bytes(width, generator.choice(("little", "big")))
                case _:
                    if generator.random() < 0.3:
                        del changed[place:]
        return bytes(changed)

    def sound(self) -> bytes:
        return self.damaged(self.generator.choice(sounds()), most=self.generator.choice((0, 0, 1, 2, 6)))

    # Protobuf

    def filled(self, kind: Callable[[], Any], depth: int = 0) -> Any:
        """A message with odd values in some of its fields."""
        message = kind()
        for descriptor in message.DESCRIPTOR.fields:
            if self.generator.random() < 0.35 and depth < 4:
                self.fill(message, descriptor, depth)
        return message

    def fill(self, message: Any, descriptor: Any, depth: int) -> None:
        inner = descriptor.message_type
        try:
            if inner is not None and inner.GetOptions().map_entry:
                key = self.generator.choice(("adapter", "", "x" * 200, "adapter_scale", "language"))
                getattr(message, descriptor.name)[key] = self.text()
            elif inner is not None:
                part = self.filled(protobuf.GetMessageClass(inner), depth + 1)
                target = getattr(message, descriptor.name)
                target.append(part) if hasattr(target, "append") else target.CopyFrom(part)
            elif hasattr(getattr(message, descriptor.name), "append"):
                getattr(message, descriptor.name).extend(self.value(descriptor) for _ in range(3))
            else:
                setattr(message, descriptor.name, self.value(descriptor))
        except (ValueError, TypeError, OverflowError, UnicodeEncodeError):
            return  # not every value fits

    def value(self, descriptor: Any) -> Any:
        kinds = {
            descriptor.TYPE_STRING: self.text,
            descriptor.TYPE_BYTES: self.sound,
            descriptor.TYPE_BOOL: lambda: self.generator.random() < 0.5,
            descriptor.TYPE_FLOAT: lambda: self.generator.choice((0.0, -1.0, 1e30, float("nan"), float("inf"), 0.5)),
        }
        return kinds.get(descriptor.type, lambda: self.generator.choice((0, 1, 2, -1, 16_000, 2**31 - 1, 5, 44_100)))()

    def text(self) -> str:
        return self.generator.choice((*self.names, *PHRASES, "en-US", "de-DE", "../../etc/passwd", "a+b", "true"))

    def config(self) -> Any:
        """A RecognitionConfig that is good, or odd in some fields."""
        if self.generator.random() < 0.7:
            return protobuf.RecognitionConfig(model=self.generator.choice(self.names))
        return self.filled(protobuf.RecognitionConfig)

    def recognize(self) -> bytes:
        """A RecognizeRequest."""
        request = protobuf.RecognizeRequest(config=self.config(), audio=self.sound())
        data: bytes = request.SerializeToString()
        return self.damaged(data) if self.generator.random() < 0.3 else data

    def stream(self) -> list[bytes]:
        """The messages of a StreamingRecognize."""
        opening = protobuf.StreamingRecognitionConfig(config=self.config(), interim_results=True)
        parts = [protobuf.StreamingRecognizeRequest(streaming_config=opening)]
        sound = self.sound()
        for begin in range(0, len(sound), 8000):
            part = protobuf.StreamingRecognizeRequest(audio_content=sound[begin : begin + 8000])
            if self.generator.random() < 0.05:
                part = self.filled(protobuf.StreamingRecognizeRequest)
            parts.append(part)
        data = [part.SerializeToString() for part in parts]
        if self.generator.random() < 0.3:
            place = self.generator.randrange(len(data))
            data[place] = self.damaged(data[place])
        return data

    # HTTP

    def form(self) -> tuple[str, bytes]:
        """Content type and body of a transcription."""
        boundary = "b0undary"
        fields = {"model": self.generator.choice(self.names), "response_format": "verbose_json"}
        for name in (
            "language",
            "stream",
            "speech_contexts",
            "timestamp_granularities[]",
            "adapter",
            "response_format",
        ):
            if self.generator.random() < 0.08:
                fields[name] = self.generator.choice((self.text(), json.dumps(self.odd_value()), "vtt", "word", "true"))
        head = "".join(
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in fields.items()
        )
        head += f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        body = head.encode("utf-8", "replace") + self.sound() + f"\r\n--{boundary}--\r\n".encode()
        content_type = f"multipart/form-data; boundary={boundary}"
        if self.generator.random() < 0.3:
            body = self.damaged(body)
        if self.generator.random() < 0.1:
            damaged = self.damaged(content_type.encode()).decode("latin-1")
            content_type = "".join(character for character in damaged if character.isprintable())
        return content_type, body

    def odd_value(self) -> Any:
        return copy.deepcopy(self.generator.choice(ODD_VALUES))

    def odd_json(self, content: Any) -> str:
        """The content with odd values in some places, or damaged as text."""
        changed = copy.deepcopy(content)
        for _ in range(self.generator.randint(0, 3)):
            place = changed
            while isinstance(place, dict) and place:
                key = self.generator.choice(list(place))
                if isinstance(place[key], dict) and place[key] and self.generator.random() < 0.7:
                    place = place[key]
                    continue
                place[key] = self.odd_value()
                break
        text = json.dumps(changed)
        return self.damaged(text.encode(), most=3).decode("utf-8", "replace") if self.generator.random() < 0.3 else text

    def archive(self) -> bytes:
        """An adapter to be uploaded, damaged inside or outside."""
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode=self.generator.choice(("w", "w:gz"))) as archive:
            for path in sorted(self.adapter.iterdir()) if self.adapter is not None else ():
                content = self.damaged(path.read_bytes(), most=2)
                member = tarfile.TarInfo(self.generator.choice((path.name, f"a/{path.name}", f"../../{path.name}")))
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return self.damaged(file.getvalue(), most=2)

    def raw_request(self) -> bytes:
        """An HTTP request as bytes."""
        content_type, body = self.form()
        head = (
            "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return self.damaged(head.encode("latin-1", "replace")) + body

    # WebSocket

    def session_messages(self, session: Any) -> list[str | bytes]:
        """Messages of a client of a realtime session."""
        sound = self.sound()
        update = {"type": "transcription_session.update", "session": session}
        append = {"type": "input_audio_buffer.append", "audio": base64.b64encode(sound).decode()}
        said: list[str | bytes] = [self.odd_json(update) if self.generator.random() < 0.7 else json.dumps(update)]
        for _ in range(self.generator.randint(1, 4)):
            said += self.generator.choices((self.odd_json(append), sound, self.damaged(sound), json.dumps(append)))
        if self.generator.random() < 0.2:
            said.insert(0, self.odd_json({"type": self.text()}))
        return [*said, '{"type": "input_audio_buffer.done"}']

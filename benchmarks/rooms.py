"""Rooms that real runs open: the files of the package in which a function runs, and the lines of these files.

    python -m benchmarks.rooms
    python -m benchmarks.rooms --aims          # exit status 1 where a run opens more than it should

Four runs of one model are traced, all through its base or a linear adapter in training: a short file to text, one
training step, a stream of Riva's protocol, and a whole training. Each is warm, so that what runs only once in a process
does not count. The model computes in float32 and a training in one process, so that the figures are the same on every
machine. A run that opens fewer rooms is easier to read.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import overtone
from overtone.config import Settings

PACKAGE = Path(overtone.__file__).resolve().parent
PROMPTS = PACKAGE / "prompts"
UTTERANCES = 12
BATCH_SIZE = 3
STEPS = 8
"""Length of a traced training: two epochs, as far as every utterance is usable."""
TRACED_STEP = 6
"""A step of the second epoch, whose audio is in memory."""
SAMPLE_RATE = 16_000
CHUNK_SAMPLES = SAMPLE_RATE // 10


@dataclass(frozen=True, kw_only=True)
class Aim:
    """The most that a run should open."""

    rooms: int
    lines: int | None = None
    training: int | None = None
    """Rooms in the package's folder `training`."""


AIMS = {
    "file to text": Aim(rooms=12, lines=2000),
    "training step": Aim(rooms=18, training=6),
    "Riva stream": Aim(rooms=28),
    "whole training": Aim(rooms=40),
}


@dataclass(frozen=True, kw_only=True)
class Rooms:
    """Functions that ran, by room: a file relative to the package."""

    functions: dict[str, list[str]]

    @property
    def lines(self) -> dict[str, int]:
        """The length of each room."""
        return {room: len((PACKAGE / room).read_text("utf-8").splitlines()) for room in self.functions}

    @property
    def training(self) -> int:
        return sum(room.startswith("training/") for room in self.functions)

    def excesses(self, aim: Aim) -> dict[str, str]:
        """The measures of the aim that are missed, each with its figures in words; empty where it is reached."""
        measured = {
            "rooms": (len(self.functions), aim.rooms),
            "lines": (sum(self.lines.values()), aim.lines),
            "rooms of training": (self.training, aim.training),
        }
        return {
            what: f"{count:,} {what}, at most {most:,}"
            for what, (count, most) in measured.items()
            if most is not None and count > most
        }


class Tracer:
    """Notes each function of the package that is called, in this thread and in those started while it is open.

    within: only the calls made while this function runs for the `call`-th time count; None counts all while
    `recording` is set.
    """

    def __init__(self, within: CodeType | None = None, call: int = 1) -> None:
        self.within = within
        self.call = call
        self.recording = False
        self.codes: set[CodeType] = set()
        self._calls = 0

    def __enter__(self) -> Tracer:
        threading.setprofile(self._note)
        sys.setprofile(self._note)
        return self

    def __exit__(self, *error: object) -> None:
        self.recording = False
        sys.setprofile(None)
        threading.setprofile(None)

    def rooms(self) -> Rooms:
        functions: dict[str, list[str]] = {}
        for code in self.codes:
            if code.co_flags & inspect.CO_OPTIMIZED:  # the bodies of modules and classes run at import
                room = Path(code.co_filename).resolve().relative_to(PACKAGE).as_posix()
                functions.setdefault(room, []).append(code.co_qualname)
        return Rooms(functions=functions)

    def _note(self, frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if code is self.within and event in ("call", "return"):
            self._calls += event == "call"
            self.recording = event == "call" and self._calls == self.call
        elif self.recording and event == "call" and code.co_filename.startswith(str(PACKAGE)):
            self.codes.add(code)


# The runs


def file_to_text(model: overtone.AsrModel, recording: Path, *, adapter: str | None = None) -> Rooms:
    """One short recording, transcribed by a loaded model."""
    transcriber = overtone.Transcriber(model)
    transcriber.transcribe(recording, adapter=adapter)
    with Tracer() as tracer:
        tracer.recording = True
        transcriber.transcribe(recording, adapter=adapter)
    return tracer.rooms()


def training_step(model: overtone.AsrModel, manifests: tuple[Path, Path], folder: Path) -> Rooms:
    """One step of a training, from the fetching of its batch to its last callback, without validation or checkpoint."""
    from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

    with Tracer(_TrainingEpochLoop.advance.__code__, call=TRACED_STEP) as tracer:
        train(model, manifests, folder)
    return tracer.rooms()


def whole_training(model: overtone.AsrModel, manifests: tuple[Path, Path], folder: Path) -> Rooms:
    """A training with a validation at its end, from the call to the files."""
    train(model, manifests, folder / "first")
    with Tracer() as tracer:
        tracer.recording = True
        train(model, manifests, folder / "second")
    return tracer.rooms()


def train(model: overtone.AsrModel, manifests: tuple[Path, Path], folder: Path) -> None:
    """A few steps of a linear adapter; the model is left without it."""
    train_manifest, validation_manifest = manifests
    overtone.train(
        model,
        adapter_name="traced",
        train_manifest=train_manifest,
        validation_manifest=validation_manifest,
        output_dir=folder,
        max_steps=STEPS,
        batch_size=BATCH_SIZE,
        vocabulary_check="drop",
        compute_dtype="float32",
        quiet=True,
        settings=Settings(compute_processes=1),
    )
    model.adapters.remove("traced")


def riva_stream(model: overtone.AsrModel, recording: Path) -> Rooms:
    """A streaming call, from its first message to the last answer, by a server that has answered one before."""
    import grpc

    from overtone.serving.riva import protobuf

    requests = stream_requests(recording)
    with Tracer() as tracer, serving(model) as address, grpc.insecure_channel(address) as channel:
        call = channel.stream_stream(
            f"/{protobuf.ASR_SERVICE}/StreamingRecognize",
            protobuf.StreamingRecognizeRequest.SerializeToString,
            protobuf.StreamingRecognizeResponse.FromString,
        )
        for tracer.recording in (False, True):
            assert list(call(iter(requests), timeout=60.0))
        tracer.recording = False
    return tracer.rooms()


def stream_requests(recording: Path) -> list[Any]:
    """The messages of a client that sends a recording in pieces of 100 ms and asks for interim results."""
    from overtone.serving.riva import protobuf

    waveform = overtone.load_audio(recording)
    config = protobuf.RecognitionConfig(encoding=1, sample_rate_hertz=SAMPLE_RATE, enable_word_time_offsets=True)
    streaming = protobuf.StreamingRecognitionConfig(config=config, interim_results=True)
    pieces = [
        (waveform[first : first + CHUNK_SAMPLES] * 32767).astype("<i2").tobytes()
        for first in range(0, len(waveform), CHUNK_SAMPLES)
    ]
    return [
        protobuf.StreamingRecognizeRequest(streaming_config=streaming),
        *(protobuf.StreamingRecognizeRequest(audio_content=piece) for piece in pieces),
    ]


@contextmanager
def serving(model: overtone.AsrModel) -> Iterator[str]:
    """A server of the model in a thread of this process; its gRPC address."""
    from overtone.serving.server import Server, ServerSettings

    server = Server(ServerSettings(grpc_port=0, http_port=0), model)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield asyncio.run_coroutine_threadsafe(server.start(), loop).result(60).grpc
        asyncio.run_coroutine_threadsafe(server.stop(0.0), loop).result(60)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        server.close()


# The page


def write_manifest(source: Path, path: Path) -> Path:
    """The first utterances of a manifest, their audio named by absolute paths."""
    lines = [json.loads(line) for line in source.read_text("utf-8").splitlines()[:UTTERANCES]]
    for line in lines:
        line["audio_filepath"] = str((source.parent / line["audio_filepath"]).resolve())
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


def write_wav(folder: Path) -> Path:
    """An embedded prompt as the kind of file that data sets are made of."""
    import soundfile

    prompt = PROMPTS / json.loads((PROMPTS / "test.jsonl").read_text("utf-8").splitlines()[0])["audio_filepath"]
    soundfile.write(folder / "prompt.wav", overtone.load_audio(prompt), SAMPLE_RATE)
    return folder / "prompt.wav"


def traced(way: str, model: overtone.AsrModel, folder: Path, recording: Path | None = None) -> Rooms:
    """One run by its name in `AIMS`, on the embedded prompts or, for text and stream, on another recording."""
    recording = recording or write_wav(folder)
    if way == "file to text":
        return file_to_text(model, recording)
    if way == "Riva stream":
        return riva_stream(model, recording)
    manifests = (
        write_manifest(PROMPTS / "train.jsonl", folder / "train.json"),
        write_manifest(PROMPTS / "test.jsonl", folder / "valid.json"),
    )
    run = training_step if way == "training step" else whole_training
    return run(model, manifests, folder / way.replace(" ", "_"))


def page(way: str, rooms: Rooms) -> str:
    lines = rooms.lines
    total, functions = sum(lines.values()), sum(map(len, rooms.functions.values()))
    title = f"{way}: {len(lines)} rooms ({rooms.training} of training), {total:,} lines, {functions} functions run"
    listing = [
        f"  {lines[room]:4} {len(names):3}  {room}{few(names)}" for room, names in sorted(rooms.functions.items())
    ]
    missed = [f"  above the aim: {excess}" for excess in rooms.excesses(AIMS[way]).values()]
    return "\n".join([title, "  lines functions", *listing, *missed, ""])


def few(names: list[str]) -> str:
    """The names of functions, where a room is opened for one or two of them."""
    return f": {', '.join(sorted(names))}" if len(names) <= 2 else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aims", action="store_true", help="exit with status 1 where a run opens more than its aim")
    parser.add_argument("--model", default="fundamental", help="what is traced: a model file, folder or name")
    parser.add_argument("--recording", type=Path, help="a short file to transcribe and to stream (default: a WAV file)")
    parser.add_argument("--ways", nargs="+", choices=AIMS, default=list(AIMS), help="the runs to trace")
    arguments = parser.parse_args()
    model = overtone.load_model(arguments.model)
    missed = False
    with tempfile.TemporaryDirectory() as folder:
        for way in arguments.ways:
            rooms = traced(way, model, Path(folder), arguments.recording)
            print(page(way, rooms))
            missed = missed or bool(rooms.excesses(AIMS[way]))
    sys.exit(arguments.aims and missed)


if __name__ == "__main__":
    main()

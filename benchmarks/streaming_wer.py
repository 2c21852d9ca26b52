"""Word error rates of streams beside those of whole recordings: final results of a second pass, and of chunks alone.

    python -m benchmarks.streaming_wer fundamental test.jsonl

Every recording is heard whole and as a stream by one engine. A stream's text is that of its utterances, one after the
other. The difference counts in points (percent of the reference's words), with its 95 % interval by paired bootstrap.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import parse, print_machine, write_json
from benchmarks.plots import write_section
from overtone.audio.load import load_audio
from overtone.checkpoints.load import load_model
from overtone.data.manifest import Utterance, read_manifest
from overtone.evaluation.results import total
from overtone.evaluation.verify import PROMPTS
from overtone.serving.adapter_store.store import AdapterStore
from overtone.serving.engine.engine import Engine, EngineSettings, Samples
from overtone.serving.recognition.offline import recognise
from overtone.serving.recognition.request import Endpointing
from overtone.serving.streaming.stream import Event, Final, Stream, StreamSettings
from overtone.wer import ErrorCounts, paired_difference_interval, word_errors

CONTEXTS = ((0.8, 1.6, 1.6), (0.16, 1.92, 1.92))
"""Chunk, left and right, in seconds."""
FINALS = ("whole", "chunks")
GOAL_POINTS = 1.0
"""What a stream of the first context may lose."""
AT_A_TIME = 16
"""Streams that share the engine's batches."""
SMOKE = 6
HEAD = """## Streams beside whole recordings

`python -m benchmarks.streaming_wer MODEL MANIFEST…`. A stream's text is that of its final results. *whole*: each
utterance is heard once more in one piece when it has ended; *chunks*: the frames of the chunks are all there is.
*points*: what the stream loses against the whole recordings, in percent of the words; *from offline*: word errors of
the stream's text against that of the whole recording."""

Hear = Callable[[Samples], str]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way of hearing all recordings."""

    name: str
    counts: list[ErrorCounts]
    texts: list[str]
    seconds: float
    """Of audio."""

    @property
    def sum(self) -> ErrorCounts:
        return total(self.counts)

    def beside(self, offline: Row) -> dict[str, Any]:
        """Plain figures; `points` is what the stream loses against the whole recordings."""
        low, high = paired_difference_interval(self.counts, offline.counts)
        return {
            "name": self.name,
            "wer": 100 * self.sum.rate,
            "points": 100 * (self.sum.rate - offline.sum.rate),
            "interval": [100 * low, 100 * high],
            "substitutions": self.sum.substitutions,
            "deletions": self.sum.deletions,
            "insertions": self.sum.insertions,
            "same_text": sum(a == b for a, b in zip(self.texts, offline.texts, strict=True)),
            "from_offline": 100 * total(map(word_errors, offline.texts, self.texts)).rate,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="fundamental", help="a .nemo file, a model folder, or a name")
    parser.add_argument(
        "manifests", nargs="*", type=Path, default=[PROMPTS / "test.jsonl"], help="JSON lines with texts"
    )
    parser.add_argument("--adapters", type=Path, help="a folder of adapters; with --adapter")
    parser.add_argument("--adapter", help="its name")
    parser.add_argument("--limit", type=int, default=400, help="recordings of each manifest, evenly spread")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--contexts", nargs="+", type=context, default=list(CONTEXTS), metavar="CHUNK/LEFT/RIGHT")
    parser.add_argument("--normalisation", default="running", choices=("running", "buffer"))
    parser.add_argument("--no-endpointing", action="store_true", help="one utterance a stream")
    parser.add_argument("--threads", type=int, default=2, help="of the engine")
    parser.add_argument("--page", type=Path, help="write the section of this page")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--smoke", action="store_true", help="a few recordings: only to see that it runs")
    arguments = parse(parser)
    if arguments.smoke:
        arguments.limit = SMOKE
    print_machine()
    model = load_model(arguments.model)
    model.set_compute_dtype(arguments.dtype)
    with tempfile.TemporaryDirectory() as empty, Engine(model, EngineSettings(threads=arguments.threads)) as engine:
        folder = arguments.adapters or Path(empty)
        with AdapterStore(model, folder, lock=engine.lock, poll_seconds=0) as store:
            sets = {
                named(path): measure(engine, store, spread(read_manifest(path), arguments.limit), arguments)
                for path in arguments.manifests
            }
    if len(sets) > 1:
        sets["all together"] = [pooled(rows) for rows in zip(*sets.values(), strict=True)]
    figures = {name: [row.beside(rows[0]) for row in rows] for name, rows in sets.items()}
    content = "\n".join(section(name, rows[0], figures[name]) for name, rows in sets.items())
    print(content)
    if arguments.page is not None:
        write_section(arguments.page, "streams and whole recordings", f"{HEAD}\n\n{content}")
    write_json(arguments.json, figures)


def context(text: str) -> tuple[float, float, float]:
    chunk, left, right = map(float, text.split("/"))
    return chunk, left, right


def spread(utterances: Sequence[Utterance], most: int) -> list[Utterance]:
    """At most so many, from all over the list."""
    step = max(1.0, len(utterances) / most)
    return [utterances[int(index * step)] for index in range(min(most, len(utterances)))]


def named(path: Path) -> str:
    return f"{path.resolve().parent.name}/{path.name}"


def measure(engine: Engine, store: AdapterStore, items: list[Utterance], arguments: argparse.Namespace) -> list[Row]:
    """The whole recordings first, then each kind of stream."""
    audio = [load_audio(item.audio_path, offset=item.offset, duration=item.duration) for item in items]
    references = [item.text or "" for item in items]
    endpointing = Endpointing(stop_history=0) if arguments.no_endpointing else Endpointing()
    ways: dict[str, Hear] = {"offline": lambda waveform: whole(engine, store, arguments.adapter, waveform)}
    for (chunk, left, right), kind in itertools.product(arguments.contexts, FINALS):
        settings = StreamSettings(
            chunk=chunk, left=left, right=right, finals=kind, endpointing=endpointing, interim=False,
            normalisation=arguments.normalisation,
        )  # fmt: skip
        ways[f"{chunk:g}/{left:g}/{right:g}, {kind}"] = lambda waveform, settings=settings: streamed(
            engine, store, arguments.adapter, settings, waveform
        )
    rows = []
    seconds = sum(waveform.size for waveform in audio) / engine.sample_rate
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        for name, hear in ways.items():
            texts = list(pool.map(hear, audio))
            counts = list(map(word_errors, references, texts))
            rows.append(Row(name=name, counts=counts, texts=texts, seconds=seconds))
            print(f"{name}: {100 * rows[-1].sum.rate:.2f} %", file=sys.stderr, flush=True)
    return rows


def pooled(rows: Sequence[Row]) -> Row:
    return Row(
        name=rows[0].name,
        counts=[count for row in rows for count in row.counts],
        texts=[text for row in rows for text in row.texts],
        seconds=sum(row.seconds for row in rows),
    )


def whole(engine: Engine, store: AdapterStore, adapter: str | None, waveform: Samples) -> str:
    with store.acquire(adapter) as lease:
        return asyncio.run(recognise(engine, waveform, lease=lease)).hypotheses[0].text


def streamed(
    engine: Engine, store: AdapterStore, adapter: str | None, settings: StreamSettings, waveform: Samples
) -> str:
    async def events() -> list[Event]:
        with Stream(engine, store.acquire(adapter), settings=settings) as stream:
            return [*await stream.push(waveform), *await stream.finish()]

    return " ".join(event.text.strip() for event in asyncio.run(events()) if isinstance(event, Final))


def section(name: str, offline: Row, figures: list[dict[str, Any]]) -> str:
    """In Markdown."""
    lines = [
        f"### {name}\n",
        f"{len(offline.texts)} recordings, {offline.seconds / 60:.1f} minutes, {offline.sum.reference_length} words.\n",
        "| chunk/left/right, finals | WER | points | 95 % interval | sub | del | ins | same text | from offline |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in figures:
        low, high = row["interval"]
        lines.append(
            f"| {row['name']} | {row['wer']:.2f} % | {row['points']:+.2f} | {low:+.2f} … {high:+.2f} "
            f"| {row['substitutions']} | {row['deletions']} | {row['insertions']} "
            f"| {row['same_text']} | {row['from_offline']:.1f} % |"
        )
    first = figures[1]
    verdict = "reached" if first["points"] <= GOAL_POINTS else "missed"
    lines.append(f"\nAt most {GOAL_POINTS:g} point with {first['name']}: {verdict}.\n")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

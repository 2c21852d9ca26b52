"""`overtone transcribe` in parts: a Ray cluster, an adapter for each row, Parquet, and runs that go on after a kill."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overtone.cli.arguments import attention_options, language_of, number, search_options, whole_number
from overtone.cli.cluster import add_ray
from overtone.cli.screen import note
from overtone.clusters import cluster
from overtone.errors import OvertoneError, UsageError
from overtone.progress import progress_bar
from overtone.startup import fast_imports

if TYPE_CHECKING:
    from overtone.evaluation.evaluate import Elsewhere
    from overtone.inference.on_cluster import WorkerPlan
    from overtone.inference.parts import Part, Row
    from overtone.inference.transcribe import Transcription
    from overtone.models.asr_model import AsrModel

COLUMN = "column:"


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Options of workers and of adapters by row."""
    group = add_crew(
        parser, "transcribe with workers of the Ray cluster of this address, so that a run survives a kill"
    )
    group.add_argument(
        "--adapters",
        type=Path,
        metavar="FOLDER",
        help="one adapter folder each, for --adapter column:KEY, which takes each line's own from that key of the "
        "manifest; lines without it take the base",
    )


def add_crew(parser: argparse.ArgumentParser, purpose: str) -> argparse._ArgumentGroup:
    """Options of workers alone. purpose: of the command with them."""
    group = add_ray(parser, purpose)
    group.add_argument(
        "--workers", type=whole_number, metavar="N", help="processes with the model (default: as many as fit)"
    )
    group.add_argument(
        "--worker-cpus", type=number(above=0), default=1.0, metavar="N", help="cores of a worker (default: 1)"
    )
    group.add_argument(
        "--worker-gpus", type=number(at_least=0), default=0.0, metavar="N", help="GPUs of a worker (default: 0)"
    )
    return group


def goes_in_parts(arguments: argparse.Namespace) -> bool:
    """Tell whether parts are asked for. Raises UsageError for options that need them."""
    by_row = any(str(each).startswith(COLUMN) for each in arguments.adapter or ())
    if arguments.ray is not None or by_row or arguments.format == "parquet":
        return True
    for name in ("workers", "adapters"):
        if getattr(arguments, name) is not None:
            raise UsageError(f"--{name} is for --ray and --adapter {COLUMN}NAME.")
    return False


def transcribe_in_parts(arguments: argparse.Namespace, adapter: str | None) -> int:
    """Transcribe part by part; returns the exit code. Raises UsageError for what does not go together."""
    with fast_imports():
        from overtone.inference.parts import PartStore, plan_digest, plan_parts

    form = arguments.format
    if form not in ("jsonl", "parquet") or not arguments.output:
        raise UsageError(
            f"--ray, {COLUMN}KEY and Parquet need --output, and --format jsonl or parquet; {form} is not written so."
        )
    parts = plan_parts(rows_of(arguments.paths, adapter))
    store = PartStore(Path(arguments.output), form, inputs=[*arguments.paths, arguments.model])
    plan = worker_plan(arguments, arguments.model, adapters=arguments.adapters, alternatives=arguments.alternatives)
    done = store.open(plan_digest(parts, facts_of(arguments, parts)))
    failures = {part.number: store.failures(part) for part in parts if part.number in done}
    left = [part for part in parts if failures.get(part.number, len(part.rows)) == len(part.rows)]
    if len(left) < len(parts):
        note(f"{len(parts) - len(left)} of {len(parts)} parts are written already; the rest follows.")
    whole, finished = sum(part.seconds for part in left), 0.0
    failed = sum(failures.values()) - sum(failures.get(part.number, 0) for part in left)
    began = time.monotonic()
    joined = nullcontext() if arguments.ray is None else cluster(arguments.ray)
    with joined, progress_bar("transcribing") as progress:
        for part, results in hear(left, plan, arguments):
            store.write(part, results)
            for result in results:
                if result.hypothesis is None:
                    failed += 1
                    note(f"overtone: error: {result.error}")
            finished += part.seconds
            progress(finished, whole)
    store.finish(parts)
    seconds = max(1e-3, time.monotonic() - began)
    note(f"Written: {arguments.output}")
    note(f"{finished / 3600:.2f} hours of audio in {seconds:.0f} s, {finished / seconds:.0f} times as fast as speech")
    rows = sum(len(part.rows) for part in parts)
    if failed:
        note(f"{failed} of {rows} recordings could not be transcribed.")
    return 0 if not failed else 1 if failed < rows else OvertoneError.exit_code


def hear(
    parts: list[Part], plan: WorkerPlan, arguments: argparse.Namespace
) -> Iterator[tuple[Part, list[Transcription]]]:
    """Parts with their results, by a cluster's workers or by this process."""
    from overtone.inference.on_cluster import Hearer, transcribe_parts

    if arguments.ray is not None:
        yield from transcribe_parts(parts, plan, workers=arguments.workers)
        return
    hearer = Hearer(plan) if parts else None
    for part in parts:
        assert hearer is not None
        yield part, hearer.transcribe(part.rows)


@contextmanager
def hearing_elsewhere(arguments: argparse.Namespace, model: str, dtype: str) -> Iterator[Elsewhere | None]:
    """`elsewhere` of an evaluation by a cluster's workers; None without `--ray`. dtype: of the base."""
    if arguments.ray is None:
        yield None
        return
    from overtone.inference.on_cluster import ClusterTranscriber

    arguments.dtype = dtype
    plan = worker_plan(arguments, model)
    with cluster(arguments.ray):
        yield lambda sources: ClusterTranscriber(plan, workers=arguments.workers, sources=sources)


def rows_of(paths: list[str], adapter: str | None) -> list[Row]:
    """Recordings with the adapter of each: the given one, or that of a key of its manifest's line.

    Raises UsageError where a column is asked of something else than a manifest, or of one that lacks it.
    """
    from overtone.inference.parts import Row, rows_by_column
    from overtone.inference.recordings import MANIFEST_SUFFIXES, find_recordings

    if adapter is None or not adapter.startswith(COLUMN):
        return [Row(recording=each, adapter=adapter) for group in find_recordings(paths) for each in group]
    others = [path for path in paths if Path(path).suffix.lower() not in MANIFEST_SUFFIXES]
    if others or not paths:
        raise UsageError(f"--adapter {adapter} is a key of manifests; {', '.join(others) or 'nothing'} was given.")
    return [row for path in paths for row in rows_by_column(path, adapter.removeprefix(COLUMN))]


def worker_plan(
    arguments: argparse.Namespace, model: str, *, adapters: Path | None = None, alternatives: int = 1
) -> WorkerPlan:
    """Plan of the workers. Raises UsageError for phrases that cannot be read."""
    from overtone.inference.on_cluster import WorkerPlan, whole_path

    return WorkerPlan(
        model=whole_path(model),
        adapters=None if adapters is None else adapters.resolve(),
        options={
            "window": arguments.window or None,
            "overlap": arguments.overlap,
            "batch_seconds": arguments.batch_seconds,
            "compute_dtype": arguments.dtype,
            "language": language_of(arguments),
            "alternatives": alternatives,
            **search_options(arguments),
        },
        load=partial(
            load_for_worker, device=arguments.device, decoder=arguments.decoder, **attention_options(arguments)
        ),
        cpus=arguments.worker_cpus,
        gpus=arguments.worker_gpus,
    )


def load_for_worker(source: str, **options: Any) -> AsrModel:
    """Model of a worker, on its device. Raises CheckpointError and UsageError."""
    from overtone.cli.models import load

    return load(source, **options)


def facts_of(arguments: argparse.Namespace, parts: list[Part]) -> dict[str, Any]:
    """Facts that results depend on, beside the recordings: model, adapters and options."""
    from overtone.adapters.storage import DESCRIPTION

    same = ("model", "format", "window", "overlap", "dtype", "alternatives", "beam", "phrases", "decoder")
    facts = {name: getattr(arguments, name) for name in same} | attention_options(arguments)
    facts["language"] = language_of(arguments)
    if arguments.phrases is not None:
        facts["phrases"] = search_options(arguments)["phrases"]
    model = Path(arguments.model).expanduser()
    files = sorted(model.rglob("*")) if model.is_dir() else [model] if model.exists() else []
    facts["model files"] = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    for choice in sorted({row.adapter for part in parts for row in part.rows if row.adapter}):
        for name in choice.split("+"):
            place = Path(name) if arguments.adapters is None else arguments.adapters / name
            description = place / DESCRIPTION
            facts[f"adapter {name}"] = description.read_text("utf-8") if description.is_file() else ""
    return facts

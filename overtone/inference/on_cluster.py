"""Transcription by workers of a Ray cluster: recordings in, transcriptions out, whatever dies meanwhile.

A worker is a process with the model. It takes parts of some minutes of audio, each row with its own adapters, which it
loads when a row asks for them. A part whose worker dies goes to another worker; one that kills three is cut up, so that
only the recording that does it fails.
"""

from __future__ import annotations

import json
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from overtone.adapters.adapter import check_name
from overtone.checkpoints.adapters import BASE, find_adapter
from overtone.checkpoints.load import load_model
from overtone.errors import OvertoneError, UsageError
from overtone.inference.parts import Part, Row, parquet_schema, plan_parts
from overtone.inference.recordings import Recording, find_recordings
from overtone.inference.transcribe import Transcriber, Transcription
from overtone.inference.writers import json_line
from overtone.models.asr_model import AsrModel
from overtone.progress import Progress

LOG = logging.getLogger("overtone.inference.on_cluster")
DEATHS = 3
"""Workers that may die of a part."""
MOST_ADAPTERS = 64
"""Adapters of a folder in a worker's model at a time."""


def load_plainly(source: str) -> AsrModel:
    """Model on the GPU of its worker, if that has one."""
    import torch

    model = load_model(source)
    return model.to("cuda") if torch.cuda.is_available() else model


@dataclass(frozen=True, kw_only=True)
class WorkerPlan:
    """Everything that a worker needs to know."""

    model: str = "fundamental"
    adapters: Path | None = None
    """Folder of adapter folders, by the names that rows give; None: names and paths, as for `overtone transcribe`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of `Transcriber`."""
    load: Callable[[str], AsrModel] = load_plainly
    cpus: float = 1.0
    gpus: float = 0.0
    beginning: Path = field(default_factory=Path.cwd)
    """Folder where relative paths of recordings and adapters begin: that of the process that makes the plan."""


class Hearer:
    """A model that transcribes rows of any adapters, those of a folder loaded on demand."""

    def __init__(self, plan: WorkerPlan) -> None:
        """Load the model. Raises CheckpointError and UsageError."""
        self.plan = plan
        self.model = plan.load(place_of(plan.model, plan))
        self.transcriber = Transcriber(self.model, **plan.options)
        self.loaded: OrderedDict[str, None] = OrderedDict()
        """Adapters of the folder in the model, the least recently used first."""
        self.found: dict[str, str | None] = {}
        """Chains of names and paths that were asked for, where there is no folder."""

    def transcribe(self, rows: Sequence[Row]) -> list[Transcription]:
        """One result for each row; adapters that cannot be used make errors of their rows alone."""
        faults: dict[str | None, str] = {}
        chains: dict[str | None, str | None] = {}
        for choice in dict.fromkeys(row.adapter for row in rows):
            try:
                chains[choice] = self.chain(choice)
            except OvertoneError as error:
                faults[choice] = str(error)
        good = [row for row in rows if row.adapter not in faults]
        results = self.transcriber.run(
            [self.placed(row.recording) for row in good], [chains[row.adapter] for row in good]
        )
        heard = iter([named(result, row) for result, row in zip(results, good, strict=True)])
        found = [failed(row, faults[row.adapter]) if row.adapter in faults else next(heard) for row in rows]
        self.make_room()
        return found

    def chain(self, choice: str | None) -> str | None:
        """Names of the adapters of a choice in the model, None for the base. Raises AdapterError."""
        if choice is None or choice.lower() in BASE:
            return None
        folder = None if self.plan.adapters is None else self.plan.beginning / self.plan.adapters
        if folder is None:
            if choice not in self.found:
                self.found[choice] = find_adapter(self.model, self.adapter_path(choice))
            return self.found[choice]
        for name in choice.split("+"):
            if name not in self.loaded and ((folder / check_name(name)).is_dir() or name not in self.model.adapters):
                self.model.adapters.load(folder / name, name=name)
                self.loaded[name] = None
            if name in self.loaded:
                self.loaded.move_to_end(name)
        return choice

    def placed(self, recording: Recording) -> Recording:
        """A recording with its path from the root, where this process runs in another folder than its plan's."""
        if recording.held is not None or self.plan.beginning == Path.cwd():
            return recording
        return replace(recording, path=self.plan.beginning / recording.path)

    def adapter_path(self, choice: str) -> str:
        """A choice whose parts are paths from the root where they lie on disk; names of the model's adapters stay."""
        whole = self.part_path(choice)
        return whole if whole != choice else "+".join(map(self.part_path, choice.split("+")))

    def part_path(self, part: str) -> str:
        """An adapter of a chain, as `adapter_path`."""
        return part if part in self.model.adapters else place_of(part, self.plan)

    def make_room(self) -> None:
        """Take the least recently used adapters out of the model where there are too many."""
        while len(self.loaded) > MOST_ADAPTERS:
            name, _ = self.loaded.popitem(last=False)
            self.model.adapters.remove(name)


def place_of(text: str, plan: WorkerPlan) -> str:
    """A path from the root, where a worker runs in another folder than its plan's; names stay."""
    place = plan.beginning / Path(text).expanduser()
    return str(place) if plan.beginning != Path.cwd() and place.exists() else text


def named(result: Transcription, row: Row) -> Transcription:
    """A result under the path and the adapter that its row gives."""
    return replace(result, recording=replace(result.recording, path=row.recording.path), adapter=row.adapter)


def failed(row: Row, message: str) -> Transcription:
    """Result of a row that could not be transcribed."""
    return Transcription(recording=row.recording, adapter=row.adapter, duration=0.0, error=message)


def transcribe_parts(
    parts: Sequence[Part], plan: WorkerPlan, *, workers: int | None = None
) -> Iterator[tuple[Part, list[Transcription]]]:
    """Parts with their results, in the order in which they are done, by workers of the cluster that is joined.

    workers: as many as the cluster has room for unless given. Raises CheckpointError, UsageError and other errors of a
    plan that no worker can follow.
    """
    import ray
    from ray.exceptions import RayActorError, RayError, RayTaskError

    make = ray.remote(Hearer).options(num_cpus=plan.cpus, num_gpus=plan.gpus, max_concurrency=1)
    crew = Crew(make=lambda: make.remote(plan), most=min(workers or room(plan), max(1, len(parts))))
    waiting, deaths = deque(Piece(part=part, rows=part.rows) for part in parts), dict[Piece, int]()
    halves: dict[int, dict[int, list[Transcription]]] = {}
    while waiting or crew.busy:
        while waiting and crew.has_room:
            crew.give(waiting.popleft())
        piece, answer = crew.next_done()
        try:
            results = ray.get(answer)
        except RayTaskError as error:
            cause = error.cause
            raise cause if isinstance(cause, OvertoneError) else error from None
        except RayError as error:
            if isinstance(error, RayActorError) and error.actor_init_failed:
                raise reason_of(error) from None  # any other worker would fail as well
            crew.bury(piece)
            deaths[piece] = deaths.get(piece, 0) + 1
            LOG.warning(
                "a worker died (%s): its %s recordings go to another one", type(error).__name__, len(piece.rows)
            )
            if deaths[piece] < DEATHS:
                waiting.appendleft(piece)
                continue
            if len(piece.rows) > 1:
                waiting.extendleft(reversed(piece.cut()))
                continue
            results = [failed(piece.rows[0], f"{piece.rows[0].recording.path}: workers died of it ({DEATHS}).")]
        else:
            crew.take_back(piece)
        whole = gathered(halves, piece, results)
        if whole is not None:
            yield piece.part, whole


def reason_of(error: Any) -> OvertoneError:
    """Reason why a worker could not load its model, from Ray's error of an actor that never was."""
    from ray.exceptions import RayTaskError

    for task in error.args:
        cause = task.cause if isinstance(task, RayTaskError) else None
        if isinstance(cause, OvertoneError):
            return cause
        if cause is not None:
            return UsageError(f"The workers cannot begin: {type(cause).__name__}: {cause}")
    return UsageError(f"The workers cannot begin: {error}")


@dataclass(frozen=True, eq=False)
class Piece:
    """A part, or one row of a part that had to be cut up."""

    part: Part
    rows: tuple[Row, ...]
    first: int = 0
    """Place of its first row in the part."""

    def cut(self) -> list[Piece]:
        """Each row alone."""
        return [Piece(self.part, (row,), number) for number, row in enumerate(self.rows)]


def gathered(
    halves: dict[int, dict[int, list[Transcription]]], piece: Piece, results: list[Transcription]
) -> list[Transcription] | None:
    """Results of a whole part; None while some of its rows are not done. halves: what is done of each, kept here."""
    done = halves.setdefault(piece.part.number, {})
    done[piece.first] = results
    if sum(map(len, done.values())) < len(piece.part.rows):
        return None
    del halves[piece.part.number]
    return [result for first in sorted(done) for result in done[first]]


class Crew:
    """Workers and the pieces that they have."""

    def __init__(self, *, make: Callable[[], Any], most: int) -> None:
        self.make = make
        self.most = most
        self.idle: list[Any] = []
        self.busy: dict[Any, tuple[Piece, Any]] = {}
        """By the promised answer, the piece and its worker."""
        self.answers: dict[Piece, tuple[Any, Any]] = {}

    @property
    def has_room(self) -> bool:
        return bool(self.idle) or len(self.busy) < self.most

    def give(self, piece: Piece) -> None:
        """Give a piece to an idle worker, or to a new one."""
        worker = self.idle.pop() if self.idle else self.make()
        answer = worker.transcribe.remote(piece.rows)
        self.busy[answer] = (piece, worker)

    def next_done(self) -> tuple[Piece, Any]:
        """Piece whose answer is there, or will never be, and the answer."""
        import ray

        (answer,), _ = ray.wait(list(self.busy), num_returns=1)
        piece, worker = self.busy.pop(answer)
        self.answers[piece] = (answer, worker)
        return piece, answer

    def take_back(self, piece: Piece) -> None:
        """The piece's worker is idle."""
        self.idle.append(self.answers.pop(piece)[1])

    def bury(self, piece: Piece) -> None:
        """The piece's worker is dead."""
        del self.answers[piece]


def room(plan: WorkerPlan) -> int:
    """Workers that the joined cluster has room for, one at least. Raises UsageError where it has none for one."""
    import ray

    present = ray.cluster_resources()
    found = int(present.get("CPU", 0.0) / plan.cpus) if plan.cpus else 1
    if plan.gpus:
        found = min(found, int(present.get("GPU", 0.0) / plan.gpus))
    if not found:
        raise UsageError(
            f"A worker needs {plan.cpus:g} cores and {plan.gpus:g} GPUs; the cluster has {present.get('CPU', 0):g} and "
            f"{present.get('GPU', 0):g}."
        )
    return found


def whole_path(text: str) -> str:
    """A path from the root, for workers that run elsewhere; names stay."""
    place = Path(text).expanduser()
    return str(place.resolve()) if place.exists() else text


class ClusterTranscriber:
    """A `Transcriber` whose work is done by workers; for `evaluate`, and for all who take its `run`."""

    def __init__(
        self, plan: WorkerPlan, *, workers: int | None = None, sources: Mapping[str, str] | None = None
    ) -> None:
        """sources: where a worker finds the adapters of a choice, unless by its name."""
        self.plan = plan
        self.workers = workers
        self.sources = dict(sources or {})

    def run(
        self,
        recordings: Sequence[Recording],
        choices: Sequence[str | Path | None],
        *,
        progress: Progress | None = None,
    ) -> Iterator[Transcription]:
        """Results in order, as `Transcriber.run`."""
        texts = [None if choice is None else str(choice) for choice in choices]
        rows = [
            Row(recording=recording, adapter=None if text is None else self.sources.get(text, text))
            for recording, text in zip(recordings, texts, strict=True)
        ]
        parts = plan_parts(rows, seconds=60.0)
        total, done = sum(part.seconds for part in parts), 0.0
        found: dict[int, list[Transcription]] = {}
        following, place = 0, iter(texts)
        for part, results in transcribe_parts(parts, self.plan, workers=self.workers):
            found[part.number] = results
            done += part.seconds
            if progress is not None:
                progress(done, total)
            while following in found:
                for result in found.pop(following):
                    yield replace(result, adapter=next(place))
                following += 1


def transcribe_dataset(
    dataset: Any,
    plan: WorkerPlan,
    *,
    audio: str = "audio_filepath",
    adapter: str | None = None,
    workers: int | None = None,
    batch_size: int = 64,
) -> Any:
    """A Ray Dataset with `pred_text`, `score`, `words` and `error` beside the columns of another one.

    audio: the column of paths, or of files as bytes; columns `offset` and `duration` in seconds tell a stretch of it.
    adapter: the column of adapters; None is the base. workers: as many as the cluster has room for unless given.
    """

    class Worker:
        def __init__(self) -> None:
            self.hearer = Hearer(plan)

        def __call__(self, table: Any) -> Any:
            return with_transcripts(table, self.hearer, audio=audio, adapter=adapter)

    return dataset.map_batches(
        Worker,
        batch_size=batch_size,
        batch_format="pyarrow",
        concurrency=workers or room(plan),
        num_cpus=plan.cpus,
        num_gpus=plan.gpus or None,
    )


def with_transcripts(table: Any, hearer: Hearer, *, audio: str, adapter: str | None) -> Any:
    """An Arrow table with the columns of transcripts."""
    import pyarrow

    entries = table.to_pylist()
    rows = [row_of(entry, audio=audio, adapter=adapter, number=number) for number, entry in enumerate(entries)]
    results = hearer.transcribe(rows)
    found = [json.loads(json_line(result)) for result in results]
    for name in ("pred_text", "score", "words", "error"):
        kind = parquet_schema().field(name).type
        column = pyarrow.array([entry.get(name) for entry in found], type=kind)
        table = table.append_column(name, column)
    return table


def row_of(entry: Mapping[str, Any], *, audio: str, adapter: str | None, number: int) -> Row:
    """Row of a dataset's entry."""
    source, choice = entry[audio], entry.get(adapter) if adapter else None
    if isinstance(source, bytes):
        ((recording,),) = find_recordings([source])
    else:
        recording = Recording(path=Path(source), name=Path(source).name)
    offset, duration = float(entry.get("offset") or 0.0), entry.get("duration")
    return Row(recording=replace(recording, offset=offset, duration=duration), adapter=choice or None)

"""Transcription in parts that survive a kill: what is written is not done again.

A plan cuts recordings into parts of some minutes. Each part is written whole, under its number, as soon as it is done;
a later run of the same plan reads which there are and does the rest. JSON lines are joined in the end; Parquet is a
folder of parts, as its readers expect.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from overtone.data.manifest import read_manifest
from overtone.data.manifest_file import numbered_lines, parse_line
from overtone.errors import DataError, UsageError
from overtone.files import check_not_input, replace_file, write_failure
from overtone.inference.recordings import Recording, recordings_of
from overtone.inference.transcribe import Transcription
from overtone.inference.writers import json_line

PART_SECONDS = 600.0
"""Seconds of audio in a part."""
UNKNOWN_SECONDS = 30.0
"""Seconds that a recording of unknown length is taken for."""
PLAN = "_plan.json"
Form = Literal["jsonl", "parquet"]
FORMS: tuple[Form, ...] = ("jsonl", "parquet")
NUMBER = re.compile(r"part-(\d{6})\.(?:jsonl|parquet)")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One recording and its adapters."""

    recording: Recording
    adapter: str | None
    """The choice as it was given; None is the base."""

    @property
    def seconds(self) -> float:
        """Seconds of audio, as far as they are known beforehand."""
        return UNKNOWN_SECONDS if self.recording.duration is None else self.recording.duration


@dataclass(frozen=True, kw_only=True)
class Part:
    """Rows that are done and written together."""

    number: int
    rows: tuple[Row, ...]

    @property
    def seconds(self) -> float:
        """Seconds of audio."""
        return sum(row.seconds for row in self.rows)


def rows_by_column(manifest: str | Path, key: str) -> list[Row]:
    """Recordings of a manifest, each with the adapter that a key of its line names; without it, the base.

    Raises DataError for a value that is no name, and UsageError where no line has the key.
    """
    values: dict[int, str | None] = {}
    for number, line in numbered_lines(Path(manifest)):
        value = parse_line(line).get(key)
        if not (value is None or isinstance(value, str)):
            raise DataError(f"{manifest}:{number}: '{key}' is {str(value)[:40]!r}; the name of an adapter is needed.")
        values[number] = value or None
    if not any(values.values()):
        raise UsageError(f"No line of {manifest} has a key '{key}' with an adapter. Name the key that holds it.")
    utterances = read_manifest(manifest, need_text=False)
    rows = zip(utterances, recordings_of(utterances), strict=True)
    return [Row(recording=recording, adapter=values[utterance.line]) for utterance, recording in rows]


def plan_parts(rows: Iterable[Row], seconds: float | None = None) -> list[Part]:
    """Parts of about so many seconds of audio, PART_SECONDS unless given, in the order of the rows."""
    least = PART_SECONDS if seconds is None else seconds
    parts: list[Part] = []
    waiting: list[Row] = []
    for row in rows:
        waiting.append(row)
        if sum(each.seconds for each in waiting) >= least:
            parts.append(Part(number=len(parts), rows=tuple(waiting)))
            waiting = []
    if waiting:
        parts.append(Part(number=len(parts), rows=tuple(waiting)))
    return parts


def plan_digest(parts: Sequence[Part], facts: Mapping[str, Any]) -> str:
    """Digest of all that results depend on. facts: model, adapters and options."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for part in parts:
        for row in part.rows:
            recording = row.recording
            place = (str(recording.path), recording.offset, recording.duration, recording.channel, row.adapter)
            digest.update(json.dumps([part.number, *place]).encode())
    return digest.hexdigest()


class PartStore:
    """Files of the parts of one plan."""

    def __init__(self, output: Path, form: Form, *, inputs: Sequence[str | Path] = ()) -> None:
        """output: a file of JSON lines, or a folder of Parquet files. inputs: files that are never written to.

        Raises UsageError for an output that cannot be.
        """
        self.output = output
        self.form = form
        check_not_input(output, inputs)
        if form == "jsonl" and output.is_dir():
            raise UsageError(f"{output} is a folder; a file of JSON lines is needed, such as {output}/calls.jsonl.")
        if form == "parquet" and output.is_file():
            raise UsageError(f"{output} is a file; Parquet is written to a folder of files.")
        self.folder = output if form == "parquet" else output.with_name(f"{output.name}.parts")

    def open(self, digest: str) -> set[int]:
        """Numbers of the parts that an earlier run of the same plan has written.

        Raises UsageError where the folder belongs to another plan, or cannot be written.
        """
        plan = self.folder / PLAN
        try:
            if not plan.is_file():
                if self.folder.is_dir() and any(self.folder.iterdir()):
                    raise UsageError(f"{self.folder} holds files of something else; name another output, or empty it.")
                self.folder.mkdir(parents=True, exist_ok=True)
                with replace_file(plan) as file:
                    file.write(json.dumps({"plan": digest}).encode())
                return set()
            if json.loads(plan.read_text("utf-8")).get("plan") != digest:
                raise UsageError(
                    f"{self.folder} holds parts of another run: other recordings, adapters, model or options. Name "
                    "another output, or delete that folder."
                )
        except OSError as error:
            raise UsageError(write_failure(self.folder, error)) from error
        except ValueError as error:
            raise UsageError(f"{plan} is damaged: delete {self.folder}, and all is done anew.") from error
        found = [NUMBER.fullmatch(path.name) for path in self.folder.iterdir()]
        return {int(match[1]) for match in found if match is not None}

    def write(self, part: Part, results: Sequence[Transcription]) -> None:
        """Write a part, whole or not at all. Raises UsageError where it cannot be written."""
        lines = [
            json_line(replace(result, adapter=row.adapter)) for row, result in zip(part.rows, results, strict=True)
        ]
        try:
            with replace_file(self.place(part.number)) as file:
                if self.form == "jsonl":
                    file.write("".join(lines).encode())
                else:
                    write_parquet(file, [json.loads(line) for line in lines])
        except OSError as error:
            raise UsageError(write_failure(self.folder, error)) from error

    def failures(self, part: Part) -> int:
        """Rows of a written part that could not be transcribed; all of them where it cannot be read."""
        try:
            with self.place(part.number).open("rb") as file:
                if self.form == "jsonl":
                    return sum("pred_text" not in json.loads(line) for line in file)
                return read_failures(file)
        except (OSError, ValueError):
            return len(part.rows)

    def place(self, number: int) -> Path:
        """File of a part."""
        return self.folder / f"part-{number:06d}.{self.form}"

    def finish(self, parts: Sequence[Part]) -> None:
        """Join JSON lines into the output; the parts go. Raises UsageError where it cannot be written."""
        if self.form == "parquet":
            return
        try:
            with replace_file(self.output) as file:
                for part in parts:
                    with self.place(part.number).open("rb") as source:
                        shutil.copyfileobj(source, file)
            shutil.rmtree(self.folder)
        except OSError as error:
            raise UsageError(write_failure(self.output, error)) from error


def parquet_schema() -> Any:
    """Columns of a transcription, those of a JSON line."""
    import pyarrow

    words = pyarrow.struct(
        [("word", pyarrow.string()), *((name, pyarrow.float64()) for name in ("start", "end", "confidence"))]
    )
    alternatives = pyarrow.struct([("pred_text", pyarrow.string()), ("score", pyarrow.float64())])
    texts = dict.fromkeys(("audio_filepath", "text", "adapter", "pred_text", "error"), pyarrow.string())
    numbers = dict.fromkeys(("duration", "offset", "score"), pyarrow.float64())
    return pyarrow.schema(
        {
            **texts,
            **numbers,
            "channel": pyarrow.list_(pyarrow.int64()),
            "words": pyarrow.list_(words),
            "alternatives": pyarrow.list_(alternatives),
        }
    )


def read_failures(file: Any) -> int:
    """Rows without a transcript in a Parquet file."""
    from pyarrow import parquet

    return int(parquet.read_table(file, columns=["pred_text"]).column("pred_text").null_count)


def write_parquet(file: Any, entries: Sequence[dict[str, Any]]) -> None:
    """Write the entries of JSON lines as Parquet."""
    import pyarrow
    from pyarrow import parquet

    for entry in entries:
        if isinstance(entry.get("channel"), int):
            entry["channel"] = [entry["channel"]]
    parquet.write_table(pyarrow.Table.from_pylist(list(entries), schema=parquet_schema()), file)

"""Transcriptions as files: plain text, JSON lines, CTM, and captions (SRT, WebVTT)."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, TextIO

from overtone.errors import UsageError, did_you_mean
from overtone.files import check_file, check_folder, check_not_input, write_failure
from overtone.inference.captions import captions, ctm, srt, vtt
from overtone.inference.recordings import AUDIO_SUFFIXES
from overtone.inference.transcribe import Transcription

STREAMED = {"text": ".txt", "json": ".jsonl", "ctm": ".ctm"}
"""Formats that hold any number of recordings in one file."""

ONE_EACH = {"srt": ".srt", "vtt": ".vtt"}
"""Formats with a file for each recording."""

FORMATS = (*STREAMED, *ONE_EACH)


def json_line(result: Transcription) -> str:
    """One recording as a line of JSON: NeMo's manifest keys, its `pred_text`, and words with times.

    Times are seconds from the beginning of the recording, which is `offset` seconds into the file.
    """
    recording, hypothesis = result.recording, result.hypothesis
    entry: dict[str, Any] = {"audio_filepath": str(recording.path), "duration": round(result.duration, 3)}
    if recording.offset:
        entry["offset"] = recording.offset
    if recording.channel is not None:
        entry["channel"] = list(recording.channel) if len(recording.channel) > 1 else recording.channel[0]
    if recording.text is not None:
        entry["text"] = recording.text
    entry["adapter"] = result.adapter
    if hypothesis is None:
        entry["error"] = result.error
    else:
        entry["pred_text"] = hypothesis.text
        entry["score"] = round(hypothesis.score, 4)
        entry["words"] = [
            {
                "word": word.text,
                "start": word.start,
                "end": word.end,
                "confidence": round(word.confidence, 4),
            }
            for word in hypothesis.words
        ]
    if result.alternatives:
        entry["alternatives"] = [
            {"pred_text": each.text, "score": round(each.score, 4)} for each in result.alternatives
        ]
    return json.dumps(entry, ensure_ascii=False) + "\n"


def render(result: Transcription, style: str, *, with_name: bool = False, ctm_name: str | None = None) -> str:
    """Write one recording in one of FORMATS; an error is a JSON line with `error`, and nothing in the others.

    with_name: text lines begin with the recording's name and a tab. ctm_name: of the file in CTM, unless it is the
    recording's own.
    """
    if style == "json":
        return json_line(result)
    if result.hypothesis is None:
        return ""
    hypothesis, recording = result.hypothesis, result.recording
    if style == "ctm":
        file = ctm_name or str(PurePosixPath(recording.name).with_suffix(""))
        channel = "1" if recording.channel is None else "+".join(str(number + 1) for number in recording.channel)
        return ctm(file, hypothesis.words, channel=channel, offset=recording.offset)
    if style == "srt":
        return srt(captions(hypothesis.words))
    if style == "vtt":
        return vtt(captions(hypothesis.words))
    return f"{recording.name}\t{hypothesis.text}\n" if with_name else f"{hypothesis.text}\n"


class TranscriptWriter:
    """Writes results as they come, each complete before the next is asked for.

    `text`, `json` and `ctm` go to one file; `srt` and `vtt` to one file for each recording, in a folder that mirrors
    where the recordings lie. Without an output everything goes to standard output. A file is opened for the first
    transcript: where nothing can be transcribed, an old one stays as it was.
    """

    def __init__(
        self,
        style: str,
        *,
        output: str | Path | None = None,
        several: bool = False,
        inputs: Sequence[str | Path] = (),
    ) -> None:
        """
        style: one of FORMATS.
        output: a file; for srt and vtt a folder, or a file where there is one recording.
        several: whether more than one recording is expected; text lines then carry the recording's name.
        inputs: what is being transcribed, never written to.
        Raises UsageError for an unknown style, or an output that does not fit or cannot be written.
        """
        if style not in FORMATS:
            raise UsageError(
                f"The format '{style}' is unknown; use {', '.join(FORMATS)}.{did_you_mean(style, FORMATS)}"
            )
        self.style = style
        self.output = None if output is None else Path(output)
        is_folder = output is not None and str(output).endswith(("/", os.sep))
        self._names: dict[str, tuple[Path, set[object]]] = {}
        """Names in CTM, and what they stand for."""
        self.several = several
        self.written: list[Path] = []
        self._stream: TextIO | None = None
        self._waiting = ""
        """Errors that came before the first transcript."""
        if self.output is None and several and style in ONE_EACH:
            raise UsageError(f"Several recordings as {style} need a folder to be written to, one file for each.")
        if self.output is not None and self.output.suffix.lower() in AUDIO_SUFFIXES:
            raise UsageError(f"The output {self.output} is named like audio; nothing was written.")
        if self.output is not None and (is_folder or self.output.is_dir()) and style in STREAMED:
            self.output = self.output / f"transcripts{STREAMED[style]}"
        if self.output is not None:
            check_not_input(self.output, inputs)
            (check_file if self._is_one_file() else check_folder)(self.output)

    def __enter__(self) -> TranscriptWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()

    def write(self, result: Transcription) -> None:
        """Add one result. Raises UsageError where the output cannot be written."""
        text = render(result, self.style, with_name=self.several, ctm_name=self._ctm_name(result))
        if self.output is None:
            sys.stdout.write(text)
            sys.stdout.flush()
        elif self._is_one_file():
            self._waiting += text
            if self._stream is None and result.hypothesis is not None:
                self._stream = self._open(self.output)
            if self._stream is not None:
                self._put(self._stream, self._waiting)
                self._waiting = ""
        elif result.hypothesis is not None:
            with self._open(self._place(result)) as file:
                self._put(file, text)

    def _is_one_file(self) -> bool:
        """True for formats that hold many recordings, and for captions of one recording to a file of captions."""
        if self.style in STREAMED:
            return True
        return not self.several and self.output is not None and self.output.suffix in ONE_EACH.values()

    def _place(self, result: Transcription) -> Path:
        """The file for a recording's captions; no two recordings of a run share one."""
        assert self.output is not None
        name = PurePosixPath(result.recording.name).with_suffix("")
        stem = f"{name}-{result.recording.offset:.2f}" if result.recording.offset else str(name)
        place = self.output / f"{stem}{ONE_EACH[self.style]}"
        number = 2
        while place in self.written:
            place = self.output / f"{stem}-{number}{ONE_EACH[self.style]}"
            number += 1
        return place

    def _ctm_name(self, result: Transcription) -> str:
        """The name of the recording's file in CTM, its own: stretches and channels of one file share it.

        A stretch that comes twice has two, or its words would lie side by side.
        """
        recording = result.recording
        stem, number = str(PurePosixPath(recording.name).with_suffix("")), 1
        stretch = (recording.offset, recording.duration, recording.channel)
        while True:
            name = stem if number == 1 else f"{stem}-{number}"
            path, stretches = self._names.setdefault(name, (recording.path, set()))
            if path == recording.path and stretch not in stretches:
                stretches.add(stretch)
                return name
            number += 1

    def _put(self, file: TextIO, text: str) -> None:
        try:
            file.write(text)
            file.flush()
        except OSError as error:
            raise UsageError(write_failure(file.name, error)) from error

    def _open(self, path: Path) -> TextIO:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("w", encoding="utf-8", newline="\n")
        except OSError as error:
            raise UsageError(write_failure(path, error)) from error
        self.written.append(path)
        return file

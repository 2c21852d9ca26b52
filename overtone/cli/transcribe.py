"""Recordings to text: audio files of any length, rate and channel count, folders of them, or a manifest."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from overtone.cli.arguments import (
    ADAPTER_HELP,
    add_attention,
    add_computing,
    add_decoder,
    add_language,
    add_search,
    add_windows,
    attention_options,
    language_of,
    search_options,
    whole_number,
)
from overtone.cli.parts import add_workers, goes_in_parts, transcribe_in_parts
from overtone.cli.screen import note, shares_terminal_with_results
from overtone.errors import OvertoneError, UsageError
from overtone.progress import progress_bar
from overtone.startup import fast_imports

FORMATS = ("text", "jsonl", "srt", "vtt", "ctm", "parquet")

EXAMPLES = """examples:
  overtone transcribe memo.flac
  overtone transcribe calls/ --model base.nemo --adapter runs/medical --format jsonl --output calls.jsonl
  overtone transcribe interview.mp3 --format srt --output interview.srt
  overtone transcribe calls.json --adapter column:tenant --adapters adapters/ --format jsonl --output out.jsonl --ray

One unreadable file is reported and the rest go on; the exit code is then 1. Where none can be read it is 2, and an
old file at --output stays."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="*", metavar="PATH", help="audio file, folder, or manifest (.json, .jsonl)")
    parser.add_argument(
        "--model", default="fundamental", help="a .nemo file, a model folder, or a name (default: fundamental)"
    )
    parser.add_argument("--adapter", metavar="NAME", action="append", help=ADAPTER_HELP)
    parser.add_argument("--format", choices=FORMATS, default="text", help="of the output (default: text)")
    parser.add_argument("--output", "-o", metavar="PATH", help="file or folder to write; without it, the terminal")
    add_windows(parser)
    add_computing(parser)
    add_decoder(parser)
    add_search(parser)
    parser.add_argument(
        "--alternatives",
        type=whole_number,
        default=1,
        metavar="N",
        help="the most readings of a recording in a JSON line (default: 1)",
    )
    add_language(parser)
    add_attention(parser)
    add_workers(parser)


def run(arguments: argparse.Namespace) -> int:
    """Transcribe as the arguments say. Raises UsageError for alternatives that the format cannot hold."""
    if goes_in_parts(arguments):
        return transcribe_in_parts(arguments, one_adapter(arguments.adapter))
    with fast_imports():
        from overtone.checkpoints.adapters import find_adapter
        from overtone.cli.models import computing_line, load
        from overtone.inference.recordings import find_recordings
        from overtone.inference.transcribe import Transcriber
        from overtone.inference.writers import TranscriptWriter

    adapter = one_adapter(arguments.adapter)
    search = search_options(arguments)
    if arguments.alternatives > 1 and arguments.format != "jsonl":
        raise UsageError(f"--alternatives needs --format jsonl; {arguments.format} holds one reading of a recording.")
    recordings = [recording for group in find_recordings(arguments.paths) for recording in group]
    style = "json" if arguments.format == "jsonl" else arguments.format
    inputs = [*arguments.paths, arguments.model, *(adapter or "").split("+"), *(each.path for each in recordings)]
    writer = TranscriptWriter(
        style, output=arguments.output, several=len(recordings) > 1, inputs=list(filter(None, inputs))
    )
    model = load(
        arguments.model,
        arguments.device,
        decoder=arguments.decoder,
        **attention_options(arguments),
    )
    choice = find_adapter(model, adapter)
    transcriber = Transcriber(
        model,
        window=arguments.window or None,
        overlap=arguments.overlap,
        batch_seconds=arguments.batch_seconds,
        compute_dtype=arguments.dtype,
        language=language_of(arguments),
        alternatives=arguments.alternatives,
        **search,
    )
    note(computing_line(model, arguments, choice))
    if adapter is None and model.adapters.names:
        names = ", ".join(model.adapters.names)
        note(f"The model's file holds adapters ({names}); none acts. Use one with --adapter NAME, or --adapter @file.")
    failed = 0
    show = not shares_terminal_with_results(arguments.output)
    with writer, progress_bar("transcribing", show=show) as progress:
        for result in transcriber.run(recordings, [choice] * len(recordings), progress=progress):
            writer.write(result)
            if result.hypothesis is None:
                failed += 1
                note(f"overtone: error: {result.error}")
    if writer.written:
        note(written_line(writer.written))
    if failed:
        note(f"{failed} of {len(recordings)} recordings could not be transcribed.")
    if failed < len(recordings):
        return 1 if failed else 0
    if arguments.output:
        note(f"Nothing was written; {arguments.output} is as it was.")
    return OvertoneError.exit_code


def one_adapter(given: list[str] | None) -> str | None:
    """The choice of `--adapter`. Raises UsageError for several: a run has one."""
    if given is not None and len(set(given)) > 1:
        raise UsageError(
            f"--adapter was given {len(given)} times ({', '.join(given)}), and a run has one. Join those that act "
            "together by +; `overtone evaluate` compares several."
        )
    return given[0] if given else None


def written_line(files: Sequence[Path]) -> str:
    """A line that names the files that were written, of many the number and the first."""
    if len(files) == 1:
        return f"Written: {files[0]}"
    return f"Written: {len(files)} files, the first is {files[0]}"

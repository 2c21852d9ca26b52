"""Files of JSON lines: their encoding, compression and numbered lines."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from pathlib import Path
from typing import Any

from overtone.audio.kinds import HEADER_BYTES, kind_of
from overtone.errors import DataError

ENCODINGS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
"""Byte order marks and what they mark."""
SMALL_BYTES, EXPANSION, PIECE = 64 << 20, 100, 1 << 20
"""A compressed manifest may unpack to so many bytes, or to so many times its own (20: names that are alike); it is
unpacked in pieces."""
EXAMPLE = '{"audio_filepath": "a.wav", "duration": 3.2, "text": "hello there"}'

Entry = dict[str, Any]
"""The object of a line, by NeMo's keys."""


def numbered_lines(path: Path) -> list[tuple[int, Any]]:
    """The lines of a manifest that are not blank, each with its number from 1; of a JSON array its items, parsed.

    Raises DataError for a file that is missing, empty, or no text.
    """
    lines = split_lines(read_content(path))
    if not lines:
        raise DataError(f"{path}: the manifest is empty. One JSON object a line is needed, such as {EXAMPLE}")
    return lines


def read_content(path: Path) -> bytes:
    """The bytes of a manifest, as UTF-8 without a mark. Raises DataError for what is no text."""
    if not path.exists():
        raise DataError(f"{path}: no such manifest. Check the path.")
    if not path.is_file():
        raise DataError(f"{path}: not a file. Name a manifest, a file of JSON lines.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: the manifest cannot be read ({error.strerror}).") from error
    if path.suffix == ".gz":
        content = decompress(content, path)
    kind = kind_of(content[:HEADER_BYTES])
    if kind is not None:
        raise DataError(f"{path}: a recording ({kind.name}) and no manifest. Name a file of JSON lines that lists it.")
    for mark, encoding in ENCODINGS:
        if content.startswith(mark):
            try:
                return content[len(mark) :].decode(encoding).encode() if encoding != "utf-8" else content[len(mark) :]
            except UnicodeError as error:
                raise DataError(f"{path}: begins as {encoding}, but is not. Save the manifest as UTF-8.") from error
    if b"\0" in content[:4096]:
        raise DataError(f"{path}: not a text. Name a manifest, a file of JSON lines.")
    return content


def decompress(content: bytes, path: Path) -> bytes:
    """The content of a file that gzip has compressed.

    Raises DataError for one that it has not, and for one that unpacks to more than any manifest of its size.
    """
    allowed = max(SMALL_BYTES, EXPANSION * len(content))
    unpacked = io.BytesIO()
    try:
        with gzip.open(io.BytesIO(content)) as packed:
            while piece := packed.read(min(PIECE, allowed + 1 - unpacked.tell())):
                unpacked.write(piece)
                if unpacked.tell() > allowed:
                    raise DataError(
                        f"{path}: unpacks to more than {allowed} bytes, more than a manifest of its size can. "
                        "Unpack it first, if it is one."
                    )
        return unpacked.getvalue()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not compressed with gzip, or torn ({error}). Fetch or write it anew.") from error


def split_lines(content: bytes) -> list[tuple[int, Any]]:
    """The lines that are not blank, each with its number from 1; of a JSON array its items, parsed."""
    if content.lstrip()[:1] == b"[":
        try:
            array = json.loads(content)
        except (ValueError, RecursionError):
            pass  # told line by line
        else:
            return list(enumerate(array, start=1))
    return [(number, line) for number, line in enumerate(content.split(b"\n"), start=1) if line.strip()]


def parse_line(line: Any) -> Entry:
    """The object of a line. Raises DataError for anything else."""
    entry = line
    if isinstance(line, bytes):
        try:
            entry = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"not UTF-8 (byte {error.start + 1} of the line). Save the manifest as UTF-8.") from error
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise DataError(f"not JSON ({reason}). One object a line is needed, such as {EXAMPLE}") from error
    if not isinstance(entry, dict):
        raise DataError(f"a JSON {type(entry).__name__} instead of an object such as {EXAMPLE}")
    return entry

"""Small files that ask for much time or memory: each is refused within the budgets of its reader."""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping

PRIME = 2**61 - 1
"""Whole numbers that differ by a multiple of it have one hash."""


def merges(levels: int = 60) -> bytes:
    """A YAML file of nested merges: each level merges the one below it twice."""
    lines = ["a0: &a0 {k: 1}"] + [f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}], k{n}: 1}}" for n in range(1, levels)]
    return "\n".join(lines).encode()


def wide_merges(levels: int = 40, keys: int = 4000) -> bytes:
    """A YAML file of many merges of one large mapping."""
    lines = [f"a: &a {{{', '.join(f'k{n}: 1' for n in range(keys))}}}"]
    lines += [f"b{n}: {{<<: [{', '.join(['*a'] * levels)}]}}" for n in range(levels)]
    return "\n".join(lines).encode()


def merging_sets(levels: int = 30) -> bytes:
    """The same as `merges`, in sets, which PyYAML builds by other code."""
    lines = ["a0: &a0 !!set {k: }"] + [f"a{n}: &a{n} !!set {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, levels)]
    return "\n".join(lines).encode()


def aliases(levels: int = 40) -> bytes:
    """A YAML file of nested lists: each level names the one below it twice."""
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, levels)]
    return "\n".join(lines).encode()


def doubling(levels: int = 30) -> bytes:
    """A configuration whose references double a text at each level."""
    lines = ["x0: 0123456789", *(f'x{n}: "${{model.x{n - 1}}}${{model.x{n - 1}}}"' for n in range(1, levels))]
    return "\n".join(["model:", *(f"  {line}" for line in lines)]).encode()


def one_long_text(references: int = 6000) -> bytes:
    """A configuration of many references to one long text."""
    lines = [f"x: {'a' * 1_000_000}", "y:", *['  - "b${model.x}"'] * references]
    return "\n".join(["model:", *(f"  {line}" for line in lines)]).encode()


def pickled(program: bytes) -> bytes:
    """A file as PyTorch writes it, with this program in the place of its pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", program)
    return buffer.getvalue()


def colliding_pickle(count: int = 40_000) -> bytes:
    """A pickle of one dictionary whose keys have one hash."""
    items = b"".join(b"\x8a\x0c" + (n * PRIME).to_bytes(12, "little", signed=True) + b"N" for n in range(count))
    return pickled(b"\x80\x02}(" + items + b"u.")


def table(entries: int = 200_000) -> bytes:
    """A zip file of many entries, all of which lie on top of each other."""
    name = b"archive/data.pkl"
    local = struct.pack("<IHHHHHIIIHH", 0x04034B50, 20, 0, 0, 0, 0, 0, 0, 0, len(name), 0) + name
    entry = (
        struct.pack("<IHHHHHHIIIHHHHHII", 0x02014B50, 20, 20, 0, 0, 0, 0, 0, 0, 0, len(name), 0, 0, 0, 0, 0, 0) + name
    )
    central = entry * entries
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, entries & 0xFFFF, entries & 0xFFFF, len(central), len(local), 0)
    return local + central + end


def tar_of(members: Mapping[str, bytes]) -> bytes:
    """A tar of these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def long_header(kind: bytes, size: int = 200 << 20) -> bytes:
    """A gzipped tar whose first header is followed by hundreds of megabytes that belong to it."""
    header, drawn = tarfile.TarInfo("x"), random.Random(0)
    header.size, header.type = size, kind
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=1) as packed:
        packed.write(header.tobuf(tarfile.GNU_FORMAT))
        for _ in range(size >> 20):
            packed.write(drawn.randbytes(8 << 10) + b"1" * (1016 << 10))
    return buffer.getvalue()


def tensors(count: int = 400_000) -> bytes:
    """A safetensors file of many empty tensors."""
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({str(n): entry for n in range(count)}).encode()
    return struct.pack("<Q", len(header)) + header


BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "merges": ("yaml", merges),
    "wide merges": ("yaml", wide_merges),
    "merging sets": ("yaml", merging_sets),
    "aliases": ("yaml", aliases),
    "colliding keys": ("yaml", lambda: b"\n".join(b"%d: 1" % (n * PRIME) for n in range(100_000))),
    "a flat list": ("yaml", lambda: b"[" + b"1," * 5_000_000 + b"]"),
    "a number without end": ("yaml", lambda: b"a: 1" + b":11" * 1_000_000),
    "digits without end": ("yaml", lambda: b"a: 1" + b"0" * 4_000_000),
    "a scalar of itself": ("yaml", lambda: b"a: &a !!str {=: *a}"),
    "doubling references": ("config", doubling),
    "one long text": ("config", one_long_text),
    "a memory flood": ("pickle", lambda: pickled(b"\x80\x04N" + b"\x94" * (8 << 20) + b".")),
    "a large pickle": ("pickle", lambda: pickled(b"\x80\x04(" + b"N" * (48 << 20) + b"t.")),
    "colliding keys of a pickle": ("pickle", colliding_pickle),
    "a table of contents": ("pickle", table),
    "a long extended header": ("nemo", lambda: long_header(tarfile.XHDTYPE)),
    "a long name": ("nemo", lambda: long_header(tarfile.GNUTYPE_LONGNAME)),
    "a flat list of JSON": ("json", lambda: b"[" + b"[]," * 15_000_000 + b"0]"),
    "many tensors": ("safetensors", tensors),
    "a long header of tensors": ("safetensors", lambda: struct.pack("<Q", 1 << 40) + b"{}"),
}
"""By name, the reader of each and how it is made."""

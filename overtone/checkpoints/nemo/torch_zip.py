"""The zip file around what `torch.save` writes: nothing in it unfolds, and its table of contents has limits."""

from __future__ import annotations

import mmap
import zipfile
from typing import IO

from overtone.budgets import PICKLE_BYTES, ZIP_TABLE_BYTES

END_BYTES = 2**16 + 200
"""The longest end of a zip file, behind its table of contents."""
MAPPED_BYTES = PIECE_BYTES = 2**20
"""Members from the first size on get a mapping of their own; they are read in pieces of the second."""


class RefusedError(Exception):
    """The fault of a pickle, in words; becomes a CheckpointError that also names the file."""


def measure(file: IO[bytes]) -> int:
    """The bytes of a file, which stands at its beginning afterwards."""
    length = file.seek(0, 2)
    file.seek(0)
    return length


def check_table(file: IO[bytes]) -> None:
    """Refuse a table of contents that is too long, before it is read: the file's last bytes say where it begins."""
    length = measure(file)
    file.seek(max(0, length - END_BYTES))
    end = file.read(END_BYTES)
    at, whole = end.rfind(b"PK\x05\x06"), end.rfind(b"PK\x06\x06")
    size = int.from_bytes(end[at + 12 : at + 16], "little") if at >= 0 else 0
    if size == 0xFFFFFFFF and whole >= 0:
        size = int.from_bytes(end[whole + 40 : whole + 48], "little")
    if min(size, length) > ZIP_TABLE_BYTES:
        raise RefusedError(f"its zip has a table of {size} bytes; at most {ZIP_TABLE_BYTES} are accepted.")
    file.seek(0)


def checked_root(archive: zipfile.ZipFile, length: int) -> str:
    """The folder inside the zip; everything must be stored as it is, so that nothing unfolds while reading."""
    entries = archive.infolist()
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise RefusedError(f"entry '{entry.filename}' is compressed or encrypted, which PyTorch never does.")
    if sum(entry.file_size for entry in entries) > length:
        raise RefusedError("its entries claim to be larger than the file; it is refused.")
    roots = [entry.filename.removesuffix("/data.pkl") for entry in entries if entry.filename.endswith("/data.pkl")]
    if len(roots) != 1:
        raise RefusedError("it is no PyTorch file: no single 'data.pkl' inside.")
    if archive.getinfo(f"{roots[0]}/data.pkl").file_size > PICKLE_BYTES:
        raise RefusedError(f"its table of contents is larger than {PICKLE_BYTES} bytes; it is refused.")
    byte_order = f"{roots[0]}/byteorder"
    if byte_order in archive.namelist() and archive.read(byte_order) != b"little":
        raise RefusedError("it was written by a big-endian machine, which is not supported.")
    return roots[0]


def read_member(archive: zipfile.ZipFile, name: str) -> bytearray | mmap.mmap:
    """The bytes of a member; many are in a mapping of their own, which goes back to the system with the last tensor."""
    size = archive.getinfo(name).file_size
    content = mmap.mmap(-1, size) if size >= MAPPED_BYTES else bytearray(size)
    at = 0
    with archive.open(name) as file, memoryview(content) as view:
        while piece := file.read(PIECE_BYTES):  # to the end, where the checksum is compared
            view[at : at + len(piece)] = piece
            at += len(piece)
    if at != size:
        raise zipfile.BadZipFile(f"{name} has {at} of {size} bytes")
    return content

"""The zip file around what `torch.save` writes: nothing in it unfolds, and its table of contents has limits."""

from __future__ import annotations

import struct
import zipfile
import zlib
from typing import IO, cast

from torch import Tensor

from overtone.budgets import PICKLE_BYTES, ZIP_TABLE_BYTES
from overtone.checkpoints.tensors import empty_bytes, memory_of

END_BYTES = 2**16 + 200
"""The longest end of a zip file, behind its table of contents."""
HEADER_BYTES, HEADER_LENGTHS = 30, 26
"""The fixed part of the header before an entry, and where in it the lengths of the rest stand."""
PIECE_BYTES = 2**18
"""Members are read in pieces that are still in a processor's cache when their checksum is made."""


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


def read_member(archive: zipfile.ZipFile, name: str) -> Tensor:
    """The bytes of a member, [bytes] uint8, read to where they stay; as zipfile would, but without a copy on the way.

    Raises zipfile.BadZipFile for a damaged one.
    """
    entry, file = archive.getinfo(name), cast("IO[bytes]", archive.fp)
    with archive.open(entry):  # compares the entry's own header with the table of contents
        pass
    file.seek(entry.header_offset + HEADER_LENGTHS)
    lengths = struct.unpack("<HH", file.read(4))  # of its name and of what follows the name
    file.seek(entry.header_offset + HEADER_BYTES + sum(lengths))
    content = empty_bytes(entry.file_size)
    at = checksum = 0
    with memory_of(content) as view:
        while count := file.readinto(view[at : at + PIECE_BYTES]):  # type: ignore[attr-defined]
            checksum = zlib.crc32(view[at : at + count], checksum)
            at += count
    if at != entry.file_size or checksum != entry.CRC:
        raise zipfile.BadZipFile(f"{name} has {at} of {entry.file_size} bytes, or another checksum")
    return content

"""Budgets of readers: the work and the memory that a file may cost, counted while it is read.

A small file can ask for much: nested merges and references, keys that collide, values that are remembered again and
again. Every reader of foreign files takes its limits from here. They lie far above what checkpoints have (the number in
brackets is that of the largest one known), and low enough for two seconds and 500 MB.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO

YAML_VALUES = 150_000
"""Values and aliases of a YAML file, as they are written (30,000: the labels of a vocabulary)."""
UNFOLDED_VALUES = 500_000
"""Values of a YAML file with all aliases, merges and references unfolded."""
TEXT = 4 << 20
"""Characters of all its texts together, unfolded in the same way."""
JSON_VALUES = 1_000_000
"""Values of a JSON file (520,000: a tokenizer of 250,000 pieces)."""
PICKLE_BYTES = 16 << 20
"""Bytes of a pickle, without its tensors (1 MB)."""
PICKLE_STEPS = 1_500_000
"""Instructions of a pickle (100,000: a model of 2,000 tensors)."""
ZIP_TABLE_BYTES = 4 << 20
"""Bytes of a zip file's table of contents (0.3 MB)."""
TAR_HEADER_BYTES = 1 << 20
"""Bytes of one header of a tar (a few hundred: a long name)."""
TAR_HEADERS_BYTES = 16 << 20
"""Bytes of all its headers together."""
TENSOR_HEADER_BYTES = 4 << 20
"""Bytes of the header of a safetensors file (0.3 MB)."""
NUMBERS_AS_KEYS = 3072
"""Keys that are numbers, which can be chosen to collide (2,000: the parameters of an optimiser)."""
NUMBER_CHARACTERS = 400
"""Characters of a number: a long one takes time that grows with the square of its length."""


class Budget:
    """A budget that is used up step by step."""

    def __init__(self, *, steps: int, text: int = TEXT) -> None:
        self.steps = steps
        """Steps that are left: values, instructions."""
        self.text = text
        """Characters that are left."""
        self.number_keys = NUMBERS_AS_KEYS

    def step(self, count: int = 1) -> None:
        """Use up steps. Raises ValueError where none are left."""
        self.steps -= count
        if self.steps < 0:
            raise ValueError("it holds, or its aliases unfold to, more values than any such file")

    def hold(self, characters: int) -> None:
        """Use up characters. Raises ValueError where none are left."""
        self.text -= characters
        if self.text < 0:
            raise ValueError("its texts are, or unfold to, more characters than any such file has")

    def use_keys(self, keys: Iterable[object]) -> None:
        """Use up the keys of mappings. Raises ValueError where too many are numbers."""
        self.number_keys -= sum(not isinstance(key, str) for key in keys)
        if self.number_keys < 0:
            raise ValueError(f"more than {NUMBERS_AS_KEYS} of its keys are numbers")


class HeaderReader:
    """The file of a tar; while its members are looked for, no header is read that is longer than any needs to be."""

    def __init__(self, file: IO[bytes], *, total: int = TAR_HEADERS_BYTES) -> None:
        """total: bytes of all headers together."""
        self.file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable
        self.at_most: int | None = total
        """Bytes of headers that may still be read; None where the members themselves are read."""

    def read(self, size: int = -1) -> bytes:
        """Read bytes. Raises ValueError for a header, or headers, of too many."""
        if self.at_most is not None:
            self.at_most -= size
            if not 0 <= size <= TAR_HEADER_BYTES or self.at_most < 0:
                raise ValueError(f"a header of {size} bytes is longer than any needs to be")
        return self.file.read(size)


def check_json(content: bytes) -> None:
    """Raises ValueError for a JSON text of too many values, before any is built."""
    if sum(content.count(sign) for sign in (b",", b"[", b"{")) > JSON_VALUES:
        raise ValueError(f"it holds more than {JSON_VALUES} values")


def check_tensor_header(start: bytes) -> None:
    """Check the first 8 bytes of a safetensors file. Raises ValueError where its header claims to be too long."""
    length = int.from_bytes(start[:8], "little")
    if length > TENSOR_HEADER_BYTES:
        raise ValueError(f"its header claims {length} bytes, at most {TENSOR_HEADER_BYTES} are allowed")

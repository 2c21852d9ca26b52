"""PyTorch's zip files (`model_weights.ckpt`, `adapters.pt`), read without executing anything that they name.

A pickle is a program for a small stack machine. The machine below knows only how to build plain values: a name
in the file stays a name, is never imported, and can be called only where `CALLS` says what stands for it.
Tensors are made from the zip's own bytes; omegaconf's objects become records that are read as plain values.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

import torch
from torch import Tensor

from overtone.budgets import (
    PICKLE_STEPS,
    UNFOLDED_VALUES,
    Budget,
)
from overtone.checkpoints.nemo.torch_zip import RefusedError, check_table, checked_root, measure, read_member
from overtone.errors import CheckpointError

PLAIN_DEPTH = 100
DIMENSIONS = 64
REPEATED = 4
"""The largest ratio of a model's tensors to the numbers in its file: tied tensors are few and small."""
OLD_FORMAT = (b"\x80\x02\x8a", b"\x80\x02.")

DAMAGES = (LookupError, ValueError, TypeError, ArithmeticError, RuntimeError, EOFError, OSError, struct.error)
"""Errors of reading a table of contents that is damaged, or made to mislead."""

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
NODES = {"AnyNode", "IntegerNode", "StringNode", "FloatNode", "BooleanNode", "BytesNode", "PathNode"}
RECORDS = (
    {f"omegaconf.nodes.{node}" for node in NODES}
    | {"omegaconf.nodes.UnionNode", "omegaconf.base.UnionNode"}
    | {"omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig"}
    | {"omegaconf.base.Metadata", "omegaconf.base.ContainerMetadata"}
)
"""Classes whose instances are taken as records of their state."""


@dataclass(frozen=True)
class Name:
    """A name in the file; a word, nothing more."""

    path: str


@dataclass(eq=False)
class Record:
    """An instance of one of `RECORDS`, as the state it was saved with."""

    kind: str
    state: dict[str, Any] = field(default_factory=dict)


def read_state_dict(file: IO[bytes], source: str) -> dict[str, Tensor]:
    """Read the tensors of a `model_weights.ckpt` by key. Raises CheckpointError, beginning with `source`."""
    content = read_torch_file(file, source)
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise CheckpointError(f"{source} holds something else than tensors by name; it is no model's weights.")
    held = {storage.data_ptr(): storage.nbytes() for storage in map(Tensor.untyped_storage, content.values())}
    if sum(tensor.nbytes for tensor in content.values()) > REPEATED * sum(held.values()):
        raise CheckpointError(f"{source} holds the same numbers under many names; it is no model's weights.")
    return content


def read_torch_file(file: IO[bytes], source: str) -> Any:
    """Read what `torch.save` wrote, made of dicts, lists, tuples, numbers, strings, tensors, names and records.

    Raises CheckpointError, beginning with `source`, for damaged files and for any that ask for more.
    """
    try:
        check_table(file)
        with zipfile.ZipFile(file) as archive:
            root = checked_root(archive, measure(file))
            machine = Machine(archive.read(f"{root}/data.pkl"), Storages(archive, root))
            return machine.run()
    except RefusedError as error:
        raise CheckpointError(f"{source}: {error}") from error
    except zipfile.BadZipFile as error:
        file.seek(0)
        if file.read(3).startswith(OLD_FORMAT):
            raise CheckpointError(
                f"{source} is in PyTorch's format from before version 1.6; load and save it once with a newer PyTorch."
            ) from error
        raise CheckpointError(f"{source} is no PyTorch file, or it is truncated or damaged: {error}.") from error
    except DAMAGES as error:
        raise CheckpointError(f"{source} is damaged: {type(error).__name__} {error}.") from error


def plain(value: Any) -> Any:
    """omegaconf's records as dicts, lists and plain values; interpolations and `???` stay the text they are.

    Raises RefusedError for anything else, and for more content than a configuration can have.
    """
    budget = Budget(steps=UNFOLDED_VALUES)

    def walk(value: Any, depth: int) -> Any:
        budget.step()
        if depth > PLAIN_DEPTH:
            raise RefusedError("its configuration is larger or deeper than any of a model; it is refused.")
        if isinstance(value, Record):
            return walk(value.state.get("_content", value.state.get("_val")), depth + 1)
        if isinstance(value, dict):
            return {str(key): walk(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [walk(item, depth + 1) for item in value]
        if isinstance(value, str | bytes):
            budget.hold(len(value))
        if value is None or isinstance(value, bool | int | float | str | bytes):
            return value
        raise RefusedError(f"its configuration holds {shown(value)}; only plain values are accepted.")

    try:
        return walk(value, 0)
    except ValueError as error:
        raise RefusedError("its configuration is larger or deeper than any of a model; it is refused.") from error


def shown(value: Any) -> str:
    return f"'{value.path}'" if isinstance(value, Name) else f"a value of type {type(value).__name__}"


class Storages:
    """The numbers of the tensors: flat tensors [numbers], read when first asked for."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        self.archive = archive
        self.root = root
        self.read: dict[str, Tensor] = {}

    def get(self, reference: Any) -> Tensor:
        """`reference` as PyTorch writes it: ("storage", its class, key, device, count)."""
        if not (isinstance(reference, tuple) and len(reference) == 5 and reference[0] == "storage"):
            raise RefusedError("it refers to something else than the storage of a tensor.")
        _, kind, key, _, count = reference
        name = kind.path.removeprefix("torch.") if isinstance(kind, Name) else ""
        if name not in DTYPES or not isinstance(key, str) or not isinstance(count, int):
            raise RefusedError(f"a tensor of storage {shown(kind)} is not supported; supported: {', '.join(DTYPES)}.")
        dtype = DTYPES[name]
        if key not in self.read:
            content = read_member(self.archive, f"{self.root}/data/{key}")
            if len(content) != count * dtype.itemsize:
                raise RefusedError(f"storage {key} has {len(content)} bytes, {count * dtype.itemsize} are announced.")
            self.read[key] = content.view(dtype)
        storage = self.read[key]
        if storage.dtype != dtype or storage.numel() != count:
            raise RefusedError(f"storage {key} is announced in two ways.")
        return storage


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """`torch._utils._rebuild_tensor_v2`: a view of the storage that stays inside of it and repeats nothing."""
    if not isinstance(storage, Tensor) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise RefusedError("a tensor is described wrongly.")
    numbers = (offset, *size, *stride)
    if (
        len(size) != len(stride)
        or len(size) > DIMENSIONS
        or not all(type(number) is int and number >= 0 for number in numbers)
    ):
        raise RefusedError("a tensor is described wrongly.")
    count = 1
    for length in size:
        count *= length
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if count and (last >= storage.numel() or count > storage.numel()):
        raise RefusedError(f"a tensor of shape {list(size)} does not lie within its storage of {storage.numel()}.")
    return storage.as_strided(size, stride, offset) if count else storage.new_empty(size)


def _size(*arguments: Any) -> tuple[int, ...]:
    """`torch.Size`."""
    (lengths,) = arguments
    if not isinstance(lengths, tuple | list) or len(lengths) > DIMENSIONS:
        raise RefusedError("a tensor is described wrongly.")
    return tuple(lengths)


def _empty(*_: Any) -> dict[Any, Any]:
    """An empty dictionary of whatever kind; its items follow as instructions of their own."""
    return {}


CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch.Size": _size,
    "collections.OrderedDict": _empty,
    "collections.defaultdict": _empty,
}
"""Our function for each callable that a file may name."""

MARK = object()


class Machine:
    """Runs one pickle (protocols 2 to 5, without what only programs need)."""

    def __init__(self, program: bytes, storages: Storages) -> None:
        self.program = program
        self.at = 0
        self.storages = storages
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.budget = Budget(steps=PICKLE_STEPS)

    def run(self) -> Any:
        """The value that the program builds. Raises RefusedError, and whatever its damage leads to."""
        for _ in range(PICKLE_STEPS):
            code = self.take(1)
            if code == b".":
                return self.stack.pop()
            step = STEPS.get(code)
            if step is None:
                raise RefusedError(f"its pickle uses instruction {code!r}, which no checkpoint needs; it is refused.")
            step(self)
        raise RefusedError(f"its pickle has more than {PICKLE_STEPS} instructions; it is refused.")

    def take(self, count: int) -> bytes:
        part = self.program[self.at : self.at + count]
        if len(part) != count:
            raise RefusedError("its table of contents is truncated.")
        self.at += count
        return part

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        end = self.program.index(b"\n", self.at)
        text = self.program[self.at : end].decode()
        self.at = end + 1
        return text

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def remember(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def since_mark(self) -> list[Any]:
        start = len(self.stack) - 1
        while self.stack[start] is not MARK:
            start -= 1
            if start < 0:
                raise RefusedError("its table of contents is damaged.")
        items = self.stack[start + 1 :]
        del self.stack[start:]
        return items

    def last(self, count: int) -> None:
        items = tuple(self.stack[len(self.stack) - count :]) if count else ()
        del self.stack[len(self.stack) - count :]
        self.push(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise RefusedError("it fills something that is no dictionary.")
        if not all(key is None or isinstance(key, str | int | float) for key in items[::2]):
            raise RefusedError("a key of its dictionaries is no plain value; it is refused.")
        self.budget.use_keys(items[::2])
        target.update(zip(items[::2], items[1::2], strict=True))

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise RefusedError("it fills something that is no list.")
        target.extend(items)

    def call(self) -> None:
        arguments, callee = self.stack.pop(), self.stack.pop()
        if not isinstance(callee, Name) or callee.path not in CALLS or not isinstance(arguments, tuple):
            raise RefusedError(f"its pickle asks to call {shown(callee)}; it is refused and nothing was executed.")
        self.push(CALLS[callee.path](*arguments))

    def create(self) -> None:
        _, kind = self.stack.pop(), self.stack.pop()
        if not isinstance(kind, Name) or kind.path not in RECORDS:
            raise RefusedError(f"its pickle asks to create {shown(kind)}; it is refused and nothing was executed.")
        self.push(Record(kind.path))

    def build(self) -> None:
        """The state of a record; attributes of a dictionary (PyTorch's `_metadata`) are dropped."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Record) and isinstance(state, dict):
            target.state = state
        elif not isinstance(target, dict):
            raise RefusedError(f"its pickle asks to change {shown(target)}; it is refused.")

    def name(self, module: Any, attribute: Any) -> None:
        if not isinstance(module, str) or not isinstance(attribute, str):
            raise RefusedError("a name in its pickle is no text.")
        self.push(Name(f"{module}.{attribute}"))

    def stack_name(self) -> None:
        attribute, module = self.stack.pop(), self.stack.pop()
        self.name(module, attribute)


STEPS: dict[bytes, Callable[[Machine], Any]] = {
    b"\x80": lambda m: m.take(1),  # PROTO
    b"\x95": lambda m: m.take(8),  # FRAME
    b"(": lambda m: m.push(MARK),
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"J": lambda m: m.push(m.number("<i")),
    b"K": lambda m: m.push(m.number("<B")),
    b"M": lambda m: m.push(m.number("<H")),
    b"\x8a": lambda m: m.push(int.from_bytes(m.take(m.number("<B")), "little", signed=True)),
    b"G": lambda m: m.push(m.number(">d")),
    b"X": lambda m: m.push(m.take(m.number("<I")).decode("utf-8", "surrogatepass")),
    b"\x8c": lambda m: m.push(m.take(m.number("<B")).decode("utf-8", "surrogatepass")),
    b"}": lambda m: m.push({}),
    b"]": lambda m: m.push([]),
    b")": lambda m: m.push(()),
    b"t": lambda m: m.push(tuple(m.since_mark())),
    b"\x85": lambda m: m.last(1),
    b"\x86": lambda m: m.last(2),
    b"\x87": lambda m: m.last(3),
    b"s": lambda m: m.set_items([m.stack.pop(-2), m.stack.pop()]),
    b"u": lambda m: m.set_items(m.since_mark()),
    b"a": lambda m: m.extend([m.stack.pop()]),
    b"e": lambda m: m.extend(m.since_mark()),
    b"q": lambda m: m.remember(m.number("<B")),
    b"r": lambda m: m.remember(m.number("<I")),
    b"\x94": lambda m: m.remember(len(m.memo)),
    b"h": lambda m: m.push(m.memo[m.number("<B")]),
    b"j": lambda m: m.push(m.memo[m.number("<I")]),
    b"c": lambda m: m.name(m.line(), m.line()),
    b"\x93": lambda m: m.stack_name(),
    b"Q": lambda m: m.push(m.storages.get(m.stack.pop())),
    b"R": lambda m: m.call(),
    b"\x81": lambda m: m.create(),
    b"b": lambda m: m.build(),
}
"""The instructions, by their byte."""

"""Readers of foreign files under structured fuzz: what each mutation costs, and whether it ends in one message.

    python -m benchmarks.reader_fuzz --mutations 20000

Mutations are YAML with anchors, merges and references, programs of pickles, tars, zips and safetensors headers, each
grown from small parts that repeat, and bytes of true files changed at random. A reader may take 2 s of processor time
and 500 MB for each, and give a value or one of our errors. The exit code is 1 where one does more.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import random
import resource
import signal
import struct
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.reader_bombs import BOMBS, PRIME, pickled, tar_of
from overtone.adapters.storage import read_description
from overtone.checkpoints.folder import read_tensors
from overtone.checkpoints.huggingface.peft import read_adapter_config
from overtone.checkpoints.nemo.config import translate
from overtone.checkpoints.nemo.model import CONFIG, WEIGHTS, read_config, read_nemo
from overtone.checkpoints.nemo.pickles import read_torch_file
from overtone.errors import OvertoneError
from overtone.safe_yaml import read_values

SECONDS = 2.0
MEGABYTES = 500


def read(kind: str, content: bytes, folder: Path) -> None:
    """Read a file of a kind, inside a folder. Raises OvertoneError, or ValueError for plain YAML."""
    path = folder / {"adapter": "adapter.yaml", "nemo": "a.nemo"}.get(kind, "file")
    if kind == "yaml":
        read_values(content)
    elif kind == "config":
        translate(read_config(content, "a"), "a")
    elif kind == "pickle":
        read_torch_file(io.BytesIO(content), "a")
    else:
        path.write_bytes(content)
        readers: dict[str, Callable[[], object]] = {
            "nemo": lambda: read_nemo(path),
            "json": lambda: read_adapter_config(path),
            "safetensors": lambda: read_tensors(path),
            "adapter": lambda: read_description(folder),
        }
        readers[kind]()


# Mutations

ODD_NUMBERS = ("1:59", "9", "0b1", ".inf", "0x7", "1_")
ODD_VALUES = ("!!set {a: }", "!!omap [a: 1]", "!!binary AAAA", "!!python/name:os.system x", "!!str {=: a}", "!!int [1]")
PLAIN_VALUES = ("true", "null", "1", "1.5", "text", "{}", "[]", "${model.k1}")


def yaml_value(drawn: random.Random, names: list[str], depth: int = 0) -> str:
    """A YAML value in flow style, with anchors, aliases, merges, references, tags and repetitions."""
    choice = drawn.randrange(14 if depth < 6 else 8)
    if choice == 0 and names:
        return f"*{drawn.choice(names)}"
    if choice == 1 and drawn.random() < 0.1:
        return drawn.choice(ODD_NUMBERS) * drawn.randrange(1, 500)
    if choice == 2:
        return f'"{"".join(f"${{model.k{drawn.randrange(6)}}}" for _ in range(drawn.randrange(20)))}"'
    if choice == 3:
        return "x" * drawn.choice([1, 10, 10_000, 500_000])
    if choice == 4 and drawn.random() < 0.1:
        return drawn.choice(ODD_VALUES)
    if choice < 8:
        return drawn.choice([*PLAIN_VALUES, str(PRIME * drawn.randrange(9))])
    anchor = ""
    if drawn.random() < 0.6:
        name = f"n{len(names)}"
        anchor = f"&{name} "
    parts = [yaml_value(drawn, names, depth + 1) for _ in range(drawn.randrange(4))]
    if names and drawn.random() < 0.5:
        parts += [f"*{drawn.choice(names)}"] * drawn.choice([1, 2, 50, 2000])
    if choice < 11:
        value = f"[{', '.join(parts)}]"
    else:
        merge = ", ".join(f"*{drawn.choice(names)}" for _ in range(drawn.randrange(1, 5))) if names else ""
        own = [f"<<: [{merge}]"] if merge and drawn.random() < 0.7 else []
        value = "{" + ", ".join([*own, *(f"k{n}: {part}" for n, part in enumerate(parts))]) + "}"
    if anchor:
        names.append(anchor[1:-1])
    return anchor + value


def mutate_yaml(drawn: random.Random) -> bytes:
    names: list[str] = []
    lines = [f"  k{n}: {yaml_value(drawn, names)}" for n in range(drawn.randrange(1, 30))]
    if drawn.random() < 0.2:
        lines += [f"  {n * PRIME}: 1" for n in range(drawn.choice([10, 1000, 20_000]))]
    return "\n".join(["model:", *lines]).encode()


OPCODES = [
    *(b"(", b"N", b"\x88", b"K\x01", b"M\x01\x02", b"\x8a\x01\x05", b"}", b"]", b")", b"t", b"\x85", b"\x86", b"\x87"),
    *(
        b"s",
        b"u",
        b"a",
        b"e",
        b"q\x00",
        b"\x94",
        b"h\x00",
        b"h\x01",
        b"R",
        b"\x81",
        b"b",
        b"Q",
        b"X\x03\x00\x00\x00abc",
    ),
    *(b"ctorch\nSize\n", b"ccollections\nOrderedDict\n", b"comegaconf.dictconfig\nDictConfig\n"),
]


def mutate_pickle(drawn: random.Random) -> bytes:
    parts = []
    for _ in range(drawn.randrange(1, 60)):
        part = b"".join(drawn.choices(OPCODES, k=drawn.randrange(1, 8)))
        parts.append(part * drawn.choice([1, 1, 1, 3, 100, 100_000]))
    if drawn.random() < 0.2:
        keys = ((n * PRIME).to_bytes(12, "little", signed=True) for n in range(drawn.randrange(9000)))
        parts.insert(0, b"}(" + b"".join(b"\x8a\x0c" + key + b"N" for key in keys) + b"u")
    return pickled(b"\x80\x04" + b"".join(parts) + b".")


def mutate_tar(drawn: random.Random) -> bytes:
    content = bytearray(tar_of({CONFIG: mutate_yaml(drawn), WEIGHTS: mutate_pickle(drawn)}))
    for _ in range(drawn.randrange(4)):
        header = tarfile.TarInfo(drawn.choice([CONFIG, "../a", "b", "c" * 90]))
        header.type = drawn.choice([b"x", b"g", b"L", b"K", b"S", b"0", b"1", b"2", b"5"])
        header.size = drawn.choice([0, 10, 512, 5000, 1 << 30, 1 << 62])
        pax = b"30 GNU.sparse.major=1\n30 size=99999999999\n"
        at = drawn.choice([0, 512, len(content) // 1024 * 512])
        content[at:at] = header.tobuf(tarfile.GNU_FORMAT) + pax.ljust(512, b"\0") * drawn.choice([1, 1, 10])
    return bytes(content)


def mutate_tensors(drawn: random.Random) -> bytes:
    entries = {
        str(n): {
            "dtype": drawn.choice(["F32", "U8", "F4", "BF16", "X"]),
            "shape": drawn.choice([[0], [2], [2**40, 2**40], [-1], []]),
            "data_offsets": drawn.choice([[0, 0], [0, 8], [8, 0]]),
        }
        for n in range(drawn.choice([1, 2, 10, 30_000]))
    }
    header = json.dumps(entries).encode()
    return struct.pack("<Q", drawn.choice([len(header), 0, 2**63, len(header) + 9])) + header + b"\0" * 8


def mutate_json(drawn: random.Random) -> bytes:
    part = drawn.choice(['"r": 1, ', '"rank_pattern": {"a": 1}, ', '"x": [[]], ', '"y": 1e400, ', '"z": ' + "[" * 500])
    return ('{"peft_type": "LORA", ' + part * drawn.choice([1, 2, 1000, 100_000]) + '"r": 2}').encode()


MUTATE: dict[str, Callable[[random.Random], bytes]] = {
    "yaml": mutate_yaml,
    "config": mutate_yaml,
    "adapter": mutate_yaml,
    "pickle": mutate_pickle,
    "nemo": mutate_tar,
    "safetensors": mutate_tensors,
    "json": mutate_json,
}


def mutation(number: int) -> tuple[str, bytes]:
    """The kind and the content of a mutation, the same for every number."""
    drawn = random.Random(number)
    kind = drawn.choice(sorted(MUTATE))
    content = MUTATE[kind](drawn)
    if drawn.random() < 0.3:
        damaged = bytearray(content)
        for _ in range(drawn.randrange(1, 9)):
            damaged[drawn.randrange(len(damaged))] = drawn.randrange(256)
        content = bytes(damaged)
    return kind, content


# Figures


@dataclass(kw_only=True)
class Figures:
    """What the mutations cost."""

    read: int = 0
    accepted: int = 0
    slowest: float = 0.0
    """Seconds of processor time."""
    largest: float = 0.0
    """Megabytes."""
    failures: list[str] = field(default_factory=list)

    def add(self, other: Figures) -> None:
        """Take the figures of others into account."""
        self.read += other.read
        self.accepted += other.accepted
        self.slowest, self.largest = max(self.slowest, other.slowest), max(self.largest, other.largest)
        self.failures += other.failures


def memory() -> tuple[float, float]:
    """Megabytes of this process: now, and at most since the peak began anew."""
    status = Path("/proc/self/status").read_text("ascii")
    values = {
        line.split(":")[0]: line.split()[1] for line in status.splitlines() if line.startswith(("VmRSS", "VmHWM"))
    }
    return int(values["VmRSS"]) / 1024, int(values["VmHWM"]) / 1024


def measure(name: str, kind: str, content: bytes, folder: Path) -> Figures:
    """Read one file, and see what that costs."""
    figures = Figures(read=1)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, _ = memory()
    began = time.process_time()
    try:
        read(kind, content, folder)
        figures.accepted = 1
    except (OvertoneError, ValueError) as error:
        if not isinstance(error, OvertoneError) and kind != "yaml":
            figures.failures.append(f"{name} ({kind}): {type(error).__name__} {error}")
    except BaseException as error:
        figures.failures.append(f"{name} ({kind}): {type(error).__name__} {error}")
    figures.slowest = time.process_time() - began
    figures.largest = max(0.0, memory()[1] - before)
    if figures.slowest > SECONDS or figures.largest > MEGABYTES:
        figures.failures.append(f"{name} ({kind}): {figures.slowest:.2f} s, {figures.largest:.0f} MB")
    return figures


def stop(*_: object) -> None:
    raise TimeoutError("more than ten times its time")


def run(numbers: Sequence[int], bombs: Sequence[str], folder: Path) -> Figures:
    """Read mutations and bombs in this process."""
    signal.signal(signal.SIGVTALRM, stop)
    whole = Figures()
    for name in bombs:
        kind, make = BOMBS[name]
        content = make()
        signal.setitimer(signal.ITIMER_VIRTUAL, 10 * SECONDS)
        whole.add(measure(name, kind, content, folder))
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    for number in numbers:
        kind, content = mutation(number)
        signal.setitimer(signal.ITIMER_VIRTUAL, 10 * SECONDS)
        whole.add(measure(f"mutation {number}", kind, content, folder))
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return whole


def run_apart(numbers: Sequence[int], bombs: Sequence[str]) -> Figures:
    """The same in a process of its own, which may die of it."""
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with tempfile.TemporaryDirectory() as folder:
                figures = run(numbers, bombs, Path(folder))
            with open(sending, "wb") as file:  # noqa: PTH123 (a descriptor is no path)
                pickle.dump(figures, file)
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    os.close(sending)
    with open(receiving, "rb") as file:  # noqa: PTH123 (a descriptor is no path)
        content = file.read()
    _, status = os.waitpid(child, 0)
    if not content:
        return Figures(read=len(numbers), failures=[f"{[*bombs, *numbers[:1]]} …: the process died, status {status}"])
    figures: Figures = pickle.loads(content)
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bombs, then the mutations in processes of a thousand each, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    whole = Figures()
    for name in BOMBS:
        one = run_apart([], [name])
        print(f"{name}: {one.slowest:.2f} s, {one.largest:.0f} MB", flush=True)
        whole.add(one)
    end = chosen.first + chosen.mutations
    for first in range(chosen.first, end, 1000):
        whole.add(run_apart(range(first, min(end, first + 1000)), []))
        print(
            f"{whole.read} read, {len(whole.failures)} failures, {whole.slowest:.2f} s, {whole.largest:.0f} MB",
            flush=True,
        )
    for failure in whole.failures:
        print(failure[:500])
    print(
        f"{whole.read} files, of which {whole.accepted} were accepted: at most {whole.slowest:.2f} s and "
        f"{whole.largest:.0f} MB each, {len(whole.failures)} failures"
    )
    return bool(whole.failures)


if __name__ == "__main__":
    sys.exit(main())

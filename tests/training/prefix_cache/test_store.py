"""What is kept between epochs comes back bit by bit, within its limits, or not at all."""

from __future__ import annotations

import errno
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from overtone.training.prefix_cache.store import Activations, PrefixStore
from support.train_samples import environment

KEPT = Activations(torch.randn(5, 4).to(torch.bfloat16), 7)


def store_in(folder: Path, *, memory: float = 0.0, **changes: Any) -> tuple[PrefixStore, list[str]]:
    said: list[str] = []
    options: dict[str, Any] = {"width": 4, "memory": memory, "folder": folder, "disk": 1e6, "owner": "o" * 64}
    return PrefixStore(**{**options, **changes}, report=said.append), said


def same(first: Activations | None, second: Activations) -> bool:
    return first is not None and first.padded == second.padded and torch.equal(first.x, second.x)


def test_files_come_back_bit_by_bit(tmp_path: Path) -> None:
    store, said = store_in(tmp_path)
    assert store.get("key") is None
    store.put("key", KEPT)
    assert same(store.get("key"), KEPT)
    assert same(store_in(tmp_path)[0].get("key"), KEPT)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["key.safetensors"]
    assert said == []


@pytest.mark.parametrize("damage", ["cut", "bit", "foreign", "pickle", "moved", "owner", "width", "empty"])
def test_a_file_that_does_not_agree_is_as_good_as_absent(tmp_path: Path, damage: str) -> None:
    store, _ = store_in(tmp_path)
    store.put("key", KEPT)
    path = store.path_of("key")
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-3])
    elif damage == "bit":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "foreign":
        save_file({"x": KEPT.x}, path)
    elif damage == "pickle":
        torch.save(KEPT, path)
    elif damage == "moved":
        store.path_of("other").parent.mkdir(parents=True)
        path = path.rename(store.path_of("other"))
    elif damage == "owner":
        store = store_in(tmp_path, owner="p" * 64)[0]
        store.path_of("key").parent.mkdir(parents=True)
        path.rename(store.path_of("key"))
    elif damage == "width":
        store = store_in(tmp_path, width=5)[0]
    else:
        path.write_bytes(b"")
    wanted = "other" if damage == "moved" else "key"
    assert store.get(wanted) is None
    if damage != "width":
        store.put(wanted, KEPT)
        assert same(store.get(wanted), KEPT)


def test_processes_may_share_a_folder(tmp_path: Path) -> None:
    stores = [store_in(tmp_path)[0] for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: stores[number % 4].put(f"key{number // 8}", KEPT), range(64)))
    assert all(same(stores[0].get(f"key{number}"), KEPT) for number in range(8))
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 8


def test_memory_and_disk_are_bounded(tmp_path: Path) -> None:
    store, said = store_in(tmp_path, memory=100.0, disk=700.0)
    for number in range(5):
        store.put(f"key{number}", KEPT)
    assert list(store.in_memory) == ["key0", "key1"]
    files = [path.name for path in sorted(tmp_path.rglob("*.safetensors"))]
    assert 1 <= len(files) <= 4
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors")) <= 700
    assert len(said) == 1
    assert "disk_gb" in said[0]
    assert store_in(tmp_path, disk=700.0)[0].disk < 700.0


def test_a_full_disk_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, said = store_in(tmp_path, memory=1e6)

    def full(self: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    for number in range(3):
        store.put(f"key{number}", KEPT)
    assert same(store.get("key2"), KEPT)
    assert len(said) == 1
    assert said[0].startswith(f"Prefix cache: the disk of {tmp_path} is full.")
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


HOLDER = """
import sys
from pathlib import Path
from overtone.training.prefix_cache.store import PrefixStore
store = PrefixStore(width=4, memory=0.0, folder=Path(sys.argv[1]), disk=1e6, owner="o" * 64, report=print)
with store.claim("a" * 64, wait=True) as held:
    print(held, flush=True)
    sys.stdin.read()
"""


def test_one_process_computes_what_several_need(tmp_path: Path) -> None:
    """Others see that, may do something else first, and are free when it dies."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"True\n"
    store, _ = store_in(tmp_path)
    with store.claim("a" * 64, wait=False) as held, store.claim("b" * 64, wait=False) as other:
        assert (held, other) == (False, True)
    holder.kill()
    holder.wait(60)
    with store.claim("a" * 64, wait=True) as held:
        assert held

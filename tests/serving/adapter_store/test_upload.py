"""Adapters that are put on the store, taken out of the model and removed by hand."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from overtone.adapters.storage import replace_contents
from overtone.adapters.words import WordPart
from overtone.decoding.ngram_counts import build_ngram
from overtone.errors import AdapterError
from overtone.models.asr_model import AsrModel
from overtone.serving.adapter_store import upload
from support.serving_models import make_adapter, states, store_of, tiny_model

COMPRESSIONS = {"zip": zipfile.ZIP_DEFLATED, "zip-lzma": zipfile.ZIP_LZMA}


def packed(folder: Path, form: str) -> bytes:
    stream = io.BytesIO()
    if form in COMPRESSIONS:
        with zipfile.ZipFile(stream, "w", COMPRESSIONS[form]) as archive:
            for path in folder.iterdir():
                archive.write(path, f"top/{path.name}")
    else:
        with tarfile.open(fileobj=stream, mode=f"w:{form}") as archive:
            archive.add(folder, ".")
    return stream.getvalue()


@pytest.mark.parametrize("form", ["zip", "gz", "bz2", "xz", ""])
def test_an_upload_is_served_at_once_and_replaces(model: AsrModel, folder: Path, tmp_path: Path, form: str) -> None:
    store = store_of(model, folder)
    made = make_adapter(model, tmp_path / "made", seed=20)
    entry = store.put("fresh", packed(made, form))
    assert entry.state == "ready"
    with store.acquire("fresh") as first:
        store.put("fresh", packed(make_adapter(model, tmp_path / "made", seed=21), form))
        with store.acquire("fresh") as second:
            assert first.digests != second.digests
    assert sorted(path.name for path in folder.iterdir()) == ["fresh", "voice0", "voice1", "voice2"]
    store.unload("fresh")
    assert states(store)["fresh"] == "ready"
    store.remove("fresh")
    assert "fresh" not in states(store)
    assert not (folder / "fresh").exists()


def test_words_come_along_and_go_with_the_next_version(model: AsrModel, folder: Path, tmp_path: Path) -> None:
    store = store_of(model, folder)
    plain = packed(make_adapter(model, tmp_path / "made", seed=20), "zip")
    adapter = model.adapters.load(tmp_path / "made", name="spoken")
    ngram = build_ngram([[0, 1, 2]], vocabulary_size=model.tokenizer.size)
    adapter.words = WordPart(tokenizer_digest=model.tokenizer.digest(), ngram=ngram, weight=0.5)
    spoken = packed(model.adapters.save("spoken", tmp_path / "spoken"), "gz")
    store.put("fresh", spoken)
    with store.acquire("fresh") as lease:
        (part,) = model.adapters.words_of(lease.choice)
        assert part.to_bytes() == adapter.words.to_bytes()
    store.put("fresh", plain)
    with store.acquire("fresh") as lease:
        assert model.adapters.words_of(lease.choice) == ()
    assert sorted(path.name for path in (folder / "fresh").iterdir()) == ["adapter.safetensors", "adapter.yaml"]


def test_uploads_that_are_bad_change_nothing(model: AsrModel, folder: Path, tmp_path: Path) -> None:
    store = store_of(model, folder)
    good = packed(folder / "voice1", "zip")
    foreign = packed(make_adapter(tiny_model(seed=1), tmp_path / "foreign"), "gz")
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("adapter.yaml", b" " * (5 << 20))
        archive.writestr("adapter.safetensors", b"")
    evil = io.BytesIO()
    with tarfile.open(fileobj=evil, mode="w") as tar:
        link = tarfile.TarInfo("adapter.yaml")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        for name in ("../../escaped", "adapter.safetensors"):
            tar.addfile(tarfile.TarInfo(name))
    before = states(store)
    large = tmp_path / "large"
    large.mkdir()
    for name in ("adapter.yaml", "adapter.safetensors"):
        (large / name).write_bytes(np.random.default_rng(0).bytes(100_000).hex().encode())
    corrupt = {form: bytearray(packed(large, form)) for form in ("xz", "zip-lzma")}
    for damaged in corrupt.values():
        damaged[len(damaged) // 3 : len(damaged) // 3 + 64] = bytes(64)
    cases = {
        b"": "no archive",
        b"hello" * 100: "no archive",
        good[: len(good) // 2]: "archive",
        foreign: "another base",
        bomb.getvalue(): "larger than",
        evil.getvalue(): "holds no adapter.yaml",
        bytes(corrupt["xz"]): "damaged",
        bytes(corrupt["zip-lzma"]): "damaged",
    }
    for archive, message in cases.items():
        with pytest.raises(AdapterError, match=message):
            store.put("voice0", archive)
    for name in ("../up", "base", "a+b", "", "a/b", ".hidden"):
        with pytest.raises(AdapterError):
            store.put(name, good)
    assert states(store) == before
    assert not (tmp_path / "escaped").exists()
    assert sorted(path.name for path in folder.iterdir()) == ["voice0", "voice1", "voice2"]


class Zeros(io.RawIOBase):
    """A file of zeros without end."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        buffer[:] = bytes(len(buffer))
        return len(buffer)


@pytest.mark.parametrize("form", ["gz", "bz2", "xz", ""])
def test_archives_are_unpacked_within_limits(
    model: AsrModel, folder: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """A small file names a member that is far larger than any adapter; only its beginning is unpacked."""
    most = 2**20
    monkeypatch.setattr(upload, "MAX_UNPACKED", most)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=f"w:{form}") as archive:
        huge = tarfile.TarInfo("other.bin")
        huge.size = 40 * most
        archive.addfile(huge, Zeros())
        archive.add(folder / "voice1", ".")
    store = store_of(model, folder)
    read: list[int] = []

    class Noted(upload.Unpacked):
        def read(self, most: int) -> bytes:
            data = super().read(most)
            read.append(len(data))
            return data

    monkeypatch.setattr(upload, "Unpacked", Noted)
    with pytest.raises(AdapterError, match="unpacks to more than 1048576 bytes"):
        store.put("voice0", stream.getvalue())
    assert sum(read) <= most
    monkeypatch.setattr(upload, "MAX_UNPACKED", 100 * most)
    monkeypatch.setattr(upload, "MAX_SECONDS", -1.0)
    with pytest.raises(AdapterError, match="takes longer than"):
        store.put("voice0", stream.getvalue())


def test_xz_that_asks_for_much_memory_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = packed(folder / "voice1", "xz")
    assert upload.unpack(archive)
    monkeypatch.setattr(upload, "MAX_DICTIONARY", 2**16)
    with pytest.raises(AdapterError, match=r"no archive|damaged"):
        upload.unpack(archive)


@pytest.mark.parametrize("form", ["gz", "bz2", "xz"])
def test_archives_that_were_compressed_piece_by_piece(folder: Path, form: str) -> None:
    plain = packed(folder / "voice1", "")
    compress = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[form]
    half = len(plain) // 2
    assert upload.unpack(compress(plain[:half]) + compress(plain[half:])) == upload.unpack(plain)
    with pytest.raises(AdapterError, match=r"damaged|no archive"):
        upload.unpack(compress(plain)[: len(compress(plain)) // 2])


def test_the_store_goes_on_while_an_archive_is_unpacked(
    model: AsrModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpack, entered, go_on = upload.unpack, threading.Event(), threading.Event()

    def slow(archive: bytes) -> dict[str, bytes]:
        entered.set()
        assert go_on.wait(60)
        return unpack(archive)

    store, archive = store_of(model, folder), packed(folder / "voice1", "zip")
    monkeypatch.setattr(upload, "unpack", slow)
    putting = threading.Thread(target=store.put, args=("fresh", archive))
    putting.start()
    assert entered.wait(60)
    store.remove("voice0")
    go_on.set()
    putting.join(60)
    assert sorted(states(store)) == ["fresh", "voice1", "voice2"]


def test_a_linked_adapter_goes_without_what_the_link_leads_to(model: AsrModel, folder: Path, tmp_path: Path) -> None:
    elsewhere = make_adapter(model, tmp_path / "elsewhere", seed=22)
    (folder / "linked").symlink_to(elsewhere)
    store = store_of(model, folder)
    store.remove("linked")
    assert sorted(path.name for path in folder.iterdir()) == ["voice0", "voice1", "voice2"]
    assert "linked" not in states(store)
    assert (elsewhere / "adapter.yaml").is_file()


def test_uploads_of_one_name_take_turns(
    model: AsrModel, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_of(model, folder)
    archives = [packed(make_adapter(model, tmp_path / "made", seed=seed), "zip") for seed in (20, 21)]
    second = threading.Thread(target=store.put, args=("fresh", archives[1]))
    running: list[int] = []
    most: list[int] = []

    def slow_write(*arguments: Any) -> None:
        running.append(1)
        most.append(len(running))
        if len(most) == 1:
            second.start()
            second.join(0.05)
        replace_contents(*arguments)
        running.pop()

    monkeypatch.setattr("overtone.serving.adapter_store.upload.replace_contents", slow_write)
    store.put("fresh", archives[0])
    second.join(10)
    assert most == [1, 1]


def test_unloading_waits_for_the_last_lease(model: AsrModel, folder: Path) -> None:
    store = store_of(model, folder)
    lease = store.acquire("voice0")
    store.unload("voice0")
    assert lease.choice in model.adapters
    lease.release()
    assert model.adapters.names == []

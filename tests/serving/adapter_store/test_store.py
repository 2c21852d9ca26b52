"""The store: versions come, are replaced, are leased, go, and what is bad is refused while the rest is served."""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from overtone.adapters.kinds.linear import LinearAdapter
from overtone.adapters.kinds.lora import LoraAdapter
from overtone.adapters.storage import described_digest, read_description
from overtone.errors import AdapterError
from overtone.models.asr_model import AsrModel
from overtone.serving.adapter_store.store import TRIES, AdapterStore
from overtone.serving.engine.engine import Engine
from overtone.serving.errors import OverloadError
from overtone.serving.streaming.stream import Stream
from support.serving_models import make_adapter, noise, offline, states, store_of, tiny_model
from support.streams import run


def touch(path: Path) -> None:
    """Later than before, also for coarse clocks."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))


# Leases


def test_an_adapter_is_loaded_when_it_is_asked_for(model: AsrModel, folder: Path) -> None:
    store = store_of(model, folder)
    assert states(store) == {"voice0": "ready", "voice1": "ready", "voice2": "ready"}
    assert model.adapters.names == []
    entry = store.entry("voice1")
    assert entry.kind == "linear"
    assert entry.parameters > 0
    with store.acquire("voice1") as lease:
        assert lease.names == ("voice1",)
        assert lease.digests == (entry.digest,)
        assert model.adapters.names == [lease.choice]
        assert not model.adapters[lease.choice].training
        assert model.adapters[lease.choice].digest() == entry.digest
        assert states(store)["voice1"] == "resident"
    assert store.counters()["loads"] == store.counters()["misses"] == 1
    with store.acquire("voice1"):
        assert store.counters()["hits"] == 1


@pytest.mark.parametrize("name", [None, "", "base", "none"])
def test_the_base_is_a_lease_on_nothing(model: AsrModel, folder: Path, name: str | None) -> None:
    with store_of(model, folder).acquire(name) as lease:
        assert lease.choice is None
        assert lease.names == lease.digests == ()


def test_what_is_in_the_model_is_in_model(model: AsrModel, folder: Path) -> None:
    store = store_of(model, folder, capacity=1)
    assert store.is_in_model(())
    for name, other in (("voice0", "voice1"), ("voice1", "voice0")):
        store.acquire(name).release()
        assert store.is_in_model((name,))
        assert not store.is_in_model((other,))
        assert not store.is_in_model((name, other))
    assert not store.is_in_model(("unknown",))


def test_a_chain_is_one_lease(model: AsrModel, folder: Path) -> None:
    store = store_of(model, folder)
    with store.acquire("voice2+voice0") as lease:
        assert lease.names == ("voice2", "voice0")
        assert store.counters()["leased"] == 2
        with model.adapters.use(lease.choice):
            pass
    assert store.counters()["leased"] == 0
    with pytest.raises(AdapterError, match="twice"):
        store.acquire("voice0+voice0")
    shutil.copytree(folder / "voice0", folder / "same")
    store.scan()
    with pytest.raises(AdapterError, match="one adapter by two names"):
        store.acquire("voice0+same")
    with store.acquire("voice0") as one, store.acquire("same") as other:
        assert one.choice == other.choice
    assert store.counters()["leased"] == 0


def test_an_unknown_name_is_told_with_what_exists(model: AsrModel, folder: Path) -> None:
    store = store_of(model, folder)
    with pytest.raises(AdapterError, match=r"'voice' is unknown.*Did you mean 'voice2'\?.*voice0, voice1, voice2"):
        store.acquire("voice")
    with pytest.raises(AdapterError, match="unknown"):
        store.acquire("voice0+../etc")
    assert store.counters()["leased"] == 0


def test_the_least_recently_used_goes_and_leased_ones_stay(model: AsrModel, folder: Path) -> None:
    store = store_of(model, folder, capacity=2)
    store.acquire("voice0").release()
    store.acquire("voice1").release()
    store.acquire("voice0").release()
    store.acquire("voice2").release()
    assert states(store) == {"voice0": "resident", "voice1": "ready", "voice2": "resident"}
    held = store.acquire("voice0")
    store.acquire("voice1").release()
    assert states(store) == {"voice0": "resident", "voice1": "resident", "voice2": "ready"}
    other = store.acquire("voice1")
    with pytest.raises(OverloadError, match="All 2 places"):
        store.acquire("voice2")
    held.release()
    held.release()
    with store.acquire("voice2"):
        assert len(model.adapters) == 2
    assert store.counters()["evictions"] == 3
    other.release()


def test_a_lease_that_is_dropped_is_released(model: AsrModel, folder: Path) -> None:
    store = store_of(model, folder, capacity=1)
    store.acquire("voice0")
    gc.collect()
    with store.acquire("voice1"):
        assert store.counters()["leased"] == 1


def test_many_threads_load_an_adapter_once_and_never_exceed_the_capacity(model: AsrModel, folder: Path) -> None:
    lock = threading.RLock()
    store = AdapterStore(model, folder, lock=lock, poll_seconds=0, capacity=2)
    errors: list[BaseException] = []
    most = [0]

    def client(number: int) -> None:
        for turn in range(30):
            try:
                with store.acquire(f"voice{(number * 7 + turn) % 3}") as lease, lock:
                    most[0] = max(most[0], len(model.adapters))
                    assert lease.choice in model.adapters
            except OverloadError:
                time.sleep(0.001)
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert most[0] <= 2
    counts = store.counters()
    assert counts["leased"] == 0
    assert counts["loads"] == counts["misses"]
    assert len(model.adapters) == counts["resident"] == counts["loads"] - counts["evictions"]


def test_the_adapters_of_the_models_own_file_are_there_too(model: AsrModel, folder: Path) -> None:
    model.adapters.add("builtin", LinearAdapter(dim=2))
    store = store_of(model, folder)
    entry = store.entry("builtin")
    assert (entry.state, entry.source, entry.kind) == ("resident", "model", "linear")
    with store.acquire("builtin+voice0") as lease:
        assert lease.choice is not None
        assert lease.choice.startswith("builtin+voice0.")
    with pytest.raises(AdapterError, match="came with the model's file"):
        store.unload("builtin")
    bare = tiny_model()
    bare.adapters.add("builtin", LinearAdapter(dim=2))
    without = store_of(bare, None)
    assert list(states(without)) == ["builtin"]
    without.acquire("builtin").release()
    with pytest.raises(AdapterError, match="no adapter store"):
        without.put("x", b"")


# What changes on disk


def test_a_replacement_leaves_running_requests_their_version(model: AsrModel, folder: Path) -> None:
    store = store_of(model, folder)
    before = store.acquire("voice0")
    make_adapter(model, folder / "voice0", seed=50)
    store.scan()
    after = store.acquire("voice0")
    assert before.choice != after.choice
    assert before.digests != after.digests
    assert set(model.adapters.names) == {before.choice, after.choice}
    before.release()
    assert model.adapters.names == [after.choice]
    assert store.counters()["replacements"] == 1


def test_the_same_tensors_with_other_settings_are_another_version(model: AsrModel, folder: Path) -> None:
    make_adapter(model, folder / "lora", seed=9, kind=LoraAdapter(rank=2, alpha=4.0))
    store = store_of(model, folder)
    one = store.acquire("lora")
    path = folder / "lora/adapter.yaml"
    description = yaml.safe_load(path.read_text())
    description["lora"]["alpha"] = 40.0
    path.write_text(yaml.safe_dump(description))
    touch(path)
    store.scan()
    other = store.acquire("lora")
    assert one.digests != other.digests
    assert one.choice != other.choice


def test_additions_and_removals_are_seen_by_the_watcher(model: AsrModel, folder: Path) -> None:
    with AdapterStore(model, folder, lock=threading.RLock(), poll_seconds=0.05) as store:
        lease = store.acquire("voice1")
        make_adapter(model, folder / "new", seed=7)
        shutil.rmtree(folder / "voice1")
        end = time.monotonic() + 60
        while "new" not in states(store) or "voice1" in states(store):
            assert time.monotonic() < end
            time.sleep(0.02)
        assert lease.choice in model.adapters
        with pytest.raises(AdapterError, match="unknown"):
            store.acquire("voice1")
        store.acquire("new").release()
        lease.release()
        assert lease.choice not in model.adapters


def test_a_folder_that_takes_long_to_look_at_is_looked_at_less_often(
    model: AsrModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    monkeypatch.setattr(AdapterStore, "scan", lambda store: looks.append(threading.current_thread().name))
    clock = itertools.count()
    monkeypatch.setattr(time, "thread_time", lambda: float(next(clock)))  # a second of computing for each look
    with AdapterStore(model, folder, lock=threading.RLock(), poll_seconds=0.01):
        time.sleep(0.3)
    assert looks.count("overtone-adapters") == 1


def test_what_cannot_be_used_is_refused_with_its_reason_and_the_rest_is_served(model: AsrModel, folder: Path) -> None:
    other = tiny_model(seed=1)
    make_adapter(other, folder / "foreign")
    (folder / "nonsense").mkdir()
    (folder / "nonsense/adapter.yaml").write_text("- 1\n- 2\n")
    shutil.copytree(folder / "voice0", folder / "cut")
    tensors = folder / "cut/adapter.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    shutil.copytree(folder / "voice0", folder / "lone")
    (folder / "lone/adapter.safetensors").unlink()
    shutil.copytree(folder / "voice0", folder / "un named")
    (folder / "empty").mkdir()
    (folder / "notes.txt").write_text("hello")
    store = store_of(model, folder)
    refused = {entry.name: entry.reason for entry in store.entries() if entry.state == "refused"}
    assert refused.keys() == {"foreign", "nonsense", "cut", "lone", "un named"}
    assert other.fingerprint() in refused["foreign"]
    assert model.fingerprint() in refused["foreign"]
    assert "damaged" in refused["cut"]
    assert "missing" in refused["lone"]
    with pytest.raises(AdapterError, match="'foreign' is refused: It was made for another base"):
        store.acquire("foreign")
    store.acquire("voice2").release()
    assert store.counters()["refused"] == 5


def test_a_flipped_bit_is_found_when_it_is_loaded(model: AsrModel, folder: Path) -> None:
    path = folder / "voice0/adapter.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    store = store_of(model, folder)
    with pytest.raises(AdapterError, match="'voice0' is refused"):
        store.acquire("voice0")
    assert states(store)["voice0"] == "refused"
    assert model.adapters.names == []
    make_adapter(model, folder / "voice0", seed=0)
    store.scan()
    assert states(store)["voice0"] == "ready"
    store.acquire("voice0").release()


def test_what_is_mended_while_it_is_refused_is_not_refused_for_ever(
    model: AsrModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "voice0/adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    store = store_of(model, folder)
    looks = itertools.count(1)

    def scan() -> None:
        if next(looks) == TRIES:  # the last look of a request that has been refused each time
            make_adapter(model, folder / "voice0", seed=0)
        AdapterStore.scan(store)

    monkeypatch.setattr(store, "scan", scan)
    with pytest.raises(AdapterError, match="'voice0' is refused"):
        store.acquire("voice0")
    assert states(store)["voice0"] == "ready"
    store.acquire("voice0").release()


def test_a_bad_replacement_leaves_the_good_version_in_service(model: AsrModel, folder: Path) -> None:
    store = store_of(model, folder, capacity=2)
    store.acquire("voice0").release()
    (folder / "voice0/adapter.yaml").write_text("broken: [")
    store.scan()
    entry = store.entry("voice0")
    assert entry.state == "resident"
    assert "cannot be read" in entry.reason
    store.acquire("voice1").release()
    store.acquire("voice2").release()  # the last copy of voice0 is not the one to go
    store.acquire("voice0").release()
    make_adapter(model, folder / "voice0", seed=80)
    store.scan()
    assert store.entry("voice0").reason == ""


def test_replacing_all_the_time_never_gives_a_mixture(model: AsrModel, folder: Path) -> None:
    """Readers meet whole versions only, whenever the files change."""
    lock = threading.RLock()
    store = AdapterStore(model, folder, lock=lock, poll_seconds=0.005)
    writer = tiny_model()
    stop = threading.Event()

    def replace() -> None:
        seed = 0
        while not stop.is_set():
            make_adapter(writer, folder / "voice0", seed=seed % 2)
            seed += 1

    thread = threading.Thread(target=replace)
    thread.start()
    good = {digest_made(model, folder.parent / f"reference{seed}", seed) for seed in range(2)}
    seen: set[str] = set()
    refusals: list[str] = []
    end = time.monotonic() + 2.0
    while time.monotonic() < end:
        try:
            with store.acquire("voice0") as lease, lock:
                assert lease.choice is not None
                assert model.adapters[lease.choice].digest() == lease.digests[0]
                seen.add(lease.digests[0])
        except AdapterError as error:
            refusals.append(str(error))
    stop.set()
    thread.join()
    store.close()
    assert seen
    assert seen <= good
    assert all("refused" in refusal for refusal in refusals)


def digest_made(model: AsrModel, folder: Path, seed: int) -> str:
    return described_digest(folder, read_description(make_adapter(model, folder, seed=seed)))


def test_a_stream_keeps_the_version_it_began_with(model: AsrModel, folder: Path) -> None:
    waveform = noise(3.0, seed=3)
    with Engine(model) as engine, AdapterStore(model, folder, lock=engine.lock, poll_seconds=0) as store:
        lease = store.acquire("voice0")
        choice = lease.choice
        old = offline(model, waveform, choice)
        with Stream(engine, lease) as stream:
            run(stream.push(waveform[:24_000]))
            make_adapter(model, folder / "voice0", seed=60)
            store.scan()
            with store.acquire("voice0") as new:
                assert new.choice != choice
                answer = engine.submit(waveform, lease=new).result(10)
                assert np.abs(answer - old).max() > 1e-2
            run(stream.push(waveform[24_000:]))
            assert choice in model.adapters
            np.testing.assert_allclose(engine.submit(waveform, lease=lease).result(10), old, atol=2e-5)
            run(stream.finish())
        assert choice not in model.adapters

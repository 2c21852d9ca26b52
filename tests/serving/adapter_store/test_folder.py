"""What lies in a store's folder, where reading it breaks, and where it cannot be looked at."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from overtone import files
from overtone.adapters.kinds.lora import LoraAdapter
from overtone.adapters.storage import DESCRIPTION, PARAMETERS, BaseIdentity
from overtone.errors import AdapterError
from overtone.models.asr_model import AsrModel
from overtone.serving.adapter_store import store as store_module
from overtone.serving.adapter_store.folder import Version, read_version
from overtone.serving.adapter_store.store import AdapterStore
from support.serving_models import make_adapter, states, store_of, until


@pytest.mark.parametrize("value", ["!!bool maybe", '!!int ""', "!!timestamp soon", "9" * 400])
def test_a_description_that_breaks_its_reader_is_refused_and_the_rest_is_served(
    model: AsrModel, folder: Path, value: str
) -> None:
    make_adapter(model, folder / "lora", seed=9, kind=LoraAdapter(rank=2, alpha=4.0))
    path = folder / "lora/adapter.yaml"
    path.write_text(path.read_text().replace("alpha: 4.0", f"alpha: {value}"))
    store = store_of(model, folder)
    assert states(store) == {"lora": "refused", "voice0": "ready", "voice1": "ready", "voice2": "ready"}
    assert store.entry("lora").reason


def test_whatever_reading_raises_the_watcher_goes_on(
    model: AsrModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaking(place: Path, identity: object) -> Version:
        if place.name == "voice1":
            raise KeyError("maybe")
        return read_version(place, model_identity)

    store = store_of(model, folder)
    model_identity = store.identity
    monkeypatch.setattr("overtone.serving.adapter_store.store.read_version", breaking)
    for name in ("voice1", "voice2"):
        os.utime(folder / name / "adapter.yaml", ns=(0, 0))
    (folder / "voice0/adapter.yaml").unlink()
    store.scan()
    assert "KeyError: 'maybe'" in store.entry("voice1").reason
    assert states(store) == {"voice1": "refused", "voice2": "ready"}


def test_what_could_not_be_looked_at_for_a_while_is_read_again(
    model: AsrModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(place: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(place))

    store = store_of(model, folder)
    make_adapter(model, folder / "new", seed=5)
    with monkeypatch.context() as patched:
        patched.setattr("overtone.serving.adapter_store.folder.signature_of", failing)
        store.scan()
        assert states(store)["new"] == "refused"
    store.scan()
    assert states(store)["new"] == "ready"
    with monkeypatch.context() as patched:
        patched.setattr("overtone.serving.adapter_store.cache.signature_of", failing)
        with pytest.raises(AdapterError, match=os.strerror(errno.EIO)):
            store.acquire("new")
    store.scan()
    store.acquire("new").release()


@pytest.mark.parametrize("name", [DESCRIPTION, PARAMETERS])
def test_what_could_not_be_read_for_a_while_is_read_again(
    model: AsrModel, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files have not changed: too many may have been open, or it was not ours to read."""
    opened = files.open_regular

    def failing(path: Path) -> object:
        if path.name == name:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))
        return opened(path)

    store = store_of(model, folder)
    make_adapter(model, folder / "new", seed=5)
    with monkeypatch.context() as patched:
        patched.setattr(files, "open_regular", failing)
        store.scan()
        with pytest.raises(AdapterError, match=os.strerror(errno.EMFILE)):
            store.acquire("new")
    assert states(store)["new"] == "refused"
    store.scan()
    assert states(store)["new"] == "ready"
    store.acquire("new").release()


@pytest.mark.parametrize("function", ["listdir", "stat"])
def test_a_folder_that_cannot_be_looked_at_is_taken_to_be_as_it_was(
    model: AsrModel, folder: Path, function: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_of(model, folder)
    original = getattr(os, function)

    def failing(path: object, **options: object) -> object:
        if str(path).startswith(str(folder)):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))
        return original(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, function, failing)
        store.scan()
        store.scan()
    assert set(states(store).values()) == {"ready"}
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert os.strerror(errno.EMFILE) in caplog.text
    store.acquire("voice0").release()
    shutil.rmtree(folder)
    store.scan()
    assert states(store) == {}


# Changes of many at once


def test_many_changes_do_not_blind_the_watcher(
    model: AsrModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reading of two hundred adapters is no reason to look less often: the next one is seen as soon as any."""
    folder, made, read = tmp_path / "store", make_adapter(model, tmp_path / "made"), list[str]()

    def reading(place: Path, identity: BaseIdentity) -> Version:
        read.append(place.name)  # each takes a second on the clock below, and looking takes none
        return read_version(place, identity)

    monkeypatch.setattr(store_module, "read_version", reading)
    monkeypatch.setattr(store_module, "time", SimpleNamespace(thread_time=lambda: float(len(read)), sleep=time.sleep))
    folder.mkdir()
    with AdapterStore(model, folder, lock=threading.RLock(), poll_seconds=0.01) as store:
        pauses = recorded_pauses(store)
        for index in range(200):
            shutil.copytree(made, folder / f"many{index}")
        until(lambda: len(store.names()) == 200, seconds=60.0)
        for path in folder.iterdir():
            shutil.rmtree(path)
        make_adapter(model, folder / "next", seed=3)
        until(lambda: store.names() == {"next"}, seconds=60.0)
        seen = len(pauses)
        until(lambda: len(pauses) > seen, seconds=60.0)
    assert len(read) > 200
    assert set(pauses) == {0.01}


def recorded_pauses(store: AdapterStore) -> list[float]:
    """Pauses of the watcher from now on, in seconds."""
    pauses: list[float] = []
    wait = store._closed.wait

    def waiting(seconds: float) -> bool:
        pauses.append(seconds)
        return wait(min(seconds, 0.01))

    store._closed.wait = waiting  # type: ignore[method-assign, assignment]
    return pauses


def test_changes_are_logged(model: AsrModel, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("overtone").propagate = True
    store = store_of(model, folder)
    with caplog.at_level(logging.INFO, logger="overtone.serving.adapter_store.store"):
        make_adapter(model, folder / "new", seed=5)
        store.scan()
        shutil.rmtree(folder / "new")
        make_adapter(model, folder / "new", seed=6)
        (folder / "voice1/adapter.safetensors").unlink()
        shutil.rmtree(folder / "voice2")
        store.scan()
        make_adapter(model, folder / "voice1", seed=1)
        store.scan()
    events = [(record.call["event"], record.call["adapter"]) for record in caplog.records]  # type: ignore[attr-defined]
    expected = [("added", "new"), ("replaced", "new"), ("refused", "voice1"), ("removed", "voice2")]
    assert sorted(events[:4]) == sorted(expected)
    assert events[4:] == [("usable again", "voice1")]
    refused = next(record for record in caplog.records if record.levelno == logging.WARNING)
    assert "is missing" in refused.getMessage()

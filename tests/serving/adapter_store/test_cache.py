"""What it takes to load an adapter and to have many."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest

from overtone.models.asr_model import AsrModel
from support.serving_models import store_of


def test_a_description_is_read_once_and_not_again_for_loading(
    model: AsrModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_of(model, folder)
    read: list[Path] = []
    monkeypatch.setattr("overtone.adapters.storage.read_description", read.append)
    with store.acquire("voice0+voice1") as lease:
        assert [model.adapters[key].digest() for key in (lease.choice or "").split("+")] == list(lease.digests)
    assert read == []


def test_what_has_been_loaded_is_left_out_of_garbage_collections(
    model: AsrModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overtone.serving.adapter_store.cache.FEW_TO_FREEZE", 2)
    store = store_of(model, folder, capacity=2)
    try:
        keys = []
        for name in ("voice0", "voice1"):
            with store.acquire(name) as lease:
                keys.append(lease.choice or "")
        searched = {id(found) for found in gc.get_objects()}
        modules = [module for key in keys for module in model.adapters[key].modules()]
        assert modules
        assert not searched & {id(module) for module in modules}
        gone = [weakref.ref(module) for module in modules]
        del modules, searched
        for key, name in zip(keys, ("voice0", "voice1"), strict=True):
            store.unload(name)
            assert key not in model.adapters
        assert not any(each() for each in gone), "evicted, yet not freed"
    finally:
        gc.unfreeze()

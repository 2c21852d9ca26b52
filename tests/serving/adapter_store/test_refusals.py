"""Adapters that are refused, and what is told of them."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from overtone.errors import AdapterError
from overtone.models.asr_model import AsrModel
from overtone.serving.adapter_store.folder import count_finite
from overtone.serving.adapter_store.store import AdapterStore
from support.serving_models import make_adapter, states, store_of, until


def test_reasons_name_no_path_of_the_server(model: AsrModel, folder: Path) -> None:
    """Refused adapters are told to clients: those whose description is none, and those whose parameters are damaged."""
    (folder / "voice0" / "adapter.yaml").write_text("a: [")
    (folder / "voice1" / "adapter.safetensors").write_bytes(b"nothing")
    store = store_of(model, folder)
    parameters = folder / "voice2" / "adapter.safetensors"
    content = bytearray(parameters.read_bytes())
    content[-4:] = bytes(4)
    parameters.write_bytes(content)
    store.scan()
    for name in ("voice0", "voice1", "voice2"):
        with pytest.raises(AdapterError) as error:
            store.acquire(name)
        assert "refused" in str(error.value)
        for told in (str(error.value), store.entry(name).reason):
            assert f"{name}/adapter." in told
            assert str(folder) not in told


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_an_adapter_that_is_not_finite_is_refused_where_it_is_listed(
    model: AsrModel, folder: Path, dtype: torch.dtype, value: float
) -> None:
    parameters = folder / "voice1" / "adapter.safetensors"
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(parameters).items()}
    assert count_finite(parameters.parent) == sum(tensor.numel() for tensor in tensors.values())
    next(iter(tensors.values())).view(-1)[3] = value
    save_file(tensors, parameters)
    store = store_of(model, folder)
    assert states(store) == {"voice0": "ready", "voice1": "refused", "voice2": "ready"}
    assert "not finite" in store.entry("voice1").reason
    with pytest.raises(AdapterError, match="not finite"):
        store.acquire("voice1")


def bomb() -> str:
    """Some hundred bytes of YAML that merge themselves into more keys than a computer holds."""
    lines = ["m0: &m0 {a: 1}"]
    lines += [f"m{level}: &m{level} {{<<: [*m{level - 1}, *m{level - 1}], k{level}: 1}}" for level in range(1, 30)]
    return "\n".join(lines)


def test_bombs_and_devices_do_not_stop_the_watching(model: AsrModel, folder: Path, tmp_path: Path) -> None:
    """The watcher refuses them, and sees the adapter that comes after them."""
    made = make_adapter(model, tmp_path / "made", seed=20)
    store = AdapterStore(model, folder, lock=threading.RLock(), poll_seconds=0.01)
    with store:
        for name in ("aliases", "zeros", "pipe"):
            (folder / name).mkdir()
            shutil.copy(folder / "voice0" / "adapter.safetensors", folder / name)
        (folder / "aliases" / "adapter.yaml").write_text(bomb())
        (folder / "zeros" / "adapter.yaml").symlink_to("/dev/zero")
        os.mkfifo(folder / "pipe" / "adapter.yaml")
        until(lambda: states(store).get("aliases") == "refused", 60)
        shutil.copytree(made, folder / "later")
        until(lambda: states(store).get("later") == "ready", 60)
        with store.acquire("later"):
            pass
        assert all(states(store).get(name, "refused") == "refused" for name in ("aliases", "zeros", "pipe"))

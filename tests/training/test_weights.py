"""The weights that a run leaves: early steps, and those of another folder that a run goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from overtone.adapters.kinds.lora import LoraAdapter
from overtone.config import CheckpointSettings
from overtone.models.asr_model import AsrModel
from overtone.training.retention import choose_early
from overtone.training.run_folder import RunFolder
from overtone.training.train import make_room
from overtone.training.weights import SavedStep, WeightsStore, copy_folder
from support.small_models import add_trained, set_all, small_model


def store_in(folder: Path, model: AsrModel) -> WeightsStore:
    """A store of weights that keeps early steps."""
    folders = RunFolder(path=folder, checkpoints=folder / "checkpoints", exp_dir=folder, name="run", version="")
    return WeightsStore(
        model=model,
        adapter="mine",
        folder=folders,
        settings=CheckpointSettings(),
        make_card=lambda step, _: {"steps": step},
        keep_top=False,
        keeps_early=True,
    )


def test_early_steps_are_kept_at_doubling_distances(tmp_path: Path) -> None:
    """Of 20 validations five are kept, also by a run that goes on from a checkpoint, in another folder too."""
    model = small_model()
    add_trained(model, "mine", LoraAdapter(rank=2))
    store = store_in(tmp_path / "first", model)

    def consider(step: int) -> None:
        model.adapters["mine"].load_tensors(set_all(model.adapters["mine"].tensors(), float(step)))
        store.consider(step=step, epoch=0, metrics={"val_wer": 1 / step, "val_loss": 1 / step})

    for number in range(1, 12):
        consider(10 * number)
    state = store.state()
    store = store_in(tmp_path / "second", model)
    store.restore(state, tmp_path / "first" / "checkpoints" / "run-last.ckpt", leads=True)
    for number in range(12, 21):
        consider(10 * number)
    assert [own.step for own in store.early] == [10, 20, 40, 80, 160]
    folders = sorted(path.name for path in (tmp_path / "second" / "checkpoints" / "mine-early").iterdir())
    assert folders == ["step=10", "step=160", "step=20", "step=40", "step=80"]
    stored = small_model().adapters.load(tmp_path / "second" / "checkpoints" / "mine-early" / "step=40", name="mine")
    assert all(bool((tensor == 40.0).all()) for tensor in stored.tensors().values())
    assert [own.step for own in choose_early(store, None)] == [10, 40, 160]
    assert [own.step for own in choose_early(store, 1 / 50)] == [80, 160], "steps no better than the base are no choice"
    store.best = SavedStep(step=80, score=0.0, metrics={})
    assert [own.step for own in choose_early(store, None)] == [10, 20, 40]
    make_room(model, "mine", tmp_path / "second")
    assert not list((tmp_path / "second" / "checkpoints").glob("mine-*"))


@pytest.fixture
def weakened(tmp_path: Path) -> dict[str, Any]:
    """The state of a run in `first` whose best adapter, of 3.0, was made weaker: 1.5, beside the whole one."""
    model = small_model()
    add_trained(model, "mine", LoraAdapter(rank=2))
    adapter, store = model.adapters["mine"], store_in(tmp_path / "first", model)
    adapter.load_tensors(set_all(adapter.tensors(), 3.0))
    store.consider(step=10, epoch=0, metrics={"val_wer": 0.5, "val_loss": 0.5})
    copy_folder(store.best_path, store.whole_path)
    adapter.load_tensors(set_all(adapter.tensors(), 1.5))
    model.adapters.save("mine", store.best_path, overwrite=True)
    return store.state()


def goes_on(folder: Path) -> WeightsStore:
    """The store of a run in `second` that goes on from the one in `first`."""
    model = small_model()
    add_trained(model, "mine", LoraAdapter(rank=2))
    return store_in(folder / "second", model)


def test_a_run_that_goes_on_in_another_folder_has_the_whole_adapter(tmp_path: Path, weakened: dict[str, Any]) -> None:
    store = goes_on(tmp_path)
    store.restore(weakened, tmp_path / "first" / "checkpoints" / "run-last.ckpt", leads=True)
    store.finish()
    assert all(bool((tensor == 3.0).all()) for tensor in store.model.adapters["mine"].tensors().values())
    stored = small_model().adapters.load(store.best_path, name="mine")
    assert all(bool((tensor == 3.0).all()) for tensor in stored.tensors().values())


def test_a_copy_of_weights_is_whole_or_not_there(
    tmp_path: Path, weakened: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_ended(source: Path, target: Path, **_: object) -> None:
        target.mkdir(parents=True, exist_ok=True)
        (target / "adapter.yaml").write_bytes(b"")
        raise KeyboardInterrupt

    store = goes_on(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("overtone.training.weights.shutil.copytree", is_ended)
        with pytest.raises(KeyboardInterrupt):
            store.copy_weights(tmp_path / "first" / "checkpoints" / "run-last.ckpt")
    assert not list((tmp_path / "second").rglob("adapter.yaml"))
    store.restore(weakened, tmp_path / "first" / "checkpoints" / "run-last.ckpt", leads=True)
    store.finish()

"""What an acoustic part is trained on, and what a failure tells whom."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

from overtone.learning.acoustic import train_acoustic_part
from overtone.learning.corrections import Correction, Corrections
from overtone.learning.state import write_state
from overtone.serving.adapter_store.store import AdapterStore
from overtone.serving.learning import LearningJobs
from support.small_models import small_model


def heard(text: str, seconds: float) -> Correction:
    noise = np.random.default_rng(len(text)).integers(-3000, 3000, round(seconds * 16_000))
    return Correction(text=text, samples=noise.astype(np.int16))


def test_a_recording_too_short_for_its_text_ends_nothing(tmp_path: Path) -> None:
    store = Corrections(tmp_path / "mine", sample_rate=16_000)
    every = [heard("press " * count + "one", 1.5) for count in range(8)]
    store.add([*every, *(heard("hold the line " * count, 0.3) for count in (8, 9, 10, 11, 12))])
    corrections = store.read()
    assert any(not own.is_held_out for own in corrections[8:]), "some of the short ones are trained on"
    adapter = train_acoustic_part(
        small_model(), "mine", store.folder, start_from=None, kind="linear", corrections=corrections, replay=[],
        steps=1, watch=lambda *_: None,
    )  # fmt: skip
    assert adapter.tensors()


def test_clients_are_told_of_no_file(tmp_path: Path) -> None:
    write_state(tmp_path / "mine", "failed", message=f"{tmp_path}/mine.learning/run/train.json:1 cannot be read")
    with AdapterStore(small_model(), tmp_path, lock=threading.RLock(), poll_seconds=0) as store:
        state = LearningJobs("base", store, sample_rate=16_000).state("mine")
    assert state["phase"] == "failed"
    assert "learning.log" in state["message"]
    assert str(tmp_path) not in state["message"]

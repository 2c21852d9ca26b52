"""Rooms that real runs open, counted on a model of a few thousand parameters."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from benchmarks.rooms import AIMS, PACKAGE, Aim, Rooms, Tracer, file_to_text, page, training_step
from overtone.wer import align_words, character_errors, word_errors
from support.small_models import small_model
from support.train_samples import write_corpus

REACHED = {"training step": {"rooms of training"}}
"""The measures of `AIMS` that a run must keep: `rooms`, `lines`, `rooms of training`."""


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rooms]:
    folder, model = tmp_path_factory.mktemp("rooms"), small_model()
    train, validation = write_corpus(folder), write_corpus(folder, count=3, name="valid")
    return {
        "file to text": file_to_text(model, folder / "train0.wav"),
        "training step": training_step(model, (train, validation), folder / "run"),
    }


@pytest.mark.parametrize("way", ["file to text", "training step"])
def test_a_run_opens_the_rooms_of_the_model(way: str, traces: dict[str, Rooms]) -> None:
    rooms = traces[way]
    assert {"models/asr_model.py", "audio/features.py", "nets/conformer.py", "nets/ctc.py"} <= set(rooms.functions)
    assert not any(room.startswith(("serving/", "cli/", "checkpoints/")) for room in rooms.functions)
    assert (rooms.training > 0) == (way == "training step")
    assert page(way, rooms).startswith(f"{way}: {len(rooms.functions)} rooms ({rooms.training} of training), ")


def test_a_file_is_loaded_and_a_step_computes_a_loss(traces: dict[str, Rooms]) -> None:
    assert "audio/load.py" in traces["file to text"].functions
    assert "ctc_loss" in traces["training step"].functions["nets/ctc.py"]
    assert "ctc_loss" not in traces["file to text"].functions["nets/ctc.py"]


@pytest.mark.parametrize("way", REACHED)
def test_a_run_opens_no_more_than_its_aim(way: str, traces: dict[str, Rooms]) -> None:
    excesses = traces[way].excesses(AIMS[way])
    assert [excesses[measure] for measure in REACHED[way] & excesses.keys()] == []


def test_functions_count_only_while_recording_and_in_threads_too() -> None:
    with Tracer() as tracer:
        character_errors("a", "b")
        assert not tracer.rooms().functions
        tracer.recording = True
        thread = threading.Thread(target=word_errors, args=("a", "b"))
        thread.start()
        thread.join()
        tracer.recording = False
        align_words("a", "b")
    codes = {code.co_name for code in tracer.codes}
    assert "word_errors" in codes
    assert not codes & {"character_errors", "align_words"}
    assert set(tracer.rooms().functions) == {"wer.py"}


def test_only_the_named_call_of_a_function_counts() -> None:
    def measure(errors: Callable[[str, str], object]) -> None:
        errors("a", "b")

    with Tracer(measure.__code__, call=2) as tracer:
        for errors in (align_words, word_errors, character_errors):
            measure(errors)
    names = {code.co_name for code in tracer.codes}
    assert names & {"align_words", "word_errors", "character_errors"} == {"word_errors"}


def test_lines_are_those_of_the_whole_file() -> None:
    rooms = Rooms(functions={"wer.py": ["word_errors"], "training/train.py": ["train", "_dataset"]})
    lengths = {room: len((PACKAGE / room).read_text("utf-8").splitlines()) for room in rooms.functions}
    assert rooms.lines == lengths
    total = sum(lengths.values())
    assert rooms.excesses(Aim(rooms=2, lines=total, training=1)) == {}
    assert rooms.excesses(Aim(rooms=1, lines=total - 1, training=0)) == {
        "rooms": "2 rooms, at most 1",
        "lines": f"{total:,} lines, at most {total - 1:,}",
        "rooms of training": "1 rooms of training, at most 0",
    }

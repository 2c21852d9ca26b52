"""Data sets of Hugging Face's, frames of pandas and lists of rows where a manifest is taken."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import overtone
from overtone.data.batching import BatchPlan
from overtone.data.dataset import audio_problems, read_utterance
from overtone.data.manifest import read_manifest
from overtone.data.tables import is_table, name_tables, read_table
from overtone.errors import DataError
from overtone.training.data import make_set
from overtone.training.train import train
from support.small_models import small_model
from support.train_samples import SAMPLE_RATE, write_corpus

pandas = pytest.importorskip("pandas")
datasets = pytest.importorskip("datasets")


def rows(folder: Path, *, count: int = 6) -> list[dict[str, Any]]:
    """The lines of a small corpus with whole paths."""
    lines = map(json.loads, write_corpus(folder, count=count).read_text().splitlines())
    return [{**line, "audio_filepath": str(folder / line["audio_filepath"])} for line in lines]


def files(folder: Path) -> list[bytes]:
    return [Path(row["audio_filepath"]).read_bytes() for row in rows(folder)]


def samples(folder: Path) -> list[Any]:
    return [soundfile.read(io.BytesIO(content), dtype="float32")[0] for content in files(folder)]


def texts(folder: Path) -> list[str]:
    return [row["text"] for row in rows(folder)]


def with_audio(folder: Path) -> Any:
    """A data set with a column of Hugging Face's audio."""
    paths = [row["audio_filepath"] for row in rows(folder)]
    made = datasets.Dataset.from_dict({"audio": paths, "sentence": texts(folder), "locale": ["en"] * len(paths)})
    return made.cast_column("audio", datasets.Audio(sampling_rate=SAMPLE_RATE))


def saved_with_bytes(folder: Path) -> Any:
    """The same, its audio inside, as it is after a round trip over the disk."""
    audio = [{"bytes": content, "path": "a.wav"} for content in files(folder)]
    made = datasets.Dataset.from_dict({"audio": audio, "text": texts(folder)}).cast_column("audio", datasets.Audio())
    made.save_to_disk(str(folder / "saved"))
    return datasets.load_from_disk(str(folder / "saved"))


FORMS = {
    "rows": rows,
    "rows of samples": lambda folder: [
        {"audio": {"array": one, "sampling_rate": SAMPLE_RATE}, "text": text}
        for one, text in zip(samples(folder), texts(folder), strict=True)
    ],
    "frame of paths": lambda folder: pandas.DataFrame(rows(folder)),
    "frame of bytes": lambda folder: pandas.DataFrame({"audio": files(folder), "Transcript": texts(folder)}),
    "frame of samples": lambda folder: pandas.DataFrame({"audio": samples(folder), "text": texts(folder)}),
    "data set of paths": lambda folder: datasets.Dataset.from_list(rows(folder)),
    "data set of audio": with_audio,
    "data set on disk": saved_with_bytes,
    "stream": lambda folder: datasets.Dataset.from_list(rows(folder)).to_iterable_dataset(),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_utterances_of_the_manifest(tmp_path: Path, form: str) -> None:
    table = FORMS[form](tmp_path)
    assert is_table(table)
    found = read_table(table, "table")
    expected = read_manifest(tmp_path / "train.json")
    assert [one.text for one in found] == [one.text for one in expected]
    assert [one.duration for one in found] == pytest.approx([one.duration for one in expected], abs=1e-3)
    assert audio_problems(found, how="headers", sample_rate=SAMPLE_RATE) == {}
    again = pickle.loads(pickle.dumps(found))  # a process that reads audio gets a copy
    for one, other in zip(again, expected, strict=True):
        assert np.abs(read_utterance(one, SAMPLE_RATE) - read_utterance(other, SAMPLE_RATE)).max() < 1e-4
    if form == "data set of audio":
        assert {one.language for one in found} == {"en"}


def test_columns_of_a_manifest(tmp_path: Path) -> None:
    """Stretches, speakers and what is missing: NaN is nothing."""
    frame = pandas.DataFrame(rows(tmp_path, count=3))
    frame["offset"] = [0.1, float("nan"), 0.2]
    frame["duration"] = [0.5, float("nan"), 0.25]
    frame["speaker"] = ["anna", None, "ben"]
    first, second, third = read_table(frame, "table")
    assert (first.offset, first.duration, first.speaker) == (0.1, 0.5, "anna")
    assert (second.offset, second.speaker) == (0.0, None)
    assert second.duration == pytest.approx(0.8 + 0.8 / 3, abs=1e-3)
    assert (third.offset, third.duration) == (0.2, 0.25)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audio_filepath": None}, r"table:2: there is no recording"),
        ({"audio_filepath": "absent.wav"}, r"table:2: the recording absent\.wav does not exist"),
        ({"audio_filepath": 3}, r"table:2: the recording is of type int; allowed is"),
        ({"text": 3}, r"table:2: 'text' is 3; a string is needed"),
        ({"text": None}, r"table:2: the key 'text' is missing"),
        ({"duration": -1.0}, r"table:2: 'duration' is -1\.0"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    given = rows(tmp_path, count=3)
    given[1].update(change)
    with pytest.raises(DataError, match=message):
        read_table(given, "table")


def test_tables_without_their_columns(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"table: there is no column 'audio', or another .*; there are 'text'"):
        read_table(pandas.DataFrame({"text": ["a"]}), "table")
    with pytest.raises(DataError, match=r"table: there is no column 'text'"):
        read_table(pandas.DataFrame({"audio": ["a.wav"]}), "table")
    parts = datasets.DatasetDict({"train": datasets.Dataset.from_list(rows(tmp_path))})
    assert is_table(parts)
    with pytest.raises(DataError, match=r"several parts \(train\); give one of them"):
        read_table(parts, "table")
    torn = datasets.Dataset.from_list([{"audio": {"bytes": b"RIFF", "path": None}, "text": "a"}])
    with pytest.raises(DataError, match="table:1"):
        read_table(torn, "table")


def test_names() -> None:
    frame = pandas.DataFrame({"a": [1, 2]})
    assert name_tables(["a.json", frame, Path("b.json")], "train")[0] == [
        "a.json",
        "train 2 (DataFrame of 2 rows)",
        "b.json",
    ]
    assert list(name_tables(frame, "train")[1]) == ["train (DataFrame of 2 rows)"]
    assert name_tables([["a.json", 0.3], ["b.json", 0.7]], "train") == ([["a.json", 0.3], ["b.json", 0.7]], {})
    assert name_tables(None, "train") == ([], {})


@pytest.mark.parametrize("form", ["bytes", "samples", "a data set"])
def test_other_audio_under_the_same_names_is_another_set(tmp_path: Path, form: str) -> None:
    """A run that goes on, and errors of a base that are shared, tell the audio itself apart."""

    def recordings(audio: list[Any]) -> str:
        table: Any = [{"audio": sound, "text": text} for sound, text in zip(audio, texts(tmp_path), strict=True)]
        if form == "a data set":
            table = datasets.Dataset.from_list(table)
        utterances = read_table(table, "train")
        set_ = make_set(small_model(), utterances, [[1]] * len(utterances), BatchPlan(durations=(1.0,) * len(table)))
        return set_.recordings

    audio = samples(tmp_path) if form == "samples" else files(tmp_path)
    if form == "a data set":
        audio = [{"bytes": content, "path": "a.wav"} for content in audio]
    assert recordings(audio) == recordings(list(audio))
    assert recordings(audio) != recordings([audio[1], audio[0], *audio[2:]])


def test_the_same_training_as_on_the_manifest(tmp_path: Path) -> None:
    """Train, evaluate and transcribe on tables: the adapters, errors and texts of the files."""
    given = rows(tmp_path, count=12)
    valid = rows(tmp_path / "valid", count=3)
    frame, data_set = pandas.DataFrame(given), datasets.Dataset.from_list(valid)
    adapters, errors, heard = [], [], []
    for name, training, validation in (
        ("files", tmp_path / "train.json", tmp_path / "valid/train.json"),
        ("tables", frame, data_set),
    ):
        model = small_model()
        train(
            model,
            adapter_name="mine",
            train_manifest=training,
            validation_manifest=validation,
            output_dir=tmp_path / name,
            max_steps=2,
            batch_size=4,
            compute_dtype="float32",
            quiet=True,
        )
        adapters.append({key: tensor.tolist() for key, tensor in model.adapters["mine"].tensors().items()})
        (result,) = overtone.evaluate(model, validation, adapters=["mine"], compute_dtype="float32").results
        errors.append(result.words)
        heard.append([each.text for each in overtone.transcribe(model, validation, adapter="mine")])
    assert adapters[0] == adapters[1]
    assert errors[0] == errors[1]
    assert heard[0] == heard[1]
    assert len(heard[0]) == 3

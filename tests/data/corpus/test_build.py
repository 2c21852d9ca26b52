"""Manifests made of corpora: every kind of source, checks, and parts without a speaker in common."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from overtone.data.corpus.build import Manifests, build_manifest, histogram
from overtone.data.corpus.rows import Columns
from overtone.data.corpus.split import read_parts, split
from overtone.data.manifest import read_manifest
from overtone.errors import DataError, UsageError

RATE = 16_000


@pytest.fixture
def record(tmp_path: Path) -> Callable[..., Path]:
    """Writes a recording of its own below the test's folder, and a text beside it."""
    made = iter(range(1, 1000))

    def write(name: str, text: str | None = None, seconds: float = 1.0) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(next(made)).uniform(-0.1, 0.1, int(seconds * RATE))
        soundfile.write(path, noise, RATE)
        if text is not None:
            path.with_suffix(".txt").write_text(text + "\n", "utf-8")
        return path

    return write


def lines_of(made: Manifests, part: str = "manifest") -> list[dict[str, Any]]:
    return [json.loads(line) for line in made.files[part].read_text("utf-8").splitlines()]


def test_texts_beside_recordings(tmp_path: Path, record: Callable[..., Path]) -> None:
    record("corpus/anna/a.wav", "grüße  an\nalle", 1.5)
    record("corpus/ben/b.flac", "two")
    made = build_manifest(tmp_path / "corpus", tmp_path / "out.json")
    assert lines_of(made, "out") == [
        {"audio_filepath": "corpus/anna/a.wav", "duration": 1.5, "text": "grüße an alle", "speaker": "anna"},
        {"audio_filepath": "corpus/ben/b.flac", "duration": 1.0, "text": "two", "speaker": "ben"},
    ]
    assert [line.text for line in read_manifest(tmp_path / "out.json")] == ["grüße an alle", "two"]


def test_librispeech(tmp_path: Path, record: Callable[..., Path]) -> None:
    record("corpus/84/121/84-121-0000.flac")
    record("corpus/84/121/84-121-0001.flac")
    record("corpus/99/1/99-1-0000.flac")
    (tmp_path / "corpus/84/121/84-121.trans.txt").write_text("84-121-0000 GO ON\n84-121-0001 NO\n")
    (tmp_path / "corpus/99/1/99-1.trans.txt").write_text("99-1-0000 YES\n")
    made = build_manifest(tmp_path / "corpus", tmp_path / "out")
    assert [(line["text"], line["speaker"]) for line in lines_of(made)] == [
        ("GO ON", "84"),
        ("NO", "84"),
        ("YES", "99"),
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", 'file_name,transcription,speaker_id\na.wav,"one, two",anna\nb.wav,three,ben\n'),
        ("t.csv", "wav_filename;transcript;speaker\na.wav;one, two;anna\nb.wav;three;ben\n"),
        ("t.tsv", "client_id\tpath\tsentence\r\nanna\ta.wav\tone, two\r\nben\tb\tthree\r\n\r\n"),
        (
            "t.csv",
            "\ufeffAudio_Filepath,Text,Speaker\na.wav,  one,   two,anna\nb.wav,three,ben\n".replace(
                "one,   two", '"one,   two"'
            ),
        ),
        ("t.csv", "A|B|C\na.wav|one, two|anna\nb.wav|three|ben\n"),
    ],
)
def test_tables(tmp_path: Path, record: Callable[..., Path], name: str, content: str) -> None:
    record("clips/a.wav")
    record("clips/b.wav")
    (tmp_path / name).write_text(content, "utf-8")
    columns = Columns(audio="A", text="B", speaker="C") if content.startswith("A|") else None
    made = build_manifest(tmp_path / name, tmp_path / "out", columns=columns)
    found = [(Path(line["audio_filepath"]).name, line["text"], line["speaker"]) for line in lines_of(made)]
    assert found == [("a.wav", "one, two", "anna"), ("b.wav", "three", "ben")]


def test_ljspeech(tmp_path: Path, record: Callable[..., Path]) -> None:
    record("lj/wavs/LJ001-0001.wav")
    (tmp_path / "lj/metadata.csv").write_text('LJ001-0001|In 1 "word|in one "word\n')
    assert lines_of(build_manifest(tmp_path / "lj", tmp_path / "out"))[0]["text"] == 'in one "word'


def test_columns_that_are_not_there_are_told(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("clip,words\na.wav,one\n")
    with pytest.raises(
        DataError, match=r"no column is known to hold the recordings. There are clip, words. Name it with"
    ):
        build_manifest(tmp_path / "t.csv", tmp_path / "out")
    with pytest.raises(UsageError, match=r"has no column 'wrds'. Did you mean 'words'\? It has clip, words"):
        build_manifest(tmp_path / "t.csv", tmp_path / "out", columns=Columns(text="wrds"))


def test_kaldi(tmp_path: Path, record: Callable[..., Path]) -> None:
    record("kaldi/a.wav", seconds=4.0)
    folder = tmp_path / "kaldi"
    (folder / "wav.scp").write_text("rec1 a.wav\nrec2 cat a.wav |\nrec3 none.wav\n")
    (folder / "segments").write_text("u1 rec1 0.5 1.5\nu2 rec1 2 4\nu3 rec2 0 1\nu4 rec1 3 9\nu5 rec1 0 1\n")
    (folder / "text").write_text("u1 one two\nu2\tthree\nu3 four\nu4 five\n")
    (folder / "utt2spk").write_text("u1 anna\nu2 ben\n")
    with pytest.raises(DataError) as caught:
        build_manifest(folder, tmp_path / "out")
    message = str(caught.value)
    assert message.startswith("4 of 6 utterances cannot be used:")
    for fault in (
        "it is a command, and nothing is executed",
        "none.wav does not exist",
        "no transcript of it",
        "holds 1 s",
    ):
        assert fault in message
    made = build_manifest(folder, tmp_path / "out", drop=True)
    found = [(line["text"], line.get("offset"), line["duration"], line["speaker"]) for line in lines_of(made)]
    assert found == [("one two", 0.5, 1.0, "anna"), ("three", 2.0, 2.0, "ben")]
    assert len(made.faults) == 4


def test_rows_in_memory_are_written_beside_the_manifest(tmp_path: Path, record: Callable[..., Path]) -> None:
    wav = record("a.wav")
    encoded = io.BytesIO()
    soundfile.write(encoded, np.full(RATE, 0.25), RATE, format="FLAC")
    rows = [
        {"audio": {"array": np.full(RATE, 0.5), "sampling_rate": RATE, "path": "gone.wav"}, "text": "one"},
        {"audio": {"bytes": encoded.getvalue(), "path": None}, "sentence": "two", "client_id": 7, "locale": "de"},
        {"audio": str(wav), "text": "three"},
    ]
    made = build_manifest(iter(rows), tmp_path / "out")
    found = read_manifest(made.files["manifest"])
    assert [(line.text, line.speaker, line.language) for line in found] == [
        ("one", None, None), ("two", "7", "de"), ("three", None, None)
    ]  # fmt: skip
    assert found[0].audio_path.is_relative_to(tmp_path / "out")
    assert soundfile.read(found[0].audio_path)[0].tolist() == [0.5] * RATE
    assert found[1].audio_path.read_bytes() == encoded.getvalue()
    assert found[2].audio_path == wav


def test_saved_data_sets(tmp_path: Path, record: Callable[..., Path]) -> None:
    datasets = pytest.importorskip("datasets")
    wav = record("a.wav")
    whole = datasets.Dataset.from_list([{"audio": str(wav), "text": "one", "speaker_id": 3}])
    whole = whole.cast_column("audio", datasets.Audio())
    datasets.DatasetDict({"train": whole, "test": whole}).save_to_disk(tmp_path / "saved")
    with pytest.raises(UsageError, match="has the parts train, test; choose one with --part"):
        build_manifest(tmp_path / "saved", tmp_path / "out")
    made = build_manifest(tmp_path / "saved", tmp_path / "out", part="test")
    assert [(line["text"], line["duration"], line["speaker"]) for line in lines_of(made)] == [("one", 1.0, "3")]


def test_what_cannot_be_used_is_told_and_left_out_on_request(tmp_path: Path, record: Callable[..., Path]) -> None:
    record("c/a.wav", "one")
    record("c/empty.wav", " ")
    record("c/alone.wav")
    (tmp_path / "c/copy.wav").write_bytes((tmp_path / "c/a.wav").read_bytes())
    (tmp_path / "c/copy.txt").write_text("one")
    (tmp_path / "c/bad.wav").write_bytes(b"nothing of the kind")
    (tmp_path / "c/bad.txt").write_text("two")
    with pytest.raises(DataError, match="4 of 5 utterances cannot be used") as caught:
        build_manifest(tmp_path / "c", tmp_path / "out")
    for fault in (
        "no text is beside it",
        "the transcript is empty",
        "the same recording as",
        "cannot be read as audio",
    ):
        assert fault in str(caught.value)
    assert not (tmp_path / "out").exists()
    made = build_manifest(tmp_path / "c", tmp_path / "out", drop=True)
    assert (len(lines_of(made)), len(made.faults)) == (1, 4)
    assert "Left out, 4 in all:" in str(made)


def test_parts_have_no_speaker_in_common(tmp_path: Path, record: Callable[..., Path]) -> None:
    for speaker in range(10):
        for number in range(3):
            record(f"c/s{speaker}/{number}.wav", f"text {number}", 0.2)
    parts = {"train": 0.8, "valid": 0.1, "test": 0.1}
    made = build_manifest(tmp_path / "c", tmp_path / "out", parts=parts)
    speakers = {part: {line["speaker"] for line in lines_of(made, part)} for part in parts}
    assert [len(found) for found in speakers.values()] == [8, 1, 1]
    assert not speakers["train"] & speakers["test"]
    again = build_manifest(tmp_path / "c", tmp_path / "again", parts=parts)
    assert [line.part for line in made.lines] == [line.part for line in again.lines]
    other = build_manifest(tmp_path / "c", tmp_path / "other", parts=parts, seed=1)
    assert [line.part for line in made.lines] != [line.part for line in other.lines]
    table = str(made).splitlines()
    assert table[1].split() == ["train", "24", "0.00", "8", "48", str(len(set("text012")))]
    assert "Durations:" in table


def test_nothing_is_written_over(tmp_path: Path, record: Callable[..., Path]) -> None:
    record("c/a.wav", "one")
    made = build_manifest(tmp_path / "c", tmp_path / "m.json")
    with pytest.raises(UsageError, match=r"m\.json exists already"):
        build_manifest(tmp_path / "c", tmp_path / "m.json")
    with pytest.raises(UsageError, match="is an input as well"):
        build_manifest(made.files["m"], tmp_path / "m.json", overwrite=True)
    with pytest.raises(UsageError, match="is one file, and the parts a, b need one each"):
        build_manifest(tmp_path / "c", tmp_path / "n.json", parts={"a": 0.5, "b": 0.5})
    assert lines_of(build_manifest(tmp_path / "c", tmp_path / "m.json", overwrite=True), "m")


@pytest.mark.parametrize("source", ["none", "folder"])
def test_sources_that_are_none(tmp_path: Path, source: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"no such file or folder|holds no recordings. Known are folders"):
        build_manifest(tmp_path / source, tmp_path / "out")


@pytest.mark.parametrize("text", ["train", "a=1.5", "a=0.5,b=0.6", "a=0.5,a=0.5", "=1", "a/b=1", "a=x"])
def test_bad_parts(text: str) -> None:
    with pytest.raises(UsageError):
        read_parts(text)


@given(
    st.lists(st.tuples(st.floats(0.1, 30), st.sampled_from(["a", "b", "c", "d", "e", None])), min_size=6, max_size=60),
    st.integers(0, 5),
)
def test_every_part_has_something_and_groups_stay_together(rows: list[tuple[float, str | None]], seed: int) -> None:
    parts = {"train": 0.7, "valid": 0.2, "test": 0.1}
    groups = [group for _, group in rows]
    if len({group for group in groups if group}) + groups.count(None) < 3:
        return
    chosen = split([seconds for seconds, _ in rows], groups, parts, seed=seed)
    assert set(chosen) == set(parts)
    for group in {*groups} - {None}:
        assert len({part for part, own in zip(chosen, groups, strict=True) if own == group}) == 1


def test_too_few_speakers_are_told() -> None:
    with pytest.raises(UsageError, match="1 speakers cannot be dealt out to 2 parts"):
        split([1.0, 1.0], ["a", "a"], {"train": 0.5, "test": 0.5})


def test_histogram() -> None:
    lines = [line.split() for line in histogram([0.4, 0.9, 1.0, 1.0])]
    assert lines == [["0", "–", "0.5", "s", "1", "█" * 13], ["0.5", "–", "1", "s", "3", "█" * 40]]
    assert histogram([100.0])[-1].split() == ["over", "60", "s", "1", "█" * 40]


def test_cells_too_many_are_told(tmp_path: Path, record: Callable[..., Path]) -> None:
    record("a.wav")
    (tmp_path / "t.csv").write_text("path,text\na.wav,one, two\n")
    with pytest.raises(DataError, match=r"t\.csv:2: it has 3 cells, and the first line 2; quote the text"):
        build_manifest(tmp_path / "t.csv", tmp_path / "out")

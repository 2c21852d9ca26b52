"""Cuts and shards of lhotse: the samples and texts that lhotse itself gives; one clear error for what is not read."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lhotse import CutSet, Recording, SupervisionSegment

from overtone.config import DatasetSettings, list_sources
from overtone.data.dataset import read_utterance
from overtone.data.manifest import Utterance
from overtone.data.sources import read_source
from overtone.errors import DataError
from support.train_samples import SAMPLE_RATE, write_corpus


def read(**keys: Any) -> list[Utterance]:
    return [
        one
        for source in list_sources(DatasetSettings(**keys)).sources
        for one in read_source(source, lambda text: None)
    ]


def make_cuts(folder: Path, *, count: int = 7) -> CutSet:
    """Cuts of whole recordings, and of stretches of them."""
    cuts = []
    for line in map(json.loads, write_corpus(folder, count=count).read_text().splitlines()):
        recording = Recording.from_file(folder / line["audio_filepath"])
        cut = recording.to_cut()
        spoken = {"text": line["text"], "language": "en", "speaker": "anna", "custom": {"other": line["text"].upper()}}
        cut.supervisions.append(SupervisionSegment(f"s-{cut.id}", recording.id, 0, cut.duration, **spoken))
        cuts.append(cut if len(cuts) % 3 else cut.truncate(offset=0.25, duration=0.5))
    return CutSet.from_cuts(cuts)


def check_same(utterances: list[Utterance], cuts: CutSet) -> None:
    assert [one.text for one in utterances] == [cut.supervisions[0].text for cut in cuts]
    assert {(one.language, one.speaker) for one in utterances} == {("en", "anna")}
    for one, cut in zip(utterances, cuts, strict=True):
        assert one.duration == cut.duration
        assert np.array_equal(read_utterance(one, SAMPLE_RATE), cut.load_audio()[0])


@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz"])
def test_cuts_of_files(tmp_path: Path, name: str) -> None:
    cuts = make_cuts(tmp_path)
    cuts.to_file(tmp_path / name)
    found = read(cuts_path=str(tmp_path / name))
    check_same(found, cuts)
    others = read(cuts_path=str(tmp_path / name), text_field="other")
    assert [one.text for one in others] == [(one.text or "").upper() for one in found]


def shar(folder: Path, **options: Any) -> Path:
    (folder / "shar").mkdir(parents=True)
    make_cuts(folder).to_shar(folder / "shar", fields={"recording": "flac"}, shard_size=3, **options)
    return folder / "shar"


def test_shards(tmp_path: Path) -> None:
    folder = shar(tmp_path)
    found = read(shar_path=str(folder))
    check_same(found, CutSet.from_shar(in_dir=folder))
    assert len({one.archive for one in found}) == 3
    fields = {
        name: str(folder / f"{name}.00000_OP_0..2_CL_.{end}")
        for name, end in (("cuts", "jsonl.gz"), ("recording", "tar"))
    }
    assert [one.text for one in read(shar_path=fields)] == [one.text for one in found]
    assert len(read(shar_path=(str(folder), str(folder)))) == 14
    weighted = read(shar_path=((str(folder), 0.2), (str(folder), 3)))
    assert [one.part for one in weighted] == [0] * 7 + [1] * 7


def test_shards_that_are_not_whole(tmp_path: Path) -> None:
    folder = shar(tmp_path)

    def fails(message: str) -> None:
        with pytest.raises(DataError, match=message):
            read(shar_path=str(folder))

    cuts, recordings = folder / "cuts.000001.jsonl.gz", folder / "recording.000001.tar"
    whole, lines = recordings.read_bytes(), cuts.read_bytes()
    recordings.unlink()
    fails(r"cuts\.000001\.jsonl\.gz: its shard of recordings, number 1, is not there")
    recordings.write_bytes(whole[: len(whole) // 3])
    fails(r"recording\.000001\.tar: torn")
    recordings.write_bytes((folder / "recording.000000.tar").read_bytes())
    fails(r"cuts\.000001\.jsonl\.gz cannot be used:\n.*the recording of cut '.*' is not in .*recording\.000001\.tar")
    recordings.write_bytes(whole)
    cuts.write_bytes(gzip.compress(gzip.decompress(lines).split(b"\n")[0]))
    fails(r"recording\.000001\.tar: the recording '.*' has no cut in .*nor have 1 others")
    cuts.write_bytes(lines[:40])
    fails(r"cuts\.000001\.jsonl\.gz: not compressed with gzip, or torn")
    cuts.unlink()
    fails(r"recording\.000001\.tar: its shard of cuts is not there")
    with pytest.raises(DataError, match="no such folder of Lhotse Shar"):
        read(shar_path=str(tmp_path / "absent"))
    with pytest.raises(DataError, match=r"there is no cuts\.000000\.jsonl\.gz in it"):
        read(shar_path=str(tmp_path))


def test_shards_with_malformed_cuts_and_numbers_that_come_twice(tmp_path: Path) -> None:
    folder = shar(tmp_path)
    cuts = folder / "cuts.000001.jsonl.gz"
    lines = [json.loads(line) for line in gzip.decompress(cuts.read_bytes()).splitlines()]
    lines[1]["id"] = ["x"]
    cuts.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    with pytest.raises(DataError, match=r"cuts\.000001\.jsonl\.gz:2: the recording of cut '\['x'\]' is not in"):
        read(shar_path=str(folder))
    for field in ("recording.1.tar", "cuts.1.jsonl.gz"):
        (folder / field).write_bytes(b"")
        with pytest.raises(DataError, match=r"are both shard 1\. Rename one"):
            read(shar_path=str(folder))
        (folder / field).unlink()


def source(kind: str) -> Callable[[dict[str, Any]], None]:
    return lambda cut: cut["recording"]["sources"][0].update(type=kind, source="touch /tmp/never")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (source("command"), "its recording is of type command; a single file is needed. Nothing is executed"),
        (source("url"), "its recording is of type url"),
        (lambda cut: cut["recording"].update(transforms=[{"name": "Speed"}]), "is changed by 'transforms'"),
        (lambda cut: cut.pop("recording"), "the cut has no recording"),
        (lambda cut: cut.update(type="MixedCut"), "a MixedCut; MonoCut and MultiCut are read"),
        (lambda cut: cut.update(duration=-1), "'duration' is -1"),
        (lambda cut: cut.update(supervisions=5), "'supervisions' is 5; a list of objects"),
        (lambda cut: cut.update(supervisions=["x"]), "'supervisions' is .'x'.; a list of objects"),
        (lambda cut: cut["supervisions"][0].update(language=["x"]), "the 'language' of a supervision is"),
        (lambda cut: cut["supervisions"][0].update(speaker={}), "the 'speaker' of a supervision is"),
        (lambda cut: cut.update(type=["MonoCut"]), "a .'MonoCut'.; MonoCut and MultiCut are read"),
        (lambda cut: cut.update(supervisions=[]), "the key 'text' is missing"),
    ],
)
def test_cuts_that_are_not_read(tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    make_cuts(tmp_path, count=3).to_file(tmp_path / "cuts.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "cuts.jsonl").read_text().splitlines()]
    change(lines[1])
    (tmp_path / "cuts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(DataError, match=rf"cuts\.jsonl:2: .*{message}"):
        read(cuts_path=str(tmp_path / "cuts.jsonl"))
    with pytest.raises(DataError, match=r"cuts are read from \.jsonl"):
        read(cuts_path=str(tmp_path / "train0.wav"))

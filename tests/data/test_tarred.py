"""Tarred sets: the utterances of the files they were packed from; one clear error for a shard that is not whole."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from overtone.config import DatasetSettings, list_sources
from overtone.data.dataset import audio_problems, read_utterance
from overtone.data.manifest import LineForm, Utterance, read_manifest
from overtone.data.sources import read_source
from overtone.data.tarred import read_tarred
from overtone.errors import DataError
from support.fixtures import fixture_file
from support.shards import pack, packed_corpus, write_lines
from support.train_samples import SAMPLE_RATE, write_corpus


def read(manifest: object, archives: object, said: list[str] | None = None, **keys: object) -> list[Utterance]:
    settings = DatasetSettings(manifest_filepath=manifest, is_tarred=True, tarred_audio_filepaths=archives, **keys)  # type: ignore[arg-type]
    say: Callable[[str], None] = (said if said is not None else []).append
    return [one for source in list_sources(settings).sources for one in read_source(source, say)]


def content(utterances: list[Utterance]) -> list[tuple[str | None, float, bytes]]:
    return [(one.text, one.duration, read_utterance(one, SAMPLE_RATE).tobytes()) for one in utterances]


@pytest.mark.parametrize("split_manifest", [False, True])
def test_the_same_utterances(tmp_path: Path, split_manifest: bool) -> None:
    manifest, archives = packed_corpus(tmp_path, split_manifest=split_manifest)
    tarred = read(manifest, archives)
    assert content(tarred) == content(read_manifest(tmp_path / "train.json"))
    assert audio_problems(tarred, how="headers", sample_rate=SAMPLE_RATE) == {}
    assert {one.archive for one in tarred} == {tmp_path / f"tarred/audio_{shard}.tar" for shard in range(3)}
    assert str(tarred[0].audio_path) == str(tmp_path / "tarred/audio_0.tar/train0.wav")


@pytest.mark.parametrize("spelling", ["{{0..2}}", "[0..2]", "(0..2)", "<0..2>", "_OP_0..2_CL_", "{{0,1,2}}"])
def test_every_spelling_of_a_list(tmp_path: Path, spelling: str) -> None:
    manifest, _ = packed_corpus(tmp_path)
    archives = str(tmp_path / "tarred" / f"audio_{spelling.format()}.tar")
    assert len(read(manifest, archives)) == 12


def test_several_sets(tmp_path: Path) -> None:
    """Buckets as lists of lists, and sets as a list."""
    pairs = [
        pack(write_corpus(tmp_path / name, count=count, name=name), tmp_path / name / "tarred", shards=2)
        for name, count in (("short", 4), ("long", 6))
    ]
    for wrap in (lambda text: [text], lambda text: text):
        manifests, archives = (tuple(wrap(pair[place]) for pair in pairs) for place in (0, 1))
        found = read(manifests, archives)
        assert [one.part for one in found] == [0] * 4 + [1] * 6
    with pytest.raises(DataError, match=r"is not in .*audio_0\.tar"):
        read(pairs[0][0], pairs[1][1])


def test_segments_of_one_recording(tmp_path: Path) -> None:
    """NeMo gives the segments of a recording names of their own, which the archive does not have."""
    samples = np.random.default_rng(0).standard_normal(3 * SAMPLE_RATE).astype(np.float32) * 0.1
    soundfile.write(tmp_path / "long.wav", samples, SAMPLE_RATE)
    with tarfile.open(tmp_path / "audio_0.tar", "w") as archive:
        archive.add(tmp_path / "long.wav", "long.wav")
    lines = [
        {"audio_filepath": name, "offset": offset, "duration": 1.0, "text": name, "shard_id": 0}
        for name, offset in (("long.wav", 0.0), ("long-sub1.wav", 1.0), ("long-sub2.wav", 1.5))
    ]
    write_lines(tmp_path / "manifest.json", lines)
    found = [
        read_utterance(one, SAMPLE_RATE) for one in read(str(tmp_path / "manifest.json"), str(tmp_path / "audio_0.tar"))
    ]
    whole, _ = soundfile.read(tmp_path / "long.wav", dtype="float32")
    for line, waveform in zip(lines, found, strict=True):
        first = round(float(str(line["offset"])) * SAMPLE_RATE)
        assert np.array_equal(waveform, whole[first : first + SAMPLE_RATE])


def test_names_without_their_suffix_and_shards_without_numbers(tmp_path: Path) -> None:
    """Older sets name a recording by its path, and their lines no shard."""
    manifest, _ = packed_corpus(tmp_path)
    lines = [json.loads(line) for line in Path(manifest).read_text().splitlines()]
    for line in lines:
        line["audio_filepath"] = f"/data/elsewhere/{Path(line['audio_filepath']).stem}.flac"
        del line["shard_id"]
    write_lines(Path(manifest), lines)
    assert len(read(manifest, str(tmp_path / "tarred/audio__OP_0..2_CL_.tar"))) == 12


def test_lines_that_are_not_to_be_used(tmp_path: Path) -> None:
    manifest, archives = packed_corpus(tmp_path)
    lines = [json.loads(line) for line in Path(manifest).read_text().splitlines()]
    lines[3]["_skipme"] = True
    write_lines(Path(manifest), lines)
    assert len(read(manifest, archives)) == 11


def test_recordings_without_a_line(tmp_path: Path) -> None:
    manifest, archives = packed_corpus(tmp_path)
    kept = Path(manifest).read_text().splitlines()[:-2]
    Path(manifest).write_text("\n".join(kept))
    with pytest.raises(DataError, match=r"2, such as 'train10\.wav' in .*audio_2\.tar\. .*skip_missing"):
        read(manifest, archives)
    said: list[str] = []
    assert len(read(manifest, archives, said, skip_missing_manifest_entries=True)) == 10
    assert "2 recordings of the archives have no line and are left out" in said[0]


def test_shards_that_are_not_whole(tmp_path: Path) -> None:
    manifest, archives = packed_corpus(tmp_path)
    last = tmp_path / "tarred/audio_2.tar"
    whole = last.read_bytes()

    def fails(message: str) -> None:
        with pytest.raises(DataError, match=message):
            read(manifest, archives)

    last.unlink()
    fails(r"audio_2\.tar: no such archive")
    last.write_bytes(whole[: len(whole) // 2])
    fails(r"audio_2\.tar: torn, it ends inside 'train\d+\.wav'")
    last.write_bytes(whole[:100])
    fails(r"audio_2\.tar: torn, or no tar archive")
    last.write_bytes(b"\x1f\x8b" + whole)
    fails(r"audio_2\.tar: compressed with gzip")
    last.write_bytes(whole)
    with tarfile.open(last) as archive:
        second = archive.getmembers()[1].offset
    last.write_bytes(whole[:second] + b"damage" * 100 + whole[second + 600 :])
    fails(r"audio_2\.tar: damaged, no file begins after")
    with tarfile.open(last, "w") as archive:
        archive.add(tmp_path / "train8.wav", "train8.wav")
    fails(r"3 of 12 lines .*\n.*:10: 'train9\.wav' is not in .*audio_2\.tar")
    with tarfile.open(last, "w") as archive:
        link = tarfile.TarInfo("train8.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    fails("is a link or a device")
    with tarfile.open(last, "w") as archive:
        for _ in range(2):
            archive.add(tmp_path / "train8.wav", "train8.wav")
    fails("'train8.wav' is there twice")
    with tarfile.open(last, "w"):
        pass
    fails("there is no file in it")


def header(kind: bytes, size: int, name: str = "x") -> bytes:
    entry = tarfile.TarInfo(name)
    entry.type, entry.size = kind, size
    return entry.tobuf(tarfile.GNU_FORMAT)


def pax(record: bytes) -> bytes:
    return header(tarfile.XHDTYPE, len(record)) + record.ljust(512, b"\0")


@pytest.mark.parametrize(
    "content",
    [
        header(tarfile.GNUTYPE_LONGNAME, 2**50),
        (header(tarfile.GNUTYPE_LONGNAME, 2) + b"a\0".ljust(512, b"\0")) * 3000,
        pax(b"9" * 29 + b" path=x\n"),
        pax(b"14 size=-1536\n") + header(tarfile.REGTYPE, 0, "train8.wav"),
    ],
    ids=["claims 2**50 bytes", "nested", "a length of 29 digits", "a negative size"],
)
def test_shards_with_headers_that_cannot_be(tmp_path: Path, content: bytes) -> None:
    manifest, archives = packed_corpus(tmp_path)
    (tmp_path / "tarred/audio_2.tar").write_bytes(content + bytes(10240))
    with pytest.raises(DataError, match=r"audio_2\.tar: torn"):
        read(manifest, archives)


def test_a_shard_that_was_not_given(tmp_path: Path) -> None:
    manifest, _ = packed_corpus(tmp_path)
    with pytest.raises(DataError, match=r"'shard_id' is 2, and there is no such shard; given are 0, 1"):
        read(manifest, str(tmp_path / "tarred/audio_{0..1}.tar"))
    archives = [tmp_path / "tarred/audio_0.tar", tmp_path / "other_0.tar"]
    archives[1].write_bytes(archives[0].read_bytes())
    with pytest.raises(DataError, match="are both shard 0"):
        read_tarred([Path(manifest)], archives, form=LineForm())
    for address in ("pipe:cat audio_0.tar", "s3://bucket/audio_0.tar"):
        with pytest.raises(DataError, match=r"nothing is executed|files are read from disk"):
            read(manifest, address)


def test_an_archive_that_changes_during_a_training(tmp_path: Path) -> None:
    manifest, archives = packed_corpus(tmp_path)
    found = read(manifest, archives)
    last = tmp_path / "tarred/audio_2.tar"
    last.write_bytes(last.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"audio_2\.tar/train11\.wav.*its archive has become shorter"):
        read_utterance(found[-1], SAMPLE_RATE)


def test_the_same_as_nemos_loader(tmp_path: Path) -> None:
    """Texts and samples that NeMo's loader gives for the same archives, in whatever order."""
    manifest, archives = packed_corpus(tmp_path, count=11)
    found = [
        [one.text, len(waveform), hashlib.sha256(waveform.tobytes()).hexdigest()]
        for one in read(manifest, archives)
        for waveform in [read_utterance(one, SAMPLE_RATE)]
    ]
    assert sorted(found) == json.loads(fixture_file("tarred/nemo.json").read_text())["rows"]

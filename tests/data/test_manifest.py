from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from overtone.data import manifest_file
from overtone.data.manifest import Utterance, manifest_digest, read_manifest, read_manifests
from overtone.data.manifest_file import read_content
from overtone.errors import DataError


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder with the recordings audio/a.wav (1 s) and audio/b.wav (2 s)."""
    (tmp_path / "audio").mkdir()
    for name, seconds in (("a", 1), ("b", 2)):
        soundfile.write(tmp_path / "audio" / f"{name}.wav", np.full(16_000 * seconds, 0.1), 16_000)
    return tmp_path


def entry(name: str = "audio/a.wav", **keys: Any) -> dict[str, Any]:
    return {"audio_filepath": name, "duration": 1.0, "text": "hello there"} | keys


def write(folder: Path, *entries: dict[str, Any] | str, name: str = "train.jsonl") -> Path:
    lines = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in entries]
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_compressed_manifest_that_unpacks_to_far_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = b'{"text": "a"}\n'
    path = tmp_path / "m.json.gz"
    path.write_bytes(gzip.compress(line * 10_000))
    assert read_content(path) == line * 10_000
    monkeypatch.setattr(manifest_file, "SMALL_BYTES", 1000)
    monkeypatch.setattr(manifest_file, "EXPANSION", 5)
    with pytest.raises(DataError, match=r"m\.json\.gz: unpacks to more than \d+ bytes"):
        read_content(path)
    path.write_bytes(gzip.compress(b"a") + gzip.compress(b"b"))
    assert read_content(path) == b"ab"


def test_reads_every_key(corpus: Path) -> None:
    absolute = str(corpus / "audio" / "b.wav")
    path = write(
        corpus,
        entry(text="grüße 漢字"),
        entry(absolute, offset=0.5, duration=1, speaker="anna", lang="en"),
        entry(speaker=7, offset=None),
    )
    first, second, third = read_manifest(str(path))
    assert first == Utterance(
        audio_path=corpus / "audio" / "a.wav", duration=1.0, text="grüße 漢字", line=1, manifest=path
    )
    assert second.audio_path == corpus / "audio" / "b.wav"
    assert (second.offset, second.duration, second.speaker, second.line) == (0.5, 1.0, "anna", 2)
    assert isinstance(second.duration, float)
    assert (third.speaker, third.offset) == ("7", 0.0)


def test_missing_durations_come_from_the_header(corpus: Path) -> None:
    path = write(
        corpus, entry("audio/b.wav", duration=None), '{"audio_filepath": "audio/b.wav", "offset": 0.5, "text": "x"}'
    )
    assert [utterance.duration for utterance in read_manifest(path)] == [2.0, 1.5]


def test_harmless_oddities(corpus: Path) -> None:
    line = json.dumps(entry())
    path = corpus / "odd.json"
    path.write_bytes(b"\xef\xbb\xbf" + line.encode() + b"\r\n  " + line.encode() + b"\n\n \r\n\n")
    assert [utterance.line for utterance in read_manifest(path)] == [1, 2]
    doubled = '{"text": "first", "audio_filepath": "audio/a.wav", "duration": 1.0, "text": "last"}'
    assert read_manifest(write(corpus, doubled))[0].text == "last"


def test_paths_start_at_the_manifest(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (corpus / "lists").mkdir()
    path = write(corpus / "lists", entry("../audio/a.wav"))
    assert read_manifest(path)[0].audio_path.resolve() == (corpus / "audio" / "a.wav").resolve()
    from_the_working_folder = write(corpus / "lists", entry("audio/a.wav"))
    with pytest.raises(DataError, match="does not exist"):
        read_manifest(from_the_working_folder)
    monkeypatch.chdir(corpus)
    assert read_manifest(from_the_working_folder)[0].audio_path.resolve() == (corpus / "audio" / "a.wav").resolve()
    assert read_manifest("train.jsonl" if write(corpus, entry()) else "")[0].audio_path.is_file()


def test_text_may_be_optional(corpus: Path) -> None:
    silent = {"audio_filepath": "audio/a.wav", "duration": 1.0}
    path = write(corpus, silent, entry(text=""), entry(text=None), entry())
    assert [utterance.text for utterance in read_manifest(path, need_text=False)] == [None, "", None, "hello there"]
    with pytest.raises(DataError, match=r"train\.jsonl:1: the key 'text' is missing"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'audio_filepath': 'a'}", "not JSON .*Expecting property name"),
        ('{"audio_filepath": "audio/a.wav"', "not JSON"),
        ('["audio/a.wav", 1.0, "text"]', "a JSON list instead of an object"),
        ('"audio/a.wav"', "a JSON str instead of an object"),
        ("[" * 100_000, "not JSON"),
        ('{"duration": ' + "9" * 5_000 + "}", "not JSON"),
        ({"duration": 1.0, "text": "x"}, "'audio_filepath' is missing"),
        ({"audio_filepat": "audio/a.wav", "text": "x"}, "'audio_filepath' is missing .found 'audio_filepat'"),
        (entry("cat audio/a.wav |"), "'audio_filepath' is a command, and nothing is executed"),
        (entry("s3://bucket/a.wav"), "'audio_filepath' is the address s3://bucket/a.wav"),
        (entry(audio_filepath=["audio/a.wav", "audio/b.wav"]), "the path of a recording is needed"),
        (entry(audio_filepath=3), "'audio_filepath' is 3"),
        (entry(""), "'audio_filepath' is ''"),
        (entry("audio/none.wav"), r"audio/none\.wav does not exist"),
        (entry("audio"), "audio does not exist"),
        (entry("x" * 5_000), "does not exist"),
        (entry("~nobody-of-that-name/a.wav"), "does not exist"),
        (entry("a\0.wav"), "does not exist"),
        (entry(duration=0), "'duration' is 0.0 s; more than 0"),
        (entry(duration=-1.5), "'duration' is -1.5"),
        (entry(duration=float("nan")), "'duration' is nan"),
        (entry(duration=float("inf")), "'duration' is inf"),
        (entry(duration=10**400), "'duration' is 10"),
        (entry(duration="1.0"), "'duration' is '1.0'"),
        (entry(duration=True), "'duration' is True"),
        (entry(offset=-1), "'offset' is -1"),
        (entry(duration=None, offset=1.0), "'offset' is 1 s, but .*a.wav ends after 1 s"),
        (entry(text=5), "'text' is 5; a string"),
        (entry(text=" "), "'text' is empty"),
        ({"audio_filepath": "audio/a.wav", "sentence": "x"}, "'text' is missing .'sentence' is not read"),
        ({"audio_filepath": "audio/a.wav", "text_filepath": "a.txt"}, "the transcript .*a.txt does not exist"),
        ({"audio_filepath": "audio/a.wav", "text_filepath": "audio/a.wav"}, "the transcript .*a.wav is not UTF-8"),
        (entry(channel=-1), "'channel' is -1; the number of a channel from 0"),
        (entry(channel="left"), "'channel' is 'left'"),
        (entry(channel_selector=[]), r"'channel_selector' is \[\]"),
        ('{"audio_filepath": "audio/a.wav", "text": "\\ud800"}', "half a surrogate pair"),
        (entry(speaker=["anna"]), r"'speaker' is \['anna'\]"),
    ],
)
def test_bad_lines_are_named(corpus: Path, line: str | dict[str, Any], message: str) -> None:
    path = write(corpus, entry(), entry(), line, entry())
    with pytest.raises(DataError, match=message) as caught:
        read_manifest(path)
    assert str(caught.value).startswith(f"{path}:3: ")


def test_several_bad_lines_are_told_at_once(corpus: Path) -> None:
    path = write(corpus, entry(), {"text": "x"}, entry("none.wav"), entry(), *[entry(text="")] * 5)
    with pytest.raises(DataError) as caught:
        read_manifest(path)
    first, *lines = str(caught.value).splitlines()
    assert first == f"7 of 9 lines of {path} cannot be used:"
    assert [line.strip().split(": ")[0] for line in lines[:-1]] == [f"{path}:{number}" for number in (2, 3, 5, 6, 7)]
    assert lines[-1].strip() == "… and 2 more"


def test_blank_lines_are_skipped_and_counted(corpus: Path) -> None:
    path = write(corpus, entry(), "", "   ", entry(text="last"))
    assert [(utterance.line, utterance.text) for utterance in read_manifest(path)] == [(1, "hello there"), (4, "last")]


@pytest.mark.parametrize("key", ["audio_filename", "audio_file"])
def test_other_names_of_the_recording(corpus: Path, key: str) -> None:
    path = write(corpus, {key: "audio/a.wav", "text": "x"})
    assert read_manifest(path)[0].audio_path == corpus / "audio" / "a.wav"


def test_other_names_of_the_transcript(corpus: Path) -> None:
    (corpus / "a.txt").write_bytes(b"\xef\xbb\xbfgood\r\nmorning\n")
    audio = {"audio_filepath": "audio/a.wav"}
    path = write(
        corpus,
        audio | {"text_filepath": "a.txt"},
        audio | {"normalized_text": "two"},
        audio | {"text": None, "command": "yes"},
        audio | {"text": "one", "text_filepath": "none.txt", "normalized_text": "two"},
    )
    assert [utterance.text for utterance in read_manifest(path)] == ["good morning", "two", "yes", "one"]


def test_channels(corpus: Path) -> None:
    keys: list[dict[str, Any]] = [{}, {"channel": 1}, {"channel_selector": [0, 2]}, {"channel": "average"}]
    utterances = read_manifest(write(corpus, *[entry(**each) for each in keys]))
    assert [utterance.channel for utterance in utterances] == [None, (1,), (0, 2), None]
    plain, second, *_ = [manifest_digest([utterance]) for utterance in utterances]
    assert plain != second


def test_a_json_array_is_a_manifest(corpus: Path) -> None:
    path = corpus / "array.json"
    path.write_text(json.dumps([entry(text="one"), entry(text="two")], indent=2))
    assert [(utterance.line, utterance.text) for utterance in read_manifest(path)] == [(1, "one"), (2, "two")]
    path.write_text(json.dumps([entry(), 3]))
    with pytest.raises(DataError, match=r"array\.json:2: a JSON int instead of an object"):
        read_manifest(path)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-8"])
def test_byte_order_marks(corpus: Path, encoding: str) -> None:
    path = corpus / "marked.json"
    path.write_bytes(("\ufeff" + json.dumps(entry(text="grüße"), ensure_ascii=False) + "\r\n").encode(encoding))
    assert [utterance.text for utterance in read_manifest(path)] == ["grüße"]


def test_recordings_are_no_manifests(corpus: Path) -> None:
    with pytest.raises(DataError, match=r"a\.wav: a recording .WAV. and no manifest"):
        read_manifest(corpus / "audio" / "a.wav")
    (corpus / "archive.json").write_bytes(b"PK\3\4\0\0\0\0")
    with pytest.raises(DataError, match=r"archive\.json: not a text"):
        read_manifest(corpus / "archive.json")


def test_other_encodings_are_named(corpus: Path) -> None:
    path = corpus / "latin.json"
    path.write_bytes(json.dumps(entry()).encode() + b'\n{"text": "gr\xfc\xdfe"}\n')
    with pytest.raises(DataError, match=r"latin\.json:2: not UTF-8 .byte 13 of the line"):
        read_manifest(path)


def test_unreadable_audio_without_a_duration(corpus: Path) -> None:
    (corpus / "bad.wav").write_bytes(b"nothing of the kind")
    path = write(corpus, entry("bad.wav", duration=None))
    with pytest.raises(DataError, match=r"train\.jsonl:1: .*bad\.wav: cannot be read as audio"):
        read_manifest(path)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf \n"])
def test_empty_manifests(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"empty\.jsonl: the manifest is empty"):
        read_manifest(path)


def test_missing_manifests(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: no such manifest"):
        read_manifest(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="not a file"):
        read_manifest(tmp_path)


def test_several_manifests_in_order(corpus: Path) -> None:
    first = write(corpus, entry(text="one"), entry(text="two"), name="first.jsonl")
    second = write(corpus, entry(text="three"), name="second.jsonl")
    for paths in ([second, first], f"{second},{first}", f"{second}, {first}"):
        utterances = read_manifests(paths)
        assert [utterance.text for utterance in utterances] == ["three", "one", "two"]
        assert [utterance.manifest for utterance in utterances] == [second, first, first]
    assert len(read_manifests(first)) == len(read_manifests(str(first))) == 2
    comma = write(corpus, entry(), name="a,b.jsonl")
    assert len(read_manifests(str(comma))) == 1
    assert read_manifests([write(corpus, {"audio_filepath": "audio/a.wav"})], need_text=False)[0].text is None


def test_digest_is_of_the_content(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    lines = [entry(text="one"), entry("audio/b.wav", text="zwölf", offset=0.5)]
    digest = manifest_digest(read_manifest(write(corpus, *lines)))
    assert digest.startswith("sha256:")
    assert len(digest) == 7 + 64
    same = [{"speaker": "x", **lines[0]}, lines[1]]
    assert manifest_digest(read_manifest(write(corpus, *same, name="other name.json"))) == digest
    for changed in (
        lines[::-1],
        lines[:1],
        [entry(text="One"), lines[1]],
        [entry(text="one", duration=0.9), lines[1]],
        [entry(text="one", offset=0.1), lines[1]],
        [entry("audio/b.wav", text="one"), lines[1]],
    ):
        assert manifest_digest(read_manifest(write(corpus, *changed))) != digest
    moved = tmp_path_factory.mktemp("moved") / "corpus"
    corpus.rename(moved)
    assert manifest_digest(read_manifest(write(moved, *lines))) == digest

"""Captions, CTM, JSON lines and the files they are written to."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overtone.decoding.hypothesis import Hypothesis, Word
from overtone.errors import UsageError
from overtone.inference.captions import CaptionRules, captions, ctm, lines, srt, vtt
from overtone.inference.recordings import Recording
from overtone.inference.transcribe import Transcription
from overtone.inference.writers import FORMATS, TranscriptWriter, json_line, render


def words_at(*timed: tuple[str, float, float]) -> list[Word]:
    return [Word(text=text, start=start, end=end, confidence=0.9) for text, start, end in timed]


def steady(text: str, *, seconds: float = 0.4, start: float = 0.0) -> list[Word]:
    """Words one after the other, without pauses."""
    return words_at(
        *((word, start + index * seconds, start + (index + 1) * seconds) for index, word in enumerate(text.split()))
    )


def result_of(name: str = "a.wav", words: list[Word] | None = None, **settings: float) -> Transcription:
    words = steady("hello there") if words is None else words
    return Transcription(
        recording=Recording(path=Path("calls") / name, name=name, **settings),
        adapter="medical",
        duration=2.0,
        hypothesis=Hypothesis(text=" ".join(word.text for word in words), words=tuple(words), score=-1.25),
    )


def failure() -> Transcription:
    recording = Recording(path=Path("broken.wav"), name="broken.wav")
    return Transcription(recording=recording, adapter=None, duration=0.0, error="broken.wav: no audio.")


# Where captions are cut


def test_a_pause_ends_a_caption() -> None:
    shown = captions(words_at(("one", 0.0, 0.5), ("two", 0.6, 1.5), ("three", 2.4, 3.6)))
    assert [caption.text for caption in shown] == ["one two", "three"]


def test_a_sentence_ends_a_caption_and_a_long_one_parts_after_its_comma() -> None:
    text = "Done. When the lights went out on the whole long street, nobody could see the other side of the river"
    shown = captions(steady(text, seconds=0.3))
    assert [caption.text for caption in shown] == [
        "Done.",
        "When the lights went out on the whole long street,",
        "nobody could see the other side of the river",
    ]


def test_of_equal_places_the_middle_is_taken() -> None:
    shown = captions(steady("a b c d e f g h i j", seconds=0.9))
    assert [len(caption.words) for caption in shown] == [5, 5]


def test_a_short_caption_is_held_but_not_into_the_next() -> None:
    alone, pair = captions(words_at(("no", 0.0, 0.2))), captions(words_at(("no", 0.0, 0.2), ("yes", 1.05, 2.5)))
    assert alone[0].end == 1.0
    assert pair[0].end == pytest.approx(0.97)


timed_words = st.lists(
    st.tuples(st.text("ab,.é", min_size=1, max_size=50), st.floats(0.04, 3.0), st.floats(0.0, 2.0)), max_size=60
)


@settings(deadline=None)
@given(timed_words)
def test_captions_keep_every_word_and_the_rules(drawn: list[tuple[str, float, float]]) -> None:
    rules = CaptionRules()
    words, now = [], 0.0
    for text, length, pause in drawn:
        words.append(Word(text=text, start=now, end=now + length, confidence=1.0))
        now += length + pause
    shown = captions(words, rules)
    assert [word for caption in shown for word in caption.words] == words
    for caption in shown:
        if len(caption.words) > 1:
            assert caption.words[-1].end - caption.start <= rules.longest
            assert len(lines(caption.text, rules)) <= rules.lines
            assert all(len(line) <= rules.line_characters or " " not in line for line in lines(caption.text, rules))
        assert caption.start < caption.end
        assert caption.end >= caption.words[-1].end
    assert all(left.end <= right.start for left, right in itertools.pairwise(shown))


def test_lines_are_balanced() -> None:
    text = "the quick brown fox jumps over the lazy dog again"
    assert lines(text) == ["the quick brown fox jumps", "over the lazy dog again"]
    assert lines("short") == ["short"]
    assert lines("") == []


def test_an_hour_without_a_pause_is_cut_quickly() -> None:
    shown = captions(steady("word " * 9000))
    assert sum(len(caption.words) for caption in shown) == 9000


# Formats


def test_srt_is_numbered_with_commas() -> None:
    shown = captions(words_at(("one", 0.0, 1.2), ("two", 3723.0, 3724.5)))
    assert srt(shown) == ("1\n00:00:00,000 --> 00:00:01,200\none\n\n2\n01:02:03,000 --> 01:02:04,500\ntwo\n\n")


def test_vtt_has_a_header_and_escapes() -> None:
    shown = captions(words_at(("a<b", 0.0, 0.5), ("&", 0.5, 1.5)))
    assert vtt(shown) == "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\na&lt;b &amp;\n\n"


def test_ctm_has_one_line_a_word() -> None:
    assert ctm("my call", words_at(("one", 0.04, 0.5)), offset=10.0) == "my_call 1 10.040 0.460 one 0.9000\n"


def test_json_lines_carry_words_and_errors() -> None:
    good = json.loads(json_line(result_of(offset=1.5)))
    assert good["pred_text"] == "hello there"
    assert good["adapter"] == "medical"
    assert good["offset"] == 1.5
    assert good["words"][1] == {"word": "there", "start": 0.4, "end": 0.8, "confidence": 0.9}
    assert json.loads(json_line(failure())) == {
        "audio_filepath": "broken.wav",
        "duration": 0.0,
        "adapter": None,
        "error": "broken.wav: no audio.",
    }


@pytest.mark.parametrize("style", FORMATS)
def test_silence_is_an_empty_transcript_in_every_format(style: str) -> None:
    assert "-->" not in render(result_of(words=[]), style)


# Files


def test_streamed_formats_fill_one_file(tmp_path: Path) -> None:
    output = tmp_path / "new" / "all.txt"
    with TranscriptWriter("text", output=output, several=True) as writer:
        for result in (result_of("a.wav"), failure(), result_of("b.wav")):
            writer.write(result)
    assert output.read_text() == "a.wav\thello there\nb.wav\thello there\n"


def test_an_old_file_stays_where_nothing_is_transcribed(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text("old")
    with TranscriptWriter("json", output=output, several=True) as writer:
        writer.write(failure())
        assert output.read_text() == "old"
    assert output.read_text() == "old"
    with TranscriptWriter("json", output=output, several=True) as writer:
        writer.write(failure())
        writer.write(result_of())
        written = [json.loads(line) for line in output.read_text().splitlines()]
    assert ["error" in line for line in written] == [True, False]


def test_captions_go_to_a_file_each_and_mirror_the_folders(tmp_path: Path) -> None:
    names = ["a.wav", "deep/a.wav", "a.flac"]
    with TranscriptWriter("srt", output=tmp_path, several=True) as writer:
        for name in names:
            writer.write(result_of(name))
        writer.write(result_of("a.wav", offset=1.5))
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.srt"))
    assert files == ["a-1.50.srt", "a-2.srt", "a.srt", "deep/a.srt"]


def test_one_recording_may_name_its_file(tmp_path: Path) -> None:
    with TranscriptWriter("vtt", output=tmp_path / "talk.vtt") as writer:
        writer.write(result_of())
    assert (tmp_path / "talk.vtt").read_text().startswith("WEBVTT")


def test_without_an_output_it_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = io.StringIO()
    monkeypatch.setattr("sys.stdout", printed)
    with TranscriptWriter("text") as writer:
        writer.write(result_of())
    assert printed.getvalue() == "hello there\n"


def test_outputs_that_would_lose_something_are_refused(tmp_path: Path) -> None:
    manifest = tmp_path / "set.jsonl"
    manifest.write_text("{}")
    with pytest.raises(UsageError, match="is an input"):
        TranscriptWriter("json", output=manifest, inputs=[manifest])
    with pytest.raises(UsageError, match="named like audio"):
        TranscriptWriter("text", output=tmp_path / "a.wav")
    with pytest.raises(UsageError, match="need a folder"):
        TranscriptWriter("srt", several=True)
    with pytest.raises(UsageError, match=r"'jsn' is unknown.*'json'"):
        TranscriptWriter("jsn")
    with pytest.raises(UsageError, match="Cannot write"), TranscriptWriter("text", output=manifest / "below.txt"):
        pass
    assert manifest.read_text() == "{}"


def ctm_ids(*results: Transcription) -> list[str]:
    """The file and the channel of each result's words."""
    writer = TranscriptWriter("ctm", several=True)
    buffer = io.StringIO()
    with contextlib.redirect_stdout(buffer):
        for result in results:
            writer.write(result)
            buffer.write("\n")
    return [" ".join(part.split()[:2]) for part in buffer.getvalue().split("\n\n") if part]


def test_every_recording_has_a_name_of_its_own_in_ctm() -> None:
    wav, mp3 = result_of("a/call.wav"), result_of("a/call.mp3")
    assert ctm_ids(wav, mp3, wav) == ["a/call 1", "a/call-2 1", "a/call-3 1"]
    later = result_of("a/call.wav", offset=5.0)
    assert ctm_ids(wav, later) == ["a/call 1", "a/call 1"]
    right = dataclasses.replace(wav, recording=dataclasses.replace(wav.recording, channel=(1,)))
    assert ctm_ids(wav, right) == ["a/call 1", "a/call 2"]


def test_no_output_is_an_input(tmp_path: Path) -> None:
    manifest = tmp_path / "v.json"
    manifest.write_text("{}")
    (tmp_path / "link.json").symlink_to(manifest)
    (tmp_path / "hard.json").hardlink_to(manifest)
    for name in ("v.json", "link.json", "hard.json", "../" + tmp_path.name + "/v.json"):
        with pytest.raises(UsageError, match="is an input as well; nothing was written"):
            TranscriptWriter("json", output=tmp_path / name, inputs=[manifest])
    (tmp_path / "out").mkdir()
    listed = tmp_path / "out" / "transcripts.jsonl"
    listed.write_text("{}")
    with pytest.raises(UsageError, match="is an input as well"):
        TranscriptWriter("json", output=tmp_path / "out", inputs=[listed])


def test_a_slash_at_the_end_is_a_folder(tmp_path: Path) -> None:
    with TranscriptWriter("text", output=f"{tmp_path}/new/") as writer:
        writer.write(result_of())
    assert writer.written == [tmp_path / "new" / "transcripts.txt"]

"""`overtone transcribe`: what it writes and where, and its choice of an adapter."""

from __future__ import annotations

import json
from pathlib import Path

from support.command_line import AUDIO, Overtone, one_line_error


def test_no_input_is_written_over(overtone: Overtone, manifest: Path, folder: Path) -> None:
    before = manifest.read_bytes()
    for style in ("text", "jsonl", "ctm"):
        outcome = overtone("transcribe", manifest, "--format", style, "--output", manifest)
        assert "is an input as well; nothing was written" in one_line_error(outcome)
    assert manifest.read_bytes() == before
    page = manifest.rename(manifest.with_name("evaluation.json"))
    outcome = overtone("evaluate", folder / "model", page, "--output", page.parent)
    assert "is an input as well; nothing was written" in one_line_error(outcome)
    assert page.read_bytes() == before


def test_what_was_written_is_told(overtone: Overtone, folder: Path, tmp_path: Path) -> None:
    output = f"{tmp_path}/new/"
    code, out, err = overtone("transcribe", AUDIO[0], "--model", folder / "model", "--output", output)
    assert (code, out) == (0, "")
    assert err.endswith(f"Written: {tmp_path}/new/transcripts.txt\n")
    code, _, err = overtone("transcribe", *AUDIO, "--model", folder / "model", "--format", "srt", "-o", tmp_path / "s")
    assert code == 0
    assert err.endswith(f"Written: 2 files, the first is {tmp_path}/s/activated.srt\n")


def test_a_transcription_has_one_adapter(overtone: Overtone, folder: Path) -> None:
    words = ["transcribe", AUDIO[0], "--model", folder / "model", "--adapter", "medical", "--adapter", "null"]
    assert "--adapter was given 2 times (medical, null), and a run has one" in one_line_error(overtone(*words))


def test_adapters_that_do_not_act_are_told(overtone: Overtone, folder: Path) -> None:
    words = ["transcribe", AUDIO[0], "--model", folder / "model"]
    said = "The model's file holds adapters (medical, noise); none acts."
    assert said in overtone(*words)[2]
    for choice in ("medical", "null"):
        assert said not in overtone(*words, "--adapter", choice)[2]


def test_beams_phrases_and_alternatives(overtone: Overtone, folder: Path, tmp_path: Path) -> None:
    words = ["transcribe", AUDIO[0], "--model", folder / "model"]
    phrases = tmp_path / "terms.txt"
    phrases.write_text("# terms\nfoo bar\t20\n\nto\n", "utf-8")
    search = ["--beam", "4", "--phrases", phrases, "--alternatives", "3", "--format", "jsonl"]
    code, out, err = overtone(*words, *search)
    assert code == 0, err
    line = json.loads(out)
    texts = [each["pred_text"] for each in line["alternatives"]]
    assert texts[0] == line["pred_text"]
    assert 1 < len(texts) == len(set(texts)) <= 3
    assert "alternatives" not in json.loads(overtone(*words, "--format", "jsonl")[1])
    error = one_line_error(overtone(*words, "--alternatives", "3"))
    assert "--alternatives needs --format jsonl" in error
    assert "'0' is no whole number from 1 on" in one_line_error(overtone(*words, "--beam", "0"))
    phrases.write_text("foo\tmuch\n", "utf-8")
    assert f"{phrases}:1: 'much' is no boost" in one_line_error(overtone(*words, "--phrases", phrases))
    phrases.write_text("日本\n", "utf-8")
    assert "1 of 1 phrases cannot be written" in one_line_error(overtone(*words, "--phrases", phrases))
    assert "the phrases cannot be read" in one_line_error(overtone(*words, "--phrases", tmp_path / "none.txt"))

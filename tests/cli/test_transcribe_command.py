"""`overtone transcribe`: what it writes and where, and its choice of an adapter."""

from __future__ import annotations

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

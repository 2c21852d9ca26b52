"""`overtone manifest`: what it prints and writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile

from support.command_line import Overtone, one_line_error


def test_a_folder_becomes_manifests(overtone: Overtone, tmp_path: Path) -> None:
    for number in range(4):
        soundfile.write(tmp_path / f"{number}.wav", np.random.default_rng(number).uniform(-0.1, 0.1, 16_000), 16_000)
        (tmp_path / f"{number}.txt").write_text(f"number {number}")
    code, out, err = overtone("manifest", tmp_path, "-o", tmp_path / "data", "--split", "train=0.75,test=0.25")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()[1:3]] == [["train", "3"], ["test", "1"]]
    assert "0.5 – 1 s" in out
    assert err.splitlines() == [
        "No speaker is known: a speaker may be in several parts.",
        f"Written: {tmp_path}/data/train.json, {tmp_path}/data/test.json",
    ]
    lines = [json.loads(line) for line in (tmp_path / "data/train.json").read_text().splitlines()]
    assert all(Path(line["audio_filepath"]).is_file() and line["duration"] == 1.0 for line in lines)
    (tmp_path / "0.txt").unlink()
    code, _, err = overtone("manifest", tmp_path, "-o", tmp_path / "again")
    assert code == 2
    assert "1 of 4 utterances cannot be used" in err
    assert "with --drop" in err
    assert "the parts need names" in one_line_error(overtone("manifest", tmp_path, "-o", "x", "--split", "a=0.5"))

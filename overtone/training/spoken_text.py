"""Text that a voice speaks: an acoustic part trained on what espeak-ng makes of it, an offline program found on PATH.

Voices like this one sound like nobody; the recordings are written into a folder of the system's that goes afterwards.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from overtone.errors import DataError, UsageError
from overtone.models.asr_model import AsrModel
from overtone.training.interruption import exit_on_sigterm
from overtone.training.train import leaving_out_unusable, train

PROGRAM = "espeak-ng"
MOST_SENTENCES = 400
"""Sentences that are spoken; of more, an even share."""
LONGEST_TEXT = 400
"""Characters of a sentence that is spoken; longer ones are half a minute and more."""
SECONDS = 60
"""Longest time that the program gets for one sentence."""
MANNERS = tuple((speed, pitch) for pitch in (35, 50, 65) for speed in (140, 165, 190))
"""Words a minute, and pitches from 0 to 99: one after the other, so that not all sentences sound alike."""
EPOCHS, LEAST_STEPS, MOST_STEPS, BATCH = 5, 60, 300, 8


def find_program() -> str:
    """The path of the program that speaks. Raises UsageError where there is none."""
    found = shutil.which(PROGRAM)
    if found is None:
        raise UsageError(
            f"--speak needs the program {PROGRAM}, which is not on PATH. Install it (`apt-get install {PROGRAM}`, "
            f"`brew install {PROGRAM}`), or leave --speak out: the words alone bring most of it."
        )
    return found


class Spoken(NamedTuple):
    """Texts that were spoken, and those that an acoustic part was trained on."""

    spoken: int
    trained: int
    """Fewer, where the voice says some faster than the model can write them."""
    seconds: float


def train_spoken(model: AsrModel, name: str, texts: Sequence[str], *, voice: str) -> Spoken:
    """Train a linear adapter on spoken texts, left in the model under its name.

    Raises UsageError for a missing program, DataError for a voice that it does not have and for texts that it cannot
    speak, and as trainings do.
    """
    program = find_program()
    chosen = [text for text in dict.fromkeys(texts) if 0 < len(text) <= LONGEST_TEXT]
    count = min(len(chosen), MOST_SENTENCES)
    chosen = [chosen[place * len(chosen) // count] for place in range(count)]
    if not chosen:
        raise DataError(
            f"--speak: no sentence of the text has at most {LONGEST_TEXT} characters. Give a sentence a line."
        )
    with exit_on_sigterm(), tempfile.TemporaryDirectory(prefix="overtone-spoken-") as folder:
        manifest = Path(folder) / "spoken.json"
        seconds = speak(program, chosen, manifest, voice=voice)
        steps = min(max(EPOCHS * -(-len(chosen) // BATCH), LEAST_STEPS), MOST_STEPS)
        result = train(
            model,
            adapter_name=name,
            train_manifest=manifest,
            output_dir=Path(folder) / "training",
            max_steps=steps,
            learning_rate="auto",
            batch_size=BATCH,
            quiet=True,
            settings=leaving_out_unusable(),
        )
    adapter, trained = model.adapters[name], int(result.card["data"]["utterances"])
    spoken = {"voice": f"{PROGRAM} {voice}", "utterances": trained, "seconds": round(seconds, 1)}
    adapter.card = {**adapter.card, "data": {"spoken": spoken}}  # its recordings are gone
    return Spoken(spoken=len(chosen), trained=trained, seconds=seconds)


def as_letters(text: str) -> str:
    """A text as the program reads it aloud: what stands between `[[` and `]]` would be phonemes."""
    return re.sub(r"\[(?=\[)|\](?=\])", r"\g<0> ", text)


def speak(program: str, texts: Sequence[str], manifest: Path, *, voice: str) -> float:
    """Write a recording of each text beside a manifest of them; the seconds of all. Raises DataError."""
    import soundfile

    rows, seconds = [], 0.0
    for place, text in enumerate(texts):
        path = manifest.with_name(f"{place}.wav")
        speed, pitch = MANNERS[place % len(MANNERS)]
        command = [program, "-v", voice, "-s", str(speed), "-p", str(pitch), "-b", "1", "-w", str(path), "--stdin"]
        try:
            subprocess.run(command, input=as_letters(text).encode(), capture_output=True, check=True, timeout=SECONDS)
            duration = soundfile.info(str(path)).duration
        except subprocess.CalledProcessError as error:
            said = error.stderr.decode(errors="replace").strip().splitlines()
            raise DataError(
                f"{PROGRAM} does not speak with the voice '{voice}' ({said[0] if said else error.returncode}); "
                f"`{PROGRAM} --voices` lists those that there are."
            ) from error
        except (OSError, subprocess.TimeoutExpired, soundfile.LibsndfileError) as error:
            raise DataError(f"{PROGRAM} made no recording of '{text[:60]}': {error}. Leave --speak out.") from error
        rows.append({"audio_filepath": path.name, "duration": duration, "text": text})
        seconds += duration
    manifest.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return seconds

"""Build the training manifests and the tokenizer.

Run it again whenever more synthetic speech is there: what exists is kept, new shards are added.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from held_out import manifest_texts
from manifests import Utterance, hours, read_manifest, write_manifest
from tokenizer import train_tokenizer

SPEECHOCEAN_TEST = "speechocean762/test.jsonl"
SPEECHOCEAN = "speechocean762/train.jsonl"
LIBRISPEECH = "librispeech_resemblyzer/train_pseudo.jsonl"
OTHER_REAL = (
    "ljtext_matthes/train.jsonl",
    "speech_commands_mini/train.jsonl",
    "speech_commands_v2test/train.jsonl",
    "librispeech_walleclipse/train.jsonl",
)
"""The target domains (asterisk_prompts, fsdd, picovoice_wakewords) never appear here."""

VALIDATION_SPEAKERS = {SPEECHOCEAN: 9, LIBRISPEECH: 20}
"""Speakers that leave training for validation: about 180 and 20 utterances."""

SPOKEN_TWICE = {"19-198-0000.ogg", "27-123349-0000.ogg"}
"""Files of LIBRISPEECH with machine-made text that librispeech_walleclipse has with the true one."""

EASY_VOICE, EASY_SECONDS = "synth/piper", 4.5

TOKENIZER_SYNTHETIC_TEXTS = 20_000
SEED = 1


def split_speakers(utterances: list[Utterance], count: int) -> tuple[list[Utterance], list[Utterance]]:
    """(training, validation): all utterances of `count` speakers, drawn with a fixed seed, go to validation."""
    speakers = sorted({utterance.speaker for utterance in utterances})
    chosen = set(random.Random(SEED).sample(speakers, count))
    training = [utterance for utterance in utterances if utterance.speaker not in chosen]
    return training, [utterance for utterance in utterances if utterance.speaker in chosen]


def without_doubles(name: str, utterances: list[Utterance]) -> list[Utterance]:
    """The utterances of a corpus that no other one has with better text."""
    if name != LIBRISPEECH:
        return utterances
    return [utterance for utterance in utterances if Path(utterance.audio_filepath).name not in SPOKEN_TWICE]


def real_speech(speech: Path) -> tuple[list[Utterance], list[Utterance]]:
    """(training, validation) utterances of the real corpora below the folder `speech`."""
    test_texts = set(manifest_texts(speech / SPEECHOCEAN_TEST))
    training: list[Utterance] = []
    validation: list[Utterance] = []
    for name, speakers in VALIDATION_SPEAKERS.items():
        utterances = read_manifest(speech / name)
        kept = [utterance for utterance in utterances if name != SPEECHOCEAN or utterance.text not in test_texts]
        staying, leaving = split_speakers(kept, speakers)
        training += without_doubles(name, staying)
        validation += without_doubles(name, leaving)
    for name in OTHER_REAL:
        training += read_manifest(speech / name)
    return training, validation


def write_tokenizer(training: list[Utterance], texts: Path, folder: Path, size: int) -> None:
    """Train the tokenizer on the real transcripts and the first synthetic texts, unless it exists."""
    if (folder / "vocab.txt").exists():
        return
    if not texts.is_file():
        raise SystemExit(f"--texts {texts} not found: make it with texts.py")
    synthetic = [line.split("\t")[-1] for line in texts.read_text(encoding="utf-8").splitlines()]
    lines = [utterance.text for utterance in training] + synthetic[:TOKENIZER_SYNTHETIC_TEXTS]
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "text.txt"
    text.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    train_tokenizer(texts=text, folder=folder, size=size)


def easy(synthetic: list[Utterance]) -> list[Utterance]:
    """What a model that knows nothing yet begins with: short utterances of the clearest voice."""
    return [
        utterance
        for utterance in synthetic
        if utterance.speaker.startswith(EASY_VOICE) and utterance.duration < EASY_SECONDS
    ]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--speech", type=Path, required=True, help="folder with the real speech corpora")
    parser.add_argument("--synthetic", type=Path, required=True, help="output folder of synthesize.py (may be empty)")
    parser.add_argument("--texts", type=Path, required=True, help="output file of texts.py")
    parser.add_argument("--output", type=Path, required=True, help="folder for the manifests")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder for the tokenizer; kept when it exists")
    parser.add_argument("--vocabulary-size", type=int, default=128, help="pieces of the tokenizer")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    training, validation = real_speech(arguments.speech)
    shards = sorted(arguments.synthetic.glob("shard_*.jsonl"))
    synthetic = [utterance for shard in shards for utterance in read_manifest(shard)]
    write_tokenizer(training, arguments.texts, arguments.tokenizer, arguments.vocabulary_size)
    manifests = {
        "train_real": training,
        "train_synth": synthetic,
        "train_easy": easy(synthetic),
        "valid": validation,
    }
    for name, utterances in manifests.items():
        write_manifest(arguments.output / f"{name}.jsonl", utterances)
        print(f"{name}: {len(utterances)} utterances, {hours(utterances):.2f} h")


if __name__ == "__main__":
    main()

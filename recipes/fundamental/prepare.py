"""Build the training manifests and the tokenizer.

Run it again whenever more synthetic speech is there: what exists is kept, new shards are added.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from held_out import load_held_out, manifest_texts
from manifests import Utterance, hours, read_manifest, write_manifest
from texts import SPEAKABLE
from tokenizer import train_tokenizer

SPEECHOCEAN_TEST = "speechocean762/test.jsonl"
SPEECHOCEAN = "speechocean762/train.jsonl"
LIBRISPEECH = "librispeech_resemblyzer/train_pseudo.jsonl"
LIBRISPEECH_CORPUS = "librispeech"
"""In the speakers of all its parts, which number them alike."""
OTHER_REAL = (
    "ljtext_matthes/train.jsonl",
    "speech_commands_mini/train.jsonl",
    "speech_commands_v2test/train.jsonl",
    "librispeech_walleclipse/train.jsonl",
)
CHECKED_REAL = (
    "librispeech_train_clean_5/train.jsonl",
    "librispeech_train_jenny/train.jsonl",
    "librispeech_test_clean/train.jsonl",
    "speechcommands_anshul/train.jsonl",
    "speechcommands_digits/train.jsonl",
    "ljspeech_part/train.jsonl",
    "commonvoice_omnilingo/train.jsonl",
    "commonvoice_puri/train.jsonl",
    "kathleen_arctic/train.jsonl",
    "vctk_p239/train.jsonl",
    "gcompris_en/train.jsonl",
)
"""Their texts and speakers were not chosen beside the tests: what those must not meet is left out."""
AT_MOST = {"speechcommands_digits/train.jsonl": 5000}
"""So many utterances of a corpus are drawn."""
WORDLESS = ("alphanumeric_accents/train.jsonl", "coffee_intents_picovoice/train.jsonl")
"""Speech without transcripts, for the teacher alone."""
"""The target domains (asterisk_prompts, fsdd, picovoice_wakewords) never appear here."""

VALIDATION_SPEAKERS = {SPEECHOCEAN: 9, LIBRISPEECH: 20}
"""Speakers that leave training for validation: about 180 and 20 utterances."""

SPOKEN_TWICE = {"19-198-0000.ogg", "27-123349-0000.ogg"}
"""Files of LIBRISPEECH with machine-made text that librispeech_walleclipse has with the true one."""

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


def checked_speech(speech: Path, training: list[Utterance], validation: list[Utterance]) -> list[Utterance]:
    """The utterances of CHECKED_REAL without held-out texts, speakers of validation, and doubles of `training`."""
    held_out = load_held_out(speech)
    kept_apart = {
        utterance.speaker.rpartition("/")[2] for utterance in validation if LIBRISPEECH_CORPUS in utterance.speaker
    }
    known = {Path(utterance.audio_filepath).stem for utterance in training}
    return [
        utterance
        for name in CHECKED_REAL
        for utterance in drawn(name, read_manifest(speech / name))
        if SPEAKABLE.fullmatch(utterance.text)
        and held_out.violation(utterance.text) is None
        and Path(utterance.audio_filepath).stem not in known
        and not (LIBRISPEECH_CORPUS in utterance.speaker and utterance.speaker.rpartition("/")[2] in kept_apart)
    ]


def drawn(name: str, utterances: list[Utterance]) -> list[Utterance]:
    """The utterances of a corpus, or as many of them as are taken."""
    most = AT_MOST.get(name, len(utterances))
    return utterances if most >= len(utterances) else random.Random(SEED).sample(utterances, most)


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
    training += checked_speech(arguments.speech, training, validation)
    wordless = [utterance for name in WORDLESS for utterance in read_manifest(arguments.speech / name)]
    shards = sorted(arguments.synthetic.glob("shard_*.jsonl"))
    synthetic = [utterance for shard in shards for utterance in read_manifest(shard)]
    write_tokenizer(training, arguments.texts, arguments.tokenizer, arguments.vocabulary_size)
    manifests = {
        "train_real": training,
        "train_synth": synthetic,
        "train_wordless": wordless,
        "valid": validation,
    }
    for name, utterances in manifests.items():
        write_manifest(arguments.output / f"{name}.jsonl", utterances)
        print(f"{name}: {len(utterances)} utterances, {hours(utterances):.2f} h")


if __name__ == "__main__":
    main()

"""Speak the texts of `texts.py` with offline voices, shard after shard; stop and start it again at any time.

Each shard of about an hour is a manifest `shard_NN.jsonl` with its audio below `audio/shard_NN`. A shard in progress is
`shard_NN.partial`. Utterance k of shard n depends on the seed, n and k only, so that several processes may share the
work: `--part 1/2` beside `--part 2/2`.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import asdict
from itertools import count
from pathlib import Path

import numpy
import soundfile

from manifests import Utterance, hours
from voices import LETTER_A, SAMPLE_RATE, Espeak, Flite, Heart, Joe, Samples, Voice

UTTERANCES_PER_SHARD = 1300
VOICE_SHARES = {"joe": 0.45, "heart": 0.41, "flite": 0.09, "espeak": 0.05}
SECONDS_PER_LETTER = (0.025, 0.5)
"""Speech outside of this range is a failure of the voice and is left out."""
LONGEST_SILENCE = 0.4
"""Seconds before and after the speech."""
LOUDNESS = (0.04, 0.9)
"""Peak of the waveform, drawn log-uniformly."""
QUESTIONS = frozenset(
    ("who", "what", "when", "where", "why", "which", "whose", "how", "is", "are", "was", "were", "do", "does", "did")
)


def written(kind: str, text: str) -> str:
    """The text as a voice should read it: letters by their names, the end marked."""
    words = text.split()
    for place, word in enumerate(words):
        if word == "a" and (kind == "code" or words[place + 1 : place + 2] == ["m"]):
            words[place] = LETTER_A
        elif len(word) == 1 and word != "a":
            words[place] = word.upper()
    mark = "?" if words[0] in QUESTIONS and len(words) > 2 else "."
    sentence = " ".join(words)
    return sentence[0].upper() + sentence[1:] + mark


def present(samples: Samples, generator: random.Random) -> Samples:
    """Speech between random silences, at a random level."""
    low, high = LOUDNESS
    peak = low * (high / low) ** generator.random()
    before, after = (round(generator.uniform(0, LONGEST_SILENCE) * SAMPLE_RATE) for _ in range(2))
    return numpy.pad(samples * (peak / max(float(numpy.abs(samples).max()), 1e-4)), (before, after))


def utter(voices: dict[str, Voice], kind: str, text: str, generator: random.Random) -> tuple[Samples, str] | None:
    """(samples at 16 kHz, speaker), or None when the voice failed on this text."""
    name = generator.choices(list(VOICE_SHARES), weights=list(VOICE_SHARES.values()))[0]
    spoken = voices[name].speak(written(kind, text), generator)
    shortest, longest = (limit * len(text.replace(" ", "")) for limit in SECONDS_PER_LETTER)
    if not shortest <= len(spoken.samples) / SAMPLE_RATE <= max(longest, 1.5):
        return None
    return present(spoken.samples, generator), spoken.speaker


def utterances_so_far(partial: Path) -> list[Utterance]:
    """What an interrupted run has left."""
    if not partial.exists():
        return []
    return [Utterance(**json.loads(line)) for line in partial.read_text(encoding="utf-8").splitlines()]


def speak_shard(output: Path, shard: int, lines: list[str], voices: dict[str, Voice], seed: int) -> float:
    """Speak one shard, going on where an earlier run stopped; returns its hours."""
    name = f"shard_{shard:02d}"
    manifest, partial = output / f"{name}.jsonl", output / f"{name}.partial"
    if manifest.exists():
        return hours(utterances_so_far(manifest))
    done = utterances_so_far(partial)
    start = int(Path(done[-1].audio_filepath).stem) + 1 if done else 0
    (output / "audio" / name).mkdir(parents=True, exist_ok=True)
    with partial.open("a", encoding="utf-8") as log:
        for index in range(start, UTTERANCES_PER_SHARD):
            generator = random.Random(f"{seed} {shard} {index}")
            kind, text = lines[(shard * UTTERANCES_PER_SHARD + index) % len(lines)].split("\t")
            result = utter(voices, kind, text, generator)
            if result is None:
                continue
            samples, speaker = result
            path = f"audio/{name}/{index:04d}.flac"
            soundfile.write(output / path, samples, SAMPLE_RATE)
            duration = round(len(samples) / SAMPLE_RATE, 3)
            done.append(Utterance(audio_filepath=path, duration=duration, text=text, speaker=speaker))
            log.write(json.dumps(asdict(done[-1])) + "\n")
            log.flush()
    partial.replace(manifest)
    return hours(done)


def part_of(text: str) -> tuple[int, int]:
    """`1/2` -> (1, 2)."""
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is no part such as 1/2")
    return int(part), int(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=Path, required=True, help="output file of texts.py")
    parser.add_argument("--output", type=Path, required=True, help="folder for audio and manifests")
    parser.add_argument("--hours", type=float, default=20, help="speech wanted, of this part")
    parser.add_argument("--part", type=part_of, default=(1, 1), help="which shards: K/N is every Nth from the Kth on")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    lines = arguments.texts.read_text(encoding="utf-8").splitlines()
    if not lines:
        raise SystemExit(f"--texts {arguments.texts} is empty")
    voices: dict[str, Voice] = {"joe": Joe(), "heart": Heart(), "flite": Flite(), "espeak": Espeak()}
    spoken, (part, parts) = 0.0, arguments.part
    for shard in count(part - 1, parts):
        if spoken >= arguments.hours:
            break
        spoken += speak_shard(arguments.output, shard, lines, voices, arguments.seed)
        print(f"shard {shard}: {spoken:.2f} h", flush=True)


if __name__ == "__main__":
    main()

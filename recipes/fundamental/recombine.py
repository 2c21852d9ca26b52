"""Join pieces of real utterances to new ones: the same voices say what no transcript had.

    python recombine.py MANIFEST … --model MODEL --output FOLDER

A recogniser that has learnt some of it says where its words are. An utterance is cut between words where it is quiet,
and pieces of one speaker are joined in a new order. A student learns few transcripts by heart; of these it cannot. The
output is a folder of shards, as that of synthesize.py.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import torch

from manifests import Utterance, read_rows, write_manifest
from overtone import load_model
from overtone.audio.load import load_audio
from overtone.models.asr_model import AsrModel

SAMPLE_RATE = 16_000
WINDOW = 400
"""Samples of a level."""
QUIET = 0.1
"""The level of a cut, as a share of the utterance's loud parts."""
CUT = 0.6
"""The share of the quiet places that are cut."""
FADE = 160
"""Samples over which a piece comes and goes."""
SECONDS = (1.5, 14.0)
"""The shortest and the longest length that is aimed at."""
LONGEST = 17.0
SURE = 1.0
"""Utterances whose path costs more than this a token are left out: their text is not what the model hears."""
UTTERANCES_PER_SHARD = 1300
SEED = 3

Samples = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Piece:
    """Some consecutive words of an utterance."""

    samples: Samples
    text: str


def token_frames(log_probs: npt.NDArray[np.float32], tokens: Sequence[int]) -> tuple[list[tuple[int, int]], float]:
    """Align tokens with CTC's log-probabilities [T, V+1], whose last channel is the blank.

    Returns the first and the last frame of each token on the best path, and the path's cost. There must be a frame for
    each token and for the blank between two equal ones.
    """
    blank = log_probs.shape[1] - 1
    states = np.full(2 * len(tokens) + 1, blank)
    states[1::2] = tokens
    skips = np.zeros(len(states), dtype=bool)
    skips[3::2] = states[3::2] != states[1:-2:2]
    score = np.full(len(states), -np.inf)
    score[:2] = log_probs[0, states[:2]]
    steps = np.zeros((len(log_probs), len(states)), dtype=np.int8)
    for frame in range(1, len(log_probs)):
        one = np.concatenate(([-np.inf], score[:-1]))
        two = np.where(skips, np.concatenate(([-np.inf, -np.inf], score[:-2])), -np.inf)
        choices = np.stack((score, one, two))
        steps[frame] = choices.argmax(axis=0)
        score = choices.max(axis=0) + log_probs[frame, states]
    state = len(states) - 1 if score[-1] >= score[-2] else len(states) - 2
    cost = -float(score[state])
    first, last = [0] * len(tokens), [-1] * len(tokens)
    for frame in range(len(log_probs) - 1, -1, -1):
        if state % 2:
            first[state // 2] = frame
            last[state // 2] = max(last[state // 2], frame)
        state -= int(steps[frame, state])
    return list(zip(first, last, strict=True)), cost


def levels(samples: Samples) -> npt.NDArray[np.float32]:
    """Root mean square of each window, one every quarter of it."""
    windows = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[:: WINDOW // 4]
    found: npt.NDArray[np.float32] = np.sqrt((windows**2).mean(axis=1))
    return found


def cut(
    samples: Samples, words: Sequence[str], spans: Sequence[tuple[int, int]], frame: float, dice: random.Random
) -> Iterator[Piece]:
    """Yield the pieces of an utterance.

    spans: the first and the last frame of each word. frame: its samples.
    """
    level = levels(samples)
    loud = float(np.quantile(level, 0.9))
    places, starts = [0], [0]
    for word, ((_, ends), (begins, _)) in enumerate(pairwise(spans), start=1):
        low, high = (round((place + 0.5) * frame * 4 / WINDOW) for place in (ends, begins))
        between = level[low:high]
        if len(between) and between.min() < QUIET * loud and dice.random() < CUT:
            places.append((low + int(between.argmin())) * WINDOW // 4 + WINDOW // 2)
            starts.append(word)
    for (begin, end), (first, after) in zip(
        pairwise([*places, len(samples)]), pairwise([*starts, len(words)]), strict=True
    ):
        yield Piece(faded(samples[begin:end]), " ".join(words[first:after]))


def faded(samples: Samples) -> Samples:
    """The samples with a start and an end that come out of silence and go into it."""
    size = min(FADE, len(samples) // 2)
    ramp = np.linspace(0, 1, size, dtype=np.float32)
    found = samples.copy()
    found[:size] *= ramp
    found[len(found) - size :] *= ramp[::-1]
    return found


def joined(pieces: list[Piece], dice: random.Random) -> Iterator[Piece]:
    """Join the pieces of a speaker in a new order, each once."""
    dice.shuffle(pieces)
    row: list[Piece] = []
    aim = 0.0
    for piece in pieces:
        length = sum(len(part.samples) for part in row) / SAMPLE_RATE
        own = len(piece.samples) / SAMPLE_RATE
        if row and (length >= aim or length + own > LONGEST):
            yield together(row)
            row = []
        if not row:
            aim = dice.uniform(*SECONDS)
        if own <= LONGEST:
            row.append(piece)
    if row:
        yield together(row)


def together(pieces: Sequence[Piece]) -> Piece:
    return Piece(np.concatenate([piece.samples for piece in pieces]), " ".join(piece.text for piece in pieces))


@torch.inference_mode()
def pieces_of(model: AsrModel, utterance: Utterance, dice: random.Random) -> list[Piece]:
    """Cut an utterance. Nothing comes of one word, and of an utterance whose text the model does not find in it."""
    words = utterance.text.split()
    if len(words) < 2:
        return []
    samples = load_audio(Path(utterance.audio_filepath), sample_rate=SAMPLE_RATE)
    emissions, lengths = model(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))
    tokens = [model.tokenizer.encode(word) for word in words]
    flat = [token for word in tokens for token in word]
    if model.head.frames_needed(flat) > int(lengths[0]):
        return []
    frames, cost = token_frames(emissions[0, : int(lengths[0])].numpy(), flat)
    if cost > SURE * len(flat):
        return []
    ends = np.cumsum([len(word) for word in tokens])
    spans = [(frames[end - len(word)][0], frames[end - 1][1]) for word, end in zip(tokens, ends, strict=True)]
    return list(cut(samples, words, spans, model.seconds_per_frame * SAMPLE_RATE, dice))


def write_shard(output: Path, number: int, made: Sequence[tuple[str, Piece]]) -> None:
    """Write the audio of a shard, and its manifest when all is there. made: speaker and utterance."""
    name = f"shard_{number:02d}"
    (output / "audio" / name).mkdir(parents=True, exist_ok=True)
    rows = []
    for index, (speaker, piece) in enumerate(made):
        path = f"audio/{name}/{index:04d}.flac"
        soundfile.write(output / path, piece.samples, SAMPLE_RATE)
        seconds = len(piece.samples) / SAMPLE_RATE
        rows.append(Utterance(audio_filepath=path, duration=seconds, text=piece.text, speaker=speaker))
    write_manifest(output / f"{name}.jsonl", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifests", type=Path, nargs="+", help="of real speech with transcripts")
    parser.add_argument("--model", required=True, help="a model folder, a .nemo file, or `fundamental`")
    parser.add_argument("--output", type=Path, required=True, help="a folder for the shards")
    parser.add_argument("--seed", type=int, default=SEED, help="of the cuts and the order")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(arguments.model)
    dice = random.Random(arguments.seed)
    voices: dict[str, list[Piece]] = defaultdict(list)
    for path in arguments.manifests:
        for utterance in read_rows(path):
            voices[utterance.speaker] += pieces_of(model, utterance, dice)
    made = [(speaker, piece) for speaker, pieces in voices.items() for piece in joined(pieces, dice)]
    dice.shuffle(made)
    for number, start in enumerate(range(0, len(made), UTTERANCES_PER_SHARD)):
        write_shard(arguments.output, number, made[start : start + UTTERANCES_PER_SHARD])
    count = sum(len(pieces) for pieces in voices.values())
    seconds = sum(len(piece.samples) for _, piece in made) / SAMPLE_RATE
    print(f"{count} pieces of {len(voices)} speakers, {len(made)} utterances, {seconds / 3600:.2f} h")


if __name__ == "__main__":
    main()

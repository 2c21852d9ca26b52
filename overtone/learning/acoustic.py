"""The acoustic part of an adapter that learns: a short training on corrections, with what it learnt before among them.

All corrections with a recording that are not held out are trained on, the old with the new, and beside them a draw of
the speech that the adapter was first trained on. Nothing is chosen meanwhile: the last weights are judged, once.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from overtone.adapters.adapter import Adapter
from overtone.data.dataset import unusable_transcripts
from overtone.data.manifest import Utterance, read_manifest
from overtone.data.vocabulary import check_vocabulary
from overtone.errors import DataError
from overtone.learning.corrections import Learnt
from overtone.models.asr_model import AsrModel
from overtone.models.vocabulary import tokenizer_of
from overtone.training.train import leaving_out_unusable, train

LEAST_RECORDINGS = 4
"""Recordings to train on, with fewer of which nothing is trained."""
LEAST_HELD_OUT_WORDS = 100
"""Held-out words that a new acoustic part is judged by."""
LEAST_REPLAY = 100
"""Utterances of what was learnt first that are drawn at least; otherwise as many as there are corrections."""
EPOCHS, LEAST_STEPS, MOST_STEPS = 10, 60, 600
BATCH = 8
RUN = "run"
"""The folder of the training, which goes when it has ended."""

Watch = Callable[[int, int], None]
"""A function of the steps that are done, and of all."""


class StepWatch(Callback):
    """Tells of every step of a training."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.watch(trainer.global_step, trainer.max_steps)


def enough_for_training(corrections: Sequence[Learnt]) -> str:
    """The reason why nothing can be trained yet; empty where something can."""
    heard = [own for own in corrections if own.audio is not None]
    held = sum(len(own.text.split()) for own in heard if own.is_held_out)
    usable = sum(not own.is_held_out for own in heard)
    if usable < LEAST_RECORDINGS:
        return f"{usable} of the {LEAST_RECORDINGS} recordings that a training needs"
    if held < LEAST_HELD_OUT_WORDS:
        return f"{held} of the {LEAST_HELD_OUT_WORDS} held-out words, with their recordings, that a judgement needs"
    return ""


def heard_in_training(model: AsrModel, corrections: Sequence[Learnt]) -> list[Learnt]:
    """The corrections that a training hears: with a recording, not held out, and long enough for their texts."""
    heard = [own for own in corrections if own.audio is not None and not own.is_held_out]
    utterances = [
        Utterance(
            audio_path=own.audio, duration=own.seconds, text=own.text, language=own.language, line=0, manifest=Path()
        )
        for own in heard
        if own.audio is not None
    ]
    short = find_unusable(model, utterances)
    return [own for place, own in enumerate(heard) if place not in short]


def replayed(model: AsrModel, manifests: Sequence[str], count: int) -> list[Utterance]:
    """A draw of the speech that was learnt before, the same for the same speech. Raises DataError."""
    every = [own for path in manifests for own in read_manifest(Path(path).expanduser())]
    report = check_vocabulary(tokenizer_of(model), every)
    strange = set() if report is None else set(report.utterances)
    usable = [own for place, own in enumerate(every) if place not in strange]
    if not usable:
        raise DataError(f"Nothing can be replayed from {', '.join(manifests)}: the model cannot write its transcripts.")

    def lot(own: Utterance) -> bytes:
        return hashlib.sha256(f"{own.audio_path.name}\0{own.offset}\0{own.text}".encode()).digest()

    return sorted(usable, key=lot)[: max(LEAST_REPLAY, count)]


def replay_of_card(card: Mapping[str, Any]) -> list[str]:
    """The manifests that an adapter was trained on by its card, as far as they are all still there."""
    data = card.get("data")
    named = str(data.get("manifest", "")) if isinstance(data, Mapping) else ""
    paths = [path.strip() for path in named.split(", ") if path.strip()]
    return paths if all(Path(path).is_file() for path in paths) else []


def train_acoustic_part(
    model: AsrModel,
    name: str,
    folder: Path,
    *,
    start_from: Path | None,
    kind: str,
    corrections: Sequence[Learnt],
    replay: Sequence[Utterance],
    steps: int | None,
    watch: Watch,
    say: Callable[[str], None] = print,
) -> Adapter:
    """Train the adapter, and leave it in the model under its name. folder: what is learnt is kept there.

    start_from: the adapter to go on from; None: a new one of that kind. Recordings too short for their texts are left
    out. Raises OvertoneError.
    """
    run = folder / RUN
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    heard = [own for own in corrections if own.audio is not None and not own.is_held_out]
    manifest = write_manifest(run / "train.json", heard, replay)
    count = len(heard) + len(replay)
    if short := find_unusable(model, read_manifest(manifest)):
        say(f"Acoustic part: {len(short)} recordings left out, they are too short for their texts")
    wanted = min(max(EPOCHS * -(-count // BATCH), LEAST_STEPS), MOST_STEPS)
    try:
        train(
            model,
            adapter_name=name,
            train_manifest=manifest,
            output_dir=run / "training",
            kind=None if start_from is not None else kind,
            start_from=start_from,
            max_steps=steps or wanted,
            learning_rate="auto",
            batch_size=BATCH,
            quiet=True,
            callbacks=[StepWatch(watch)],
            settings=leaving_out_unusable(),
        )
    finally:
        shutil.rmtree(run, ignore_errors=True)
    adapter = model.adapters[name]
    before = adapter.card.get("start_from")
    if isinstance(before, Mapping):  # its card has that of the one before, and so on
        adapter.card = {**adapter.card, "start_from": {key: before[key] for key in ("name", "digest")}}
    return adapter


def find_unusable(model: AsrModel, utterances: Sequence[Utterance]) -> set[int]:
    """The places of utterances that are too short for their texts, which a training leaves out."""
    head, tokenizer = model.head, tokenizer_of(model)
    problems = unusable_transcripts(
        utterances,
        [tokenizer.encode(own.text or "", own.language) for own in utterances],
        seconds_per_frame=model.seconds_per_frame,
        frames_needed=head.frames_needed,
        most_tokens=None if head.prompts is None else head.prompts.most_tokens,
    )
    return set(problems)


def write_manifest(path: Path, corrections: Sequence[Learnt], replay: Sequence[Utterance]) -> Path:
    """Write what is trained on as a manifest; its path."""
    rows: list[dict[str, Any]] = [
        {"audio_filepath": str(own.audio and own.audio.resolve()), "duration": own.seconds, "text": own.text}
        | ({} if own.language is None else {"lang": own.language})
        for own in corrections
    ]
    for utterance in replay:
        row = {"audio_filepath": str(utterance.audio_path.resolve()), "duration": utterance.duration}
        row |= {"offset": utterance.offset, "text": utterance.text}
        row |= {} if utterance.language is None else {"lang": utterance.language}
        rows.append(row if utterance.channel is None else row | {"channel": list(utterance.channel)})
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path

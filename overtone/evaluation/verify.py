"""The proof that adapters act, and that the base is bit for bit the same when they are off."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from overtone.adapters.adapter_set import FILE_CHOICE
from overtone.audio.load import load_audio
from overtone.data.manifest import read_manifest
from overtone.errors import OutputError, UsageError
from overtone.inference.choices import resolve_choice
from overtone.inference.recordings import find_recordings, recordings_of
from overtone.models.asr_model import AsrModel
from overtone.nets.layers import valid_frames
from overtone.tokenizers import Tokenizer

PROMPTS = Path(__file__).resolve().parent.parent / "prompts"
"""The embedded telephone prompts."""

RECORDINGS = 6
"""Recordings of a verification."""
SECONDS = 12.0
"""Seconds of each recording."""
FEWEST_ROWS = 2
"""A mixed batch needs two rows: one recording is then heard twice."""
ROW_TOLERANCE = 1e-4
"""Largest difference of log-probabilities between a row in a mixed batch and the same row computed alone."""
EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class Check:
    """One claim, and whether it holds."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, kw_only=True)
class PointEffect:
    """The effect of an adapter at one of its points."""

    adapter: str
    point: str
    applied: int
    """Rows of the batch that it was applied to."""
    relative_change: float
    """Norm of what it adds, by the norm of what it adds to, over the frames that are speech."""


@dataclass(frozen=True, kw_only=True)
class TextChange:
    """A recording whose text changes."""

    recording: str
    base: str
    adapted: str


@dataclass(frozen=True, kw_only=True)
class AdapterProof:
    """Effects and checks of one adapter, or of one chain of them."""

    adapter: str
    effects: tuple[PointEffect, ...]
    mean_change: float
    """Mean absolute difference of the log-probabilities."""
    largest_change: float
    symbols_changed: float
    """Share of frames whose likeliest symbol is another."""
    texts_changed: int
    examples: tuple[TextChange, ...]
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The proofs of all adapters, and of the base as a whole."""

    model: str
    fingerprint: str
    recordings: int
    seconds: float
    """Seconds of audio."""
    adapters: tuple[AdapterProof, ...]
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.all_checks)

    @property
    def all_checks(self) -> tuple[Check, ...]:
        return (*(check for proof in self.adapters for check in proof.checks), *self.checks)

    def to_json(self) -> dict[str, Any]:
        return {"passed": self.passed, **dataclasses.asdict(self)}


def verify(model: AsrModel, audio: Any | None = None, *, adapters: Sequence[str] | None = None) -> Verification:
    """Check every adapter of the model, or the chains that are named, on the audio, or on embedded prompts.

    Everything is computed in float32. Raises UsageError where there is no adapter, AdapterError for an unknown one,
    DataError for audio that cannot be read.
    """
    choices = list(dict.fromkeys(model.adapters.names if adapters is None else adapters))
    chains = [chain for choice in choices if (chain := resolve_choice(model, choice)) is not None]
    if not chains:
        raise UsageError(
            f"There is no adapter to verify: {model.name or 'the model'} has none"
            + (f" enabled for {FILE_CHOICE}." if FILE_CHOICE in choices else " and none was named.")
            + " Name the folder of a saved adapter."
        )
    with model.computing_in("float32"), model.evaluating(), torch.no_grad():
        stage = Stage(model, *hear(model, audio))
        proofs = tuple(prove(stage, chain) for chain in chains)
        checks = prove_base(stage, chains)
    return Verification(
        model=model.name,
        fingerprint=model.fingerprint(),
        recordings=len(stage.names),
        seconds=float(stage.lengths.sum()) / model.sample_rate,
        adapters=proofs,
        checks=checks,
    )


def hear(model: AsrModel, audio: Any | None) -> tuple[list[str], Tensor, Tensor]:
    """Load the beginning of a few recordings: their names, waveforms [B, S], lengths [B].

    Raises UsageError for a recording that is not there.
    """
    if audio is None:
        lines = [line for line in read_manifest(PROMPTS / "test.jsonl") if 1.5 <= line.duration <= 5.0]
        recordings = recordings_of(lines[:: max(1, len(lines) // RECORDINGS)])
    else:
        recordings = [recording for group in find_recordings(audio) for recording in group]
    recordings = recordings[:RECORDINGS]
    if problem := next((recording.problem for recording in recordings if recording.problem), None):
        raise UsageError(problem)
    waveforms = [
        torch.from_numpy(
            load_audio(
                recording.source,
                offset=recording.offset,
                duration=min(SECONDS, recording.duration or SECONDS),
                sample_rate=model.sample_rate,
                channel=recording.channel,
            )
        )
        for recording in recordings
    ]
    names = [recording.name for recording in recordings]
    while len(waveforms) < FEWEST_ROWS:
        waveforms, names = waveforms * 2, names * 2
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    return names, padded.to(model.device), lengths.to(model.device)


class Stage:
    """A model, a batch of recordings, and the base's scores before any adapter has acted."""

    def __init__(self, model: AsrModel, names: list[str], waveforms: Tensor, lengths: Tensor) -> None:
        self.model, self.names = model, names
        self.waveforms, self.lengths = waveforms, lengths
        self.digest = tensors_digest(model)
        self.base, self.frames = self.compute(waveforms, lengths)  # [B, T, N], [B]
        self.valid = valid_frames(self.frames, self.base.size(1))  # [B, T]

    def compute(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """waveforms [B, S], lengths [B] -> the head's scores [B, T, N], lengths [B]."""
        emissions, frames = self.model(waveforms, lengths)
        return self.model.head.scores(emissions, frames), frames

    def scores(self, choice: str | list[str | None] | None) -> Tensor:
        """[B, T, N] with the adapters of the choice."""
        with self.model.adapters.use(choice):
            return self.compute(self.waveforms, self.lengths)[0]

    def row_alone(self, row: int, choice: str | None) -> Tensor:
        """[1, T, N]: the row without the others, at the same padding."""
        with self.model.adapters.use(choice):
            return self.compute(self.waveforms[row : row + 1], self.lengths[row : row + 1])[0]

    def texts(self, choice: str | None) -> list[str]:
        """The text of each row with the adapters of the choice, no text where the output is not finite."""
        with self.model.adapters.use(choice):
            head, alignments = self.model.head, self.model.align(self.waveforms, self.lengths)
        texts = []
        for alignment in alignments:
            try:
                texts.append(head.read(alignment).text)
            except OutputError:
                texts.append("")
        return texts


def tensors_digest(model: AsrModel) -> str:
    """SHA-256 of every tensor of the base, bit for bit, buffers that count batches included."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.base_state_dict().items()):
        digest.update(f"{name}{tensor.dtype}{list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def prove(stage: Stage, chain: str) -> AdapterProof:
    """Measure and check one chain of adapters."""
    adapted, effects = observe_chain(stage, chain)
    change, symbols = compare_scores(stage, adapted, stage.model.head_of(chain).tokenizer)
    pairs = zip(stage.names, stage.texts(None), stage.texts(chain), strict=True)
    changed = [TextChange(recording=name, base=base, adapted=text) for name, base, text in pairs if base != text]
    largest = float(change.max())
    checks = (
        check_applied(stage.model, chain, effects),
        check_change(chain, adapted, largest),
        check_rows(stage, chain),
        check_off(stage, f"base bit-identical with {chain} off again"),
    )
    return AdapterProof(
        adapter=chain,
        effects=effects,
        mean_change=float(change.mean()),
        largest_change=largest,
        symbols_changed=float(symbols.float().mean()),
        texts_changed=len(changed),
        examples=tuple(changed[:EXAMPLES]),
        checks=checks,
    )


def compare_scores(stage: Stage, adapted: Tensor, tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """Changes of the base's scores by an adapter [frames, N], and the frames whose symbol is another, [frames] bool.

    adapted: scores [B, T, N] over the tokens of `tokenizer`. Of other tokens than the base's the blank alone is the
    same score, and symbols are compared by their spelling.
    """
    own, base, before = adapted[stage.valid], stage.base[stage.valid], stage.model.tokenizer
    if tokenizer is before:
        return (own - base).abs(), own.argmax(-1) != base.argmax(-1)
    names: dict[str, int] = {}
    symbols = []
    for scores, each in ((own, tokenizer), (base, before)):
        texts = [*each.spelled, *(f"\0{number}" for number in range(scores.size(-1) - each.size))]
        numbers = torch.tensor([names.setdefault(text, len(names)) for text in texts])
        symbols.append(numbers[scores.argmax(-1).cpu()])
    blanks = own[:, tokenizer.size] - base[:, before.size]
    return blanks.abs().unsqueeze(-1), symbols[0] != symbols[1]


def observe_chain(stage: Stage, chain: str) -> tuple[Tensor, tuple[PointEffect, ...]]:
    """Scores [B, T, N] with the chain, and its effect at every point that it was applied at."""
    seen: dict[tuple[str, str], list[float]] = {}

    def observe(point: str, adapter: str, y: Tensor, delta: Tensor) -> None:
        rows, before, added = seen.setdefault((adapter, point), [0.0, 0.0, 0.0])
        if y.shape[:2] == stage.valid.shape:
            y, delta = y[stage.valid], delta[stage.valid]
        seen[adapter, point] = [
            rows + len(stage.names),
            before + float(y.double().square().sum()),
            added + float(delta.double().square().sum()),
        ]

    with stage.model.adapters.use(chain, observe=observe):
        scores, _ = stage.compute(stage.waveforms, stage.lengths)
    effects = tuple(
        PointEffect(
            adapter=adapter,
            point=point,
            applied=int(rows),
            relative_change=(added / before) ** 0.5 if before else 0.0,
        )
        for (adapter, point), (rows, before, added) in seen.items()
    )
    return scores, effects


def check_applied(model: AsrModel, chain: str, effects: Sequence[PointEffect]) -> Check:
    """Check that every adapter of the chain was applied at each of its points."""
    expected = {(name, point) for name in chain.split("+") for point in model.adapters[name].points}
    missed = sorted(expected - {(effect.adapter, effect.point) for effect in effects})
    detail = f"{len(expected) - len(missed)} of {len(expected)} points"
    if missed:
        detail += f"; not at {missed[0][1]}" + (f" and {len(missed) - 1} more" if len(missed) > 1 else "")
    if len(missed) == len(expected):
        detail = "applied nowhere: the model never calls its points"
    return Check(name=f"{chain} is applied", passed=not missed, detail=detail)


def check_change(chain: str, adapted: Tensor, largest: float) -> Check:
    """Check that the scores with the chain, adapted [B, T, N], are finite; largest: their largest change."""
    if not bool(adapted.isfinite().all()):
        return Check(name=f"{chain} changes the output", passed=False, detail="the output is not finite")
    detail = f"log-probabilities by up to {largest:.3g}"
    if largest == 0.0:
        detail = "changes nothing: identity, as every adapter is before training"
    return Check(name=f"{chain} changes the output", passed=largest > 0.0, detail=detail)


def check_rows(stage: Stage, chain: str) -> Check:
    """Check rows with and without the chain in one batch: base rows bitwise, the others as if they were alone."""
    choices: list[str | None] = [chain if row % 2 == 0 else None for row in range(len(stage.names))]
    return check_mixed_rows(stage, f"rows with and without {chain} in one batch are independent", choices)


def check_mixed_rows(stage: Stage, name: str, choices: list[str | None]) -> Check:
    """Check that each row of a mixed batch is as it is alone; choices: one for each row."""
    mixed = stage.scores(choices)
    largest = 0.0
    for row, choice in enumerate(choices):
        frames = int(stage.frames[row])
        if choice is None:
            if not torch.equal(mixed[row, :frames, : stage.base.size(-1)], stage.base[row, :frames]):
                return Check(name=name, passed=False, detail=f"row {row} uses no adapter and differs from the base")
        else:
            alone = stage.row_alone(row, choice)[0]
            own = mixed[row, :frames, : alone.size(-1)]  # another row's vocabulary may be larger
            largest = max(largest, float((own - alone[:frames]).abs().max()))
    others = f"the same to {largest:.1g}" if largest else "bit-identical"
    detail = f"base rows bit-identical; the others, beside each row alone, {others}"
    return Check(name=name, passed=largest <= ROW_TOLERANCE, detail=detail)


def check_off(stage: Stage, name: str) -> Check:
    """Check that the base's outputs are bit for bit what they were before any adapter acted."""
    same = torch.equal(stage.scores(None), stage.base)
    detail = "log-probabilities equal, bit for bit" if same else "its log-probabilities have changed"
    return Check(name=name, passed=same, detail=detail)


def prove_base(stage: Stage, chains: Sequence[str]) -> tuple[Check, ...]:
    """Check the model as a whole once all adapters have acted."""
    same = tensors_digest(stage.model) == stage.digest
    count = len(stage.model.base_state_dict())
    checks = [
        Check(
            name="base tensors untouched",
            passed=same,
            detail=f"{count} tensors, bit for bit" if same else f"some of {count} tensors have changed",
        ),
        check_off(stage, "base bit-identical outside of any use"),
    ]
    if len(chains) > 1:
        around: list[str | None] = [None, *chains]
        choices = [around[row % len(around)] for row in range(len(stage.names))]
        checks.append(check_mixed_rows(stage, "all adapters in one batch, each row its own", choices))
    return tuple(checks)

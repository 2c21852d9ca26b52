"""Progress of a training: steps, loss, speed, and the curve of its validations."""

from __future__ import annotations

from dataclasses import dataclass, field

from overtone.training.console import format_duration


@dataclass(kw_only=True)
class Progress:
    """Steps, loss and speed of a training; its rates leave out what was done before it was resumed."""

    total_steps: int
    first_step: int = 0
    """The step from which the run was resumed."""
    step: int = 0
    batches: int = 0
    """Batches of the whole run so far."""
    epoch: int = 0
    loss: float | None = None
    """Mean over the last steps, the newer weighing more."""
    learning_rate: float = 0.0
    wer_before: float | None = None
    """WER of the base before training, 0..1."""
    wer: float | None = None
    """WER of the last validation, 0..1."""
    audio_seconds: float = 0.0
    """Audio trained on since the start."""
    busy_seconds: float = 0.0
    """Time spent on steps since the start, validations left out."""
    curve: list[tuple[int, float, float]] = field(default_factory=list)
    """Step, WER (0..1) and seconds spent on steps at each validation of the whole run."""
    seconds_before: float = 0.0
    """Time spent on steps before the run was resumed."""

    def advance(self, *, step: int, epoch: int, loss: float, learning_rate: float, audio: float, took: float) -> None:
        """Take one batch into account. audio, took: seconds."""
        self.step, self.epoch, self.learning_rate = step, epoch, learning_rate
        self.loss = loss if self.loss is None else 0.9 * self.loss + 0.1 * loss
        self.audio_seconds += audio
        self.busy_seconds += took

    @property
    def seconds(self) -> float:
        """Time spent on steps of the whole run."""
        return self.seconds_before + self.busy_seconds

    def note_validation(self, step: int) -> None:
        """Add the last validation, of this step, to the curve."""
        if self.wer is not None:
            self.curve.append((step, round(self.wer, 6), round(self.seconds, 1)))

    @property
    def speed(self) -> float:
        """Hours of audio in an hour."""
        return self.audio_seconds / self.busy_seconds if self.busy_seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        done = self.step - self.first_step
        return (self.total_steps - self.step) * self.busy_seconds / done if done > 0 else None

    def line(self) -> str:
        """Return `step 20/1000  epoch 1  loss 12.3  lr 0.001  WER 45.6 %  120× real time  3:20 left`."""
        parts = [f"step {self.step}/{self.total_steps}", f"epoch {self.epoch + 1}"]
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4g}")
        parts.append(f"lr {self.learning_rate:.2e}")
        if self.wer is not None:
            parts.append(f"WER {self.wer:.2%}")
        parts.append(f"{self.speed:.3g}× real time")
        left = self.seconds_left
        if left is not None:
            parts.append(f"{format_duration(left)} left")
        return "  ".join(parts)

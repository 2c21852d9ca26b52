"""Epochs of an adapter in all layers and in the top half, with and without the prefix cache; what loading costs.

python -m benchmarks.prefix

Every case is the training loop of `overtone train` on one corpus of noise in FLAC files: the same loader, the same
steps, the base in the fast dtype with its dropout (above the cut, where a part is kept).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import (
    Shape,
    chosen_shapes,
    interleaved,
    make_parser,
    parse,
    peak_memory_mb,
    print_machine,
    report,
    write_json,
)
from benchmarks.models import ADAPTER, make_model
from overtone.audio.load import load_audio
from overtone.config import load_settings
from overtone.training.console import Reporter
from overtone.training.data import read_training_set
from overtone.training.loop import make_module, make_prefix, make_training_loader
from overtone.training.model import add_adapter
from overtone.training.optim import make_optimiser
from overtone.training.plan import plan_training
from overtone.training.prefix_cache.plan import plan_prefix
from overtone.training.run import Run
from overtone.training.run_folder import RunLock, plan_folder
from overtone.training.trainer import find_machine, plan_length

ALL, HALF = "all layers", "top half"
CASES = {ALL: ("all", False), HALF: ("half", False), f"{HALF}, cached": ("half", True), f"{ALL}, cached": ("all", True)}
SHORTEST, LONGEST = 0.75, 1.25
"""Durations, as shares of the shape's."""


def write_corpus(folder: Path, shape: Shape, utterances: int) -> Path:
    """Noise with random transcripts of the shape's density; durations around the shape's."""
    import soundfile

    generator = np.random.default_rng(0)
    lines = []
    for number in range(utterances):
        seconds = shape.seconds * (SHORTEST + (LONGEST - SHORTEST) * (number + 0.5) / utterances)
        noise = 0.1 * generator.standard_normal(int(16_000 * seconds))
        path = folder / f"{number}.flac"
        soundfile.write(path, noise.astype(np.float32), 16_000)
        count = max(1, round(shape.tokens / shape.batch * seconds / shape.seconds))
        text = "".join(chr(0x100 + int(token)) for token in generator.integers(shape.classes, size=count))
        lines.append(json.dumps({"audio_filepath": path.name, "duration": seconds, "text": text}))
    manifest = folder / "train.json"
    manifest.write_text("\n".join(lines) + "\n", "utf-8")
    return manifest


class Epochs:
    """One training, epoch by epoch, with the seconds that it waits for batches and computes features."""

    def __init__(self, shape: Shape, manifest: Path, *, layers: str, cached: bool, epochs: int) -> None:
        settings = load_settings(
            [
                "model.nemo_model=given",
                "model.adapter.adapter_name=epochs",
                "model.optim.lr=0.001",
                f"model.adapter.linear.dim={shape.adapter_dim}",
                f"model.adapter.layers={'all' if layers == 'all' else f'last:{shape.layers // 2}'}",
                f"model.prefix_cache.enabled={str(cached).lower()}",
                f"model.train_ds.manifest_filepath={manifest}",
                f"model.train_ds.batch_size={shape.batch}",
                "model.validation_ds.manifest_filepath=null",
                f"trainer.max_epochs={epochs}",
                "trainer.max_steps=-1",
                "trainer.accelerator=cpu",
                f"exp_manager.explicit_log_dir={manifest.parent / 'run'}",
            ]
        )
        plan = plan_training(settings)
        assert plan.adapter is not None
        reporter, machine = Reporter(quiet=True), find_machine(plan.trainer)
        model = make_model(shape)
        model.adapters.remove(ADAPTER)
        training = read_training_set(model, plan, reporter)
        length = plan_length(plan.trainer, training.plan, processes=1, validates=False)
        adapter = add_adapter(model, plan.adapter, seed=plan.seed, base_dropout=plan.base_dropout)
        folder = plan_folder(plan.experiment, default_name="prefix")
        run = Run(
            plan=plan,
            model=model,
            adapter=adapter.name,
            folder=folder,
            lock=RunLock(folder, leads=False),
            checkpoint=None,
            training=training,
            validation=(),
            machine=machine,
            length=length,
            reporter=reporter,
            prefix=plan_prefix(plan, model, adapter, machine=machine, length=length),
        )
        prefix = make_prefix(run)
        self.batches = length.batches_per_epoch
        self.module = make_module(run, prefix, None)
        model.set_compute_dtype(plan.compute_dtype)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimiser = make_optimiser(plan.optimiser, trained, fused=True)
        self.loader = iter(make_training_loader(run, None, prefix))
        self.waited: list[float] = []
        self.featured: list[float] = []
        self.seconds: list[float] = []
        model.preprocessor.register_forward_pre_hook(self.features_begin)
        model.preprocessor.register_forward_hook(self.features_end)

    def features_begin(self, *_: Any) -> None:
        self.features_began = time.perf_counter()

    def features_end(self, *_: Any) -> None:
        self.featured[-1] += time.perf_counter() - self.features_began

    def __call__(self) -> float:
        """One epoch; its seconds."""
        self.waited.append(0.0)
        self.featured.append(0.0)
        start = time.perf_counter()
        for _ in range(self.batches):
            asked = time.perf_counter()
            batch = next(self.loader)
            self.waited[-1] += time.perf_counter() - asked
            heads, lengths, _ = self.module.batch_forward.forward_batch(batch, base_alone=False)
            self.module.compute_loss(heads, lengths, batch).backward()
            self.optimiser.step()
            self.optimiser.zero_grad()
        self.seconds.append(time.perf_counter() - start)
        return self.seconds[-1]

    def shares(self) -> tuple[float, float]:
        """Waiting for batches and computing features, as shares of the epochs after the first."""
        whole = sum(self.seconds[1:])
        return sum(self.waited[1:]) / whole, sum(self.featured[1:]) / whole


def decoding_seconds(folder: Path) -> float:
    start = time.perf_counter()
    for path in folder.glob("*.flac"):
        load_audio(path)
    return time.perf_counter() - start


def measured(shape: Shape, arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = write_corpus(folder, shape, shape.batch * arguments.batches)
        epochs = {
            case: Epochs(shape, manifest, layers=layers, cached=cached, epochs=arguments.rounds + 1)
            for case, (layers, cached) in CASES.items()
        }
        cases: dict[str, Callable[[], float]] = dict(epochs)
        seconds = interleaved(cases, arguments.rounds)
        decoding = decoding_seconds(folder)
    batches = f"{arguments.batches} batches of {shape.batch} × about {shape.seconds:g} s"
    report(f"{shape.name}: later epochs, {batches}", seconds)
    print(f"  decoding an epoch's audio, beside the steps: {decoding:.3g} s")
    print(f"\n| {shape.name} | first epoch | later epochs | speed-up | waiting for batches | features |")
    print("|---|---|---|---|---|---|")
    for case, run in epochs.items():
        waited, featured = run.shares()
        ratio = statistics.median(a / b for a, b in zip(seconds[ALL], seconds[case], strict=True))
        print(
            f"| {case} | {run.seconds[0]:.3g} s | {statistics.median(seconds[case]):.3g} s | {ratio:.2f}× "
            f"| {waited:.1%} | {featured:.1%} |"
        )
    return {
        case: {"first": run.seconds[0], "later": seconds[case], "waiting": run.shares()[0], "features": run.shares()[1]}
        for case, run in epochs.items()
    } | {"decoding": decoding}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--batches", type=int, default=8, help="batches of an epoch")
    arguments = parse(parser)
    if arguments.smoke:
        arguments.batches = 2
    print_machine()
    figures = {shape.name: measured(shape, arguments) for shape in chosen_shapes(arguments)}
    print(f"\npeak memory of this process: {peak_memory_mb():.0f} MB")
    write_json(arguments.json, figures)


if __name__ == "__main__":
    main()

"""Train an adapter over a frozen model: settings as key=value, with NeMo's names.

Without --config-path and --config-name the shipped asr_adaptation.yaml is taken; it lists every setting."""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING

from overtone.cli.overrides import add_configuration, read_settings

if TYPE_CHECKING:
    from overtone.config import Settings
    from overtone.jobs.result import TrainingResult

EXAMPLES = """examples:
  overtone train model.nemo_model=base.nemo model.adapter.adapter_name=medical \\
      model.train_ds.manifest_filepath=train.json model.validation_ds.manifest_filepath=valid.json
  overtone train --config-path="../conf/asr_adapters" --config-name="asr_adaptation.yaml" \\
      model.pretrained_model=fundamental model.adapter.adapter_name=medical trainer.max_steps=300 …"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="such as model.nemo_model=base.nemo")
    add_configuration(parser)


def run(arguments: argparse.Namespace) -> int:
    settings = read_settings(arguments, arguments.settings, "train")
    from overtone.cli.models import quiet_libraries
    from overtone.jobs.train import run_training

    quiet_libraries()
    result = run_training(settings)
    if result.adapter is not None:
        print(next_command(settings, result))
    return 0


def next_command(settings: Settings, result: TrainingResult) -> str:
    """How to see what the adapter is worth."""
    model = str(settings.model.nemo_model or settings.model.pretrained_model)
    words = ["overtone", "evaluate", model, "TEST_MANIFEST", "--adapter", "null", "--adapter", str(result.best)]
    return f"Next: {shlex.join(words)}"

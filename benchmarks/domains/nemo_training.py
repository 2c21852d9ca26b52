"""NeMo training its own adapter, in an environment of its own.

    python nemo_training.py REQUEST.json ANSWER.json

does what NeMo's script `train_asr_adapter.py` does, on a CPU, with one addition: the adapter of the best validated
step is the one that is saved and used, as in the other rows of the table. The request names the base (`.nemo`), the
manifests and the settings; the answer holds what was measured and what NeMo itself hears in the test recordings.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch


class BestStep(pl.Callback):
    """Keeps the adapter's tensors of the step with the fewest word errors on the validation part."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        """Of the tensors to keep."""
        self.kept: dict[str, torch.Tensor] = {}
        self.history: list[dict[str, float]] = []
        """Step, word error rate and loss of each validation; the first is the base, before any step."""
        self.best: tuple[float, float] | None = None
        self.best_step = 0
        self.utterances = 0
        """Trained on so far, repetitions counted."""

    def on_train_batch_end(self, trainer: Any, model: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.utterances += len(batch[1])

    def on_validation_end(self, trainer: Any, model: Any) -> None:
        metrics = trainer.callback_metrics
        rank = (float(metrics["val_wer"]), float(metrics["val_loss"]))
        self.history.append({"step": trainer.global_step, "wer": rank[0], "loss": rank[1]})
        if trainer.state.fn == "fit" and (self.best is None or rank < self.best):
            self.best, self.best_step = rank, trainer.global_step
            self.kept = {name: model.state_dict()[name].clone() for name in self.names}


def restore(path: str, trainer: Any) -> Any:
    """The base, its encoder of the class that takes adapters."""
    from nemo.collections.asr.models import ASRModel  # type: ignore[import-not-found]
    from nemo.core import adapter_mixins  # type: ignore[import-not-found]
    from omegaconf import open_dict

    config = ASRModel.restore_from(path, return_config=True)
    with open_dict(config):
        registered = adapter_mixins.get_registered_adapter(config.encoder._target_)
        if registered is not None:
            config.encoder._target_ = registered.adapter_class_path
    return ASRModel.restore_from(path, override_config_path=config, trainer=trainer, map_location="cpu")


def read_data(model: Any, request: dict[str, Any]) -> None:
    shared = {"sample_rate": 16_000, "num_workers": 0, "pin_memory": False, "min_duration": None, "max_duration": None}
    batch = {"batch_size": request["batch_size"], **shared}
    model.setup_training_data({"manifest_filepath": request["train"], "shuffle": True, **batch})
    model.setup_multiple_validation_data({"manifest_filepath": request["valid"], "shuffle": False, **batch})


def add_adapter(model: Any, request: dict[str, Any]) -> None:
    from nemo.collections.common.parts.adapter_modules import LinearAdapterConfig  # type: ignore[import-not-found]

    name = request["adapter"]
    model.add_adapter(name, cfg=LinearAdapterConfig(in_features=model.encoder.d_model, dim=request["dim"]))
    model.set_enabled_adapters(enabled=False)
    model.set_enabled_adapters(name, enabled=True)


def train_only_adapters(model: Any) -> None:
    """Everything else frozen; the base's dropout acts, as in NeMo's script."""
    model.freeze()
    model.train()
    model.unfreeze_enabled_adapters()


def train(request: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model with its best adapter, and what was measured."""
    pl.seed_everything(request["seed"], workers=True)
    watch = BestStep()
    trainer = pl.Trainer(
        callbacks=[watch],
        accelerator="cpu",
        devices=1,
        max_steps=request["steps"],
        val_check_interval=request["validate_every"],
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = restore(request["base"], trainer)
    began = time.perf_counter()
    read_data(model, request)
    schedule = {"name": "CosineAnnealing", "warmup_ratio": 0.1, "min_lr": 1e-5}
    model.setup_optimization(
        {
            "name": "adamw",
            "betas": [0.9, 0.98],
            "lr": request["learning_rate"],
            "weight_decay": 0.0,
            "sched": {**schedule, "max_steps": request["steps"]},
        }
    )
    model.spec_augmentation = None
    add_adapter(model, request)
    train_only_adapters(model)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    watch.names.update(trained)
    trainer.validate(model, verbose=False)
    train_only_adapters(model)
    trainer.fit(model)
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(watch.kept[name])
    seconds = time.perf_counter() - began
    return model, {
        "seconds": seconds,
        "trained_parameters": sum(parameter.numel() for parameter in trained.values()),
        "steps": trainer.global_step,
        "best_step": watch.best_step,
        "utterances": watch.utterances,
        "history": watch.history,
    }


def hear(model: Any, request: dict[str, Any]) -> list[str]:
    """What NeMo writes for the recordings, the adapter on."""
    model.eval()
    paths = [json.loads(line)["audio_filepath"] for line in Path(request["test"]).read_text("utf-8").splitlines()]
    heard = model.transcribe(paths, batch_size=request["batch_size"], num_workers=0, verbose=False)
    return [getattr(one, "text", one) for one in heard]


def main() -> None:
    import nemo  # type: ignore[import-not-found]
    import nemo.utils  # type: ignore[import-not-found]

    nemo.utils.logging.setLevel(logging.ERROR)
    request = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    torch.set_num_threads(request["threads"])
    model, answer = train(request)
    model.save_adapters(request["adapters_file"])
    heard = hear(model, request) if request["test"] else []
    answer |= {"heard": heard, "nemo": nemo.__version__, "torch": torch.__version__}
    Path(sys.argv[2]).write_text(json.dumps(answer), "utf-8")


if __name__ == "__main__":
    main()

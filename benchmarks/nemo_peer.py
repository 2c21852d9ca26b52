"""NeMo at the same work, in an environment of its own.

    python nemo_peer.py THREADS < requests

reads one JSON request a line (`load` a shape, then `step` or `infer`) and answers each with one line of JSON.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

import torch

ADAPTER = "timed"


def build(shape: dict[str, Any]) -> Any:
    from nemo.collections.asr.models import EncDecCTCModel  # type: ignore[import-not-found]
    from nemo.collections.common.parts.adapter_modules import LinearAdapterConfig  # type: ignore[import-not-found]
    from omegaconf import OmegaConf

    features = {
        "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
        "sample_rate": 16_000,
        "normalize": "per_feature",
        "window_size": 0.025,
        "window_stride": 0.01,
        "window": "hann",
        "features": 80,
        "n_fft": 512,
        "log": True,
        "dither": 1e-5,
        "pad_to": 0,
    }
    encoder = {
        "_target_": "nemo.collections.asr.modules.conformer_encoder.ConformerEncoderAdapter",
        "feat_in": 80,
        "feat_out": -1,
        "n_layers": shape["layers"],
        "d_model": shape["width"],
        "subsampling": shape["subsampling"],
        "subsampling_factor": shape["subsampling_factor"],
        "subsampling_conv_channels": shape["subsampling_channels"],
        "ff_expansion_factor": 4,
        "self_attention_model": "rel_pos",
        "n_heads": shape["heads"],
        "att_context_size": [-1, -1],
        "xscaling": shape["scale_input"],
        "untie_biases": True,
        "conv_kernel_size": shape["kernel_size"],
        "conv_norm_type": "batch_norm",
        "dropout": 0.1,
        "dropout_pre_encoder": 0.1,
        "dropout_emb": 0.0,
        "dropout_att": 0.1,
    }
    labels = [chr(0x100 + index) for index in range(shape["classes"])]
    decoder = {
        "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
        "feat_in": shape["width"],
        "num_classes": shape["classes"],
        "vocabulary": labels,
    }
    model = EncDecCTCModel(
        cfg=OmegaConf.create(
            {"sample_rate": 16_000, "labels": labels, "preprocessor": features, "encoder": encoder, "decoder": decoder}
        )
    )
    model.add_adapter(ADAPTER, cfg=LinearAdapterConfig(in_features=shape["width"], dim=shape["adapter_dim"]))
    model.set_enabled_adapters(enabled=False)
    model.set_enabled_adapters(ADAPTER, enabled=True)
    model.freeze()
    model.train()
    model.unfreeze_enabled_adapters()
    return model


class Timed:
    def __init__(self, shape: dict[str, Any]) -> None:
        torch.manual_seed(0)
        self.shape = shape
        self.model = build(shape)
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimiser = torch.optim.AdamW(self.trained, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0)
        batch, tokens = shape["batch"], shape["tokens"]
        counts = [tokens // batch + (row < tokens % batch) for row in range(batch)]
        self.targets = torch.randint(shape["classes"], (batch, max(counts)))
        self.target_lengths = torch.tensor(counts)

    def waveforms(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        samples = int(self.shape["seconds"] * 16_000)
        return 0.1 * torch.randn(batch, samples), torch.full((batch,), samples)

    def step(self) -> float:
        self.model.train()
        self.model.unfreeze_enabled_adapters()
        waveforms, lengths = self.waveforms(self.shape["batch"])
        start = time.perf_counter()
        log_probs, frames, _ = self.model(input_signal=waveforms, input_signal_length=lengths)
        loss = self.model.loss(
            log_probs=log_probs, targets=self.targets, input_lengths=frames, target_lengths=self.target_lengths
        )
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        return time.perf_counter() - start

    def infer(self, batch: int) -> float:
        self.model.eval()
        waveforms, lengths = self.waveforms(batch)
        start = time.perf_counter()
        with torch.inference_mode():
            _, _, greedy = self.model(input_signal=waveforms, input_signal_length=lengths)
            greedy.tolist()
        return time.perf_counter() - start


def main() -> None:
    import nemo  # type: ignore[import-not-found]
    import nemo.utils  # type: ignore[import-not-found]

    torch.set_num_threads(int(sys.argv[1]))
    nemo.utils.logging.setLevel(logging.ERROR)
    timed: Timed | None = None
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any]
        if request["do"] == "versions":
            answer = {"nemo": nemo.__version__, "torch": torch.__version__}
        elif request["do"] == "load":
            timed = Timed(request["shape"])
            answer = {
                "parameters": sum(parameter.numel() for parameter in timed.model.parameters()),
                "trained": sum(parameter.numel() for parameter in timed.trained),
            }
        else:
            assert timed is not None
            answer = {"seconds": timed.step() if request["do"] == "step" else timed.infer(request["batch"])}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

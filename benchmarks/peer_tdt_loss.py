"""The TDT loss of a peer on a processor, for benchmarks.transducers.

python peer_tdt_loss.py nemo|transformers ROWS FRAMES TOKENS CLASSES WIDTH

Runs in the peer's environment; prints one line of JSON. NeMo's is the loss that runs without a GPU, `TDTLossPytorch`.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

DURATIONS = [0, 1, 2, 3, 4]
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Scores [B, T, U+1, V+1 and durations], targets [B, U], lengths [B] of both -> a scalar."""


def nemo_loss(classes: int) -> Loss:
    from nemo.collections.asr.losses.rnnt_pytorch import TDTLossPytorch

    torch.Tensor.cuda = lambda tensor, *_, **__: tensor  # type: ignore[assignment,method-assign]  # it asks for a GPU
    loss = TDTLossPytorch(blank=classes, durations=DURATIONS, reduction="mean_batch")
    return lambda scores, targets, lengths, sizes: loss(acts=scores, labels=targets, act_lens=lengths, label_lens=sizes)


def transformers_loss(classes: int) -> Loss:
    from transformers.loss.loss_tdt import tdt_loss

    def loss(scores: Tensor, targets: Tensor, lengths: Tensor, sizes: Tensor) -> Tensor:
        kinds = scores.split((classes + 1, len(DURATIONS)), dim=-1)
        found: Tensor = tdt_loss(*kinds, targets, lengths, sizes, classes, DURATIONS, reduction="mean_batch")
        return found

    return loss


PEERS = {"nemo": nemo_loss, "transformers": transformers_loss}


def main() -> None:
    rows, frames, tokens, classes, width = map(int, sys.argv[2:])
    torch.manual_seed(0)
    loss = PEERS[sys.argv[1]](classes)
    output = torch.nn.Linear(width, classes + 1 + len(DURATIONS)).requires_grad_(False)
    encoded = torch.randn(rows, frames, width, requires_grad=True)
    predicted = torch.randn(rows, tokens + 1, width, requires_grad=True)
    targets = torch.randint(0, classes, (rows, tokens))
    lengths, sizes = torch.full((rows,), frames), torch.full((rows,), tokens)
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, time.perf_counter()
    scores = output(torch.relu(encoded.unsqueeze(2) + predicted.unsqueeze(1)))
    loss(scores, targets, lengths, sizes).backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(json.dumps({"seconds": time.perf_counter() - begun, "megabytes": peak - before}))


if __name__ == "__main__":
    main()

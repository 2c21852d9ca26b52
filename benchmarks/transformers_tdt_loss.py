"""The TDT loss of transformers, for benchmarks.transducers.

python transformers_tdt_loss.py ROWS FRAMES TOKENS CLASSES WIDTH

Runs in an environment of transformers; prints one line of JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import torch
from transformers.loss.loss_tdt import tdt_loss

DURATIONS = [0, 1, 2, 3, 4]


def main() -> None:
    rows, frames, tokens, classes, width = map(int, sys.argv[1:])
    torch.manual_seed(0)
    output = torch.nn.Linear(width, classes + 1 + len(DURATIONS)).requires_grad_(False)
    encoded = torch.randn(rows, frames, width, requires_grad=True)
    predicted = torch.randn(rows, tokens + 1, width, requires_grad=True)
    targets = torch.randint(0, classes, (rows, tokens))
    lengths, sizes = torch.full((rows,), frames), torch.full((rows,), tokens)
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, time.perf_counter()
    scores = output(torch.relu(encoded.unsqueeze(2) + predicted.unsqueeze(1)))
    kinds = scores.split((classes + 1, len(DURATIONS)), dim=-1)
    tdt_loss(*kinds, targets, lengths, sizes, classes, DURATIONS, reduction="mean_batch").backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(json.dumps({"seconds": time.perf_counter() - begun, "megabytes": peak - before}))


if __name__ == "__main__":
    main()

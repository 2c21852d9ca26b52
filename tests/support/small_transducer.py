"""A small transducer with random weights that says much."""

from __future__ import annotations

import torch
from torch import Tensor

from overtone.decoding.transducer import TransducerSearch
from overtone.nets.transducer import Joint, RecurrentPrediction, StatelessPrediction
from overtone.tokenizers import CharTokenizer

LETTERS = CharTokenizer(list(" abcdefg"))
BLANK = LETTERS.size


def make_search(
    seed: int, durations: tuple[int, ...] = (), *, max_symbols: int = 3, stateless: bool = False, blank: float = 1.0
) -> TransducerSearch:
    """Random weights that say much; blank: added to the score of the blank."""
    torch.manual_seed(seed)
    joint = Joint(encoder_width=4, prediction_width=6, width=6, classes=BLANK, durations=durations).eval()
    prediction = (
        StatelessPrediction(classes=BLANK, width=6, context=2)
        if stateless
        else RecurrentPrediction(classes=BLANK, width=6)
    )
    with torch.no_grad():
        for parameter in [*joint.parameters(), *prediction.parameters()]:
            parameter.mul_(3.0)
        joint.joint_net[-1].bias[BLANK] += blank  # type: ignore[index,operator]
    return TransducerSearch(joint, prediction.eval(), max_symbols=max_symbols)


def frames_of(rows: int, count: int, seed: int = 0) -> Tensor:
    """[B, T, J] of a joint."""
    return 2 * torch.randn(rows, count, 6, generator=torch.Generator().manual_seed(seed))

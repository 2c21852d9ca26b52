"""Adapters of a transducer's prediction network, trained on text alone.

Where an encoder frame says nothing, prediction network and joint are a language model of the tokens that follow one
another (Variani et al. 2020). The adapter makes a domain's text likelier in it; what it thinks of tokens otherwise, and
of the blank beside them, is held near the base's (Meng et al. 2021, arXiv:2110.05354). Held-out sentences choose the
step; if none is better than the base's there, the adapter is taken back.

Legend: B batch, U tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from overtone.adapters.kinds.base import Kind
from overtone.adapters.kinds.linear import LinearAdapter
from overtone.decoding.transducer import TransducerHead
from overtone.errors import DataError, UsageError
from overtone.models.asr_model import AsrModel

FEWEST = 16
"""Sentences that are needed: of fewer, too little is held out to choose by."""
HELD_OUT = 8
"""One in so many sentences is held out."""
MOST_HELD_OUT = 500
BATCH = 16
STEPS = 400
EVERY = 25
"""Steps from one look at the held-out sentences to the next."""
PATIENCE = 4
"""Looks without a gain after which the training ends."""
RATE = 3e-3
PULL = 1.0
"""Weight of the distance (Kullback-Leibler) from the base's expectations of tokens."""
BALANCE = 1.0
"""Weight of the squared change of the blank's logarithm against all tokens'."""
LONGEST = 200
"""Tokens of a sentence that are read."""


@dataclass(frozen=True, kw_only=True)
class TextTraining:
    """A training on text: perplexities of a held-out token, and the best step."""

    before: float
    """The base's."""
    after: float
    """With the adapter; `before` where it was taken back."""
    step: int
    """The step that was best; 0 where the adapter was taken back."""
    held_out: int
    """Sentences that were held out."""


class Expected(NamedTuple):
    """The internal language model's expectations in a batch."""

    tokens: Tensor
    """[B, U, V] log-probabilities of each next token."""
    blank: Tensor
    """[B, U] the blank's logarithm against all tokens'."""


def train_prediction(
    model: AsrModel,
    name: str,
    sequences: Sequence[Sequence[int]],
    *,
    kind: Kind | None = None,
    steps: int = STEPS,
    seed: int = 0,
) -> TextTraining:
    """Add an adapter of the prediction network and train it on sentences in tokens; if it gains nothing, remove it.

    Raises UsageError for a model without a prediction network, DataError for too few sentences.
    """
    head = find_head(model)
    sentences = [list(own[:LONGEST]) for own in sequences if len(own)]
    if len(sentences) < FEWEST:
        raise DataError(
            f"{len(sentences)} sentences are too few to train the prediction network on; {FEWEST} are needed. Give "
            "more text, or leave --prediction out."
        )
    held_out = sentences[::HELD_OUT][:MOST_HELD_OUT]
    rest = [own for place, own in enumerate(sentences) if place % HELD_OUT]
    torch.manual_seed(seed)
    adapter = model.adapters.add(name, kind or LinearAdapter(dim=32), modules="decoder")
    before = perplexity(model, head, None, held_out)
    best, best_step, best_tensors, since = before, 0, dict[str, Tensor](), 0
    model.train_only(name, base_dropout=False)
    try:
        optimiser = torch.optim.AdamW(adapter.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)
        for step, batch in enumerate(draw(rest, steps, seed), start=1):
            loss = text_loss(model, head, name, batch)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if step % EVERY and step != steps:
                continue
            now = perplexity(model, head, name, held_out)
            since += 1
            if now < best:
                best, best_step, since = now, step, 0
                best_tensors = {key: tensor.detach().clone() for key, tensor in adapter.tensors().items()}
            if since == PATIENCE:
                break
    finally:
        model.requires_grad_(False).eval()
    if best_step:
        adapter.load_tensors(best_tensors)
        adapter.card = {"prediction_text": {"before": before, "after": best, "step": best_step, "sentences": len(rest)}}
    else:
        model.adapters.remove(name)
    return TextTraining(before=before, after=best, step=best_step, held_out=len(held_out))


def find_head(model: AsrModel) -> TransducerHead:
    """The transducer head of a model. Raises UsageError where it has none."""
    head = model.heads.get("rnnt")
    if head is None:
        raise UsageError(
            f"{model.name} has no prediction network, which is what --prediction trains on text; transducers and "
            "hybrids have one. Leave it out."
        )
    assert isinstance(head, TransducerHead)
    return head


def draw(sentences: Sequence[list[int]], steps: int, seed: int) -> Iterator[list[list[int]]]:
    """Batches of sentences, every one as often as the others."""
    generator, order = torch.Generator().manual_seed(seed), list[int]()
    for _ in range(steps):
        while len(order) < min(BATCH, len(sentences)):
            order += torch.randperm(len(sentences), generator=generator).tolist()
        yield [sentences[place] for place in order[:BATCH]]
        del order[:BATCH]


def text_loss(model: AsrModel, head: TransducerHead, name: str, batch: Sequence[Sequence[int]]) -> Tensor:
    """The loss of a batch, a scalar: how unlikely it is, and how far from what the base expects."""
    targets, inside = pad_tokens(batch, model.device)
    with torch.no_grad(), model.adapters.use(None):
        base = expect(head, targets)
    with model.adapters.use(name):
        own = expect(head, targets)
    likely = own.tokens.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    pulled = (base.tokens.exp() * (base.tokens - own.tokens)).sum(dim=-1)
    losses = PULL * pulled - likely + BALANCE * (own.blank - base.blank).square()
    return losses[inside].mean()


def perplexity(model: AsrModel, head: TransducerHead, choice: str | None, sentences: Sequence[Sequence[int]]) -> float:
    """The perplexity of a token of sentences, with an adapter or without."""
    total, count = 0.0, 0
    with torch.no_grad(), model.adapters.use(choice), model.evaluating():
        for first in range(0, len(sentences), BATCH):
            targets, inside = pad_tokens(sentences[first : first + BATCH], model.device)
            likely = expect(head, targets).tokens.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
            total, count = total - float(likely[inside].sum()), count + int(inside.sum())
    return float(torch.tensor(total / count).exp())


def expect(head: TransducerHead, targets: Tensor) -> Expected:
    """Expectations before each token, where the encoder says nothing; targets [B, U]."""
    joint = head.joint
    predictions = joint.pred(head.prediction(targets))[:, :-1]  # [B, U, J]
    nothing = joint.enc(predictions.new_zeros(len(targets), 1, joint.enc.in_features))  # [B, 1, J]
    scores = joint(nothing, predictions)[:, 0].float()  # [B, U, N]
    tokens = scores[..., : joint.blank]
    return Expected(tokens.log_softmax(dim=-1), scores[..., joint.blank] - tokens.logsumexp(dim=-1))


def pad_tokens(batch: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Sentences as targets [B, U] int64, and which places hold a token, [B, U]."""
    targets = torch.nn.utils.rnn.pad_sequence([torch.tensor(own) for own in batch], batch_first=True)
    lengths = torch.tensor([len(own) for own in batch])
    return targets.to(device), (torch.arange(targets.size(1)) < lengths[:, None]).to(device)

"""The loss of transducers, with and without durations, in memory that does not grow with the vocabulary.

Of the scores [B, T, U+1, N] a stretch of frames is computed at a time; kept are the log-probabilities of the blank, of
each target token and of the durations. The sum over all alignments and its gradient are computed on that lattice in
float64, with all tokens of a frame in one cumulative sum.

Legend: B batch, T encoder frames, U target tokens, J joint width, V vocabulary, N scores, A durations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from overtone.nets.layers import run_checkpointed
from overtone.nets.transducer import Joint

NEGLIGIBLE = 1e-10
"""A gradient so much smaller than the largest is taken for zero: float32 would lose it in the sum."""
CHUNK_SCORES = 1 << 22
"""Scores computed at a time: 16 MB in float32."""


def transducer_losses(
    joint: Joint,
    frames: Tensor,
    predictions: Tensor,
    lengths: Tensor,
    targets: Tensor,
    target_lengths: Tensor,
    *,
    sigma: float = 0.0,
    omega: float = 0.0,
    fastemit: float = 0.0,
) -> Tensor:
    """The negative log-likelihood of each row's targets, [B].

    Projected frames [B, T, J] and predictions [B, U+1, J] of the joint, lengths [B] in frames, targets [B, U] int64,
    target_lengths [B]. sigma: subtracted from every token's log-probability where there are durations
    (logit under-normalisation). omega: the share of the loss without durations, deterministic where NeMo draws.
    fastemit: gradients of tokens count so much more (FastEmit, arXiv:2010.11148); where something learns, the value too
    is larger by this share, as NeMo reports it.
    """
    blank, label, durations = arc_scores(joint, frames, predictions, targets)
    if not joint.durations:
        return lattice_losses(blank[..., None], label[..., None], lengths, target_lengths, (1,), (0,), fastemit)
    blank_under, label_under = blank - sigma, label - sigma
    moving = [index for index, duration in enumerate(joint.durations) if duration > 0]
    losses = lattice_losses(
        blank_under[..., None] + durations[..., moving],
        label_under[..., None] + durations,
        lengths,
        target_lengths,
        tuple(joint.durations[index] for index in moving),
        joint.durations,
        fastemit,
    )
    if omega:
        plain = lattice_losses(blank[..., None], label[..., None], lengths, target_lengths, (1,), (0,), fastemit)
        losses = omega * plain + (1.0 - omega) * losses
    return losses


def arc_scores(joint: Joint, frames: Tensor, predictions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of the blank [B, T, U+1], of the next target token [B, T, U+1] and of durations [B, T, U+1, A].

    Projected frames [B, T, J], predictions [B, U+1, J], targets [B, U]. The token after the last one is the blank.
    Scores are computed for a few frames at a time, and again for the gradient: there only where it is not zero, unless
    adapters or a dropout act in the joint.
    """
    nexts = torch.nn.functional.pad(targets, (0, 1), value=joint.blank)  # [B, U+1]
    scores = joint.blank + 1 + len(joint.durations)
    size = max(1, CHUNK_SCORES // (frames.size(0) * predictions.size(1) * scores))
    random = any(isinstance(part, torch.nn.Dropout) and part.training for part in joint.joint_net)
    if torch.is_grad_enabled() and (random or joint.sum.acts()):
        parts = [run_checkpointed(compute_arcs, joint, part, predictions, nexts) for part in frames.split(size, dim=1)]
        found = torch.cat(parts, dim=1)
    else:
        found = Arcs.apply(joint, size, frames, predictions, nexts, *joint.joint_net.parameters())  # type: ignore[no-untyped-call]
    return found[..., 0], found[..., 1], found[..., 2:]


def compute_arcs(joint: Joint, frames: Tensor, predictions: Tensor, nexts: Tensor) -> Tensor:
    """Log-probabilities of blank, next token and durations, [B, T, U+1, 2 + A].

    Projected frames [B, T, J], predictions [B, U+1, J], nexts [B, U+1]: the next tokens.
    """
    values = joint(frames, predictions).float()
    blank, label = KeptColumns.apply(values[..., : joint.blank + 1], nexts)  # type: ignore[no-untyped-call]
    durations = values[..., joint.blank + 1 :].log_softmax(-1)
    return torch.cat((blank.unsqueeze(-1), label.unsqueeze(-1), durations), dim=-1)


class Arcs(Function):
    """The arcs of a few frames at a time, whose gradient is computed only for the tokens that alignments come to.

    In the frames of a part these are few of U+1 once a model has learnt, and a band around the diagonal before.
    """

    @staticmethod
    def forward(
        ctx: Any, joint: Joint, size: int, frames: Tensor, predictions: Tensor, nexts: Tensor, *parameters: Tensor
    ) -> Tensor:
        """size: frames of a part. frames [B, T, J], predictions [B, U+1, J], nexts [B, U+1] -> [B, T, U+1, 2 + A]

        parameters: of the joint, each of its own shape, so that they get gradients.
        """
        ctx.joint, ctx.size, ctx.parameters = joint, size, parameters
        ctx.save_for_backward(frames, predictions, nexts)
        return torch.cat([compute_arcs(joint, part, predictions, nexts) for part in frames.split(size, dim=1)], dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the arcs, [B, T, U+1, 2 + A] -> those of frames, predictions and parameters."""
        frames, predictions, nexts = ctx.saved_tensors
        learning = [parameter for parameter in ctx.parameters if parameter.requires_grad]
        (grad,) = grads
        weight = grad.abs().amax(-1)  # [B, T, U+1]
        counts = ~(weight <= NEGLIGIBLE * weight.max())  # what is not a number counts
        found = [torch.zeros_like(each) for each in (frames, predictions, *learning)]
        for begin in range(0, frames.size(1), ctx.size):
            part = slice(begin, begin + ctx.size)
            tokens = cover(counts[:, part].any(1))  # [B, W]
            if not tokens.size(1):
                continue
            index = tokens[:, None, :, None].expand(-1, grad[:, part].size(1), -1, grad.size(-1))
            wide = tokens[..., None].expand(-1, -1, predictions.size(-1))
            heard, told = frames[:, part].detach().requires_grad_(), predictions.gather(1, wide).requires_grad_()
            with torch.enable_grad():
                arcs = compute_arcs(ctx.joint, heard, told, nexts.gather(1, tokens))
            own, said, *others = torch.autograd.grad(arcs, [heard, told, *learning], grad[:, part].gather(2, index))
            found[0][:, part] = own
            found[1].scatter_add_(1, wide, said)
            for whole, other in zip(found[2:], others, strict=True):
                whole += other
        rest = iter(found[2:])
        return (
            None,
            None,
            found[0],
            found[1],
            None,
            *(next(rest) if each.requires_grad else None for each in ctx.parameters),
        )


def cover(counts: Tensor) -> Tensor:
    """The smallest stretches of one width that hold all places that count: [B, U+1] bool -> places [B, W]."""
    places = counts.size(1)
    first = counts.int().argmax(1)
    last = places - 1 - counts.flip(1).int().argmax(1)
    width = int(torch.where(counts.any(1), last - first + 1, 0).max())
    return first.clamp(max=places - width)[:, None] + torch.arange(width, device=counts.device)


class KeptColumns(Function):
    """Two columns of a log-softmax: of the blank, which is the last, and of one token for each place."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, nexts: Tensor) -> tuple[Tensor, Tensor]:
        """scores [B, t, U+1, V+1], nexts [B, U+1] int64 -> log-probabilities [B, t, U+1] of blank and token."""
        whole = scores.logsumexp(-1)
        index = nexts[:, None, :, None].expand(-1, scores.size(1), -1, 1)
        ctx.save_for_backward(scores, whole, index)
        return scores[..., -1] - whole, scores.gather(-1, index).squeeze(-1) - whole

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Gradients [B, t, U+1] of both columns -> that of the scores."""
        blank, label = grads
        scores, whole, index = ctx.saved_tensors
        grad = (scores - whole.unsqueeze(-1)).exp_().mul_(-(blank + label).unsqueeze(-1))
        grad[..., -1] += blank
        grad.scatter_add_(-1, index, label.unsqueeze(-1))
        return grad, None


def lattice_losses(
    blank: Tensor,
    label: Tensor,
    lengths: Tensor,
    target_lengths: Tensor,
    blank_steps: Sequence[int],
    label_steps: Sequence[int],
    fastemit: float = 0.0,
) -> Tensor:
    """The negative log-likelihood over all alignments, [B].

    blank [B, T, U+1, A]: scores of the arcs that say nothing and go `blank_steps` frames on, each at least one.
    label [B, T, U+1, A']: scores of the arcs that say the next token and go `label_steps` frames on, perhaps none.
    An alignment ends with a blank arc that leads just behind the last frame.
    """
    losses: Tensor = Lattice.apply(  # type: ignore[no-untyped-call]
        blank, label, lengths, target_lengths, tuple(blank_steps), tuple(label_steps), fastemit
    )
    return losses


class Lattice(Function):
    """Forward and backward sums over the lattice, in float64; the gradient is the occupation of every arc."""

    @staticmethod
    def forward(
        ctx: Any,
        blank: Tensor,
        label: Tensor,
        lengths: Tensor,
        target_lengths: Tensor,
        blank_steps: tuple[int, ...],
        label_steps: tuple[int, ...],
        fastemit: float,
    ) -> Tensor:
        """blank [B, T, U+1, A], label [B, T, U+1, A'], lengths [B], target_lengths [B] -> [B]"""
        wide = (blank.double(), label.double())
        alpha = forward_sums(*wide, blank_steps, label_steps)
        ends = end_scores(wide[0], lengths, target_lengths, blank_steps)  # [B, T, U+1, A]
        whole = (alpha.unsqueeze(-1) + ends).flatten(1).logsumexp(1)  # [B]
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            ctx.grads = occupations(
                *wide, alpha, ends, whole, lengths, target_lengths, blank_steps, label_steps, fastemit
            )
            ctx.dtype = blank.dtype
            whole = whole * (1.0 + fastemit)
        return -whole.to(blank.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the losses, [B] -> that of blank and label."""
        (grad,) = grads
        blank, label = (-grad.view(-1, 1, 1, 1) * each.to(ctx.dtype) for each in ctx.grads)
        return blank, label, None, None, None, None, None


def forward_sums(blank: Tensor, label: Tensor, blank_steps: Sequence[int], label_steps: Sequence[int]) -> Tensor:
    """blank [B, T, U+1, A], label [B, T, U+1, A'] -> alpha [B, T, U+1]: sums over all ways to a place."""
    rows, count, places, _ = blank.shape
    climbs = climb_sums(label, label_steps)  # [B, T, U+1]
    alpha = blank.new_full((rows, count, places), -torch.inf)
    for t in range(count):
        arriving = []
        if t == 0:
            first = alpha.new_full((rows, places), -torch.inf)
            first[:, 0] = 0.0
            arriving.append(first)
        for index, step in enumerate(blank_steps):
            if step <= t:
                arriving.append(alpha[:, t - step] + blank[:, t - step, :, index])
        for index, step in enumerate(label_steps):
            if 0 < step <= t:
                said = alpha[:, t - step, :-1] + label[:, t - step, :-1, index]
                arriving.append(torch.nn.functional.pad(said, (1, 0), value=-torch.inf))
        inflow = arriving[0] if len(arriving) == 1 else torch.stack(arriving).logsumexp(0)
        alpha[:, t] = inflow if climbs is None else climbs[:, t] + (inflow - climbs[:, t]).logcumsumexp(1)
    return alpha


def climb_sums(label: Tensor, label_steps: Sequence[int]) -> Tensor | None:
    """label [B, T, U+1, A'] -> the score of saying the first u tokens within one frame, [B, T, U+1]; or None.

    None stands for arcs that all go at least one frame on.
    """
    if 0 not in label_steps:
        return None
    within = label[:, :, :-1, list(label_steps).index(0)].cumsum(2)
    return torch.nn.functional.pad(within, (1, 0))


def end_scores(blank: Tensor, lengths: Tensor, target_lengths: Tensor, blank_steps: Sequence[int]) -> Tensor:
    """blank [B, T, U+1, A] -> the same on arcs that end an alignment, -inf elsewhere."""
    count, places = blank.shape[1:3]
    time = torch.arange(count, device=blank.device)
    step = torch.tensor(blank_steps, device=blank.device)
    at_end = (time[:, None] + step == lengths[:, None, None])[:, :, None, :]  # [B, T, 1, A]
    at_last = (torch.arange(places, device=blank.device) == target_lengths[:, None])[:, None, :, None]
    return blank.masked_fill(~(at_end & at_last), -torch.inf)


def occupations(
    blank: Tensor,
    label: Tensor,
    alpha: Tensor,
    ends: Tensor,
    whole: Tensor,
    lengths: Tensor,
    target_lengths: Tensor,
    blank_steps: Sequence[int],
    label_steps: Sequence[int],
    fastemit: float,
) -> tuple[Tensor, Tensor]:
    """The share of alignments that take an arc: [B, T, U+1, A] of blanks, [B, T, U+1, A'] of labels.

    blank, ends [B, T, U+1, A], label [B, T, U+1, A'], alpha [B, T, U+1], whole [B], lengths, target_lengths [B].
    """
    rows, count, places, _ = blank.shape
    climbs = climb_sums(label, label_steps)
    beta = blank.new_full((rows, count, places), -torch.inf)
    none = blank.new_full((rows, places), -torch.inf)
    finite = torch.where(whole.isfinite(), whole, 0.0)[:, None]
    taken_blank, taken_label = torch.zeros_like(blank), torch.zeros_like(label)
    for t in reversed(range(count)):
        leaving = []
        for index, step in enumerate(blank_steps):
            onward = blank[:, t, :, index] + beta[:, t + step] if t + step < count else none
            onward = torch.logaddexp(onward, ends[:, t, :, index])
            taken_blank[:, t, :, index] = (alpha[:, t] + onward - finite).exp()
            leaving.append(onward)
        for index, step in enumerate(label_steps):
            if step > 0 and t + step < count:
                said = label[:, t, :-1, index] + beta[:, t + step, 1:]
                taken_label[:, t, :-1, index] = (alpha[:, t, :-1] + said - finite).exp()
                leaving.append(torch.nn.functional.pad(said, (0, 1), value=-torch.inf))
        outflow = leaving[0] if len(leaving) == 1 else torch.stack(leaving).logsumexp(0)
        if climbs is None:
            beta[:, t] = outflow
            continue
        beta[:, t] = (climbs[:, t] + outflow).flip(1).logcumsumexp(1).flip(1) - climbs[:, t]
        index = list(label_steps).index(0)
        said = label[:, t, :-1, index] + beta[:, t, 1:]
        taken_label[:, t, :-1, index] = (alpha[:, t, :-1] + said - finite).exp()
    return taken_blank, taken_label * (1.0 + fastemit)

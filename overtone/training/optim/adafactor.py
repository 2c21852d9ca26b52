"""Adafactor (Shazeer and Stern 2018, https://arxiv.org/abs/1804.04235) with NeMo's numbers, which PyTorch's are not.

Second moments of matrices are kept as their sums over rows and columns. The learning rate is that of the schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class Adafactor(Optimizer):
    """Steps of parameters of any shape, by gradients over the root of their factored second moment."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float = 1e-3,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        beta1: float | None = None,
        weight_decay: float = 0.0,
        scale_parameter: bool = True,
    ) -> None:
        """eps: added to squared gradients; smallest size of a parameter. clip_threshold: largest size of an update.

        decay_rate: power of the step in the weight of the past. beta1: of a momentum; None: none.
        scale_parameter: multiply the rate by each tensor's size, the root of its mean square.
        Raises ValueError for values that are not allowed.
        """
        faults = min(lr, weight_decay, *eps) < 0 or clip_threshold <= 0 or decay_rate >= 0 or len(eps) != 2
        if faults or (beta1 is not None and not 0 <= beta1 < 1):
            raise ValueError(
                f"eps {eps}, clip_threshold {clip_threshold}, decay_rate {decay_rate}, beta1 {beta1}: not allowed; "
                "eps are two numbers, decay_rate is below 0, beta1 from 0 to below 1"
            )
        options = {"lr": lr, "eps": eps, "clip_threshold": clip_threshold, "decay_rate": decay_rate}
        options |= {"beta1": beta1, "weight_decay": weight_decay, "scale_parameter": scale_parameter}
        super().__init__(parameters, options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step of every parameter that has a gradient; return the closure's result, run with gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.step_one(parameter, parameter.grad.float(), group)
        return loss

    def step_one(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        """Make a step of a parameter with its gradient, both of the same shape."""
        state = self.state[parameter]
        state["step"] = state.get("step", 0) + 1
        rate = group["lr"]
        if group["scale_parameter"]:
            rate = rate * max(group["eps"][1], float(root_mean_square(parameter)))
        past = 1.0 - math.pow(state["step"], group["decay_rate"])
        update = gradient * inverse_root(state, gradient.square() + group["eps"][0], past)
        update = update / (root_mean_square(update) / group["clip_threshold"]).clamp(min=1.0) * rate
        if group["beta1"] is not None:
            mean = state.setdefault("mean", torch.zeros_like(update))
            update = mean.mul_(group["beta1"]).add_(update, alpha=1 - group["beta1"])
        parameter.mul_(1 - group["weight_decay"] * rate)
        parameter.sub_(update)


def inverse_root(state: dict[str, Any], squared: Tensor, past: float) -> Tensor:
    """The inverse root [..., R, C] of the second moment, into which the squared gradient [..., R, C] is counted.

    state: the moment's sums so far. past: their weight.
    """
    if squared.dim() < 2:
        moment: Tensor = state.setdefault("squares", torch.zeros_like(squared))
        moment.mul_(past).add_(squared, alpha=1 - past)
        return moment.rsqrt()
    for name, axis in (("rows", -1), ("columns", -2)):
        sums = squared.mean(dim=axis)
        state.setdefault(name, torch.zeros_like(sums)).mul_(past).add_(sums, alpha=1 - past)
    rows, columns = state["rows"], state["columns"]
    factor: Tensor = (rows / rows.mean(dim=-1, keepdim=True)).rsqrt().unsqueeze(-1) * columns.unsqueeze(-2).rsqrt()
    return factor


def root_mean_square(values: Tensor) -> Tensor:
    """A scalar: the size of a tensor of any shape."""
    size: Tensor = values.norm(2) / math.sqrt(values.numel())
    return size

"""Adan (Xie et al. 2022, https://arxiv.org/abs/2208.06677), which PyTorch does not have: Adam that looks ahead.

It keeps the means of the gradient, of its change from step to step, and of the square of both together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

BETAS = (0.98, 0.92, 0.99)
"""Weights of the past, as in the paper's code and in NeMo."""


class Adan(Optimizer):
    """Steps of parameters of any shape, with the numbers of NeMo's."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float = 1e-3,
        betas: tuple[float, ...] = BETAS,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float = 0.0,
        no_prox: bool = False,
    ) -> None:
        """betas: of gradient, change and squares. max_grad_norm: largest norm of all gradients; 0: no limit.

        no_prox: weights decay before the step, as in AdamW, instead of after it.
        Raises ValueError for betas that are not three, from 0 to below 1, and negative numbers elsewhere.
        """
        betas_fit = len(betas) == 3 and all(0 <= beta < 1 for beta in betas)
        if not betas_fit or min(lr, eps, weight_decay, max_grad_norm) < 0:
            raise ValueError(f"lr {lr}, betas {betas}, eps {eps}, weight_decay {weight_decay}: not allowed for adan")
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(parameters, {**options, "max_grad_norm": max_grad_norm, "no_prox": no_prox})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step of every parameter that has a gradient; return the closure's result, run with gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            scale = 1.0
            if group["max_grad_norm"] > 0:
                gradients = [x.grad for x in group["params"] if x.grad is not None]
                scale = min(1.0, group["max_grad_norm"] / (float(nn.utils.get_total_norm(gradients)) + group["eps"]))
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.step_one(parameter, parameter.grad * scale, group)
        return loss

    def step_one(self, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]) -> None:
        """Make a step of a parameter with its gradient, both of the same shape."""
        state, (beta1, beta2, beta3) = self.state[parameter], group["betas"]
        if not state:
            state["step"] = 0
            state["before"] = gradient.clone()
            state |= {name: torch.zeros_like(gradient) for name in ("mean", "change", "squares")}
        state["step"] += 1
        step, difference = state["step"], gradient - state["before"]
        state["mean"].mul_(beta1).add_(gradient, alpha=1 - beta1)
        state["change"].mul_(beta2).add_(difference, alpha=1 - beta2)
        ahead = gradient + beta2 * difference
        state["squares"].mul_(beta3).addcmul_(ahead, ahead, value=1 - beta3)
        state["before"].copy_(gradient)
        root = (state["squares"].sqrt() / math.sqrt(1 - beta3**step)).add_(group["eps"])
        rate, decay = group["lr"], group["lr"] * group["weight_decay"]
        if group["no_prox"]:
            parameter.mul_(1 - decay)
        parameter.addcdiv_(state["mean"], root, value=-rate / (1 - beta1**step))
        parameter.addcdiv_(state["change"], root, value=-rate * beta2 / (1 - beta2**step))
        if not group["no_prox"]:
            parameter.div_(1 + decay)

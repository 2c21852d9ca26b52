"""NovoGrad (Ginsburg et al. 2019, https://arxiv.org/abs/1905.11286), which PyTorch does not have.

The second moment is one number for each tensor, so that it normalises layers and not weights: the optimiser of NeMo's
convolutional models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


class Novograd(Optimizer):
    """Steps of parameters of any shape: gradients over their tensor's norm, with momentum."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.95, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        grad_averaging: bool = False,
    ) -> None:
        """betas: of the momentum and of the mean of squared norms. grad_averaging: weigh gradients by 1 − betas[0].

        Raises ValueError for betas that are not from 0 to below 1, and negative numbers elsewhere.
        """
        if any(not 0 <= beta < 1 for beta in betas) or min(lr, eps, weight_decay) < 0:
            raise ValueError(f"lr {lr}, betas {betas}, eps {eps}, weight_decay {weight_decay}: not allowed")
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "grad_averaging": grad_averaging}
        super().__init__(parameters, options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step; closure computes the loss and the gradients anew."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.step_one(parameter, group)
        return loss

    def step_one(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        """Move one parameter."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
            state["squared_norm"] = torch.zeros((), device=parameter.device)
        momentum_share, norm_share = group["betas"]
        squared, before = gradient.norm().square(), state["squared_norm"]
        mean = norm_share * before + (1 - norm_share) * squared
        state["squared_norm"] = torch.where(before == 0, squared, mean)
        change = gradient / (state["squared_norm"].sqrt() + group["eps"]) + group["weight_decay"] * parameter
        if group["grad_averaging"]:
            change *= 1 - momentum_share
        state["momentum"].mul_(momentum_share).add_(change)
        parameter.add_(state["momentum"], alpha=-group["lr"])

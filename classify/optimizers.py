"""Optimizers and schedules for many networks at once: the same numbers as torch.optim gives each of them alone.

torch.optim has one learning rate and one weight decay for a tensor; here each network of a stack has its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "cosine", "step")
_CACHED = 250_000  # numbers of one parameter of all networks
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8  # torch's, which are those of Kingma and Ba 2015


def rate_factor(schedule: str, epoch: float, epochs: int) -> float:
    """Return what the learning rate is multiplied by in an epoch.

    Parameters
    ----------
    schedule : {"constant", "cosine", "step"}
        "cosine" falls to zero over `epochs` (Loshchilov and Hutter 2017, without restarts); "step" is a tenth after
        each third of them.
    epoch : float
        From 1 on; 1.5 in the middle of the first.
    epochs : int
        The most there will be.
    """
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (epoch - 1) / epochs))
    if schedule == "step":
        return float(0.1 ** ((epoch - 1) // math.ceil(epochs / 3)))
    return 1.0


class Optimizer:
    """The state of one optimizer for stacked parameters.

    Parameters
    ----------
    name : {"sgd", "adam", "adamw"}
        "sgd" has momentum without Nesterov's correction. Weight decay is decoupled in "adamw" alone (Loshchilov and
        Hutter 2019) and an L2 penalty in the others; biases decay too, as in torch.
    parameters : sequence of Tensor of shape (S, ...)
        Changed in place by `step`.
    lr, weight_decay : Tensor of shape (S, 1, ..., 1)
        One of each for each of S settings.
    momentum : float
        Of "sgd".
    """

    def __init__(
        self,
        name: str,
        parameters: Sequence[torch.Tensor],
        *,
        lr: torch.Tensor,
        weight_decay: torch.Tensor,
        momentum: float,
    ) -> None:
        import torch

        self.name = name
        self.lr = lr
        self.weight_decay = weight_decay
        self.momentum = momentum
        self.steps = 0
        self._penalty = name != "adamw" and bool(weight_decay.any())
        self._first = [torch.zeros_like(parameter) for parameter in parameters]
        self._second = [torch.zeros_like(parameter) for parameter in parameters] if name != "sgd" else []

    def step(self, parameters: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor], factor: float) -> None:
        """Move the parameters by one step; the gradients are used up.

        Parameters
        ----------
        parameters, gradients : sequence of Tensor of shape (S, ...)
        factor : float
            Of the learning rate, as `rate_factor` gives it.
        """
        self.steps += 1
        for number, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
            # What does not fit a core's cache is done setting by setting: a step goes over its numbers ten times.
            wide = parameter.numel() > _CACHED
            parts = [slice(at, at + 1) for at in range(len(parameter))] if wide else [slice(None)]
            for part in parts:
                self._step(number, part, parameter[part], gradient[part], factor * self.lr[part])

    def _step(
        self, number: int, part: slice, parameter: torch.Tensor, gradient: torch.Tensor, lr: torch.Tensor
    ) -> None:
        decay, first = self.weight_decay[part], self._first[number][part]
        if self.name == "adamw":
            parameter.mul_(1 - lr * decay)
        elif self._penalty:
            gradient.add_(parameter * decay)
        if self.name == "sgd":
            parameter.sub_(lr * first.mul_(self.momentum).add_(gradient))
            return
        # Kingma and Ba 2015, algorithm 1.
        second = self._second[number][part].mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
        first.lerp_(gradient, 1 - _BETA1)
        spread = second.sqrt().mul_((1 - _BETA2**self.steps) ** -0.5).add_(_EPSILON)
        parameter.addcdiv_(first * (lr / (_BETA1**self.steps - 1)), spread)

    def keep(self, settings: torch.Tensor) -> None:
        """Go on with some of the settings only, (S,) bool."""
        self.lr, self.weight_decay = self.lr[settings], self.weight_decay[settings]
        self._first = [state[settings] for state in self._first]
        self._second = [state[settings] for state in self._second]

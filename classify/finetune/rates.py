"""A learning rate from a range test: raise it step by step until the loss bursts, and stay well below.

Smith 2017, "Cyclical learning rates for training neural networks", section 3.3. The rule by which a rate is read off
the curve is one of Howard and Gugger's fastai: a tenth of that at which the loss is lowest. Where it falls fastest,
their other rule, is at a few steps of a few images as good as drawn by lot: the loss swings, and the last swing before
it bursts is the largest.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import TrainingError
from .inputs import Inputs
from .loader import shuffled
from .loop import step_seed
from .stepper import Stepper

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("headstart.finetune")

STEPS = 40
MOST_IMAGES = 16  # a step: what the loss does is seen with few, and the test should take seconds
LOWEST = {"sgd": 1e-4, "adam": 1e-6, "adamw": 1e-6}
HIGHEST = {"sgd": 10.0, "adam": 0.1, "adamw": 0.1}
SETTLED = 10  # steps after which the running mean is one
BURST = 1.3  # times the lowest loss: it rises for good
LEARNT = 0.2  # of the highest loss: with few images, which come again, it falls to nothing at any rate
_SMOOTHING = 0.8  # of the running mean


def find_rate(
    stepper: Stepper, train: Inputs, seed: int, progress: Callable[[int], None] = lambda _: None
) -> tuple[float, list[dict[str, Any]]]:
    """Return a learning rate, and the curve that it was read off.

    The network and the optimizer are left as they were. The test sees training pictures alone, and is the same for the
    same seed.

    Parameters
    ----------
    stepper : Stepper
    train : Inputs
    seed : int
    progress : callable
        Told how many pictures went through.

    Returns
    -------
    rate : float
    curve : list of dict
        ``lr`` and the smoothed ``loss`` of each step.

    Raises
    ------
    TrainingError
        The loss is not a number from the beginning.
    """
    network = stepper.network
    before = {name: value.clone() for name, value in network.changing().items()}
    optimizer, scaler = stepper.optimizer.state_dict(), stepper.scaler.state_dict()
    curve: list[dict[str, Any]] = []
    try:
        for rate, loss in _losses(stepper, train, seed, progress):
            previous = curve[-1]["loss"] if curve else loss
            curve.append({"lr": rate, "loss": _SMOOTHING * previous + (1 - _SMOOTHING) * loss})
            if _over([row["loss"] for row in curve]):
                break
    finally:
        network.restore(before)
        stepper.optimizer.load_state_dict(optimizer)
        stepper.optimizer.state.clear()
        stepper.scaler.load_state_dict(scaler)
    curve = [row for row in curve if math.isfinite(row["loss"])]
    if not curve:
        raise TrainingError(
            "the loss is not a number at the lowest rate already: try --precision float32 or other weights"
        )
    return below_lowest(curve), curve


def _losses(stepper: Stepper, train: Inputs, seed: int, progress: Callable[[int], None]) -> Any:
    """Yield rates and the losses of steps at them, before the step."""
    import torch

    name, ranks = stepper.options.optimizer, stepper.ranks
    rates = np.geomspace(LOWEST[name], HIGHEST[name], STEPS)
    size = min(MOST_IMAGES * ranks.world, len(train))
    plan: list[np.ndarray] = []
    while len(plan) < STEPS:
        plan += [rows for rows in shuffled(len(train), size, seed, len(plan)) if len(rows) >= ranks.world]
    plan = plan[:STEPS]
    batches = train.batches([ranks.share(rows) for rows in plan])
    stepper.network.train()
    for step, (rate, rows, (_, batch)) in enumerate(zip(rates.tolist(), plan, batches, strict=True)):
        torch.manual_seed(step_seed(seed, 0, step, ranks.rank))
        y = torch.from_numpy(train.subset.y[ranks.share(rows)])
        loss: Tensor = stepper.step(batch, y, total=len(rows), rate=rate, kept=train.frozen)
        progress(len(rows))
        yield rate, ranks.total([loss])[0] / len(rows)


def _over(losses: list[float]) -> bool:
    """Tell whether higher rates would show nothing more."""
    settled = losses[SETTLED:]
    if not math.isfinite(losses[-1]):
        return True
    return bool(settled) and (settled[-1] > BURST * min(settled) or settled[-1] < LEARNT * max(losses))


def below_lowest(curve: list[dict[str, Any]]) -> float:
    """Return a tenth of the rate at which the loss is lowest once it has settled.

    Parameters
    ----------
    curve : list of dict
        ``lr``, rising, and ``loss``, smoothed.
    """
    settled = curve[SETTLED:] or curve[-1:]
    return float(min(settled, key=lambda row: row["loss"])["lr"]) / 10

"""A network in eval mode: embeddings and logits of pictures, and what they are worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..metrics import accuracy, log_loss
from ..network import softmax
from .inputs import Inputs
from .loader import in_order
from .stepper import Stepper, in_halves

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Scored:
    """What a network says of some pictures.

    Attributes
    ----------
    X : ndarray of shape (n, D), dtype float32
        Embeddings.
    logits : ndarray of shape (n, K), dtype float64
    y : ndarray of shape (n,), dtype int64
    """

    X: np.ndarray
    logits: np.ndarray
    y: np.ndarray

    @property
    def loss(self) -> float:
        """Mean negative log likelihood of the labels; infinite where a logit is not a number."""
        return log_loss(self.y, softmax(self.logits)) if np.isfinite(self.logits).all() else float("inf")

    @property
    def accuracy(self) -> float:
        """Share of pictures whose class is the likeliest, 0 to 1."""
        return accuracy(self.y, self.logits.argmax(axis=1))


SAVED = "float32"  # the precision of a saved model


def score(
    stepper: Stepper,
    inputs: Inputs,
    progress: Callable[[int], None] = lambda _: None,
    *,
    precision: str | None = None,
) -> Scored:
    """Let a network look at all pictures of a subset, without augmentation; each process at its share.

    Parameters
    ----------
    stepper : Stepper
        With the network; `piece` pictures go through it at a time.
    inputs : Inputs
    progress : callable
        Told how many pictures went through.
    precision : str, optional
        That of training where it is None. What is saved is measured as it will predict, in `SAVED`.
    """
    import torch

    network, ranks = stepper.network, stepper.ranks
    ranks.align(network)
    network.eval()

    def embed(batch: torch.Tensor) -> torch.Tensor:
        return network.embed(batch.to(stepper.at), kept=inputs.frozen)

    mine = ranks.share(np.arange(len(inputs)))
    plan = [mine[rows] for rows in in_order(len(mine), stepper.piece)]
    X, logits = [], []
    with torch.no_grad(), stepper.device.autocast(precision or stepper.precision):
        for rows, batch in inputs.batches(plan):
            embedded = in_halves(embed, batch, stepper.device.name)
            X.append(embedded.float().cpu().numpy())
            logits.append(network.head(embedded).cpu().double().numpy())
            progress(len(rows))
    layers = network.head_widths
    found = [np.concatenate([np.zeros((0, width), dtype), *parts]) for width, dtype, parts in (
        (layers[0], np.float32, X), (layers[-1], np.float64, logits)
    )]  # fmt: skip
    together = ranks.together(mine, found, len(inputs))
    return Scored(together[0], together[1], inputs.subset.y)

"""Log losses of a tile of rows, their slopes in the logits and their curvature, for many fits at once."""

from __future__ import annotations

import numpy as np

Spread = tuple[np.ndarray, np.ndarray]
"""``tr(diag(p) - p p')`` of each row, summed over fits, (m,), and the sum of ``diag(p) - p p'``, (K, K)."""


Residual = tuple[np.ndarray, np.ndarray, Spread | None]


def softmax_loss(logits: np.ndarray, y: np.ndarray, weight: np.ndarray, curved: bool) -> Residual:
    """Return loss (p,), its slope (p, K, m) in the logits, which are overwritten, and what curves.

    The class of a row is left out of the sum over the others, so that where it is nearly certain, as it is for most
    rows under a weak penalty, neither ``-log p`` nor ``p - 1`` is the difference of two numbers near 1: in float32 it
    would have few digits or none.
    """
    columns = np.arange(len(y))
    logits -= logits.max(axis=1, keepdims=True)
    own = logits[:, y, columns]
    np.exp(logits, out=logits)
    top = np.exp(own)
    logits[:, y, columns] = 0
    others = logits.sum(axis=1)
    total = others + top
    losses = (np.log1p(others + (top - 1)) - own) * weight[:, 0]
    spread = None
    if curved:
        spread = _softmax_spread(logits / total[:, None], others / total, top / total, y, weight)
    logits *= weight / total[:, None]
    logits[:, y, columns] = -others / total * weight[:, 0]
    return losses.sum(axis=1, dtype=np.float64), logits, spread


def _softmax_spread(
    proba: np.ndarray, wrong: np.ndarray, right: np.ndarray, y: np.ndarray, weight: np.ndarray
) -> Spread:
    """Return ``tr(diag(p) - p p')`` of each row, summed over fits, and the sum of ``diag(p) - p p'``, (K, K).

    `proba` (p, K, m) has 0 for the class of the row, which has the probability `right`; `wrong` is all others.
    """
    share = ((2 * wrong - wrong * wrong - (proba * proba).sum(axis=1)) * weight[:, 0]).sum(axis=0)
    proba[:, y, np.arange(len(y))] = right
    product = ((proba * weight) @ proba.transpose(0, 2, 1)).sum(axis=0, dtype=np.float64)
    np.fill_diagonal(product, 0)  # rows add up to 0: what is left of 1 - p is not computed from p
    return np.maximum(share, 0), np.diag(product.sum(axis=1)) - product


def sigmoid_loss(logits: np.ndarray, Y: np.ndarray, weight: np.ndarray, curved: bool) -> Residual:
    """Return loss (p,), its slope (p, K, m) in the logits, and what curves, of independent labels."""
    sign = np.where(Y.T, 1, -1).astype(logits.dtype)
    margin = logits * sign
    small = np.exp(-np.abs(margin))
    losses = (np.maximum(-margin, 0) + np.log1p(small)) * weight
    slope = -sign * weight * np.where(margin > 0, small, 1) / (1 + small)
    spread = None
    if curved:
        each = small / (1 + small) ** 2 * weight
        spread = each.sum(axis=(0, 1)), np.diag(each.sum(axis=(0, 2), dtype=np.float64))
    return losses.sum(axis=(1, 2), dtype=np.float64), slope, spread

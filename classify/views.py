"""Embeddings of several views of each image: numbered deterministic augmentations, view 0 the plain evaluation crop.

A head trains on all views of an image. How features are shifted and divided, and whatever is chosen, measured or shown,
goes by view 0 alone, which is what prediction will see.
"""

from __future__ import annotations

import numpy as np


def plain_of(X: np.ndarray) -> np.ndarray:
    """Return view 0 of each image, (n, D): `X` itself where it is that, a part of it without a copy where it is not.

    Parameters
    ----------
    X : ndarray of shape (n, D), or (n, V, D)
        Embeddings, of V views of each image in the second form.
    """
    return X if X.ndim == 2 else X[:, 0]


def with_views(X: np.ndarray) -> np.ndarray:
    """Return embeddings as (n, V, D): of one view each where they are (n, D). Nothing is copied."""
    return X[:, None] if X.ndim == 2 else X


def of_rows(values: np.ndarray, n_views: int) -> np.ndarray:
    """Return what belongs to images (n, ...) for each of their rows, (n * V, ...); as it is where V is 1."""
    return values if n_views == 1 else values.repeat(n_views, axis=0)


def as_rows(X: np.ndarray) -> np.ndarray:
    """Return (n * V, D): the V views of an image one after the other. Nothing is copied where `X` is contiguous."""
    return X.reshape(-1, X.shape[-1])

"""What is done to embeddings before a head sees them: lengths made equal, standardisation, principal components.

It is learnt from all training rows at once, without their labels, so folds share it; decision 0018 says what that
means for cross-validated scores.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import ModelError, TrainingError, UsageError

_TINY = np.finfo(np.float32).tiny
_BLOCK_NUMBERS = 1 << 20  # of features that are taken to float64 at a time


def standardisation(X: np.ndarray, blocks: Sequence[int] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Learn by what features are shifted and divided.

    The variance of a feature over a few images is mostly luck: of two images that differ, every feature would become
    plus or minus one. So variances are drawn towards their mean, the more the less sure they are: by the share
    ``sum_k Var(v_k) / sum_k (v_k - mean(v))^2``, at most 1, that makes their expected squared error least (Opgen-Rhein
    and Strimmer 2007, "Accurate ranking of differentially expressed genes by a distribution-free shrinkage approach",
    with the mean as target). It vanishes as images become many.

    Parameters
    ----------
    X : ndarray of shape (n, D), dtype float32
    blocks : sequence of int, optional
        Widths, D together, of the pieces within which variances are drawn together; one where there are none.

    Returns
    -------
    mean, scale : ndarray of shape (D,), dtype float32
        The scale is 1 where a feature never varies.
    """
    return standardisation_of(*_moments(X), blocks)


def standardisation_of(
    mean: np.ndarray, variance: np.ndarray, noise: np.ndarray, blocks: Sequence[int] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Return what `standardisation` does, by mean, unbiased variance and sampling variance of that, (D,) float64."""
    scale = np.empty(len(mean))
    for start, end in itertools.pairwise([0, *np.cumsum(blocks or [len(mean)]).tolist()]):
        scale[start:end] = np.sqrt(_shrunk(variance[start:end], noise[start:end]))
    # A feature that varies by rounding alone counts as constant, as in scikit-learn's StandardScaler.
    constant = np.sqrt(variance) <= 10 * np.finfo(np.float32).eps * np.abs(mean)
    return mean.astype(np.float32), np.where(constant, 1.0, scale).astype(np.float32)


def _moments(X: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean, unbiased variance and the sampling variance of that, of each feature, (D,) float64."""
    n = len(X)
    mean = X.mean(axis=0, dtype=np.float64)
    second, fourth = np.zeros_like(mean), np.zeros_like(mean)
    rows = max(1, _BLOCK_NUMBERS // max(1, X.shape[1]))
    for start in range(0, n, rows):
        squares = np.square(X[start : start + rows] - mean)
        second += squares.sum(axis=0)
        fourth += np.square(squares).sum(axis=0)
    if n < 3:  # of two rows nothing tells how sure their variance is
        return mean, second, np.full_like(mean, np.inf)
    return mean, second / (n - 1), n / (n - 1) ** 3 * np.maximum(fourth - second * second / n, 0)


def _shrunk(variance: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Draw variances (d,) towards their mean, given the sampling variance of each."""
    target = variance.mean()
    apart = float(np.square(variance - target).sum())
    share = min(1.0, float(noise.sum()) / apart) if apart > 0 else 0.0
    return np.asarray(share * target + (1 - share) * variance)


@dataclass(frozen=True, slots=True)
class Preparation:
    """Turns embeddings into what a head is fitted on.

    Attributes
    ----------
    mean, scale : ndarray of shape (D,), dtype float32
        Standardisation.
    blocks : ndarray of shape (b,), dtype int64
        Widths, D together, of the pieces of an embedding that are divided by their length first, one for each backbone
        or layer; empty where lengths stay as they are.
    projection : ndarray of shape (D, r), dtype float32, or None
        Principal axes of the standardised features; None where all are kept.
    """

    mean: np.ndarray
    scale: np.ndarray
    blocks: np.ndarray
    projection: np.ndarray | None = None

    @property
    def n_features(self) -> int:
        """Width of the embeddings that go in."""
        return len(self.mean)

    @property
    def n_outputs(self) -> int:
        """Width of what comes out."""
        return len(self.mean) if self.projection is None else int(self.projection.shape[1])

    def apply(self, X: np.ndarray) -> np.ndarray:
        """Return what a head sees, (n, r) float32, of embeddings (n, D) float32.

        Raises
        ------
        ModelError
            The embeddings have another width.
        """
        if X.ndim != 2 or X.shape[1] != self.n_features:
            raise ModelError(f"the head takes embeddings of width {self.n_features}, and got an array of {X.shape}")
        Z = (blocks_of_length_one(X, self.blocks) - self.mean) / self.scale
        return np.asarray(Z if self.projection is None else Z @ self.projection, np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all numbers by name, to be saved."""
        projection = {} if self.projection is None else {"projection": self.projection}
        return {"mean": self.mean, "scale": self.scale, "blocks": self.blocks, **projection}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Preparation:
        """Rebuild it from `arrays`.

        Raises
        ------
        ModelError
            An array is missing, or the shapes do not fit each other.
        """
        none = np.zeros(0, np.int64)
        try:
            made = cls(arrays["mean"], arrays["scale"], arrays.get("blocks", none), arrays.get("projection"))
        except KeyError as error:
            raise ModelError(f"the saved head lacks the array {error}") from error
        width = made.mean.shape[0] if made.mean.ndim == 1 else -1
        blocks_fit = made.blocks.dtype == np.int64 and made.blocks.ndim == 1 and made.blocks.sum() in (0, width)
        projection_fits = made.projection is None or (
            made.projection.shape[:1] == (width,) and made.projection.ndim == 2
        )
        if made.scale.shape != made.mean.shape or not blocks_fit or (made.blocks < 1).any() or not projection_fits:
            raise ModelError("the arrays of the saved head do not fit each other")
        return made


def fit_preparation(
    X: np.ndarray, *, l2_norm: bool = False, blocks: Sequence[int] = (), pca: float | None = None
) -> Preparation:
    """Learn how training embeddings are prepared.

    Parameters
    ----------
    X : ndarray of shape (n, D), dtype float32
    l2_norm : bool, default False
        Divide each block of an embedding by its length first.
    blocks : sequence of int, optional
        Widths of the blocks, D together; one block where there are none.
    pca : int or float, optional
        Keep so many principal components of the standardised features, or as many as explain this share, between 0 and
        1, of their variance; never more than ``min(n - 1, D)``. All features where it is None.

    Raises
    ------
    UsageError
        `pca` means nothing.
    """
    widths = np.array(blocks or (X.shape[1],), np.int64) if l2_norm else np.zeros(0, np.int64)
    scaled = blocks_of_length_one(X, widths)
    mean, scale = standardisation(scaled, blocks)
    return Preparation(mean, scale, widths, None if pca is None else principal_axes((scaled - mean) / scale, pca))


def of_length_one(X: np.ndarray) -> np.ndarray:
    """Return rows (n, D) float32 divided by their lengths; a row of zeros stays one."""
    X = np.asarray(X, np.float32)
    return np.asarray(X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), _TINY), np.float32)


def blocks_of_length_one(X: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Return rows (n, D) float32 whose blocks of these widths have length one each; `X` itself where there are none."""
    if not widths.size:
        return X
    ends = np.cumsum(widths).tolist()
    result = np.empty(X.shape, np.float32)
    for start, end in itertools.pairwise([0, *ends]):
        result[:, start:end] = of_length_one(X[:, start:end])
    return result


def principal_axes(Z: np.ndarray, pca: float) -> np.ndarray:
    """Return the axes of largest variance, (D, r) float32, by the smaller of the two Gram matrices."""
    check_pca(pca)
    wide = Z.shape[1] > Z.shape[0]
    gram = (Z @ Z.T if wide else Z.T @ Z).astype(np.float64)
    values, axes = _axes_of(gram, len(Z), pca)
    return np.asarray(Z.T @ (axes / np.sqrt(values)) if wide else axes, np.float32)


def axes_of_gram(gram: np.ndarray, n_rows: int, pca: float) -> np.ndarray:
    """Return the axes of largest variance, (D, r) float32, of so many rows whose products ``Z.T @ Z`` (D, D) are."""
    check_pca(pca)
    return np.asarray(_axes_of(gram, n_rows, pca)[1], np.float32)


def check_pca(pca: float) -> None:
    """Raise UsageError where a number or share of components is none."""
    if not 0 < pca < float("inf") or (pca >= 1 and pca != int(pca)):
        raise UsageError(f"--pca must be a number of components or a share between 0 and 1, and is {pca:g}")


def _axes_of(gram: np.ndarray, n_rows: int, pca: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest eigenvalues (r,) of products of rows, and their axes, in columns."""
    values, vectors = np.linalg.eigh(gram)
    values, vectors = values[::-1].clip(0), vectors[:, ::-1]
    usable = int((values > 1e-7 * values[0]).sum())
    if not usable:
        raise TrainingError("all training embeddings are the same: nothing can be learnt from them")
    share = np.cumsum(values[:usable]) / values[:usable].sum()
    count = min(usable, n_rows - 1, int(pca) if pca >= 1 else int(np.searchsorted(share, pca)) + 1)
    return values[:count], vectors[:, :count]

"""What every fitted head comes down to: a standardisation, then linear layers with ReLU between them.

Prediction is plain numpy, so a saved model needs neither torch nor scikit-learn to speak.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..errors import ModelError

BLOCK_ROWS = 8192  # rows that are standardised at a time, which bounds the memory beside X


def standardisation(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each feature, (D,) float32 each; 1 where a feature never varies."""
    mean = X.mean(axis=0, dtype=np.float64)
    scale = X.std(axis=0, dtype=np.float64)
    # A feature that varies by rounding alone counts as constant, as in scikit-learn's StandardScaler.
    constant = scale <= 10 * np.finfo(np.float32).eps * np.abs(mean)
    return mean.astype(np.float32), np.where(constant, 1.0, scale).astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities (n, K) float64 of logits (n, K)."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    result: np.ndarray = shifted / shifted.sum(axis=1, keepdims=True)
    return result


@dataclass(frozen=True, slots=True)
class Network:
    """A fitted head.

    Attributes
    ----------
    mean, scale : ndarray of shape (D,), dtype float32
        Standardisation, from the training rows.
    weights : tuple of ndarray of shape (width, width before), dtype float32
        The last one has a row a class.
    biases : tuple of ndarray of shape (width,), dtype float32
    """

    mean: np.ndarray
    scale: np.ndarray
    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]

    @property
    def n_features(self) -> int:
        """Width of the embeddings that go in."""
        return len(self.mean)

    @property
    def n_classes(self) -> int:
        """Number of classes that come out."""
        return len(self.biases[-1])

    def logits(self, X: np.ndarray) -> np.ndarray:
        """Return unnormalised log probabilities (n, K) float64 of embeddings (n, D) float32.

        Raises
        ------
        ModelError
            The embeddings have another width.
        """
        if X.ndim != 2 or X.shape[1] != self.n_features:
            raise ModelError(f"the head takes embeddings of width {self.n_features}, and got an array of {X.shape}")
        result = np.empty((len(X), self.n_classes))
        for start in range(0, len(X), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            result[rows] = self._block((X[rows] - self.mean) / self.scale)
        return result

    def _block(self, values: np.ndarray) -> np.ndarray:
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            values = values @ weight.T + bias
            if number < len(self.weights) - 1:
                values = np.maximum(values, 0)
        return values

    def predict_proba(self, X: np.ndarray, temperature: float = 1.0) -> np.ndarray:
        """Return probabilities (n, K) float64; a temperature above 1 makes them less sure."""
        return softmax(self.logits(X) / temperature)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all numbers by name, to be saved."""
        layers = {f"weight_{i}": weight for i, weight in enumerate(self.weights)}
        layers |= {f"bias_{i}": bias for i, bias in enumerate(self.biases)}
        return {"mean": self.mean, "scale": self.scale, **layers}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Network:
        """Rebuild a network from `arrays`.

        Raises
        ------
        ModelError
            An array is missing, or the shapes do not fit each other.
        """
        count = sum(name.startswith("weight_") for name in arrays)
        try:
            weights = tuple(arrays[f"weight_{i}"] for i in range(count))
            biases = tuple(arrays[f"bias_{i}"] for i in range(count))
            network = cls(arrays["mean"], arrays["scale"], weights, biases)
        except KeyError as error:
            raise ModelError(f"the saved head lacks the array {error}") from error
        widths = [network.n_features, *(len(bias) for bias in biases)]
        shapes = [(after, before) for before, after in itertools.pairwise(widths)]
        if not count or network.scale.shape != network.mean.shape or [w.shape for w in weights] != shapes:
            raise ModelError("the arrays of the saved head do not fit each other")
        if any(array.dtype != np.float32 or not np.isfinite(array).all() for array in network.arrays().values()):
            raise ModelError("the arrays of the saved head are not finite numbers of 32 bits")
        return network

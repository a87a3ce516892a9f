"""What fitted heads come down to: a preparation, then linear layers with ReLU between them.

Prediction is plain numpy, so a saved model needs neither torch nor scikit-learn to speak.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import ModelError
from .preparation import Preparation

BLOCK_ROWS = 8192  # rows that are standardised at a time, which bounds the memory beside X


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities (n, K) float64 of logits (n, K)."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    result: np.ndarray = shifted / shifted.sum(axis=1, keepdims=True)
    return result


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return probabilities (n, K) float64, each label by itself, of logits (n, K)."""
    small = np.exp(-np.abs(logits.astype(np.float64)))
    return np.asarray(np.where(logits >= 0, 1.0, small) / (1 + small))


def forward(Z: np.ndarray, weights: Sequence[np.ndarray], biases: Sequence[np.ndarray]) -> np.ndarray:
    """Return what linear layers with ReLU between them, as in `Network`, make of prepared embeddings (n, r)."""
    for number, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        Z = Z @ weight.T + bias
        if number < len(weights) - 1:
            Z = np.maximum(Z, 0)
    return Z


@dataclass(frozen=True, slots=True)
class Network:
    """A fitted head.

    Attributes
    ----------
    preparation : Preparation
        What is done to embeddings first; its output is what the first layer takes.
    weights : tuple of ndarray of shape (width, width before), dtype float32
        The last one has a row a class.
    biases : tuple of ndarray of shape (width,), dtype float32
    """

    preparation: Preparation
    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]

    @property
    def n_features(self) -> int:
        """Width of the embeddings that go in."""
        return self.preparation.n_features

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
        result = np.empty((len(X), self.n_classes))
        for start in range(0, len(X), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            result[rows] = forward(self.preparation.apply(X[rows]), self.weights, self.biases)
        return result

    def predict_proba(self, X: np.ndarray, temperature: float = 1.0) -> np.ndarray:
        """Return probabilities (n, K) float64; a temperature above 1 makes them less sure."""
        return softmax(self.logits(X) / temperature)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all numbers by name, to be saved."""
        layers = {f"weight_{i}": weight for i, weight in enumerate(self.weights)}
        layers |= {f"bias_{i}": bias for i, bias in enumerate(self.biases)}
        return {**self.preparation.arrays(), **layers}

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
            network = cls(Preparation.from_arrays(arrays), weights, biases)
        except KeyError as error:
            raise ModelError(f"the saved head lacks the array {error}") from error
        widths = [network.preparation.n_outputs, *(len(bias) for bias in biases)]
        shapes = [(after, before) for before, after in itertools.pairwise(widths)]
        if not count or [w.shape for w in weights] != shapes:
            raise ModelError("the arrays of the saved head do not fit each other")
        numbers = [array for name, array in network.arrays().items() if name != "blocks"]
        if any(array.dtype != np.float32 or not np.isfinite(array).all() for array in numbers):
            raise ModelError("the arrays of the saved head are not finite numbers of 32 bits")
        return network

"""Embeddings of the sample photographs, made once for all tests of this folder."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from headstart import extract
from headstart.classify.dataset import labelled_set
from headstart.extract.features import load_features


@pytest.fixture(scope="session")
def embedded_samples(
    samples: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return a function of a set's name that gives its training embeddings, labels and groups of copies."""
    cache = tmp_path_factory.mktemp("samples") / "cache"

    def take(dataset: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        extract(samples / dataset, "efficientnet_lite0", cache=cache)
        labelled = labelled_set(load_features(cache, samples / dataset))
        X, y = labelled.part("train")
        return X, y.astype(np.int64), labelled.group[labelled.split == "train"]

    return take

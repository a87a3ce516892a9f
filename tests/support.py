"""Small things that several tests build: a feature space, rows to put in it."""

import numpy as np

from headstart.cache.space import FeatureSpace


def make_space(**changes: object) -> FeatureSpace:
    fields = {
        "backbone": "resnet18",
        "library": "torchvision",
        "weights": "ab" * 32,
        "layer": "fc.input",
        "pool": "none",
        "dim": 8,
        "preprocess": {"resize": 256, "crop": 224, "mean": [0.485, 0.456, 0.406]},
        "decoder": 1,
    }
    return FeatureSpace(**{**fields, **changes})


def random_rows(count: int, seed: int = 0, dim: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Return digests (count, 32) uint8 and embeddings (count, dim) float32."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 32), dtype=np.uint8), rng.standard_normal((count, dim), dtype=np.float32)

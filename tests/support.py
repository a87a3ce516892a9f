"""Small things that several tests build: a feature space, rows to put in it, a listing; and damage."""

from pathlib import Path

import numpy as np

from headstart.cache.listing import Listing
from headstart.cache.part import Keys
from headstart.cache.space import FeatureSpace
from headstart.cache.store import FeatureStore


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


def add_rows(store: FeatureStore, space: FeatureSpace, digest: np.ndarray, rows: np.ndarray) -> None:
    """Publish rows as one part."""
    store.prepare(space)
    with store.writer(space) as writer:
        writer.add(Keys.plain(digest), rows)


def listing_of(digest: np.ndarray, root: str = "photos", **changes: object) -> Listing:
    """Return a listing of two classes whose images have these digests."""
    count = len(digest)
    fields = {
        "root": root,
        "source": f"/somewhere/{root}",
        "layout": "classes",
        "classes": ("ant", "bee"),
        "paths": [b"%04d.jpg" % number for number in range(count)],
        "label": (np.arange(count) % 2).astype(np.int32),
        "split": np.zeros(count, np.uint8),
        "stat": np.full((count, 4), 5, np.int64),
        "digest": digest,
        "scanned_ns": 10**18,
    }
    return Listing(**{**fields, **changes})


def flip(path: Path, position: int) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[position] ^= 16
    path.write_bytes(data)

"""A cache of made-up rows for the benchmarks, written through the store like any other."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from headstart.cache.part import Keys
from headstart.cache.space import FeatureSpace
from headstart.cache.store import FeatureStore


def make_space(dim: int) -> FeatureSpace:
    return FeatureSpace(
        backbone="made-up",
        library="none",
        weights="0" * 64,
        layer="none",
        pool="none",
        dim=dim,
        preprocess={},
        decoder=0,
    )


def random_rows(count: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return digests (count, 32) uint8 and embeddings (count, dim) float32."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 32), dtype=np.uint8), rng.standard_normal((count, dim), dtype=np.float32)


def fill(folder: Path, space: FeatureSpace, digest: np.ndarray, rows: np.ndarray, batch: int = 4096) -> FeatureStore:
    """Write rows into a cache in `folder`, in batches."""
    store = FeatureStore(folder)
    store.prepare(space)
    with store.writer(space) as writer:
        for start in range(0, len(digest), batch):
            writer.add(Keys.plain(digest[start : start + batch]), rows[start : start + batch])
    return store


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin

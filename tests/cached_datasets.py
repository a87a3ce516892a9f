"""Datasets that are in a cache without a picture of them on the disk: embeddings, labels, splits, hashes as one likes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headstart.cache.listing import SPLITS, Listing, save_listing
from headstart.cache.space import FeatureSpace
from headstart.cache.store import FeatureStore
from headstart.cache.tags import Tags
from headstart.extract.features import Features
from headstart.extract.preprocess import Preprocess
from support import add_rows, make_space


@dataclass
class Made:
    """What a dataset is made of; change a field and `put` it in a cache."""

    X: np.ndarray
    y: np.ndarray  # (n,) int, or (n, K) bool
    split: np.ndarray  # "", "train", "val", "test"
    digest: np.ndarray
    phash: np.ndarray
    classes: tuple[str, ...]

    @property
    def space(self) -> FeatureSpace:
        return make_space(dim=self.X.shape[1], preprocess=Preprocess(resize=256, crop=224).as_dict())

    def listing(self, source: str = "/somewhere/photos") -> Listing:
        several = self.y.ndim == 2
        return Listing(
            root="photos",
            source=source,
            layout="splits",
            classes=self.classes,
            paths=[b"%04d.jpg" % number for number in range(len(self.y))],
            label=np.full(len(self.y), -1, np.int32) if several else self.y.astype(np.int32),
            split=np.array([SPLITS.index(split) for split in self.split], np.uint8),
            stat=np.full((len(self.y), 4), 5, np.int64),
            digest=self.digest,
            phash=self.phash,
            spaces=(self.space.id,),
            request={},
            scanned_ns=10**18,
            tags=Tags(self.y.sum(axis=1).astype(np.int32), np.nonzero(self.y)[1].astype(np.int32)) if several else None,
        )

    def put(self, cache: Path, **where: str) -> Path:
        """Add the rows to a cache and make this its latest dataset; return the cache."""
        store, listing = FeatureStore(cache), self.listing(**where)
        add_rows(store, self.space, *_first_of_each(self.digest, self.X))
        save_listing(cache, listing)
        return cache

    def features(self, cache: Path) -> Features:
        self.put(cache)
        return Features(self.listing(), (self.space,), FeatureStore(cache))


def _first_of_each(digest: np.ndarray, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first = np.sort(np.unique(digest, axis=0, return_index=True)[1])
    return digest[first], X[first]


def _rest(count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return splits, one in four val, digests and hashes that are no copies."""
    return {
        "split": np.where(np.arange(count) % 4 == 3, "val", "train").astype("<U5"),
        "digest": rng.integers(0, 256, (count, 32), dtype=np.uint8),
        "phash": rng.integers(2, 1 << 64, count, dtype=np.uint64),
    }


def classes_made(count: int = 80, n_classes: int = 3, dim: int = 12, seed: int = 0, spread: float = 1.5) -> Made:
    """Return a dataset of one class an image; classes overlap as `spread` grows."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(count) % n_classes)
    centres = 2 * rng.standard_normal((n_classes, dim))
    X = (centres[y] + spread * rng.standard_normal((count, dim))).astype(np.float32)
    return Made(X, y, **_rest(count, rng), classes=tuple("abcdefgh"[:n_classes]))


def labels_made(count: int = 120, n_labels: int = 4, dim: int = 12, seed: int = 0, noise: float = 1.0) -> Made:
    """Return a dataset in which an image has any number of labels, each by a direction of its own."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((count, dim)).astype(np.float32)
    scores = X[:, :n_labels] * 3 + noise * rng.standard_normal((count, n_labels))
    return Made(X, scores > 1, **_rest(count, rng), classes=tuple("pqrstuvw"[:n_labels]))

"""Embeddings of real photographs, computed once a session."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import headstart

BACKBONE = "efficientnet_lite0"


@dataclass
class Embedded:
    train: np.ndarray
    y: np.ndarray
    val: np.ndarray
    groups: np.ndarray


def _embedded(data: Path, cache: Path) -> Embedded:
    features = headstart.extract(data, backbone=BACKBONE, cache=cache)
    training = features.split != "val"
    groups = np.unique(features.digest[training], axis=0, return_inverse=True)[1].reshape(-1)
    return Embedded(features.X[training], features.y[training].astype(np.int64), features.X[~training], groups)


@pytest.fixture(scope="session")
def photographs(samples, tmp_path_factory) -> dict[str, Embedded]:
    cache = tmp_path_factory.mktemp("photographs")
    return {name: _embedded(samples / name, cache) for name in ("hymenoptera", "hotdog")}


@pytest.fixture(scope="session")
def drawings(samples, tmp_path_factory) -> np.ndarray:
    """Embeddings of flat, noisy and smooth pictures, 30 of each, which nobody photographed."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("drawings")
    for number in range(30):
        blobs = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((256, 256), Image.BICUBIC)
        pictures = {
            "noise": rng.integers(0, 256, (256, 256, 3), dtype=np.uint8),
            "flat": np.full((256, 256, 3), rng.integers(0, 256, 3), np.uint8),
            "blobs": np.asarray(blobs),
        }
        for kind, pixels in pictures.items():
            (folder / kind).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(folder / kind / f"{number}.png")
    return _embedded(folder, tmp_path_factory.mktemp("drawings_cache")).train

"""What all tests share: where the sample photographs are, and a feature space to put rows in."""

import os
import shutil
from pathlib import Path

import pytest

from headstart.cache.space import FeatureSpace
from support import make_space


@pytest.fixture(scope="session")
def samples() -> Path:
    folder = os.environ.get("HEADSTART_SAMPLES")
    if not folder:
        pytest.skip("HEADSTART_SAMPLES names no folder of sample photographs")
    return Path(folder)


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a cache that the environment names out of the tests."""
    monkeypatch.delenv("HEADSTART_CACHE", raising=False)


@pytest.fixture
def space() -> FeatureSpace:
    return make_space()


@pytest.fixture(scope="session")
def few(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few real photographs, which must not be changed: 12 ants and 12 bees to train on, and 6 of each to validate."""
    folder = tmp_path_factory.mktemp("few") / "photographs"
    for split, count in (("train", 12), ("val", 6)):
        for name in ("ants", "bees"):
            (folder / split / name).mkdir(parents=True)
            for path in sorted((samples / "hymenoptera" / split / name).glob("*.jpg"))[:count]:
                shutil.copy(path, folder / split / name)
    return folder


@pytest.fixture
def object_store(monkeypatch: pytest.MonkeyPatch):
    """Serve a real S3 server on loopback with an empty bucket, which this process and those it starts reach as s3://."""
    from object_store import serving

    from headstart.cache import remote

    stores = serving()
    store = next(stores)
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    remote.filesystem.cache_clear()
    yield store
    remote.filesystem.cache_clear()
    stores.close()

"""What all tests share: where the sample photographs are, and a feature space to put rows in."""

import os
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

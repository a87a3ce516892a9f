"""A state machine of the store, which tests of folders and of buckets let hypothesis run."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from headstart.cache.part import Keys, read_embeddings
from headstart.cache.store import FeatureStore
from headstart.errors import CacheMissError, DamagedFileError
from support import add_rows, flip, make_space


class StoreMachine(RuleBasedStateMachine):
    """The store against a dict, through writes, overwrites of the same keys, and damage."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store = self.make_store()
        self.space = make_space(dim=2)
        self.parts = []  # (path, {key: row})

    def teardown(self):
        self.folder.cleanup()

    def make_store(self):
        return FeatureStore(Path(self.folder.name))

    def flip(self, path, where):
        flip(path, int(where * path.stat().st_size))

    def exists(self, path):
        return path.exists()

    @staticmethod
    def digest(key):
        return np.frombuffer(key.to_bytes(32, "big"), np.uint8)

    @rule(keys=st.lists(st.integers(0, 12), min_size=1, max_size=6, unique=True))
    def add(self, keys):
        known = set(self.store.parts(self.space.id))
        rows = np.array([[key, -key] for key in keys], np.float32)
        add_rows(self.store, self.space, np.stack([self.digest(key) for key in keys]), rows)
        (new,) = set(self.store.parts(self.space.id)) - known
        self.parts.append((new, set(keys)))

    @rule(which=st.integers(0, 100), where=st.floats(0, 1, exclude_max=True))
    def damage(self, which, where):
        if self.parts:
            path, _ = self.parts.pop(which % len(self.parts))
            self.flip(path, where)
            keys = Keys.plain(np.stack([self.digest(key) for key in range(13)]))
            with pytest.raises(CacheMissError):
                self.store.gather(self.space.id, Keys.concatenate([keys, Keys.plain(self.digest(99)[None])]))
            self.verify_damage(path)

    def verify_damage(self, path):
        """A flip where the reader of keys does not look is found when the rows are read."""
        if self.exists(path):
            with pytest.raises(DamagedFileError) as caught:
                read_embeddings(path)
            self.store.quarantine(path, caught.value)

    @invariant()
    def it_holds_what_the_dict_holds(self):
        keys = sorted(set().union(*(keys for _, keys in self.parts)) if self.parts else set())
        if keys:
            rows = self.store.gather(self.space.id, Keys.plain(np.stack([self.digest(key) for key in keys])))
            assert rows.tolist() == [[key, -key] for key in keys]
        missing = [key for key in range(13) if key not in keys]
        index, _ = self.store.index(self.space.id)
        assert (index.find(Keys.plain(np.stack([self.digest(key) for key in [*missing, 99]]))) == -1).all()

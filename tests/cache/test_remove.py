import shutil

import numpy as np
import pytest

from headstart.cache.compact import compact
from headstart.cache.datasets import load_listings
from headstart.cache.info import info
from headstart.cache.listing import save_listing
from headstart.cache.part import Keys
from headstart.cache.remove import remove
from headstart.cache.store import FeatureStore
from headstart.errors import CacheError, CacheMissError, UsageError
from support import add_rows, listing_of, make_space, random_rows

OTHER = make_space(backbone="resnet50")


@pytest.fixture
def store(tmp_path, space):
    store = FeatureStore(tmp_path / "cache")
    digest, rows = random_rows(10)
    add_rows(store, space, digest, rows)
    add_rows(store, OTHER, digest, rows)
    save_listing(store.root, listing_of(digest, root="one"))
    save_listing(store.root, listing_of(digest, root="two"))
    return store


def test_a_space_goes_by_the_beginning_of_its_id_and_the_others_stay(store, space):
    done = remove(store.root, space=space.id[:6])
    assert (done.kind, done.id, done.count) == ("space", space.id, 10)
    assert "resnet18" in done.lines()[0]
    assert list(store.spaces()) == [OTHER.id]
    assert not store.space_folder(space.id).exists()
    digest, rows = random_rows(10)
    np.testing.assert_array_equal(store.gather(OTHER.id, Keys.plain(digest)), rows)


def test_a_dataset_goes_by_root_or_id_and_the_rows_stay(store, space):
    listing = next(load_listings(store.root))
    assert remove(store.root, dataset=listing.source).count == 1
    (left,) = load_listings(store.root)
    assert remove(store.root, dataset=left.dataset_id).name == left.root
    assert list(load_listings(store.root)) == []
    assert info(store.root).spaces[0].orphans == 10
    assert compact(store.root, prune=True).pruned == 20


def test_what_is_not_there_or_not_clear_is_named(store, space):
    with pytest.raises(CacheMissError, match=f"no feature space 'zz'.*{space.id}"):
        remove(store.root, space="zz")
    with pytest.raises(CacheMissError, match="no feature space ''"):
        remove(store.root, space="")
    with pytest.raises(
        CacheMissError, match=r"holds no dataset three \(it has one \([0-9a-f]{16}\), two \([0-9a-f]{16}\)\)"
    ):
        remove(store.root, dataset="three")
    with pytest.raises(UsageError, match="either --space ID or --dataset DATA"):
        remove(store.root)


def test_a_beginning_that_fits_several_removes_none(store):
    spaces = [make_space(dim=dim) for dim in range(1, 18)]  # of seventeen ids, two begin with the same digit
    for space in spaces:
        store.prepare(space)
    first = [space.id[0] for space in spaces]
    digit = next(digit for digit in first if first.count(digit) > 1)
    with pytest.raises(UsageError, match=f"'{digit}' fits .* feature spaces"):
        remove(store.root, space=digit)
    assert set(store.spaces()) >= {space.id for space in spaces}


def test_a_removal_that_fails_half_way_leaves_nothing_that_is_read(store, space, monkeypatch):
    def broken(path):
        next(path.iterdir()).unlink()
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(shutil, "rmtree", broken)
    with pytest.raises(CacheError, match="EIO"):
        remove(store.root, space=space.id)
    assert list(store.spaces()) == [OTHER.id]
    assert info(store.root).temporary == 1

"""Perceptual hashes on their way into the listing: never at the cost of a warm run, and never lost."""

import os
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
from command_line import BACKBONE

import headstart as package
from headstart.cache.datasets import load_listing
from headstart.cache.listing import RACY_NS, save_listing
from headstart.extract.decode import decode
from headstart.extract.phash import phash


@pytest.fixture
def extract(headstart_json, photos):
    """Extract a folder, the photos unless told."""
    return lambda folder=photos, *options: headstart_json("extract", folder, "--backbone", BACKBONE, *options)


def hashes(photos):
    return load_listing(photos.parent / ".headstart", photos).phash


def true_hashes(photos):
    return np.array([phash(decode(path.read_bytes()).pixels) for path in sorted(photos.rglob("*.jpg"))])


def test_every_picture_that_is_embedded_gets_its_hash(extract, photos):
    extract()
    np.testing.assert_array_equal(hashes(photos), true_hashes(photos))
    features = package.extract(photos, BACKBONE)
    np.testing.assert_array_equal(features.phash, true_hashes(photos))
    assert features.phash.dtype == np.uint64 and features.embedded == 0


def forget(photos):
    """Publish the latest listing as it was before there were hashes."""
    cache = photos.parent / ".headstart"
    latest = load_listing(cache, photos)
    save_listing(cache, replace(latest, phash=np.zeros(len(latest), np.uint64)))


def test_a_warm_run_over_an_older_listing_reads_nothing_and_rehash_fills_it(extract, photos):
    extract()
    time.sleep(RACY_NS / 1e9 + 0.1)
    extract()
    forget(photos)
    warm = extract()
    assert (warm["embedded"], warm["stages"]["read"], warm["stages"]["decode"]) == (0, 0, 0)
    assert not hashes(photos).any()
    again = extract(photos, "--rehash")
    assert (again["embedded"], again["reused"], again["failed"], again["device"]) == (0, 36, 0, "none")
    np.testing.assert_array_equal(hashes(photos), true_hashes(photos))


def test_a_touched_file_keeps_its_hash_without_being_decoded(extract, photos):
    extract()
    for path in photos.rglob("*.jpg"):
        os.utime(path)
    done = extract()
    assert done["stages"]["read"] > 0 and done["stages"]["decode"] == 0
    np.testing.assert_array_equal(hashes(photos), true_hashes(photos))


def test_pictures_embedded_through_another_dataset_are_decoded_once_and_pass_no_network(extract, photos):
    extract()
    other = photos.parent / "other"
    shutil.copytree(photos, other)
    done = extract(other)
    assert (done["embedded"], done["reused"], done["device"]) == (0, 36, "none")
    assert done["stages"]["decode"] > 0 and done["images_per_second"] == 0
    np.testing.assert_array_equal(hashes(other), true_hashes(other))


def test_a_new_copy_tells_the_hash_of_the_old_picture(extract, photos):
    extract()
    time.sleep(RACY_NS / 1e9 + 0.1)
    extract()
    forget(photos)
    shutil.copy(photos / "circle" / "00.jpg", photos / "circle" / "zz.jpg")
    assert extract()["embedded"] == 0
    found = hashes(photos)
    assert np.flatnonzero(found).tolist() == [0, 12], "the copy was read, its original was not"
    assert found[0] == found[12] == true_hashes(photos)[0]


def test_predict_decodes_nothing_for_a_hash(headstart_json, extract, photos, monkeypatch):
    extract()
    model = headstart_json("fit-head")["out"]
    monkeypatch.setattr("headstart.extract.reader.phash", lambda _: pytest.fail("hashed"))
    headstart_json("predict", model, photos / "circle")

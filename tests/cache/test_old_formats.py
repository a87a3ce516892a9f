"""Caches that were written by any released format are read for ever; newer ones are refused and left alone."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from headstart.cache import block, part
from headstart.cache.compact import compact
from headstart.cache.datasets import require_listing
from headstart.cache.info import info
from headstart.cache.listing import save_listing
from headstart.cache.memo import recall
from headstart.cache.merge import merge
from headstart.cache.part import Keys
from headstart.cache.store import FeatureStore
from headstart.cache.verify import verify
from headstart.cli import main
from headstart.errors import CacheFormatError
from support import add_rows, listing_of, random_rows

FIXTURES = Path(__file__).parents[1] / "fixtures"
FULL, HALF = "0182b5338d69b453", "4182d5753b3ca095"
DIGEST = np.stack([np.frombuffer(hashlib.sha256(b"image %d" % n).digest(), np.uint8) for n in range(6)])
ROWS = np.arange(24, dtype=np.float32).reshape(6, 4) / 2


@pytest.fixture
def old(tmp_path):
    shutil.copytree(FIXTURES / "cache-1", tmp_path / "cache")
    return FeatureStore(tmp_path / "cache")


def tree(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def check_rows(store):
    np.testing.assert_array_equal(store.gather(FULL, Keys.plain(DIGEST)), ROWS)
    np.testing.assert_array_equal(store.gather(HALF, Keys.plain(DIGEST[:4])), ROWS[:4])
    views = Keys(DIGEST[:2], np.full(2, 77, np.uint64), np.array([1, 2], np.uint32))
    np.testing.assert_array_equal(store.gather(HALF, views), ROWS[:2] + 100)


def test_t10_format_1_is_read_as_it_was_written(old):
    before = tree(old.root)
    check_rows(old)
    space = old.space(FULL)
    assert (space.backbone, space.weights, space.dim, space.dtype) == ("resnet18", "5c" * 32, 4, "float32")
    assert old.space(HALF).dtype == "float16"
    assert old.heads(HALF)[-1].recipes == {"77": {"augment": "flip"}}
    listing = require_listing(old.root)
    assert (listing.root, listing.source, listing.layout) == ("photos", "/data/photos", "splits")
    assert (listing.classes, listing.paths) == (("ant", "bee"), [b"a.jpg", b"b\xff.jpg", b"c.jpg", b"d.jpg"])
    assert (listing.label.tolist(), listing.split.tolist()) == ([0, 1, 1, -1], [1, 2, 3, 0])
    assert (listing.failures, listing.spaces, listing.rules) == ({3: "truncated"}, (FULL,), "decoder 1")
    assert listing.usable.tolist() == [True, True, True, False]
    np.testing.assert_array_equal(listing.digest[:3], DIGEST[:3])
    np.testing.assert_array_equal(listing.stat, np.arange(16).reshape(4, 4))
    assert listing.phash.tolist() == [0] * 4, "written before there were perceptual hashes"
    assert recall(old.root, {"name": "resnet18"}) == {"dim": 4}
    assert verify(old.root).bad == []
    assert [(space.rows, space.superseded) for space in info(old.root).spaces] == [(6, 2), (6, 2)]
    assert tree(old.root) == before


def test_t10_a_listing_of_format_2_is_read_as_it_was_written(tmp_path):
    shutil.copytree(FIXTURES / "cache-2", tmp_path / "cache")
    before = tree(tmp_path / "cache")
    listing = require_listing(tmp_path / "cache")
    assert listing.failures == {1: "truncated", 2: "truncated", 3: "not found"}
    assert listing.usable.tolist() == [True, False, False, False]
    assert listing.paths == [b"a.jpg", b"b\xff.jpg", b"c.jpg", b"d.jpg"]
    (path,) = (tmp_path / "cache").rglob("*.h5")
    assert block.read_header(path).attributes["schema"] == 2
    assert verify(tmp_path / "cache").bad == []
    assert tree(tmp_path / "cache") == before


@pytest.mark.parametrize(("many", "schema"), [(4, 1), (3, 2)])
def test_only_a_listing_of_many_failures_needs_a_newer_reader(tmp_path, monkeypatch, many, schema):
    monkeypatch.setattr("headstart.cache.failures.MANY", many)
    failures = {1: "truncated", 2: "not found", 4: "truncated"}
    (tmp_path / "cache").mkdir()
    path = save_listing(tmp_path / "cache", listing_of(DIGEST, failures=failures))
    header = block.read_header(path)
    arrays = block.read_arrays(path, header, ("failed", "reason"))
    reasons = json.loads(arrays["reason"].tobytes())
    assert (header.attributes["schema"], arrays["failed"].tolist()) == (schema, [1, 2, 4])
    assert reasons == (["truncated", "not found", "truncated"] if schema == 1 else ["truncated", "not found"])
    assert require_listing(tmp_path / "cache").failures == failures


def test_t10_format_1_can_be_compacted_and_merged(old, tmp_path):
    compact(old.root, now=True)
    check_rows(old)
    assert len(old.parts(FULL)) == len(old.parts(HALF)) == 1
    merge(tmp_path / "new", old.root)
    check_rows(FeatureStore(tmp_path / "new"))


def newer_part(store, space, monkeypatch, what):
    """Publish a part that claims to be of the next format."""
    if what == "block":
        monkeypatch.setattr(block, "BLOCK_FORMAT", 2)
    else:
        monkeypatch.setattr(part, "PART_FORMAT", 2)
    add_rows(store, space, *random_rows(3, seed=4))
    monkeypatch.undo()


@pytest.mark.parametrize("what", ["block", "part"])
def test_f40_a_part_of_a_newer_format_is_refused_and_nothing_is_changed(tmp_path, space, monkeypatch, what):
    store = FeatureStore(tmp_path / "cache")
    digest, rows = random_rows(4)
    add_rows(store, space, digest[:2], rows[:2])
    add_rows(store, space, digest[2:], rows[2:])
    newer_part(store, space, monkeypatch, what)
    before = tree(store.root)
    said = r"was written by format 2, this reads up to 1; upgrade headstart"
    for use in (
        lambda: store.index(space.id),
        lambda: store.gather(space.id, Keys.plain(digest)),
        lambda: next(store.blocks(space.id, Keys.plain(digest))),
        lambda: compact(store.root, prune=True, now=True),
    ):
        with pytest.raises(CacheFormatError, match=said):
            use()
    ((_, error),) = verify(store.root).bad
    assert "upgrade headstart" in error
    assert any("upgrade headstart" in problem for problem in info(store.root).problems)
    done = merge(tmp_path / "ours", store.root)
    assert (done.rows, len(done.bad)) == (4, 1), "what can be read is taken"
    assert tree(store.root) == before


@pytest.mark.parametrize("what", ["block", "part"])
def test_a_flipped_bit_that_looks_like_a_newer_format_is_damage(tmp_path, space, monkeypatch, what):
    store = FeatureStore(tmp_path / "cache")
    newer_part(store, space, monkeypatch, what)
    (path,) = store.parts(space.id)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert len(store.index(space.id)[0]) == 0
    assert (store.root / "quarantine" / path.name).exists()


def test_f40_a_listing_or_a_space_of_a_newer_format_is_refused(tmp_path, space, monkeypatch, capsys):
    store = FeatureStore(tmp_path / "cache")
    digest, rows = random_rows(4)
    add_rows(store, space, digest, rows)
    monkeypatch.setattr("headstart.cache.listing.LISTING_FORMAT", 3)
    save_listing(store.root, listing_of(digest, spaces=(space.id,)))
    monkeypatch.undo()
    path = store.space_folder(space.id) / "space.json"
    content = json.loads(path.read_text())
    content["space"]["format"] = 2
    path.write_text(json.dumps(content))
    before = tree(store.root)
    assert main(["fit-head", "--cache", str(store.root)]) == 1
    assert "was written by format 3, this reads up to 2; upgrade headstart" in capsys.readouterr().err
    with pytest.raises(CacheFormatError, match="upgrade headstart"):
        store.space(space.id)
    with pytest.raises(CacheFormatError, match="upgrade headstart"):
        compact(store.root, prune=True)
    assert verify(store.root).status == 1
    assert len(info(store.root).problems) == 2
    assert tree(store.root) == before

import dataclasses
import os
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from headstart.cache.datasets import load_listing, require_listing
from headstart.cache.listing import Listing, carry_over, dataset_id, read_listing, save_listing
from headstart.cache.tags import Tags
from headstart.errors import CacheMissError, DamagedFileError

OLD = 1_000_000_000 * 10**9


def make_listing(root="photos", **changes) -> Listing:
    paths = [b"a/1.jpg", b"a/\xff\n.jpg", b"b/2 2.jpg"]
    fields = {
        "root": root,
        "source": str(Path(root).resolve()),
        "layout": "classes",
        "classes": ("a", "b \udcff<img>"),
        "paths": paths,
        "label": np.array([0, 0, 1], np.int32),
        "split": np.array([1, 1, 2], np.uint8),
        "stat": np.array([[10, OLD, OLD, 5], [11, OLD, OLD, 6], [12, OLD, OLD, 7]], np.int64),
        "digest": np.arange(96, dtype=np.uint8).reshape(3, 32),
        "failures": {1: "truncated"},
        "spaces": ("0123456789abcdef",),
        "request": {"weights": "default", "seed": 0},
        "rules": "decoder 1",
        "scanned_ns": OLD + 10**12,
        "phash": np.array([1, 0, 2**64 - 1], np.uint64),
    }
    return Listing(**{**fields, **changes})


def same(left, right):
    return all(
        np.array_equal(getattr(left, field.name), getattr(right, field.name)) for field in dataclasses.fields(Listing)
    )


def test_it_comes_back_as_it_was(tmp_path):
    listing = make_listing()
    path = save_listing(tmp_path, listing)
    assert path.parent == tmp_path / "datasets" / dataset_id(Path("photos"))
    assert same(load_listing(tmp_path, Path("photos")), listing)
    assert same(load_listing(tmp_path), listing)


def test_an_empty_dataset_comes_back_too(tmp_path):
    empty = make_listing(
        paths=[], label=np.zeros(0, np.int32), split=np.zeros(0, np.uint8), stat=np.zeros((0, 4), np.int64),
        digest=np.zeros((0, 32), np.uint8), phash=np.zeros(0, np.uint64), failures={},
    )  # fmt: skip
    save_listing(tmp_path, empty)
    assert same(load_listing(tmp_path), empty)


def test_the_latest_wins_even_when_the_clock_goes_back(tmp_path, monkeypatch):
    save_listing(tmp_path, make_listing(layout="csv"))
    monkeypatch.setattr(time, "time_ns", lambda: OLD)
    save_listing(tmp_path, make_listing(layout="flat"))
    assert load_listing(tmp_path, Path("photos")).layout == "flat"


def test_a_damaged_listing_is_passed_over_for_the_one_before(tmp_path, caplog):
    save_listing(tmp_path, make_listing(layout="csv"))
    path = save_listing(tmp_path, make_listing(layout="flat"))
    data = bytearray(path.read_bytes())
    data[data.index(b"a/1.jpg")] ^= 1
    path.write_bytes(data)
    assert load_listing(tmp_path).layout == "csv"
    assert f"{path} is damaged" in caplog.text


def test_h5py_alone_reads_it(tmp_path):
    path = save_listing(tmp_path, make_listing())
    with h5py.File(path, locking=False) as file:
        assert file["path"][()].tobytes().split(b"\0")[:-1] == make_listing().paths
        assert file["label"][()].tolist() == [0, 0, 1]


def with_tags(count=(2, 0, -1), index=(0, 1), **changes) -> Listing:
    tags = Tags(np.array(count, np.int32), np.array(index, np.int32))
    return make_listing(**{"label": np.full(3, -1, np.int32), "tags": tags, **changes})


def test_several_labels_come_back_and_h5py_alone_reads_them(tmp_path):
    path = save_listing(tmp_path, with_tags())
    assert same(read_listing(path), with_tags())
    with h5py.File(path, locking=False) as file:
        assert (file["tag_count"][()].tolist(), file["tag"][()].tolist()) == ([2, 0, -1], [0, 1])
        assert (file["tag_count"].dtype, file["tag"].dtype) == (np.int32, np.int32)


def test_no_image_with_any_label_and_no_class_at_all_come_back_too(tmp_path):
    for listing in (with_tags([0, 0, 0], []), with_tags([0, -1, 0], [], classes=())):
        assert same(read_listing(save_listing(tmp_path, listing)), listing)


def test_a_dataset_of_one_label_has_the_arrays_of_before_and_no_other(tmp_path):
    with h5py.File(save_listing(tmp_path, make_listing()), locking=False) as file:
        assert sorted(file) == ["classes", "digest", "failed", "label", "path", "phash", "reason", "split", "stat"]


@pytest.mark.parametrize(
    ("count", "index", "changes", "what"),
    [
        ([2, 0], [0, 1], {}, "labels of another shape"),
        ([2, 0, 1], [0, 1], {}, "counts of labels that do not add up"),
        ([2, 0, -2], [0, 1], {}, "counts of labels that do not add up"),
        ([2, 0, 0], [0, 2], {}, "labels without a class"),
        ([2, 0, 0], [-1, 0], {}, "labels without a class"),
        ([2, 0, 0], [1, 0], {}, "labels of an image that do not ascend"),
        ([0, 0, 2], [1, 1], {}, "labels of an image that do not ascend"),
        ([2, 0, 0], [0, 1], {"label": np.array([0, -1, -1], np.int32)}, "one label and several"),
    ],
)
def test_a_whole_file_of_labels_that_no_run_has_written_is_damaged(tmp_path, count, index, changes, what):
    path = save_listing(tmp_path, with_tags(count, index, **changes))
    with pytest.raises(DamagedFileError, match=rf"is damaged: it does not hold what a listing holds \({what}\)"):
        read_listing(path)


@pytest.mark.parametrize("left_out", ["tag", "tag_count"])
def test_counts_without_labels_or_labels_without_counts_are_damaged(tmp_path, monkeypatch, left_out):
    real = Tags.arrays
    monkeypatch.setattr(Tags, "arrays", lambda self: {k: v for k, v in real(self).items() if k != left_out})
    path = save_listing(tmp_path, with_tags())
    with pytest.raises(DamagedFileError, match=f"'{left_out}'"):
        read_listing(path)


def test_no_listing_says_what_to_run(tmp_path):
    assert load_listing(tmp_path / "absent") is None
    with pytest.raises(CacheMissError, match="holds nothing of photos; run `headstart extract photos` first"):
        require_listing(tmp_path, Path("photos"))
    with pytest.raises(CacheMissError, match="holds no dataset; run `headstart extract DATA` first"):
        require_listing(tmp_path)


def test_usable_leaves_out_failures_and_what_was_never_read():
    listing = make_listing(digest=np.stack([np.ones(32), np.ones(32), np.zeros(32)]).astype(np.uint8))
    assert listing.usable.tolist() == [True, False, False]


@pytest.mark.parametrize(("column", "name"), [(0, "size"), (1, "mtime"), (2, "ctime"), (3, "inode")])
def test_any_changed_column_means_reading_again(column, name):
    listing = make_listing()
    stat = listing.stat.copy()
    stat[2, column] += 1
    assert carry_over(listing, listing.paths, stat).tolist() == [0, 1, -1], name


def test_new_and_removed_files_do_not_shift_the_others():
    listing = make_listing()
    paths = [b"a/0.jpg", listing.paths[0], listing.paths[2]]
    stat = np.stack([listing.stat[1], listing.stat[0], listing.stat[2]])
    assert carry_over(listing, paths, stat).tolist() == [-1, 0, 2]


def test_a_file_written_just_before_it_was_listed_is_read_again():
    listing = make_listing(scanned_ns=OLD + 10**9)
    assert carry_over(listing, listing.paths, listing.stat).tolist() == [-1, -1, -1]


def test_an_edit_that_restores_size_and_mtime_is_seen(tmp_path):
    file = tmp_path / "1.jpg"
    file.write_bytes(b"one")
    before = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    assert (before.st_size, before.st_mtime_ns, before.st_ino) == (after.st_size, after.st_mtime_ns, after.st_ino)

    def row(s):
        return np.array([[s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino]], np.int64)

    listing = make_listing(
        paths=[b"1.jpg"], label=np.zeros(1, np.int32), split=np.zeros(1, np.uint8), stat=row(before),
        digest=np.ones((1, 32), np.uint8), phash=np.ones(1, np.uint64), failures={}, scanned_ns=before.st_ctime_ns + 10**12,
    )  # fmt: skip
    assert carry_over(listing, [b"1.jpg"], row(before)).tolist() == [0]
    assert carry_over(listing, [b"1.jpg"], row(after)).tolist() == [-1]


def test_says_the_same():
    listing = make_listing()
    assert listing.says_the_same(make_listing(scanned_ns=OLD + 10**13))
    assert not listing.says_the_same(make_listing(label=np.array([0, 1, 1], np.int32)))
    assert not listing.says_the_same(make_listing(spaces=("other",)))
    assert with_tags().says_the_same(with_tags())
    for other in (with_tags([1, 1, -1]), with_tags([2, 0, 0]), with_tags([1, 0, -1], [0]), with_tags(tags=None)):
        assert not with_tags().says_the_same(other)
        assert not other.says_the_same(with_tags())
    assert not listing.says_the_same(make_listing(phash=np.array([1, 5, 2**64 - 1], np.uint64)))
    fresh = make_listing(scanned_ns=OLD)
    assert not fresh.says_the_same(make_listing()), "files too young to be believed need a later listing"

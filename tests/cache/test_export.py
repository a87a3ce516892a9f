import errno
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

from headstart.cache import export as module
from headstart.cache.export import export
from headstart.cache.store import FeatureStore
from headstart.cache.tags import Tags
from headstart.errors import CacheError, CacheMissError
from support import add_rows, listing_of, random_rows


@pytest.fixture
def store(tmp_path, space):
    store = FeatureStore(tmp_path / "cache")
    digest, rows = random_rows(30)
    for start in (20, 0, 10):  # not the order of the listing
        add_rows(store, space, digest[start : start + 10], rows[start : start + 10])
    return store


def test_h5py_alone_reads_it(store, space, tmp_path):
    digest, rows = random_rows(30)
    split = np.array([0, 1, 2, 3] * 7 + [1, 1], np.uint8)
    listing = listing_of(digest, root="phötos", split=split, failures={4: "truncated"}, classes=("änt", "bee"))
    listing.label[3] = -1
    done = export(tmp_path / "new" / "features.h5", store, listing, space)
    program = (
        "import h5py, sys, json\n"
        "with h5py.File(sys.argv[1]) as file:\n"
        "    text = lambda name: [value.decode() for value in file[name][()]]\n"
        "    print(json.dumps([text('path'), text('label'), text('split'), list(file.attrs['classes']),"
        " file.attrs['root'], file['embedding'].shape, file['embedding'].dtype.str]))\n"
        "print(*[m for m in sys.modules if m.startswith('headstart')])"
    )
    answer = subprocess.run([sys.executable, "-c", program, done.out], capture_output=True, text=True, check=True)
    import json

    path, label, names, classes, root, shape, dtype = json.loads(answer.stdout.splitlines()[0])
    kept = [number for number in range(30) if number != 4]
    assert path == [f"{number:04d}.jpg" for number in kept]
    assert label == ["" if n == 3 else ("änt", "bee")[n % 2] for n in kept]
    assert names == [("", "train", "val", "test")[split[n]] for n in kept]
    assert (classes, root, shape, dtype) == (["änt", "bee"], "phötos", [29, 8], "<f4")
    assert answer.stdout.splitlines()[1] == "", "nothing of headstart is loaded"
    with h5py.File(done.out) as file:
        np.testing.assert_array_equal(file["embedding"][()], rows[kept])
        np.testing.assert_array_equal(file["digest"][()], digest[kept])
        assert file.attrs["space"] == space.json
        assert h5py.check_string_dtype(file["path"].dtype).encoding == "utf-8"
    assert (done.rows, done.dim, done.bytes) == (29, 8, done.out.stat().st_size)


def test_names_of_any_bytes_and_many_classes(store, space, tmp_path):
    digest, _ = random_rows(30)
    paths = [b"%02d.jpg" % number for number in range(29)] + [b"\xff\xfe.jpg"]
    classes = tuple(f"class {number} with a long name" for number in range(5000))
    done = export(tmp_path / "x.h5", store, listing_of(digest, paths=paths, classes=classes), space)
    with h5py.File(done.out) as file:
        assert file["path"][29] == b"\xff\xfe.jpg"
        assert list(file.attrs["classes"]) == list(classes)


def several(digest, classes=("änt", "bee", "cat"), **changes):
    """Return a listing whose images have none, the first, the second, both of the first two labels, and so on."""
    sets = [[label for label in range(3) if number >> label & 1] for number in range(len(digest))]
    count, index = [len(labels) for labels in sets], [label for labels in sets for label in labels]
    tags = Tags(np.array(count, np.int32), np.array(index, np.int32))
    return listing_of(digest, classes=classes, tags=tags, label=np.full(len(digest), -1, np.int32), **changes)


def test_the_names_of_several_labels_are_joined_by_bars(store, space, tmp_path):
    digest, _ = random_rows(30)
    done = export(tmp_path / "x.h5", store, several(digest, failures={5: "truncated"}), space)
    one = export(tmp_path / "y.h5", store, listing_of(digest), space)
    with h5py.File(done.out) as file, h5py.File(one.out) as plain:
        text = file["label"].asstr()[()].tolist()
        assert text[:7] == ["", "änt", "bee", "änt|bee", "cat", "bee|cat", "änt|bee|cat"], "5 failed and is left out"
        assert len(text) == 29
        assert (file.attrs["multi_label"], list(file.attrs["classes"])) == (1, ["änt", "bee", "cat"])
        assert "multi_label" not in plain.attrs


def test_names_of_several_labels_that_are_no_utf_8_are_bytes(store, space, tmp_path):
    digest, _ = random_rows(30)
    done = export(tmp_path / "x.h5", store, several(digest, classes=("a", "b", "c\udcff")), space)
    with h5py.File(done.out) as file:
        assert file["label"][3:6].tolist() == [b"a|b", b"c\xff", b"a|c\xff"]


def test_an_image_of_many_labels_does_not_make_every_row_as_long(store, space, tmp_path):
    digest, _ = random_rows(30)
    count = np.array([10_000, *[1] * 29], np.int32)
    tags = Tags(count, np.concatenate([np.arange(10_000), np.arange(29)]).astype(np.int32))
    names = tuple(f"{number:05d}" for number in range(10_000))
    listing = listing_of(digest, classes=names, tags=tags, label=np.full(30, -1, np.int32))
    done = export(tmp_path / "x.h5", store, listing, space)
    with h5py.File(done.out) as file:
        assert file["label"].asstr()[0] == "|".join(names)
        assert file["label"].asstr()[1:].tolist() == list(names[:29])
    assert done.bytes < 1e6, "60 kB of labels and some for the classes; 30 times 60 kB would be 1.8 MB"


def test_an_empty_dataset(store, space, tmp_path):
    done = export(tmp_path / "x.h5", store, listing_of(np.zeros((0, 32), np.uint8)), space)
    with h5py.File(done.out) as file:
        assert file["embedding"].shape == (0, 8)


def test_nothing_is_replaced_by_accident_and_nothing_half_written_is_left(store, space, tmp_path):
    out = tmp_path / "x.h5"
    out.write_bytes(b"mine")
    digest, _ = random_rows(30)
    with pytest.raises(CacheError, match="is there already; pass --overwrite"):
        export(out, store, listing_of(digest), space)
    stranger, _ = random_rows(31, seed=5)
    with pytest.raises(CacheMissError, match="lacks 31 of 31"):
        export(out, store, listing_of(stranger), space, overwrite=True)
    assert out.read_bytes() == b"mine"
    assert export(out, store, listing_of(digest), space, overwrite=True).rows == 30
    with pytest.raises(CacheError, match="is a folder; name a file"):
        export(tmp_path, store, listing_of(digest), space, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "x.h5"]


@pytest.mark.parametrize("listed", [listing_of, several])
@pytest.mark.parametrize("number", range(1, 12))
def test_a_full_disk_at_any_write_is_an_error_and_never_a_crash(store, space, tmp_path, number, listed, monkeypatch):
    """HDF5 ends the process when its file fails: it must not see the error."""
    count, real = 0, module._write_all

    def full(file, view):
        nonlocal count
        count += 1
        if count >= number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file, view)

    monkeypatch.setattr(module, "_write_all", full)
    digest, _ = random_rows(30)
    with pytest.raises(CacheError, match="disk full writing"):
        export(tmp_path / "x.h5", store, listed(digest), space)
    assert count == number, "nothing is written any more after the first error"
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]

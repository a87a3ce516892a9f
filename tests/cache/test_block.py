import time

import h5py
import numpy as np
import pytest

from headstart.cache import block
from headstart.errors import CacheFormatError, DamagedFileError


@pytest.fixture
def arrays():
    rng = np.random.default_rng(1)
    return {
        "embedding": rng.standard_normal((7, 5)).astype("<f4"),
        "digest": rng.integers(0, 256, (7, 32), dtype=np.uint8),
        "empty": np.zeros(0, "<i8"),
    }


@pytest.fixture
def path(tmp_path, arrays):
    target = tmp_path / "block.h5"
    target.write_bytes(b"".join(block.build(arrays, {"schema": 1, "space": "é" * 3})))
    return target


def test_h5py_alone_reads_it(path, arrays):
    with h5py.File(path, "r", locking=False) as file:
        assert set(file) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(file[name][()], array)
            assert file[name].chunks is None
        assert file.attrs["schema"] == 1
        assert file.attrs["space"] == "ééé"


def test_our_reader_agrees_with_h5py(path, arrays):
    header = block.read_header(path)
    assert header.attributes == {"schema": 1, "space": "ééé"}
    read = block.read_arrays(path, header, list(arrays))
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype


def test_the_bytes_are_the_same_every_time(arrays):
    before = block.build(arrays, {"a": 1})
    time.sleep(1.1)  # HDF5 would note the second
    assert block.build(arrays, {"a": 1}) == before


def test_a_block_is_built_around_the_arrays_without_copying_them(arrays):
    pieces = block.build(arrays, {"a": 1})
    shared = [np.frombuffer(piece, np.uint8) for piece in pieces if isinstance(piece, memoryview)]
    whole = [array for array in arrays.values() if array.size]
    assert len(shared) == len(whole)
    assert all(any(np.shares_memory(piece, array) for piece in shared) for array in whole)
    assert sum(len(piece) for piece in pieces if isinstance(piece, bytes)) < 20_000


def test_a_long_header_gets_a_larger_user_block(tmp_path, arrays):
    target = tmp_path / "long.h5"
    target.write_bytes(b"".join(block.build(arrays, {"text": "x" * 20_000})))
    assert block.read_header(target).base == 32_768
    with h5py.File(target, "r", locking=False) as file:
        np.testing.assert_array_equal(file["embedding"][()], arrays["embedding"])


def test_no_flipped_byte_is_silent(path, arrays):
    good = path.read_bytes()
    whole = block.file_hash([good])
    silent = []
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << (position % 8)
        path.write_bytes(bad)
        with pytest.raises(DamagedFileError):
            block.check_file(path, whole)
        try:
            read = block.read_arrays(path, block.read_header(path), list(arrays))
        except (DamagedFileError, CacheFormatError):
            continue
        # Bytes that the reader of single arrays does not use may differ, the arrays may not.
        silent += [position for name in arrays if not np.array_equal(read[name], arrays[name])]
    assert len(good) > 3000
    assert silent == []


def test_no_truncation_is_silent(path):
    good = path.read_bytes()
    for length in [0, 1, 60, 511, *range(512, len(good), 512), len(good) - 1]:
        path.write_bytes(good[:length])
        with pytest.raises(DamagedFileError):
            block.read_header(path)


def test_junk_behind_the_end_is_seen(path):
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DamagedFileError, match="bytes where"):
        block.read_header(path)


def test_a_newer_format_is_named(path):
    path.write_bytes(path.read_bytes().replace(b"headstart-block 1", b"headstart-block 3", 1))
    with pytest.raises(CacheFormatError, match="written by format 3, this reads up to 1; upgrade headstart"):
        block.read_header(path)


def _with_header(path, text):
    good = path.read_bytes()
    base = block.read_header(path).base
    line = b"headstart-block 1 %010d %010d %s\n" % (base, len(text), block.file_hash([text]).encode())
    path.write_bytes((line + text).ljust(base, b"\0") + good[base:])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'"shape":[7,5]', b'"shape":[9000000000,5]'),
        (b'"shape":[7,5]', b'"shape":[-7,5]'),
        (b'"dtype":"<f4"', b'"dtype":"|O8"'),
        (b'"dtype":"<f4"', b'"dtype":"<f9"'),
        (b'"arrays"', b'"arroys"'),
        (b'"image":', b'"image":9'),
    ],
)
def test_a_lying_header_with_a_right_checksum_is_refused_before_memory_is_taken(path, before, after):
    good = path.read_bytes()
    text = good[good.index(b"{") : good.index(b"\0")]
    assert before in text
    _with_header(path, text.replace(before, after, 1))
    with pytest.raises(DamagedFileError):
        block.read_header(path)


def test_an_absent_array_is_damage(path):
    with pytest.raises(DamagedFileError, match="array 'labels' is not in it"):
        block.read_arrays(path, block.read_header(path), ["labels"])

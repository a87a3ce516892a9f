"""The loop from files to rows: pictures that change while they are read, and embeddings that are no numbers."""

import hashlib
import io
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from command_line import BACKBONE, draw, headstart, headstart_json
from PIL import Image

import headstart as package
from headstart.cache.index import KeyIndex
from headstart.extract.decode import decode
from headstart.extract.embedder import Embedder
from headstart.extract.files import read_regular
from headstart.extract.preprocess import Preprocess, to_input
from headstart.extract.reader import Ahead, Item, Need, Reader
from support import make_space

__all__ = ["headstart", "headstart_json"]  # fixtures

SIDE = 64


@pytest.fixture
def reader(tmp_path) -> Reader:
    """A reader of whole pictures of 64 x 64 pixels, in front of an empty cache."""
    space = make_space(preprocess=Preprocess(resize=None, crop=SIDE).as_dict())
    return Reader(os.fsencode(tmp_path), [Need(Preprocess.from_dict(space.preprocess), [KeyIndex([])])])


@pytest.fixture
def opened():
    """Names of the files that Python opens from now on; the audit hook stays for good, so it is switched off after."""
    names, listening = [], [True]

    def hear(event, arguments):
        if listening and event == "open":
            names.append(arguments[0] if isinstance(arguments[0], int) else os.fsencode(arguments[0]))

    sys.addaudithook(hear)
    yield names
    listening.clear()


# One read


def bitmap(level: int) -> bytes:
    """Return a BMP of one grey level, whose pixels stand in it as they are."""
    file = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (level,) * 3).save(file, "BMP")
    return file.getvalue()


def test_f31_a_file_is_opened_once(tmp_path, reader, opened):
    path = os.fsencode(tmp_path / "a.bmp")
    (tmp_path / "a.bmp").write_bytes(bitmap(7))
    opened.clear()
    assert read_regular(path) == bitmap(7)
    assert opened == [path]
    item = reader.read(0, b"a.bmp")
    assert item.inputs and item.digest == hashlib.sha256(bitmap(7)).digest()
    assert opened.count(path) == 2


def test_f31_digest_and_pixels_are_of_the_same_bytes_while_a_file_is_rewritten(tmp_path, reader):
    path = tmp_path / "changing.bmp"
    light, dark = bitmap(200), bitmap(50)
    assert len(light) == len(dark)
    half = len(light) // 2
    # The writer goes half by half, so these are all that a file can be between two of its writes.
    versions = {name: top[:half] + end[half:] for name, top, end in (
        ("light", light, light), ("dark", dark, dark), ("dark, then light", dark, light), ("light, then dark", light, dark)
    )}  # fmt: skip
    wanted = {
        hashlib.sha256(data).digest(): (name, to_input(decode(data).pixels, Preprocess(resize=None, crop=SIDE))[0])
        for name, data in versions.items()
    }
    path.write_bytes(light)
    stop = threading.Event()

    def rewrite():
        descriptor = os.open(path, os.O_WRONLY)
        while not stop.is_set():
            for data in (dark, light):
                os.pwrite(descriptor, data[:half], 0)
                os.pwrite(descriptor, data[half:], half)
        os.close(descriptor)

    writer = threading.Thread(target=rewrite)
    writer.start()
    seen = dict.fromkeys((*versions, "torn"), 0)
    try:
        for count in range(20_000):
            item = reader.read(count, b"changing.bmp")
            name, pixels = wanted.get(item.digest, ("torn", item.inputs[0][0]))
            seen[name] += 1
            assert item.inputs, item.reason
            np.testing.assert_array_equal(
                item.inputs[0][0], pixels, err_msg=f"read {count}: the digest is that of {name}"
            )
            if count >= 300 and seen["light"] and seen["dark"]:
                break
    finally:
        stop.set()
        writer.join()
    assert seen["light"] and seen["dark"], f"the file did not change while it was read: {seen}"


# Reading ahead


class Slow:
    """A reader that waits for a sign before each image, and knows which it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.go = threading.Semaphore(0)

    def read(self, number: int, name: bytes) -> Item:
        assert name == b"%d" % number
        self.go.acquire()
        self.asked.append(number)
        return Item(number)


def ahead(pool, reader, images: int, **options) -> Ahead:
    todo = np.arange(images)[::-1]  # any order
    return Ahead(pool, reader, [b"%d" % number for number in range(images)], todo, 2, **options)


@pytest.mark.parametrize("together", [1, 3, 8, 1000])
@pytest.mark.parametrize("images", [0, 1, 7, 100, 333])
def test_items_come_in_the_order_asked_for_however_many_a_task_reads(images, together):
    reader = Slow()
    reader.go.release(images or 1)
    with ThreadPoolExecutor(2) as pool:
        items = [item.index for item in ahead(pool, reader, images, quiet=64, together=together)]
    assert items == list(range(images))[::-1] and sorted(reader.asked) == list(range(images))


@pytest.mark.parametrize("together", [1, 8])
def test_no_more_than_a_bounded_number_is_read_ahead_and_nothing_while_it_is_quiet(together):
    reader, bound, quiet = Slow(), 4 * 2 + 64, 64
    reader.go.release(1000)
    with ThreadPoolExecutor(2) as pool:
        items = ahead(pool, reader, 1000, quiet=quiet, together=together)
        items.wait(60)
        assert len(reader.asked) == bound
        given = iter(items)
        for _ in range(quiet - 1):
            next(given)
        items.wait(60)
        assert len(reader.asked) == bound, "the network has the cores to itself"
        for taken in range(quiet, 300):
            next(given)
            items.wait(60)
            assert bound - together < len(reader.asked) - taken <= bound


def test_a_run_that_stops_waits_for_one_picture_a_thread_and_not_for_those_of_its_task():
    reader = Slow()
    with ThreadPoolExecutor(2) as pool:
        items = ahead(pool, reader, 100)
        items.stop()
        pool.shutdown(wait=False, cancel_futures=True)
        reader.go.release(100)
    assert len(reader.asked) <= 2


def test_what_goes_wrong_with_one_picture_leaves_those_of_its_task_alone(tmp_path, reader):
    names = [b"%03d.bmp" % number for number in range(100)]
    for number, name in enumerate(names):
        (tmp_path / os.fsdecode(name)).write_bytes(b"BM" if number % 5 == 3 else bitmap(number))
    with ThreadPoolExecutor(2) as pool:
        items = list(Ahead(pool, reader, names, np.arange(100), 2))
    assert [item.index for item in items if item.reason] == list(range(3, 100, 5))
    assert [int(item.inputs[0][0].max()) for item in items if item.inputs] == [n for n in range(100) if n % 5 != 3]


# Rows that are no numbers


@pytest.fixture
def gleam(tmp_path):
    """Eleven dark pictures and a white one; the first layer's answer to it is beyond what float16 can hold."""
    folder = tmp_path / "gleam"
    folder.mkdir()
    for seed in range(11):
        dark = Image.fromarray(np.asarray(draw("circle", seed)) // 64)
        dark.save(folder / f"{seed:02d}.png")
    Image.new("RGB", (96, 96), "white").save(folder / "white.png")
    options = ["--backbone", BACKBONE, "--layer", "_conv_stem", "--crop", 64, "--resize", 64]
    return folder, [*options, "--mean", "0,0,0", "--std", "1e-5,1e-5,1e-5"]


def test_f42_a_row_that_float16_cannot_hold_is_rejected_and_its_image_named(headstart, headstart_json, gleam):
    folder, options = gleam
    done = headstart_json("extract", folder, *options, "--store-dtype", "float16")
    hint = "its embedding is not finite; pass --store-dtype float32"
    assert done["failures"] == [{"path": str(folder / "white.png"), "error": hint}]
    assert (done["embedded"], done["failed"], done["images"]) == (11, 1, 12)
    status, _, err = headstart("extract", folder, *options, "--store-dtype", "float16")
    assert status == 0 and f"skipped {folder / 'white.png'}: {hint}" in err

    narrow = package.extract(folder, BACKBONE, **asked(options), store_dtype="float16")
    assert narrow.embedded == 0 and len(narrow.X) == 11 and np.isfinite(narrow.X).all()
    done = headstart_json("extract", folder, *options)
    assert (done["embedded"], done["failed"]) == (12, 0), "in the same cache, as the hint says"
    wide = package.extract(folder, BACKBONE, **asked(options), cache="wide")
    assert wide.failures == [] and len(wide.X) == 12
    row = {path: number for number, path in enumerate(wide.paths)}
    np.testing.assert_allclose(narrow.X, wide.X[[row[path] for path in narrow.paths]], rtol=1e-3, atol=1e-3)
    assert np.abs(wide.X[row[str(folder / "white.png")]]).max() > np.finfo(np.float16).max


def asked(options) -> dict:
    """Return the same options as Python has them."""
    small = (1e-5,) * 3
    return {"layer": "_conv_stem", "crop": 64, "resize": 64, "mean": (0.0, 0.0, 0.0), "std": small}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_f42_no_row_that_is_not_finite_is_stored(headstart_json, gleam, monkeypatch, value):
    folder, options = gleam
    forward = Embedder._forward

    def spoilt(self, pixels):
        rows = forward(self, pixels).clone()
        rows[np.stack(pixels).max(axis=(1, 2, 3)) == 255, 5] = value
        return rows

    monkeypatch.setattr(Embedder, "_forward", spoilt)
    done = headstart_json("extract", folder, *options)
    assert done["failures"] == [{"path": str(folder / "white.png"), "error": "its embedding is not finite"}]
    assert done["embedded"] == 11


@pytest.mark.parametrize("words", [(), ("--batch-size", "2")], ids=["before its row", "after its row"])
def test_f42_copies_of_a_rejected_image_are_named_too(headstart, headstart_json, gleam, words):
    folder, options = gleam
    names = [folder / name for name in ("00-copy.png", "white.png", "zz-copy.png")]
    for name in names:
        name.write_bytes((folder / "white.png").read_bytes())
    (folder / "01-copy.png").write_bytes((folder / "01.png").read_bytes())
    done = headstart_json("extract", folder, *options, "--store-dtype", "float16", *words)
    assert [failure["path"] for failure in done["failures"]] == [str(name) for name in names]
    assert (done["embedded"], done["reused"], done["failed"]) == (11, 1, 3)
    narrow = package.extract(folder, BACKBONE, **asked(options), store_dtype="float16")
    assert narrow.embedded == 0 and len(narrow.X) == 12

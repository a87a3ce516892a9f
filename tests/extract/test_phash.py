"""Perceptual hashes: what they withstand, how they follow a mirror, and when a picture is decoded for one."""

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from headstart.cache.index import KeyIndex
from headstart.cache.part import Keys
from headstart.extract.engines.shards import Shards, Whole
from headstart.extract.options import RunOptions
from headstart.extract.orders import Record
from headstart.extract.phash import FLAT, UNKNOWN, KnownHashes, mirrored, phash
from headstart.extract.preprocess import Preprocess
from headstart.extract.reader import Need, Reader
from headstart.extract.runner import Outcome, Work

NEED = Preprocess(resize=None, crop=64)


def scene(seed: int = 0, width: int = 500, height: int = 375) -> np.ndarray:
    """Return a picture of soft blotches, fine grain on top, as uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    blotches = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    soft = np.asarray(blotches.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return np.clip(soft + rng.integers(-8, 9, soft.shape), 0, 255).astype(np.uint8)


def apart(left: np.uint64, right: np.uint64) -> int:
    return int(np.bitwise_count(left ^ right))


@pytest.mark.parametrize("size", [(500, 375), (333, 501), (64, 64), (20, 17), (1201, 799)])
def test_a_mirrored_picture_has_the_mirrored_hash(size):
    for seed in range(5):
        picture = scene(seed, *size)
        assert apart(mirrored(phash(picture)), phash(picture[:, ::-1])) <= 4
        assert apart(phash(picture), phash(picture[:, ::-1])) > 12


def test_changes_of_little_note_move_few_bits_and_other_pictures_many():
    for seed in range(5):
        image = Image.fromarray(scene(seed))
        jpeg = io.BytesIO()
        image.save(jpeg, "JPEG", quality=40)
        changed = [image.resize((300, 225)), ImageEnhance.Brightness(image).enhance(1.15), Image.open(jpeg)]
        found = phash(np.asarray(image))
        assert [apart(found, phash(np.asarray(one))) <= 4 for one in changed] == [True] * 3
        assert apart(found, phash(scene(seed + 100))) > 12


def test_the_hash_is_always_the_same_and_survives_any_strides():
    picture = scene()
    assert phash(picture) == phash(np.asfortranarray(picture)) == phash(picture.copy())
    assert phash(picture).dtype == np.uint64


def plain_hash(pixels: np.ndarray) -> int:
    """Return the hash by its definition, step by step."""
    step = max(1, min(pixels.shape[:2]) // 256)
    grey = Image.fromarray(np.ascontiguousarray(pixels[step // 2 :: step, step // 2 :: step])).convert("L")
    levels = np.asarray(grey.resize((32, 32), Image.Resampling.BOX), np.float64)
    x = np.arange(32)
    cosines = np.sqrt(2 / 32) * np.cos(np.pi * x[:, None] * (2 * x + 1) / 64)
    cosines[0] = np.sqrt(1 / 32)
    spectrum = cosines @ levels @ cosines.T
    order = sorted((u * u + v * v, v, u) for u in range(32) for v in range(32) if u or v)
    even, odd = ([(v, u) for _, v, u in order if u % 2 == parity][:32] for parity in (0, 1))
    return sum(1 << bit for bit, place in enumerate(even + odd) if spectrum[place] > 0)


@pytest.mark.parametrize("size", [(500, 375), (40, 48), (1201, 799), (33, 900)])
def test_the_hash_is_that_of_its_definition(size):
    for seed in range(3):
        picture = scene(seed, *size)
        assert int(phash(picture)) == plain_hash(picture), "stored hashes are compared with new ones"


@pytest.mark.parametrize("noise", [0, 1, 3])
def test_pictures_without_texture_are_flat(noise):
    rng = np.random.default_rng(noise)
    for level in (0, 128, 255):
        page = np.clip(level + rng.integers(-noise, noise + 1, (300, 400, 3)), 0, 255).astype(np.uint8)
        assert phash(page) == FLAT
    assert phash(np.full((1, 1, 3), 200, np.uint8)) == FLAT
    slope = np.repeat(np.linspace(0, 255, 400)[None, :, None], 300, axis=0)
    assert phash(np.repeat(slope, 3, axis=2).astype(np.uint8)) == FLAT, "one slope has few coefficients beside noise"


def test_known_hashes_are_found_by_digest_and_unknown_ones_are_not():
    digest = np.stack([np.frombuffer(hashlib.sha256(b"%d" % n).digest(), np.uint8) for n in range(4)])
    known = KnownHashes.of(digest[:3], np.array([7, 0, FLAT], np.uint64))
    assert known.find(digest).tolist() == [7, UNKNOWN, FLAT, UNKNOWN]
    assert [known.of_one(one.tobytes()) for one in digest] == [7, 0, FLAT, 0]
    assert KnownHashes.of(digest[:0], np.zeros(0, np.uint64)).find(digest).tolist() == [0] * 4


# When a picture is decoded


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(scene(1, 64, 64)).save(tmp_path / "a.bmp")
    digest = np.frombuffer(hashlib.sha256((tmp_path / "a.bmp").read_bytes()).digest(), np.uint8)[None]
    return tmp_path, digest


def read(folder, held, hashes, monkeypatch):
    """Read the picture; return the item and how often it was decoded."""
    reader = Reader(os.fsencode(folder), [Need(NEED, [KeyIndex([Keys.plain(held)])])], hashes=hashes)
    decoded, plain = [], reader._decode
    monkeypatch.setattr(reader, "_decode", lambda *given: decoded.append(1) or plain(*given))
    return reader.read(0, b"a.bmp"), len(decoded)


def test_what_is_embedded_is_hashed_on_the_way(picture, monkeypatch):
    folder, digest = picture
    nothing = KnownHashes.of(digest[:0], np.zeros(0, np.uint64))
    item, decoded = read(folder, digest[:0], nothing, monkeypatch)
    assert (item.phash, decoded) == (int(phash(scene(1, 64, 64))), 1) and item.inputs


def test_what_the_cache_holds_is_decoded_for_its_hash_only_where_nobody_knows_it(picture, monkeypatch):
    folder, digest = picture
    nothing = KnownHashes.of(digest[:0], np.zeros(0, np.uint64))
    item, decoded = read(folder, digest, nothing, monkeypatch)
    assert (item.phash, decoded, item.inputs, item.reason) == (int(phash(scene(1, 64, 64))), 1, (), "")
    item, decoded = read(folder, digest, KnownHashes.of(digest, np.array([7], np.uint64)), monkeypatch)
    assert (item.phash, decoded) == (7, 0)
    item, decoded = read(folder, digest, None, monkeypatch)
    assert (item.phash, decoded) == (0, 0), "predict wants no hashes"


def test_a_picture_that_is_held_and_cannot_be_decoded_is_no_failure(tmp_path, monkeypatch):
    (tmp_path / "a.bmp").write_bytes(b"BM but no more")
    digest = np.frombuffer(hashlib.sha256(b"BM but no more").digest(), np.uint8)[None]
    item, decoded = read(tmp_path, digest, KnownHashes.of(digest[:0], np.zeros(0, np.uint64)), monkeypatch)
    assert (item.phash, decoded, item.reason, item.digest) == (0, 1, "", digest.tobytes())


def test_hashes_of_several_processes_are_put_together():
    one, other = Outcome.empty(2), Outcome.empty(3)
    one.phash[:], other.phash[:] = (5, 6), (7, 8, 9)
    work = Work([b"name"] * 6, np.zeros((6, 4), np.int64), np.arange(6), b"")
    rows = [np.array([4, 1]), np.array([3]), np.array([0, 2, 5])]
    whole = Whole(Shards("run", Path("cache"), [], RunOptions(), work, rows, workers=2, hashes_of=None))
    whole.add(2, Record("other", other))
    whole.add(0, Record("one", one))
    outcome = whole.outcome()
    assert outcome.phash.tolist() == [7, 6, 8, 0, 5, 9]
    assert outcome.interrupted and (outcome.processes, outcome.shards) == (2, 3)


def test_pictures_seen_in_a_mirror_of_photographs(samples):
    for path in sorted(samples.glob("hymenoptera/val/bees/*.jpg"))[:20]:
        image = Image.open(path).convert("RGB")
        assert apart(mirrored(phash(np.asarray(image))), phash(np.asarray(ImageOps.mirror(image)))) <= 3, path.name

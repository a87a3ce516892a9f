"""Groups of copies: which pairs count, which groups do not, and that the work stays within bounds."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from headstart.classify import near_copies as module
from headstart.classify.near_copies import MAX_DISTANCE, near_copies
from headstart.extract.decode import decode
from headstart.extract.job import extract
from headstart.extract.phash import FLAT, UNKNOWN, mirrored

DIM = 32


def pictures(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return hashes, embeddings and digests of pictures that have nothing to do with each other."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(2, 1 << 64, count, dtype=np.uint64)
    return (
        hashes,
        rng.standard_normal((count, DIM), dtype=np.float32),
        rng.integers(0, 256, (count, 32), dtype=np.uint8),
    )


def flipped(hashes: np.ndarray, bits: int) -> np.ndarray:
    """Flip the lowest bits."""
    return hashes ^ np.uint64((1 << bits) - 1)


def partition(found) -> set[tuple[int, ...]]:
    """Return the groups of more than one row."""
    groups = [tuple(np.flatnonzero(found.group == one).tolist()) for one in range(found.group.max() + 1)]
    assert found.group.dtype == np.int64 and min(map(len, groups)) > 0
    return {group for group in groups if len(group) > 1}


@pytest.mark.parametrize("bits", [0, MAX_DISTANCE, MAX_DISTANCE + 1])
@pytest.mark.parametrize("turn", [lambda hashes: hashes, mirrored], ids=["plain", "mirrored"])
def test_a_near_copy_is_one_by_hash_and_embedding(bits, turn):
    hashes, X, digest = pictures(40)
    hashes[30], X[30] = flipped(turn(hashes[3:4]), bits)[0], X[3] + 0.1
    found = near_copies(hashes, X, digest)
    assert partition(found) == ({(3, 30)} if bits <= MAX_DISTANCE else set())
    assert found.pairs.tolist() == ([[3, 30]] if bits <= MAX_DISTANCE else [])
    hashes[30] = hashes[3]
    X[30] = pictures(1, seed=9)[1][0]
    assert partition(near_copies(hashes, X, digest)) == set(), "the embeddings do not agree"


@pytest.mark.parametrize("bits", [0, 12])
@pytest.mark.parametrize("more", [-0.05, 0.05])
def test_the_farther_apart_hashes_are_the_more_the_embeddings_have_to_agree(bits, more, monkeypatch):
    hashes, _, digest = pictures(2 * DIM)
    cosine = 0.4 + 0.025 * bits + more
    X = np.eye(DIM, dtype=np.float32)
    X[20] = cosine * X[3] + np.sqrt(1 - cosine**2) * X[20]
    hashes[20] = flipped(hashes[[3]], bits)[0]
    monkeypatch.setattr(module, "MOST_OF_AROUND", 2.0)  # whatever is around
    found = near_copies(hashes, np.concatenate([X, -X]), digest)  # of which the mean is nothing
    assert partition(found) == ({(3, 20)} if more > 0 else set())


@pytest.mark.parametrize("looked", [True, False])
def test_where_all_pictures_look_alike_a_copy_is_closer_still(looked, monkeypatch):
    hashes, X, digest = pictures(60)
    X[:30] = X[0] + 0.5 * X[:30]
    for row in (0, 2, 40):
        hashes[row + 1] = flipped(hashes[[row]], 5)[0]
    X[41] = 1.001 * X[40]
    if not looked:
        monkeypatch.setattr(module, "MOST_OF_AROUND", 2.0)
    alike = set() if looked else {(0, 1), (2, 3)}
    assert partition(near_copies(hashes, X, digest)) == {(40, 41)} | alike


def test_the_mean_of_the_embeddings_does_not_matter():
    hashes, X, digest = pictures(40)
    hashes[1], hashes[30], X[30] = hashes[0], hashes[3], X[3]
    assert partition(near_copies(hashes, X + 1000, digest)) == {(3, 30)}


def test_exact_copies_are_one_group_whatever_else_is_known():
    hashes, X, digest = pictures(20)
    hashes[:] = UNKNOWN
    digest[[4, 9, 11]] = digest[4]
    found = near_copies(hashes, X, digest)
    assert partition(found) == {(4, 9, 11)} and found.pairs.tolist() == []
    assert (found.without_hash, found.compared) == (18, True)


@pytest.mark.parametrize("nothing", [UNKNOWN, FLAT])
def test_no_hash_is_like_no_other(nothing):
    hashes, X, digest = pictures(20)
    hashes[:10], X[:10] = nothing, X[0]
    found = near_copies(hashes, X, digest)
    assert partition(found) == set()
    assert (found.without_hash, found.flat) == ((10, 0) if nothing == UNKNOWN else (0, 10))


def test_copies_of_copies_are_one_group():
    hashes, X, digest = pictures(40)
    for step, row in enumerate((20, 5, 31), start=1):
        hashes[row], X[row] = flipped(hashes[[2]], 10 * step)[0], X[2]
    for column in (hashes, X, digest):
        column[39] = column[31]
    found = near_copies(hashes, X, digest)
    assert partition(found) == {(2, 5, 20, 31, 39)}
    assert found.pairs.tolist() == [[2, 20], [5, 20], [5, 31]], "each of two that are close, and 39 is 31"


def test_it_finds_what_comparing_each_with_each_finds(monkeypatch):
    """Across the bounds of blocks, with a copy of nearly every kind."""
    monkeypatch.setattr(module, "_ROWS", 16)
    monkeypatch.setattr(module, "_COLUMNS", 48)
    monkeypatch.setattr(module, "_PAIRS", 7)
    rng = np.random.default_rng(3)
    hashes, X, digest = pictures(300, seed=3)
    for row in rng.permutation(300)[:150].tolist():
        of = int(rng.integers(300))
        hashes[row] = mirrored(hashes[of]) if rng.random() < 0.5 else hashes[of]
        hashes[row] ^= np.bitwise_or.reduce(np.uint64(1) << rng.integers(0, 64, rng.integers(1, 20)).astype(np.uint64))
        X[row] = X[of] + rng.random() * rng.standard_normal(DIM)
    hashes[rng.permutation(300)[:20]] = FLAT
    centred = X - X[hashes > FLAT].mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    distance = np.bitwise_count(hashes[:, None] ^ np.stack([hashes, mirrored(hashes)])[:, None]).min(axis=0)
    agree = (distance <= MAX_DISTANCE) & (centred @ centred.T >= 0.4 + 0.025 * distance)
    agree[hashes == FLAT] = agree[:, hashes == FLAT] = False
    others = np.where((distance <= MAX_DISTANCE) | (hashes == FLAT), -1, centred @ centred.T)
    fifth = np.sort(others, axis=1)[:, -5]
    agree &= 1 - centred @ centred.T <= (0.9 - 0.04 * distance) * (1 - np.maximum(fifth[:, None], fifth))
    wanted = np.argwhere(np.triu(agree, 1)).tolist()
    monkeypatch.setattr(module, "LARGEST_GROUP", 300)
    found = near_copies(hashes, X, digest)
    assert len(wanted) > 30
    assert sorted(found.pairs.tolist()) == wanted
    label = np.arange(300)
    for i, j in wanted * 20:
        label[[i, j]] = min(label[i], label[j])
    np.testing.assert_array_equal(found.group[:, None] == found.group, label[:, None] == label)


@pytest.mark.parametrize(("count", "size", "refused"), [(500, 10, False), (500, 11, True), (1600, 15, False)])
def test_a_group_that_is_too_large_is_dissolved_into_its_exact_copies(count, size, refused):
    hashes, X, digest = pictures(count)
    hashes[:size], X[:size] = hashes[0], X[0]
    hashes[100], X[100] = hashes[99], X[99]
    copies = [count - 1, count - 2]  # of one of its pictures; they make no difference to its size
    for column in (hashes, X, digest):
        column[copies] = column[1]
    found = near_copies(hashes, X, digest)
    group = (*range(size), count - 2, count - 1)
    assert partition(found) == ({(1, count - 2, count - 1), (99, 100)} if refused else {group, (99, 100)})
    assert [rows.tolist() for rows in found.refused] == ([list(group)] if refused else [])
    assert len(found.pairs) == (1 if refused else 1 + size * (size - 1) // 2)


def test_a_hash_that_very_many_share_says_nothing_and_costs_little():
    hashes, X, digest = pictures(20_000)
    hashes[5:15_005], X[5:15_005] = hashes[5], X[5]
    hashes[19_999], X[19_999] = hashes[2], X[2]
    found = near_copies(hashes, X, digest)
    assert (found.crowded, partition(found), found.pairs.tolist()) == (15_000, {(2, 19_999)}, [[2, 19_999]])


def test_too_many_pictures_are_compared_only_when_asked(monkeypatch):
    monkeypatch.setattr(module, "MAX_COMPARED", 30)
    hashes, X, digest = pictures(40)
    hashes[7], X[7], digest[8] = hashes[6], X[6], digest[9]
    found = near_copies(hashes, X, digest)
    assert (found.compared, partition(found)) == (False, {(8, 9)})
    found = near_copies(hashes, X, digest, exhaustive=True)
    assert (found.compared, partition(found)) == (True, {(6, 7), (8, 9)})


def test_nothing_gives_nothing():
    found = near_copies(*(column[:0] for column in pictures(3)))
    assert (len(found.group), len(found.pairs), found.refused) == (0, 0, [])


# Real photographs


def save_copies(image: Image.Image, target, name: str) -> None:
    width, height = image.size
    cut = image.crop((int(0.025 * width), int(0.025 * height), int(0.975 * width), int(0.975 * height)))
    small = cut.resize((round(0.6 * cut.width), round(0.6 * cut.height)), Image.Resampling.BICUBIC)
    ImageOps.mirror(image).save(target / f"{name}_mirrored.jpg", quality=95)
    image.save(target / f"{name}_quality.jpg", quality=40)
    cut.save(target / f"{name}_cropped.jpg", quality=95)
    ImageEnhance.Brightness(ImageOps.mirror(small)).enhance(1.15).save(target / f"{name}_all.jpg", quality=60)


def test_copies_of_real_photographs_are_found_and_no_others(samples, tmp_path):
    """Benchmarks have found 0.98 of the copies and no false pair; the floors leave room for other decoders."""
    for number, path in enumerate(sorted(samples.glob("hymenoptera/val/*/*.jpg"))[::2]):
        data = path.read_bytes()
        (tmp_path / f"{number:02d}_original.jpg").write_bytes(data)
        if number % 4 == 0:
            save_copies(Image.open(io.BytesIO(data)).convert("RGB"), tmp_path, f"{number:02d}")
            assert decode(data).pixels.shape[2] == 3
    features = extract(tmp_path, "efficientnet_lite0", cache=tmp_path / "cache")
    number = np.array([int(path.rsplit("/", 1)[1][:2]) for path in features.paths])
    found = near_copies(features.phash, features.X, features.digest)
    upper = np.triu_indices(len(number), 1)
    said, true = ((column[:, None] == column)[upper] for column in (found.group, number))
    assert true.sum() > 150
    assert (said & true).sum() >= 0.9 * true.sum()
    assert (said & ~true).sum() <= 0.02 * said.sum()
    assert found.refused == [] and found.without_hash == 0

"""How well near copies are found among real photographs, and what the hashes and the comparison cost.

Of each set of photographs 60 are copied in eight ways. The truth is which copy is of which photograph, and those pairs
of the sets themselves that were looked at and are one picture: see `SAME`. The thresholds of
`headstart.classify.near_copies` were chosen on the first set alone.

Run: HEADSTART_SAMPLES=<folder> python benchmarks/near_copies.py
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from synthetic import random_rows, seconds

from headstart.classify.near_copies import MAX_DISTANCE, NearCopies, near_copies
from headstart.extract.decode import decode
from headstart.extract.features import Features
from headstart.extract.job import extract
from headstart.extract.phash import mirrored, phash

BACKBONE = "efficientnet_lite0"
SETS = ("hymenoptera/train", "hymenoptera/val", "hotdog/train", "hotdog/val")
# Pictures that differ in their bytes and yet are one: the same photograph in another grading.
SAME = {"hotdog/train": [("hotdog/11370057", "hotdog/12180546")]}
COPIED, SYNTHETIC, DIM = 60, 50_000, 1280


def smaller(image: Image.Image) -> Image.Image:
    return image.resize((round(0.6 * image.width), round(0.6 * image.height)), Image.Resampling.BICUBIC)


def cropped(image: Image.Image) -> Image.Image:
    """Take 5 % off the width and the height, half on either side."""
    width, height = image.size
    return image.crop((int(0.025 * width), int(0.025 * height), int(0.975 * width), int(0.975 * height)))


def cornered(image: Image.Image) -> Image.Image:
    """Take 5 % off, on two sides."""
    return image.crop((int(0.05 * image.width), int(0.05 * image.height), image.width, image.height))


def brighter(image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1.15)


def plain(image: Image.Image) -> Image.Image:
    return image


# Name -> what is done, and the quality of the JPEG.
KINDS: dict[str, tuple[tuple[Callable[[Image.Image], Image.Image], ...], int]] = {
    "mirrored": ((ImageOps.mirror,), 95),
    "resized to 60 %": ((smaller,), 95),
    "JPEG quality 40": ((plain,), 40),
    "cropped by 5 %": ((cropped,), 95),
    "cropped in a corner": ((cornered,), 95),
    "brightness +15 %": ((brighter,), 95),
    "mirrored, cropped, quality 40": ((ImageOps.mirror, cropped), 40),
    "all of them, quality 60": ((ImageOps.mirror, smaller, cropped, brighter), 60),
}


def plant(source: Path, target: Path) -> None:
    """Copy a set of photographs; the names say which photograph each picture is of, and how it was made."""
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    target.mkdir(parents=True)
    for number, path in enumerate(files):
        (target / f"{number:03d}_original{path.suffix}").write_bytes(path.read_bytes())
    for number in np.random.default_rng(0).permutation(len(files))[:COPIED].tolist():
        image = Image.fromarray(decode(files[number].read_bytes()).pixels)
        for place, (steps, quality) in enumerate(KINDS.values()):
            copy = image
            for step in steps:
                copy = step(copy)
            copy.save(target / f"{number:03d}_{place}.jpg", quality=quality)


def origins(features: Features, source: Path, same: list[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    """Return of each picture the number of its photograph and how it was made, "original" or a place in `KINDS`."""
    words = [Path(path).stem.split("_") for path in features.paths]
    number = np.array([int(first) for first, _ in words])
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    names = [str(path.relative_to(source).with_suffix("")) for path in files]
    for one, other in same:
        number[number == names.index(other)] = names.index(one)
    return number, np.array([second for _, second in words])


def pairs_within(group: np.ndarray) -> np.ndarray:
    """Return for all pairs of rows whether they are in one group, (n (n - 1) / 2,) bool."""
    return np.asarray((group[:, None] == group)[np.triu_indices(len(group), 1)])


def report(name: str, features: Features, number: np.ndarray, made: np.ndarray, found: NearCopies) -> None:
    truth, said = pairs_within(number), pairs_within(found.group)
    distance = np.bitwise_count(features.phash[:, None] ^ features.phash)
    distance = np.minimum(distance, np.bitwise_count(features.phash[:, None] ^ mirrored(features.phash)))
    hashed = distance[np.triu_indices(len(number), 1)] <= MAX_DISTANCE
    print(f"{name}: {len(number)} pictures, precision {(truth & said).sum() / said.sum():.4f} of {said.sum()} pairs")
    print(
        f"  hash alone: {(truth & hashed).sum() / hashed.sum():.4f}; refused {len(found.refused)}, flat {found.flat}, "
        f"crowded {found.crowded}"
    )
    for row, other in found.pairs[number[found.pairs[:, 0]] != number[found.pairs[:, 1]]]:
        print(f"  not planted: {features.paths[row]} = {features.paths[other]}")
    for kind, direct, grouped in recalls(number, made, found):
        print(f"  {kind:30} recall {direct:.3f} as a pair, {grouped:.3f} in the group")


def recalls(number: np.ndarray, made: np.ndarray, found: NearCopies) -> Iterator[tuple[str, float, float]]:
    """Yield for each kind which share of the copies is paired with its original, and is in one group with it."""
    original = {int(number[row]): row for row in np.flatnonzero(made == "original")[::-1]}
    pairs = set(map(tuple, found.pairs.tolist()))
    for place, kind in enumerate(KINDS):
        rows = np.flatnonzero(made == str(place))
        of = np.array([original[one] for one in number[rows].tolist()])
        ordered = np.sort(np.stack([rows, of], axis=1), axis=1).tolist()
        direct = float(np.mean([tuple(pair) in pairs for pair in ordered]))
        yield kind, direct, float(np.mean(found.group[rows] == found.group[of]))


def cost_of_hashes(samples: Path) -> None:
    pictures = [decode(path.read_bytes()).pixels for path in sorted((samples / SETS[0]).rglob("*.jpg"))[:60]]
    for name, some in (("photographs of 500 x 375", pictures), ("12 megapixels", [np.tile(pictures[0], (8, 8, 1))])):
        times = [seconds(lambda one=one: phash(one)) for one in some for _ in range(5)]
        print(f"hash of {name}: {1000 * float(np.median(times)):.2f} ms")


def cost_of_comparing() -> None:
    digest, rows = random_rows(SYNTHETIC, DIM)
    hashes = np.random.default_rng(1).integers(2, 1 << 64, SYNTHETIC, dtype=np.uint64)
    alike = hashes.copy()
    alike[:20_000] = 12345
    for name, some in (("different hashes", hashes), ("20,000 of one hash", alike)):
        print(f"comparing {SYNTHETIC:,}, {name}: {seconds(lambda some=some: near_copies(some, rows, digest)):.1f} s")


def main() -> None:
    samples = Path(os.environ["HEADSTART_SAMPLES"])
    cost_of_hashes(samples)
    cost_of_comparing()
    with tempfile.TemporaryDirectory() as folder:
        for name in SETS:
            begin, target = time.perf_counter(), Path(folder) / name
            plant(samples / name, target)
            features = extract(target, BACKBONE, cache=Path(folder) / "cache")
            number, made = origins(features, samples / name, SAME.get(name, []))
            report(name, features, number, made, near_copies(features.phash, features.X, features.digest))
            print(f"  {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()

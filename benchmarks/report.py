"""How large a report is and how long it takes, by the number of validation pictures: crops of real photographs.

The promise is less than 10 MB for 1,000 validation pictures.

Run: HEADSTART_SAMPLES=... python benchmarks/report.py [--val 100 1000 5000]
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from gpu import quiet
from PIL import Image

import headstart
from headstart.classify.pages.report import report

TRAIN = 400  # pictures


def crops(samples: Path, folder: Path, val: int) -> Path:
    """Write `TRAIN` training and `val` validation pictures: crops of different photographs at random places."""
    rng = np.random.default_rng(0)
    for kind in ("ants", "bees"):
        paths = sorted((samples / "hymenoptera" / "train" / kind).glob("*.jpg"))
        for split, count in (("train", TRAIN), ("val", val)):
            target = folder / split / kind
            target.mkdir(parents=True)
            for number in range(count // 2):
                image = Image.open(paths[number % len(paths)]).convert("RGB")
                wide, high = (int(side * rng.uniform(0.5, 0.9)) for side in image.size)
                left, top = rng.integers(0, image.width - wide + 1), rng.integers(0, image.height - high + 1)
                box = (int(left), int(top), int(left + wide), int(top + high))
                image.crop(box).save(target / f"{number:05}.jpg", quality=90)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--val", type=int, nargs="+", default=[100, 1000])
    given = parser.parse_args()
    samples = os.environ.get("HEADSTART_SAMPLES")
    if not samples:
        sys.exit("HEADSTART_SAMPLES names no folder of sample photographs")
    for val in given.val:
        with tempfile.TemporaryDirectory() as folder, quiet():
            data, cache = crops(Path(samples), Path(folder) / "photos", val), Path(folder) / "cache"
            headstart.extract(data, backbone="efficientnet_lite0", cache=cache)
            model = headstart.fit_head(data, cache=cache, out=Path(folder) / "model", near_copies="none").out
            begin = time.perf_counter()
            made = report(model, cache=cache, out=Path(folder) / "report.html")
            seconds = time.perf_counter() - begin
        print(
            f"{val} validation pictures, {TRAIN} of training: {made.bytes / 1e6:.2f} MB with {made.pictures} pictures "
            f"({made.missing} left out) in {seconds:.1f} s"
        )


if __name__ == "__main__":
    main()

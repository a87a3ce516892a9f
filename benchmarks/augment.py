"""What a random augmentation costs, by headstart and by torchvision's own transforms, on photographs at 224 pixels.

Both sides get the same decoded pictures, in one run, picture by picture in turn, with one thread of torch a worker. The
time is of the augmentation alone. torchvision's side is its v2 transforms with the same settings, on channels-last
bytes, where it is fastest; it draws from its global generator, which costs it nothing.

Run: python benchmarks/augment.py [FOLDER]
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torchvision.transforms import InterpolationMode, v2

from headstart.extract.augment import JITTER, JITTER_CHANCE, MOST_ROTATED, PRESETS, ROTATION, Augment, one_thread
from headstart.extract.decode import decode
from headstart.extract.preprocess import Preprocess

SAMPLES = Path(os.environ.get("HEADSTART_SAMPLES", "../shared/data"))
PICTURES = 40
ROUNDS = 5

Change = Callable[[np.ndarray, int], np.ndarray]


def torchvisions(preset: str, preprocess: Preprocess) -> Change:
    """Return the recipe as torchvision's documentation has it."""
    crop, mode = preprocess.crop, InterpolationMode(preprocess.interpolation)
    bent = {"interpolation": InterpolationMode.BILINEAR, "fill": [124, 116, 104]}
    resize = v2.Resize(preprocess.resize, mode)
    part, flip = v2.RandomResizedCrop(crop, interpolation=mode), v2.RandomHorizontalFlip()
    jitter = v2.RandomApply([v2.ColorJitter(*JITTER)], p=JITTER_CHANCE)
    steps = {
        "none": [resize, v2.CenterCrop(crop)],
        "flip": [resize, v2.CenterCrop(crop), flip],
        "tutorial": [part, flip],
        "crop": [resize, v2.RandomCrop(crop), flip],
        "strong": [shrunk(crop, mode), v2.RandomRotation(ROTATION, **bent), part, flip, jitter],
        "randaugment": [part, flip, v2.RandAugment(**bent)],
        "trivial": [part, flip, v2.TrivialAugmentWide(**bent)],
    }
    transforms = v2.Compose(steps[preset])

    def change(pixels: np.ndarray, seed: int) -> np.ndarray:
        with torch.inference_mode():
            image = torch.from_numpy(pixels).unsqueeze(0).permute(0, 3, 1, 2)[0]
            return np.array(transforms(image).permute(1, 2, 0).numpy(), order="C")

    return change


def shrunk(crop: int, mode: InterpolationMode) -> Callable[[torch.Tensor], torch.Tensor]:
    def shrink(image: torch.Tensor) -> torch.Tensor:
        high, wide = image.shape[-2:]
        scale = (MOST_ROTATED * crop**2 / (high * wide)) ** 0.5
        return v2.functional.resize(image, [int(high * scale), int(wide * scale)], mode) if scale < 1 else image

    return shrink


def milliseconds(change: Change, pictures: list[np.ndarray], pool: ThreadPoolExecutor, begin: int) -> float:
    start = time.perf_counter()
    list(pool.map(change, pictures, range(begin, begin + len(pictures))))
    return 1000 * (time.perf_counter() - start) / len(pictures)


def compared(sides: list[Change], pictures: list[np.ndarray], threads: int) -> list[float]:
    """Return the milliseconds a picture, of wall time, of each side in its quickest round."""
    with ThreadPoolExecutor(threads, initializer=one_thread) as pool:
        for side in sides:
            milliseconds(side, pictures[:8], pool, 0)
        rounds = [[milliseconds(side, pictures, pool, number * 1000) for side in sides] for number in range(ROUNDS)]
    return [min(column) for column in zip(*rounds, strict=True)]


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else SAMPLES / "hymenoptera"
    paths = sorted(folder.rglob("*.jpg"))
    pictures = [decode(path.read_bytes()).pixels for path in paths[:: max(1, len(paths) // PICTURES)][:PICTURES]]
    preprocess = Preprocess(resize=256, crop=224)
    size = statistics.mean(picture.size / 3e3 for picture in pictures)
    print(f"{len(pictures)} pictures of {size:.0f} thousand pixels; ms a picture, and torchvision's over ours")
    print(f"{'':12}  {'1 thread: ours':>14} {'torchvision':>11} {'ratio':>5}  {'2: ours':>7} {'torchvision':>11} ratio")
    for preset in PRESETS:
        sides = [Augment(preset, preprocess), torchvisions(preset, preprocess)]
        (ours, theirs), (ours_2, theirs_2) = (compared(sides, pictures, threads) for threads in (1, 2))
        print(
            f"{preset:12}  {ours:14.2f} {theirs:11.2f} {theirs / ours:5.1f}  {ours_2:7.2f} {theirs_2:11.2f} "
            f"{theirs_2 / ours_2:5.1f}"
        )


if __name__ == "__main__":
    main()

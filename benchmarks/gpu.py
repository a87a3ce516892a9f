"""Extraction on a GPU: decoders alone, networks alone, both together, and what half precision does to embeddings.

For each backbone it prints images a second of the forward pass in each precision, eager and compiled, of the whole
pipeline from JPEGs, and the ceiling that decoding sets. nvImageCodec is measured beside the CPU's decoder where it is
installed. Then the drift of each precision against float32: the largest error of a row relative to its largest number,
and the accuracy of a linear head on validation images that it never saw, on real weights.

Without a GPU it does the same on the CPU, with fewer pictures and without float16, which CPUs compute slowly: those
figures say nothing of a GPU.

Run: HEADSTART_SAMPLES=... python benchmarks/gpu.py [--images N] [--compile] [backbone ...]
"""

import argparse
import contextlib
import importlib.util
import io
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from pipeline import extraction_rate, photographs
from sklearn.linear_model import LogisticRegression

import headstart
from headstart.cache.index import KeyIndex
from headstart.extract.batches import Target
from headstart.extract.compiling import Compiler
from headstart.extract.decode import DEFAULT_MAX_PIXELS
from headstart.extract.device import available_cores, choose_device
from headstart.extract.embedder import Embedder
from headstart.extract.gpu_decode import GpuDecoder
from headstart.extract.options import RunOptions, SpaceOptions
from headstart.extract.preprocess import Preprocess
from headstart.extract.reader import Need, Reader
from headstart.extract.resolve import resolve

BACKBONES = ("resnet18", "resnet50", "vit_b_16", "mobilenet_v3_small")
REAL = "efficientnet_lite0"  # the one whose weights are always there
PRECISIONS = ("float32", "bfloat16", "float16") if torch.cuda.is_available() else ("float32", "bfloat16")
# Precision and decoder; the first is what the others are held against.
WAYS = [(precision, "cpu") for precision in PRECISIONS]
if torch.cuda.is_available() and importlib.util.find_spec("nvidia.nvimgcodec"):
    WAYS += [("float32", "gpu"), ("float16", "gpu")]
SECONDS = 2.0
PREPROCESS = Preprocess(resize=256, crop=224)


def embedder(backbone: str, precision: str, cache: Path) -> Embedder:
    weights = "default" if backbone == REAL else "none"
    found = resolve([SpaceOptions(backbone=backbone, weights=weights, precision=precision)], RunOptions(), cache)
    found.load()
    return found


def decode_rate(folder: Path, names: list[bytes], target: Target) -> float:
    reader = Reader(os.fsencode(folder), [Need(target.embedder.preprocess, target.held)])
    reader.read(0, names[0])
    begin = time.perf_counter()
    with ThreadPoolExecutor(available_cores()) as pool:
        for _ in pool.map(reader.read, range(len(names)), names):
            pass
    return len(names) / (time.perf_counter() - begin)


def codec_rate(folder: Path, names: list[bytes]) -> float | None:
    """Return the rate of nvImageCodec with resizing; None where it is not installed."""
    if importlib.util.find_spec("nvidia.nvimgcodec") is None:
        return None
    data = [(folder / os.fsdecode(name)).read_bytes() for name in names]
    with GpuDecoder(choose_device(), DEFAULT_MAX_PIXELS) as decoder:
        answered(decoder, data[:64])
        begin = time.perf_counter()
        for start in range(0, len(data), 64):
            answered(decoder, data[start : start + 64])
        return len(data) / (time.perf_counter() - begin)


def answered(decoder: GpuDecoder, data: list[bytes]) -> None:
    for answer in [decoder.offer(picture, [PREPROCESS]) for picture in data]:
        if answer is not None:
            answer.result()


def forward_rate(found: Embedder) -> float:
    """Return the rate of the forward pass on batches that are on the device already."""
    side, size = found.preprocess.crop, found.batch_size
    batch = torch.randint(0, 256, (size, side, side, 3), dtype=torch.uint8).to(found.device.kind)
    forward = found.faster[1] if found.faster else found.backbone.embed
    with found.device.autocast(found.spaces[0].precision):
        for _ in range(3):
            forward(batch).float().cpu()
        begin, count = time.perf_counter(), 0
        while time.perf_counter() - begin < SECONDS:
            for _ in range(4):
                rows = forward(batch)
            rows.float().cpu()  # waits for all of them
            count += 4 * size
    return count / (time.perf_counter() - begin)


def speed(backbone: str, folder: Path, names: list[bytes], *, compiled: bool) -> None:
    for precision in PRECISIONS:
        with tempfile.TemporaryDirectory() as cache:
            found = embedder(backbone, precision, Path(cache))
            decode = decode_rate(folder, names, Target(found, (KeyIndex([]),), ()))
            eager = forward_rate(found)
            both = extraction_rate(folder, names, found, Path(cache))
            fast = ""
            if compiled:
                begin = time.perf_counter()
                Compiler(found, Path(cache)).compile()
                fast = f", compiled in {time.perf_counter() - begin:.0f} s {forward_rate(found):.0f}"
            ceiling = min(decode, eager)
            print(
                f"{backbone:<20} {precision:<9} decode {decode:.0f} images/s, forward {eager:.0f}{fast}, "
                f"extraction {both:.0f}: {both / ceiling:.2f} of the ceiling of {ceiling:.0f}"
            )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    logger = logging.getLogger("headstart")
    before = logger.level
    logger.setLevel(logging.ERROR)
    with contextlib.redirect_stderr(io.StringIO()):
        yield
    logger.setLevel(before)


def drift(samples: Path, backbone: str = REAL) -> None:
    """Print what each precision, and the GPU's decoder, does to rows and to the accuracy of a head with C = 1."""
    with tempfile.TemporaryDirectory() as cache:
        for data in ("hymenoptera", "hotdog"):
            exact: np.ndarray | None = None
            for precision, decoder in WAYS:
                with quiet():
                    found = headstart.extract(
                        samples / data, backbone, precision=precision, decoder=decoder, cache=cache
                    )
                rows = found.X
                exact = rows if exact is None else exact
                moved = (np.abs(rows - exact).max(axis=1) / np.abs(exact).max(axis=1)).max()
                train, held = found.split == "train", found.split == "val"
                head = LogisticRegression(C=1.0, max_iter=2000).fit(rows[train], found.y[train])
                accuracy = head.score(rows[held], found.y[held])
                print(
                    f"{backbone} on {data:<12} {precision:<9} decoder {decoder}: largest relative error {moved:.1e}, "
                    f"validation accuracy {accuracy:.4f} of {held.sum()} images"
                )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("backbones", nargs="*", default=BACKBONES)
    parser.add_argument("--images", type=int, default=4000 if torch.cuda.is_available() else 160)
    parser.add_argument("--compile", action="store_true", default=torch.cuda.is_available())
    given = parser.parse_args()
    samples = os.environ.get("HEADSTART_SAMPLES")
    if not samples:
        sys.exit("HEADSTART_SAMPLES names no folder of sample photographs")
    device = choose_device()
    print(f"{device.kind}: {device.name}, {available_cores()} cores, torch {torch.__version__}")
    if device.kind != "cuda":
        print("no GPU here: these figures are of the CPU")
    with tempfile.TemporaryDirectory() as folder:
        names = photographs(Path(folder) / "photos", Path(samples), given.images)
        rate = codec_rate(Path(folder) / "photos", names)
        print("nvImageCodec: " + ("not installed" if rate is None else f"decodes and resizes {rate:.0f} images/s"))
        for backbone in given.backbones:
            speed(backbone, Path(folder) / "photos", names, compiled=given.compile)
    drift(Path(samples))
    print("targets on an H100 with 16 cores: resnet18 8,000 images/s from JPEG, and 0.8 of the joint ceiling")


if __name__ == "__main__":
    main()

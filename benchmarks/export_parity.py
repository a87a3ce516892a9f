"""How far exported files are from `predict`, how large they are, and how fast onnxruntime is beside torch.

Heads on hymenoptera by four networks (random weights but for efficientnet_lite0) and one network trained end to end.
Each is exported in both formats and compared on 32 photographs. The last columns are milliseconds a picture for a batch
of 8 crops, the same in both: torch as `predict` runs it, and the exported file that begins after the resize.

Run: HEADSTART_SAMPLES=<folder> python benchmarks/export_parity.py [BACKBONE...]
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import headstart
from headstart.cache.space import FeatureSpace
from headstart.classify.export.job import Exported
from headstart.classify.export.onnx_graph import onnx_runner
from headstart.classify.model import load_model
from headstart.extract.options import RunOptions
from headstart.extract.resolve import embedders_of

WEIGHTS = {"resnet18": "none", "mobilenet_v3_small": "none", "efficientnet_lite0": "default", "vit_b_16": "none"}
LIMIT = 120  # pictures for the heads: how good they are does not matter here
REPEATS, BATCH = 5, 8


def models(data: Path, folder: Path, names: list[str]) -> Iterator[tuple[str, Path]]:
    """Train what is to be exported."""
    for name in names:
        if name != "finetuned":
            headstart.extract(data, backbone=name, weights=WEIGHTS[name], cache=folder / "cache", limit=LIMIT)
            fit = headstart.fit_head(data, wanted={"backbone": name}, cache=folder / "cache", out=folder / name)
            yield name, fit.out
            continue
        options = {"backbone": "efficientnet_lite0", "train": "_blocks.15", "epochs": 1, "select_on": "last"}
        yield name, headstart.finetune(data, cache=folder / "cache", out=folder / name, augment="none", **options).out


def seconds(work: Callable[[], object]) -> float:
    """Return the least time of a few repetitions, after one that is not counted."""
    times = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times[1:])


def speeds(model: Path, folder: Path, cache: Path) -> tuple[float, float]:
    """Return milliseconds a picture of torch, by the embedder of `predict`, and of onnxruntime."""
    saved = load_model(model)
    spaces = [FeatureSpace.from_dict(space) for space in saved.spaces]
    (embedder,) = embedders_of(spaces, saved.training["requests"], RunOptions(device="cpu", batch_size=BATCH))
    side = embedder.preprocess.crop
    crops = np.random.default_rng(0).integers(0, 256, (BATCH, side, side, 3), dtype=np.uint8)
    made = headstart.export(model, out=folder / "crop.onnx", input="crop", overwrite=True, cache=cache, pictures=1)
    run = onnx_runner(made.out.read_bytes())
    torch_seconds = seconds(lambda: saved.predict_proba(embedder.embed(crops)))
    return torch_seconds / BATCH * 1000, seconds(lambda: run(crops)) / BATCH * 1000


def row(name: str, made: Exported) -> str:
    size = f"{made.bytes / 1e6:6.1f}"
    return f"{name:20} {made.format:6} {made.max_difference:8.1e} {size:>8} {made.seconds:8.1f}"


def main() -> None:
    data = Path(os.environ["HEADSTART_SAMPLES"]) / "hymenoptera"
    names = sys.argv[1:] or [*WEIGHTS, "finetuned"]
    print(f"{'model':20} {'format':6} {'differs':>8} {'MB':>8} {'seconds':>8} {'torch ms':>9} {'ort ms':>7}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, model in models(data, folder, names):
            for file_format, suffix in (("onnx", "onnx"), ("torch", "pt2")):
                out = folder / f"{name}.{suffix}"
                made = headstart.export(model, data, format=file_format, out=out, cache=folder / "cache")
                both = speeds(model, folder, folder / "cache") if file_format == "onnx" else None
                print(row(name, made) + (f" {both[0]:9.1f} {both[1]:7.1f}" if both else ""), flush=True)


if __name__ == "__main__":
    main()

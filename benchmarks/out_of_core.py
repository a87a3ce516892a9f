"""A head on embeddings that do not fit into the memory it is given: peak memory, time, and the same optimum.

    python benchmarks/out_of_core.py [--rows 2000000 --memory 1GiB] [--compare 200000 --compare-memory 300MB] [--C 0.01]

Rows are real embeddings, of ants, bees and food under efficientnet_lite0, taken to 512 numbers by a fixed random
orthogonal matrix, drawn again and again with noise on top; each keeps the label of its picture. They are written as
parts into a temporary cache (2 kB a row), which is removed at the end. `--keep DIR` keeps it there, and the next run
adds only the rows that it lacks; `HEADSTART_SAMPLES` names the folder of the photographs.

Each fit has a process of its own, whose peak of resident memory the kernel tells (VmHWM). What the interpreter and its
libraries take, and the columns of paths, digests, labels and keys, is measured beside it, in other processes. On
`--compare` rows the same head is fitted in memory too, and both are held against each other: the objective, in float64,
the coefficients and the probabilities of all rows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, CHUNK = 512, 16_384
NOISE = 3.0  # times the spread of each feature
SETS = ("hymenoptera", "hotdog")
HELD_OUT = 0.02


def peak() -> int:
    """Return the most bytes that this process had in memory."""
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def originals(samples: Path, cache: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return projected embeddings (n, 512) float32 of the photographs, their labels and the names of the classes."""
    import headstart

    found = [headstart.extract(samples / name, backbone="efficientnet_lite0", cache=cache) for name in SETS]
    axes = np.linalg.qr(np.random.default_rng(0).standard_normal((found[0].X.shape[1], WIDTH)))[0].astype(np.float32)
    y, names = [], []
    for features in found:
        y.append(features.y + len(names))
        names += list(features.classes)
    return np.concatenate([features.X for features in found]) @ axes, np.concatenate(y), tuple(names)


def chunk(number: int, X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return digests (CHUNK, 32) uint8, rows (CHUNK, 512) float32 and labels (CHUNK,) of one chunk, always the same."""
    rng = np.random.default_rng([1, number])
    taken = rng.integers(0, len(X), CHUNK)
    rows = X[taken] + (NOISE * X.std(axis=0)) * rng.standard_normal((CHUNK, WIDTH), dtype=np.float32)
    return rng.integers(0, 256, (CHUNK, 32), dtype=np.uint8), rows.astype(np.float32), y[taken]


def fill(cache: Path, rows: int, X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Write the rows that the cache lacks; return digests and labels of all."""
    from synthetic import make_space

    from headstart.cache.part import Keys
    from headstart.cache.store import FeatureStore

    store, space = FeatureStore(cache), make_space(WIDTH)
    store.prepare(space)
    index, _ = store.index(space.id)
    digests, labels = [], []
    with store.writer(space) as writer:
        for number in range(-(-rows // CHUNK)):
            digest, values, label = chunk(number, X, y)
            if (index.find(Keys.plain(digest)) < 0).any():
                writer.add(Keys.plain(digest), values)
            digests.append(digest)
            labels.append(label)
    return np.concatenate(digests)[:rows], np.concatenate(labels)[:rows]


def listed(cache: Path, name: str, digest: np.ndarray, y: np.ndarray, classes: tuple[str, ...]) -> None:
    """Make a dataset of rows in the cache."""
    from synthetic import make_space

    from headstart.cache.listing import SPLITS, Listing, save_listing

    split = np.full(len(y), SPLITS.index("train"), np.uint8)
    split[: int(HELD_OUT * len(y))] = SPLITS.index("val")
    save_listing(
        cache,
        Listing(
            root=name,
            source=f"/made-up/{name}",
            layout="splits",
            classes=classes,
            paths=[b"photographs/%09d.jpg" % number for number in range(len(y))],
            label=y.astype(np.int32),
            split=split,
            stat=np.full((len(y), 4), 5, np.int64),
            digest=digest,
            spaces=(make_space(WIDTH).id,),
            scanned_ns=10**18,
        ),
    )


def child(task: dict[str, Any]) -> dict[str, Any]:
    """Do one thing in this process, and return what it took."""
    import headstart.classify.fit
    from headstart.cache.part import Keys
    from headstart.classify.dataset import labelled_set
    from headstart.extract.features import load_features

    before = peak()
    begin = time.perf_counter()
    if task["do"] == "columns":
        features = load_features(Path(task["cache"]), Path(task["data"]))
        data = labelled_set(features)
        mine = np.flatnonzero(data.split == "train")
        keys = Keys.plain(features.digest[data.rows[mine]])
        # What a fit keeps beside them: labels, folds and groups, and which row is where.
        held = [data.labels("train").astype(np.int64), np.full(len(mine), -1), data.group[mine], np.arange(len(mine))]
        index, _ = features.store.index(features.space.id)
        held += [column for part in index.by_part(index.find(keys)) for column in part[1:]]
        return {"bytes": (peak() - before) / len(data.y), "rows": len(data.y)}
    fit = headstart.classify.fit.fit_head(
        task["data"], cache=task["cache"], out=task["out"], overwrite=True, memory=task["memory"], near_copies="none",
        C=task["C"], cv=1,
    )  # fmt: skip
    return {
        "seconds": time.perf_counter() - begin,
        "before": before,
        "peak": peak(),
        "accuracy": fit.model.scores["val"]["accuracy"],
        "line": "in memory" if fit.blocks is None else fit.blocks.line(),
    }


def run(**task: Any) -> dict[str, Any]:
    """Do one thing in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--child", json.dumps(task)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def tell(name: str, found: dict[str, Any], columns: float, rows: int, limit: str) -> None:
    from headstart.classify.budget import parse_memory

    fit = found["peak"] - found["before"]
    print(
        f"{name}: {found['seconds']:.1f} s, peak {found['peak'] / 1e6:.0f} MB: {found['before'] / 1e6:.0f} the "
        f"interpreter and its libraries, {columns * rows / 1e6:.0f} columns, {(fit - columns * rows) / 1e6:.0f} the fit"
        + (f" (of {(parse_memory(limit) or 0) / 1e6:.0f})" if limit != "auto" else "")
        + f"; {100 * found['accuracy']:.2f} % right; {found['line']}",
        flush=True,
    )


def compared(one: Path, other: Path, data: tuple[np.ndarray, np.ndarray], C: float) -> str:
    """Return how far two models are apart on rows that both were fitted to."""
    from headstart.classify.model import load_model

    X, y = data
    models, objective, apart = [load_model(path) for path in (one, other)], [0.0, 0.0], 0.0
    for start in range(0, len(y), CHUNK):
        rows = slice(start, start + CHUNK)
        proba = []
        for number, model in enumerate(models):
            Z = (X[rows].astype(np.float64) - model.network.preparation.mean) / model.network.preparation.scale
            logits = Z @ model.network.weights[0].astype(np.float64).T + model.network.biases[0]
            objective[number] += C * float(
                (np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(logits)), y[rows]]).sum()
            )
            proba.append(np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)))
        apart = max(apart, float(np.abs(proba[0] - proba[1]).max()))
    for number, model in enumerate(models):
        objective[number] += 0.5 * float(np.square(model.network.weights[0].astype(np.float64)).sum())
    weights = [model.network.weights[0] for model in models]
    return (
        f"objective {objective[1] / objective[0] - 1:+.1e} relative to that in memory, weights differ by "
        f"{np.abs(weights[0] - weights[1]).max():.1e} at most (the largest is {np.abs(weights[0]).max():.2g}), "
        f"probabilities by {apart:.1e}"
    )


@contextlib.contextmanager
def place(keep: str | None) -> Iterator[Path]:
    """Yield a folder for the cache and the models, which is removed afterwards unless it is to be kept."""
    if keep:
        yield Path(keep)
        return
    with tempfile.TemporaryDirectory(dir="/var/tmp" if os.path.isdir("/var/tmp") else None) as folder:  # noqa: PTH112
        yield Path(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--memory", default="1GiB")
    parser.add_argument("--compare", type=int, default=200_000)
    parser.add_argument("--compare-memory", default="300MB")
    parser.add_argument("--C", type=float, default=0.01)
    parser.add_argument("--keep", metavar="DIR")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(json.loads(options.child))))
        return
    samples = os.environ.get("HEADSTART_SAMPLES") or sys.exit("HEADSTART_SAMPLES names no folder of photographs")
    with place(options.keep) as folder:
        measure(folder, Path(samples), options)


def measure(folder: Path, samples: Path, options: argparse.Namespace) -> None:
    begin = time.perf_counter()
    cache, C, few = folder / "cache", options.C, min(options.compare, options.rows)
    X, y, classes = originals(samples, folder / "photographs")
    digest, labels = fill(cache, options.rows, X, y)
    for name, count in (("few", few), ("many", options.rows)):
        listed(cache, name, digest[:count], labels[:count], classes)
    print(
        f"{options.rows} rows of {WIDTH} numbers ({options.rows * WIDTH * 4 / 1e9:.1f} GB), {len(classes)} classes, "
        f"C = {C}, no folds; made in {time.perf_counter() - begin:.0f} s",
        flush=True,
    )
    common = {"cache": str(cache), "C": C}
    columns = {name: run(do="columns", data=f"/made-up/{name}", **common)["bytes"] for name in ("few", "many")}
    fits = {"in memory": "100GB", "by blocks": options.compare_memory}
    for name, memory in fits.items():
        found = run(do="fit", data="/made-up/few", out=str(folder / name), memory=memory, **common)
        tell(f"{few} rows {name}", found, columns["few"], few, memory if name == "by blocks" else "auto")
    pieces = [chunk(number, X, y) for number in range(-(-few // CHUNK))]
    train = slice(int(HELD_OUT * few), few)
    rows = np.concatenate([piece[1] for piece in pieces])[train], labels[train]
    print(f"  {compared(folder / 'in memory', folder / 'by blocks', rows, C)}", flush=True)
    del rows, pieces
    found = run(do="fit", data="/made-up/many", out=str(folder / "many"), memory=options.memory, **common)
    tell(f"{options.rows} rows by blocks", found, columns["many"], options.rows, options.memory)


if __name__ == "__main__":
    main()

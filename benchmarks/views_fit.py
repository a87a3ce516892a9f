"""What several views of each image cost a head: seconds and memory of a fit, beside those with one view.

    python benchmarks/views_fit.py [--images 2000 --dim 512 --classes 10] [--heads logistic linear] [--views 1 2 4 8 16]

Each fit has a process of its own: the search over 11 values of C in 5 folds and the last fit (logistic), 3 learning
rates in 5 folds (linear). Embeddings are made: classes with means of their own in a space whose variance falls off as
in real embeddings, views that lie around their image, turned, and cut off below as by a ReLU. Memory is what the
process takes at most while it fits, beyond libraries and the embeddings themselves. Where other programs use the cores,
the seconds of the processor say more than those of the clock.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CLASSES_APART = 0.25  # so that about nine in ten are told right
VIEWS_APART = 0.5  # of the spread of images


def embeddings(n: int, n_views: int, dim: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return X (n, V, dim) float32 and y (n,)."""
    rng = np.random.default_rng(0)
    falls = (1 + np.arange(dim, dtype=np.float32)) ** -0.5
    turn = np.linalg.qr(rng.standard_normal((dim, dim)))[0].astype(np.float32)
    y = np.arange(n) % classes
    image = CLASSES_APART * rng.standard_normal((classes, dim))[y] + rng.standard_normal((n, dim))
    X = np.empty((n, n_views, dim), np.float32)
    for view in range(n_views):
        X[:, view] = ((image + VIEWS_APART * rng.standard_normal((n, dim))) * falls) @ turn
    return np.maximum(X + 0.2 * X[:, 0].std(), 0), y


def measure(head: str, file: Path, classes: int) -> dict[str, float]:
    """Fit one head, in this process."""
    from headstart.classify.heads import make_head

    X = np.load(file)
    y = np.arange(len(X)) % classes
    make_head(head, cv=2, **({"epochs": 1} if head in ("linear", "mlp") else {})).fit(X[:40, 0], y[:40] % 2)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    begin, busy = time.perf_counter(), time.process_time()
    fitted = make_head(head).fit(X, y)
    seconds, busy = time.perf_counter() - begin, time.process_time() - busy
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        "seconds": seconds,
        "busy": busy,
        "MB": peak / 1e6,
        "rows_MB": X.nbytes / 1e6,
        "accuracy": fitted.cv_["accuracy"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--heads", nargs="+", default=["logistic", "linear"])
    parser.add_argument("--views", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], Path(options.one[1]), options.classes)))
        return
    print(f"{options.images} images, {options.dim} wide, {options.classes} classes; ratios to the first row of a head")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "X.npy"
        for head in options.heads:
            first: dict[str, float] = {}
            for n_views in options.views:
                np.save(file, embeddings(options.images, n_views, options.dim, options.classes)[0])
                command = [sys.executable, __file__, "--one", head, str(file), "--classes", str(options.classes)]
                found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                first = first or found
                cost = ", ".join(
                    f"{found[name]:8.1f} {unit} ({found[name] / first[name]:4.1f} x)"
                    for name, unit in (("seconds", "s"), ("busy", "s of the processor"), ("MB", "MB"))
                )
                print(
                    f"{head:>9} V = {n_views:2}: {cost} beside {found['rows_MB']:.0f} MB of embeddings; "
                    f"{100 * found['accuracy']:.1f} % right",
                    flush=True,
                )


if __name__ == "__main__":
    main()

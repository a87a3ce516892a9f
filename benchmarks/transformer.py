"""`FrozenBackbone` in a pipeline that is cross-validated, against the same one without embeddings that are kept.

Both embed with the same code; the other forgets what it embedded after each call, as a transformer without a cache
does, and embeds each picture once a fold. Then what it takes to transform paths whose embeddings are there, in the
process that transformed them before and in a new one.

Run: HEADSTART_SAMPLES=... python benchmarks/transformer.py [number of paths]
"""

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from warm_extract import fill_cache, make_pictures

from headstart import FrozenBackbone
from headstart.cache.listing import RACY_NS

BACKBONE = "efficientnet_lite0"
FOLDS = 5
TIMES = 5
AGAIN = """
import sys, time
from pathlib import Path
from headstart import FrozenBackbone
paths = sorted(map(str, Path("many").rglob("*.jpg")))
begin = time.perf_counter()
FrozenBackbone(sys.argv[1], cache="cache").transform(paths)
print(time.perf_counter() - begin)
"""


class Forgetful(FrozenBackbone):
    """Keeps its network from call to call, and no embeddings."""

    def transform(self, X):
        """Embed, and forget."""
        try:
            return super().transform(X)
        finally:
            shutil.rmtree(self.cache / "spaces")


def validated(backbone: FrozenBackbone, paths: list[str], y: np.ndarray) -> tuple[float, np.ndarray]:
    model = make_pipeline(backbone, StandardScaler(), LogisticRegression())
    begin = time.perf_counter()
    scores = cross_val_score(model, paths, y, cv=FOLDS, error_score="raise")
    return time.perf_counter() - begin, scores


def folds(photographs: Path, folder: Path) -> None:
    paths = [str(path) for path in sorted(photographs.rglob("*.jpg"))]
    y = np.array([Path(path).parent.name for path in paths])
    # torch is imported, and the network looked up in both caches, before anything is timed.
    caches = [folder / name for name in ("kept", "forgotten")]
    for cache in caches:
        FrozenBackbone(BACKBONE, cache=cache).transform([np.zeros((9, 9, 3), np.uint8)])
    kept, first = validated(FrozenBackbone(BACKBONE, cache=caches[0]), paths, y)
    forgotten, second = validated(Forgetful(BACKBONE, cache=caches[1]), paths, y)
    again, third = validated(FrozenBackbone(BACKBONE, cache=caches[0]), paths, y)
    assert np.allclose(first, second, atol=0.02) and np.array_equal(first, third)
    print(f"cross_val_score, {len(paths)} photographs, {FOLDS} folds, {BACKBONE}, accuracy {first.mean():.3f}")
    print(f"  embedding anew in every fold {forgotten:.1f} s")
    print(f"  FrozenBackbone, empty cache {kept:.1f} s, ratio {forgotten / kept:.1f}")
    print(f"  FrozenBackbone, again {again:.2f} s, ratio {forgotten / again:.0f}")


def lookup(count: int, folder: Path) -> None:
    digests = make_pictures(folder / "many", count)
    backbone = FrozenBackbone(BACKBONE, cache=folder / "cache")
    paths = sorted(map(str, (folder / "many").rglob("*.jpg")))
    backbone.transform(paths[:1])
    fill_cache(folder / "cache", digests)
    time.sleep(1.5 * RACY_NS / 1e9)  # the files are then old enough for their status to be believed
    seconds = []
    for _ in range(1 + TIMES):
        begin = time.perf_counter()
        backbone.transform(paths)
        seconds.append(time.perf_counter() - begin)
    command = [sys.executable, "-c", AGAIN, BACKBONE]
    new = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    print(f"transform of {count} paths whose embeddings are there: {float(new.stdout):.2f} s in a new process, which")
    print(f"  reads and hashes each file; {seconds[0]:.2f} s the first time in this one, then {min(seconds[1:]):.3f} s")


def main() -> None:
    samples = os.environ.get("HEADSTART_SAMPLES")
    if not samples:
        sys.exit("HEADSTART_SAMPLES names no folder of sample photographs")
    logging.getLogger("headstart").setLevel(logging.ERROR)  # one of the photographs says that it is none
    for work, argument in ((folds, Path(samples) / "hymenoptera" / "train"), (lookup, int([*sys.argv, 10_000][1]))):
        with tempfile.TemporaryDirectory() as folder:
            work(argument, Path(folder))


if __name__ == "__main__":
    main()

"""Every head on real photographs: cross-validated and validation accuracy, calibration, seconds; label errors planted.

    python benchmarks/heads.py [--backbone efficientnet_lite0] [--seeds 10]

Reads the sample sets hymenoptera and hotdog from the folder that HEADSTART_SAMPLES names. Settings are chosen by
cross-validation on the training images; the validation images are scored once for each head. Then one in ten training
labels is changed, with several seeds, and it is counted how many of those are in the first 15 % of the ranking of
doubtful labels.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SETS = ("hymenoptera", "hotdog")
KINDS = ("logistic", "linear", "mlp", "knn", "ncm")
FLIPPED, LOOKED_AT = 0.1, 0.15


def measured(data: Path, cache: Path, out: Path) -> None:
    """Print a line for each head."""
    import headstart

    for kind in KINDS:
        begin = time.perf_counter()
        fit = headstart.fit_head(data, kind, cache=cache, out=out / f"{data.name}-{kind}")
        seconds = time.perf_counter() - begin
        found: dict[str, Any] = fit.summary()
        cv, val, sets = found["cv"], found["val"], found["conformal"]
        print(
            f"| {data.name} | {kind} | {100 * cv['accuracy']:.1f} | {100 * val['accuracy']:.1f} "
            f"({100 * val['low']:.1f} to {100 * val['high']:.1f}) | {val['log_loss']:.3f} | "
            f"{100 * val['ece_uncalibrated']:.1f} | {100 * val['ece']:.1f} | {100 * sets['coverage']:.1f}, "
            f"{sets['mean_size']:.2f} | {seconds:.2f} |",
            flush=True,
        )


def planted(data: Path, cache: Path, seeds: int) -> None:
    """Print how many changed labels are found."""
    from headstart.classify.dataset import labelled_set
    from headstart.classify.heads import make_head
    from headstart.classify.mislabelled import suspicious_labels
    from headstart.extract.features import load_features

    X, y = labelled_set(load_features(cache, data)).part("train")
    shares: dict[str, list[float]] = {"probabilities alone": [], "with neighbours": []}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        changed = rng.choice(len(y), round(FLIPPED * len(y)), replace=False)
        noisy = y.astype(np.int64)
        noisy[changed] = (noisy[changed] + rng.integers(1, y.max() + 1, len(changed))) % (y.max() + 1)
        head = make_head("logistic", random_state=seed).fit(X, noisy)
        first = round(LOOKED_AT * len(y))
        for name, embeddings in (("probabilities alone", None), ("with neighbours", X)):
            rows = suspicious_labels(head.oof_proba_, noisy, embeddings).rows[:first]
            shares[name].append(float(np.isin(changed, rows).mean()))
    for name, found in shares.items():
        print(f"| {data.name} | {name} | {100 * np.mean(found):.1f} | {100 * min(found):.1f} | {seeds} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    samples = os.environ.get("HEADSTART_SAMPLES")
    if not samples:
        raise SystemExit("set HEADSTART_SAMPLES to the folder of the sample sets")

    import headstart

    with tempfile.TemporaryDirectory() as folder:
        cache, out = Path(folder, "cache"), Path(folder, "models")
        for name in SETS:
            headstart.extract(Path(samples, name), options.backbone, cache=cache)
        print("| set | head | cross-validated % | validation % (95 % interval) | log loss | calibration error before % "
              "| after % | sets at 90 %: hold, size | seconds |\n|---|---|---|---|---|---|---|---|---|")  # fmt: skip
        for name in SETS:
            measured(Path(samples, name), cache, out)
        print("\n| set | ranked by | changed labels found % | worst seed | seeds |\n|---|---|---|---|---|")
        for name in SETS:
            planted(Path(samples, name), cache, options.seeds)


if __name__ == "__main__":
    main()

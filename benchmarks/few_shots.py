"""How often the intervals of few shots hold the truth, against those that take repeats for independent.

    python benchmarks/few_shots.py [--backbone efficientnet_lite0] [--trials 150]

Reads the sample sets hymenoptera and hotdog from the folder that HEADSTART_SAMPLES names. All pictures of a set, copies
apart, stand for the world: what a nearest class mean of K pictures a class gets right of the others, over 2,000 draws,
is the truth. Each trial sees half of the pictures and draws the few-shot curve; an interval holds where the truth of
that K is in it. 95 in a hundred should.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np

SETS = ("hymenoptera", "hotdog")
SHOTS = (1, 2, 4, 8, 16)
REPEATS = (2, 5, 10)
DRAWS = 2000


def world(data: Path, cache: Path, backbone: str) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings and labels of all pictures, one of each group of copies."""
    import headstart
    from headstart.classify.dataset import labelled_set
    from headstart.extract.features import load_features

    headstart.extract(data, backbone=backbone, cache=cache)
    loaded = load_features(cache, data)
    kept = np.unique(labelled_set(loaded).group, return_index=True)[1]
    kept = kept[loaded.y[kept] >= 0]
    return loaded.X[kept], loaded.y[kept].astype(np.int64)


def truths(X: np.ndarray, y: np.ndarray) -> dict[int, float]:
    """Return the share of other pictures that a head of K pictures a class gets right on average."""
    from headstart.classify.heads import make_head

    head, rng = make_head("ncm", cv=2).fit(X, y), np.random.default_rng(0)
    found: dict[int, list[float]] = {shots: [] for shots in SHOTS}
    for shots in SHOTS:
        for _ in range(DRAWS):
            order = rng.permutation(len(y))
            rows = np.concatenate([order[y[order] == label][:shots] for label in np.unique(y)])
            rest = np.setdiff1d(order, rows)
            answers = head.anew(X[rows], y[rows], 1).logits(X[rest]).argmax(axis=1)
            found[shots].append(float((answers == y[rest]).mean()))
    return {shots: float(np.mean(shares)) for shots, shares in found.items()}


def held(X: np.ndarray, y: np.ndarray, truth: dict[int, float], repeats: int, trials: int) -> np.ndarray:
    """Return the shares of trials (2, len(SHOTS)) in which an interval holds the truth: ours, and the plain one."""
    from headstart.classify.few_shots import few_shot_curve
    from headstart.classify.heads import make_head

    head, rng = make_head("ncm", cv=2).fit(X, y), np.random.default_rng(1)
    hits = np.zeros((2, len(SHOTS)))
    for trial in range(trials):
        half = rng.permutation(len(y))[: len(y) // 2]
        curve = few_shot_curve(head, X[half], y[half], half, shots=SHOTS[-1], repeats=repeats, seed=1000 * trial)
        for place, point in enumerate(curve.points):
            true, mean = truth[point["shots"]], point["mean"]
            hits[0, place] += point["low"] <= true <= point["high"]
            hits[1, place] += abs(mean - true) <= 1.96 * point["std"] / repeats**0.5
    return hits / trials


def main() -> None:
    """Print a table for each sample set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--trials", type=int, default=150)
    options = parser.parse_args()
    samples = Path(os.environ["HEADSTART_SAMPLES"])
    print(f"| set | repeats | interval | {' | '.join(f'{shots} a class' for shots in SHOTS)} |")
    print("|---" * (3 + len(SHOTS)) + "|")
    for name in SETS:
        with tempfile.TemporaryDirectory() as folder:
            X, y = world(samples / name, Path(folder), options.backbone)
        truth = truths(X, y)
        for repeats in REPEATS:
            shares = held(X, y, truth, repeats, options.trials)
            for row, interval in zip(shares, ("Nadeau and Bengio", "as if independent"), strict=True):
                told = " | ".join(f"{100 * share:.0f} %" for share in row)
                print(f"| {name} | {repeats} | {interval} | {told} |", flush=True)


if __name__ == "__main__":
    main()

"""Seven ways to come by a classifier, on real photographs, from a frozen head to random weights: scores and seconds.

    python benchmarks/finetune.py [--seeds 3] [--epochs 5] [--sets hymenoptera hotdog] [--way full ...]

Reads the sample sets hymenoptera and hotdog from the folder that HEADSTART_SAMPLES names. The epoch is chosen on dev, a
fifth of the training images; the validation images are scored once a run. Seconds are of the run, with torch imported.
The frozen head has no seed to speak of and is fitted once. At the end each way is compared with the frozen head on the
same validation images by McNemar's exact test, seed by seed.

Also printed, for ``--train LAYER`` without augmentation: the time of an epoch with and without keeping what the frozen
layers make of each picture, and how far the two runs' losses are apart.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BACKBONE = "efficientnet_lite0"
LAYER = "_blocks.11"  # the last five of its sixteen blocks and what follows: 83 % of the parameters
WAYS: dict[str, dict[str, Any]] = {
    "head, live augmentation": {"train": "head"},
    "partial": {"train": LAYER},
    "full": {"train": "all"},
    "full, norms frozen": {"train": "all", "freeze_norms": True, "lr": 1e-4},
    "full from the head": {"train": "all", "freeze_norms": True, "lr": 3e-5, "init_head": "HEAD"},
    "from scratch": {"train": "all", "weights": "none", "lr": 1e-3, "head_lr_mult": 1.0},
}


def frozen_head(data: Path, folder: Path) -> Path:
    """Print the line of the frozen head, embedding included, and return its folder."""
    import headstart

    begin = time.perf_counter()
    headstart.extract(data, BACKBONE, cache=folder / "cache")
    fit = headstart.fit_head(data, cache=folder / "cache", out=folder / f"{data.name}-head")
    print(_row(data.name, "frozen head", "-", "-", fit.summary()["val"], time.perf_counter() - begin), flush=True)
    return fit.out


def trained(data: Path, way: str, folder: Path, head: Path, seed: int, epochs: int) -> Path:
    """Print the line of one run, and return its folder."""
    import headstart

    options = {name: str(head) if value == "HEAD" else value for name, value in WAYS[way].items()}
    out = folder / f"{data.name}-{way.replace(',', '').replace(' ', '-')}-{seed}"
    run = headstart.finetune(data, BACKBONE, cache=folder / "none", out=out, seed=seed, epochs=epochs, **options)
    found = run.summary()
    chosen = f"{found['best_epoch']} of {found['epochs']}"
    print(_row(data.name, way, str(seed), chosen, found["val"], found["seconds"]), flush=True)
    return out


def compared(head: Path, other: Path, folder: Path) -> None:
    """Print how a run compares with the frozen head on the same images."""
    import headstart

    found = headstart.evaluate(head, against=other, cache=folder / "cache").summary()["against"]
    print(
        f"| {other.name} | {found['only_first']} | {found['only_second']} | {found['p_value']:.3f} | "
        f"{found['verdict']} |",
        flush=True,
    )


def kept(data: Path, folder: Path, epochs: int) -> None:
    """Print what keeping the activations of frozen layers is worth."""
    import headstart

    for layer in (LAYER, "head"):
        rows = {}
        for keep in (True, False):
            run = headstart.finetune(
                data, BACKBONE, cache=folder / "none", out=folder / f"{data.name}-kept-{layer}-{keep}", train=layer,
                augment="none", epochs=epochs, keep_frozen=keep,
            )  # fmt: skip
            rows[keep] = run.summary()["history"]
        apart = max(
            abs(one[name] - other[name]) / max(abs(other[name]), 1e-9)
            for one, other in zip(rows[True], rows[False], strict=True)
            for name in ("train_loss", "dev_loss")
            if one[name] is not None
        )
        seconds = {keep: sum(row["seconds"] for row in rows[keep][1:]) / epochs for keep in rows}
        print(
            f"| {data.name} | {layer} | {seconds[False]:.2f} | {seconds[True]:.2f} | "
            f"{seconds[False] / seconds[True]:.1f} | {apart:.1e} |",
            flush=True,
        )


def _row(name: str, way: str, seed: str, chosen: str, val: dict[str, Any], seconds: float) -> str:
    interval = f"{100 * val['low']:.1f} to {100 * val['high']:.1f}"
    return (
        f"| {name} | {way} | {seed} | {chosen} | {100 * val['accuracy']:.1f} ({interval}) | {val['log_loss']:.3f} | "
        f"{seconds:.0f} |"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--sets", nargs="+", default=["hymenoptera", "hotdog"])
    parser.add_argument("--way", nargs="+", choices=list(WAYS), default=list(WAYS))
    options = parser.parse_args(arguments)
    samples = os.environ.get("HEADSTART_SAMPLES")
    if not samples:
        raise SystemExit("set HEADSTART_SAMPLES to the folder of the sample sets")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("| set | way | seed | epoch taken | validation % (95 % interval) | log loss | seconds |\n"
              "|---|---|---|---|---|---|---|")  # fmt: skip
        runs: list[tuple[Path, Path]] = []
        for data in (Path(samples, name) for name in options.sets):
            head = frozen_head(data, folder)
            for way in options.way:
                runs += [
                    (head, trained(data, way, folder, head, seed, options.epochs)) for seed in range(options.seeds)
                ]
        print("\n| run | right by the head alone | by the run alone | p | verdict |\n|---|---|---|---|---|")
        for head, other in runs:
            compared(head, other, folder)
        print("\n| set | --train | an epoch, s | kept, s | times | losses apart, relative |\n|---|---|---|---|---|---|")
        for data in (Path(samples, name) for name in options.sets):
            kept(data, folder, options.epochs)


if __name__ == "__main__":
    main()

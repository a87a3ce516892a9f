"""Cached views of real photographs: accuracy against their number, beside no augmentation and live augmentation.

    python benchmarks/views.py [--sets hymenoptera hotdog] [--repeats 10] [--only curves presets averages cost]

Reads the sample sets hymenoptera and hotdog from the folder that HEADSTART_SAMPLES names, and embeds them with
efficientnet_lite0; a hundred thousand views take about ten minutes on two cores. Printed are

- curves: validation accuracy and log loss with 1, 2, 4, 8, 16 views at 4, 16, 64 and all images a class, as mean and
  standard deviation over repeats. A repeat draws other images (all images are the same ones each time) and other views.
  The logistic head chooses C on the images drawn, by cross-validation. The linear head trains for 30 epochs at one
  learning rate on the plain crop, on the views that are cached, or on a fresh view in each epoch: that is what live
  augmentation through the frozen backbone computes;
- presets: the same at 4 views for each of them, all images and 16 a class;
- averages: what it brings to average a fitted model's probabilities over views of the validation images;
- cost: whole processes for all images: a head on plain crops, on 8 cached views, and ``finetune --train head`` with
  live augmentation, with the same number of epochs; and what view V + 1 costs against the first.

Nothing is chosen by these scores: the validation images are looked at many times, to draw curves and not to pick.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

BACKBONE = "efficientnet_lite0"
SETS = ("hymenoptera", "hotdog")
PRESETS = ("flip", "crop", "tutorial", "strong", "randaugment")
VIEWS = (1, 2, 4, 8, 16)
SHOTS = (4, 16, 64, None)
EPOCHS, LR = 30, 1e-3
PARTS = ("curves", "presets", "averages", "cost")


@dataclass(frozen=True, slots=True)
class Images:
    """A sample set.

    Attributes
    ----------
    X : ndarray of shape (n, V, D), dtype float32
        Views of the training images.
    y : ndarray of shape (n,), dtype int32
    val : ndarray of shape (m, D), or (m, V, D), dtype float32
    val_y : ndarray of shape (m,), dtype int32
    """

    X: np.ndarray
    y: np.ndarray
    val: np.ndarray
    val_y: np.ndarray

    def drawn(self, shots: int | None, repeat: int) -> np.ndarray:
        """Return images of a repeat, the same number of each class; all of them where `shots` is None."""
        if shots is None:
            return np.arange(len(self.y))
        order = np.random.default_rng(repeat).permutation(len(self.y))
        return np.sort(np.concatenate([order[self.y[order] == label][:shots] for label in np.unique(self.y)]))

    def views(self, repeat: int, repeats: int) -> np.ndarray:
        """Return the numbers of all views in the order of a repeat, the plain one first; few repeats share any."""
        others = np.arange(1, self.X.shape[1])
        return np.concatenate([[0], np.roll(others, -repeat * (len(others) // repeats))])


def images_of(data: Path, cache: Path, preset: str, views: int, split: str = "train") -> Images:
    """Return a sample set with so many views, embedded where the cache lacks them."""
    import headstart

    found = headstart.extract(data, BACKBONE, cache=cache, views=views, augment=preset, views_split=split)
    train, val = (np.flatnonzero(found.split == name) for name in ("train", "val"))
    return Images(
        found.of_views(train), found.y[train], found.of_views(val) if split == "all" else found.X[val], found.y[val]
    )


def scored(proba: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return accuracy and log loss."""
    return float((proba.argmax(axis=1) == y).mean()), float(-np.log(proba[np.arange(len(y)), y].clip(1e-15)).mean())


def logistic(images: Images, rows: np.ndarray, views: np.ndarray) -> tuple[float, float]:
    """Fit the logistic head on some views of some images, and score it."""
    from headstart.classify.heads import make_head

    folds = min(5, int(np.bincount(images.y[rows]).min()))
    head = make_head("logistic", cv=folds).fit(images.X[np.ix_(rows, views)], images.y[rows])
    return scored(head.predict_proba(images.val), images.val_y)


def linear(images: Images, rows: np.ndarray, views_of_epoch: Callable[[int], np.ndarray]) -> tuple[float, float]:
    """Train a linear head for a number of epochs on the views that each is given, and score it."""
    from headstart.classify.network import Network, softmax
    from headstart.classify.preparation import fit_preparation
    from headstart.classify.training import Batches, Recipe, Rows, Setting, Stack

    y = images.y[rows].astype(np.int64)
    preparation = fit_preparation(images.X[rows, 0])
    made = Recipe("adamw", 0.9, "constant", 0.0, 64, EPOCHS, EPOCHS, 0, "cpu")
    stack, batches = None, Batches([np.arange(len(y))], made.batch_size, 0)
    for epoch in range(1, EPOCHS + 1):
        X = images.X[np.ix_(rows, views_of_epoch(epoch))]
        on = Rows.on("cpu", preparation.apply(X.reshape(-1, X.shape[2])), y, int(y.max()) + 1, "none")
        stack = stack or Stack([Setting(LR, 1e-2)], 1, on, made)
        stack.train_epoch(on, batches, epoch)
    assert stack is not None
    return scored(softmax(Network(preparation, *stack.layers()).logits(images.val)), images.val_y)


def spread(found: list[tuple[float, float]]) -> str:
    """Return accuracy and log loss of repeats in a cell of a table."""
    accuracy, loss = np.array(found).T
    return f"{100 * accuracy.mean():.1f} ± {100 * accuracy.std(ddof=1):.1f}, {loss.mean():.3f}"


def curves(name: str, images: Images, repeats: int) -> Iterator[str]:
    """Yield the rows of the table of curves."""
    for shots in SHOTS:
        chosen = [(images.drawn(shots, repeat), images.views(repeat, repeats)) for repeat in range(repeats)]
        logistic_cells = [spread([logistic(images, rows, views[:count]) for rows, views in chosen]) for count in VIEWS]
        yield f"| {name} | {shots or 'all'} | logistic | {' | '.join(logistic_cells)} | |"
        cells = [
            spread([linear(images, rows, lambda _, some=views[:count]: some) for rows, views in chosen])
            for count in VIEWS
        ]
        live = spread([linear(images, rows, lambda epoch, all=views: all[[epoch]]) for rows, views in chosen])
        yield f"| {name} | {shots or 'all'} | linear, {EPOCHS} epochs | {' | '.join(cells)} | {live} |"


def presets(name: str, data: Path, cache: Path, repeats: int) -> Iterator[str]:
    """Yield the rows of the table of presets, at 4 views."""
    for preset in PRESETS:
        images = images_of(data, cache, preset, 1 + 3 * repeats)
        cells = [
            spread([
                logistic(images, images.drawn(shots, repeat), images.views(repeat, repeats)[:4])
                for repeat in range(repeats)
            ])
            for shots in (16, None)
        ]  # fmt: skip
        yield f"| {name} | {preset} | {' | '.join(cells)} |"


def averages(name: str, data: Path, cache: Path) -> Iterator[str]:
    """Yield the rows of the table of averages over views of the validation images."""
    from headstart.classify.heads import make_head

    for trained in (1, 8):
        for preset in ("flip", "crop", "tutorial"):
            images = images_of(data, cache, preset, 16, "all")
            train = images_of(data, cache, "tutorial", 8)
            head = make_head("logistic").fit(train.X[:, :trained], train.y)
            cells = []
            for count in VIEWS:
                some = images.val[:, :count]
                proba = head.predict_proba(some.reshape(-1, some.shape[2])).reshape(len(some), count, -1)
                accuracy, loss = scored(proba.mean(axis=1), images.val_y)
                cells.append(f"{100 * accuracy:.1f}, {loss:.3f}")
            yield f"| {name} | {trained} | {preset} | {' | '.join(cells)} |"


def seconds(*words: Any) -> float:
    """Return how long a command takes, from outside."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "headstart.cli", *map(str, words), "--quiet"], check=True)
    return time.perf_counter() - begin


def cost(name: str, data: Path, folder: Path) -> Iterator[str]:
    """Yield lines on what each way takes as whole processes."""
    made = ("--backbone", BACKBONE, "--cache", folder / "timed")
    plain = seconds("extract", data, *made)
    head = seconds("fit-head", data, "--cache", folder / "timed", "-o", folder / "one")
    grown = seconds("extract", data, *made, "--views", 8, "--views-split", "train")
    fit = seconds("fit-head", data, "--cache", folder / "timed", "-o", folder / "eight")
    again = seconds("fit-head", data, "--cache", folder / "timed", "-o", folder / "again")
    live = seconds(
        "finetune", data, "--backbone", BACKBONE, "--train", "head", "--augment", "tutorial", "--epochs", EPOCHS,
        "--patience", EPOCHS, "--cache", folder / "none", "-o", folder / "live",
    )  # fmt: skip
    yield f"| {name} | plain crop: extract, fit-head | {plain:.1f} + {head:.1f} |"
    yield f"| {name} | seven more views: extract, fit-head | {grown:.1f} + {fit:.1f} |"
    yield f"| {name} | another head on 8 views | {again:.1f} |"
    yield f"| {name} | live augmentation, {EPOCHS} epochs: finetune --train head | {live:.1f} |"
    yield f"| {name} | live augmentation against another head on 8 views | {live / again:.0f} times |"


def view_cost(name: str, data: Path, folder: Path) -> Iterator[str]:
    """Yield lines on what a further view of each training image takes against the first."""
    import headstart

    cache, rates = folder / "views", []
    for views in (1, 2, 4, 8):
        begin = time.perf_counter()
        found = headstart.extract(data, BACKBONE, cache=cache, views=views, views_split="train" if views > 1 else None)
        rates.append((views, found.embedded, time.perf_counter() - begin, found.stages["decode"]))
    for views, rows, took, decode in rates:
        yield f"| {name} | up to {views} | {rows} | {1000 * took / rows:.2f} | {1000 * decode / rows:.2f} |"


def main() -> None:
    """Print the tables that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--cache", type=Path, help="keep the embeddings here, for another time")
    given = parser.parse_args()
    samples = Path(os.environ["HEADSTART_SAMPLES"])
    heads = {
        "curves": f"| set | images a class | head | {' | '.join(f'V = {views}' for views in VIEWS)} | live |",
        "presets": "| set | preset | 16 a class | all |",
        "averages": f"| set | trained on | averaged over | {' | '.join(f'{views}' for views in VIEWS)} |",
        "cost": "| set | what | seconds |",
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = given.cache or folder / "cache"
        for part in given.only:
            print(f"\n{part}\n\n{heads[part]}\n{'|---' * (heads[part].count('|') - 1)}|", flush=True)
            for data in (samples / name for name in given.sets):
                lines: dict[str, Callable[[], Iterator[str]]] = {
                    "curves": lambda data=data: curves(
                        data.name,
                        images_of(data, cache, "tutorial", 1 + max(VIEWS[-1] * given.repeats, EPOCHS)),
                        given.repeats,
                    ),
                    "presets": lambda data=data: presets(data.name, data, cache, given.repeats),
                    "averages": lambda data=data: averages(data.name, data, cache),
                    "cost": lambda data=data: cost(data.name, data, folder / data.name),
                }
                for line in lines[part]():
                    print(line, flush=True)
            if part == "cost":
                print("\n| set | views | rows | ms a row | ms of decoding a row |\n|---|---|---|---|---|", flush=True)
                for data in (samples / name for name in given.sets):
                    for line in view_cost(data.name, data, folder / data.name):
                        print(line, flush=True)


if __name__ == "__main__":
    main()

"""Is finetuning worth it? What `compare` predicts, held against finetunes that are really run.

    python benchmarks/advice.py [--epochs N] [--cases digits hotdog] [--seed 0]

Reads hymenoptera and hotdog from the folder that HEADSTART_SAMPLES names; handwritten digits come with scikit-learn.
Each case is a dataset, or a part of its training images, and a backbone with its own or with random weights. `compare`
predicts from the training images; then the head is fitted, the network trained end to end, and both are held against
each other on the same validation images, by McNemar's exact test. The prediction is about just that: "likely" is right
where the network is better by more than chance, "unlikely" where it is not, and "cannot be told" is counted by itself.
What two constant answers would have scored stands below.

The constants of the rule (`classify/advice.py`) were not chosen by what this prints. That finetuning gained nothing on
all of hymenoptera and hotdog was known from `benchmarks/finetune.py`.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LITE = "efficientnet_lite0"
SMALL = {"resize": 64, "crop": 64}  # digits have 8 pixels a side


@dataclass(frozen=True)
class Case:
    """A dataset, how many of its training images of each class are taken, and a backbone."""

    data: str
    per_class: int | None = None
    backbone: str = LITE
    weights: str = "default"
    preprocess: dict[str, int] = field(default_factory=dict)

    @property
    def epochs(self) -> int:
        """As many as finetune has by default; of photographs, which cost a dozen digits each, half."""
        return 10 if self.data == "digits" else 5

    @property
    def name(self) -> str:
        """What it is called in the table."""
        part = "" if self.per_class is None else f", {self.per_class} a class"
        return f"{self.data}{part}, {self.backbone}{' (random)' if self.weights == 'none' else ''}"


CASES = [
    Case("hymenoptera"),
    Case("hymenoptera", 60),
    Case("hymenoptera", 15),
    Case("hymenoptera", backbone="mobilenet_v3_small", weights="none"),
    Case("hotdog"),
    Case("hotdog", 25),
    Case("hotdog", backbone=LITE, weights="none"),
    Case("digits", preprocess=SMALL),
    Case("digits", 50, preprocess=SMALL),
    Case("digits", 15, preprocess=SMALL),
    Case("digits", backbone="resnet18", weights="none", preprocess=SMALL),
    Case("digits", 50, backbone="resnet18", weights="none", preprocess=SMALL),
]


def write_digits(folder: Path) -> None:
    """Write scikit-learn's 1,797 digits as pictures of 64 pixels, every fifth into val."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        place = folder / ("val" if number % 5 == 0 else "train") / f"digit {label}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255 / 16).astype("uint8")).resize((64, 64)).save(place / f"{number:04d}.png")


def part_of(data: Path, per_class: int | None, folder: Path, seed: int) -> Path:
    """Return a dataset with so many training images of each class, drawn at random, and all validation images."""
    if per_class is None:
        return data
    part = folder / f"{data.name}-{per_class}"
    for split in ("train", "val"):
        for name in sorted(path.name for path in (data / split).iterdir() if path.is_dir()):
            files = sorted((data / split / name).iterdir())
            if split == "train":
                random.Random(seed).shuffle(files)
            (part / split / name).mkdir(parents=True)
            for file in files[: per_class if split == "train" else None]:
                shutil.copy(file, part / split / name)
    return part


def finetuned(case: Case, data: Path, folder: Path, epochs: int, seed: int) -> Path:
    """Train the whole network as `headstart finetune` does by default; from random weights at the rate that suits."""
    import headstart

    fresh = {"weights": "none", "lr": 1e-3} if case.weights == "none" else {}
    options: dict[str, Any] = {**fresh, **case.preprocess}
    # Digits do not stay what they are when they are mirrored.
    augment = "none" if case.data == "digits" else "tutorial"
    run = headstart.finetune(
        data, case.backbone, cache=folder / "cache", out=folder / "finetuned", epochs=epochs, seed=seed,
        augment=augment, **options,
    )  # fmt: skip
    return Path(run.summary()["out"])


def run_case(case: Case, data: Path, epochs: int, seed: int) -> dict[str, Any]:
    """Return the prediction, and what became of it."""
    import headstart

    with tempfile.TemporaryDirectory() as name:
        folder, begin = Path(name), time.perf_counter()
        data = part_of(data, case.per_class, folder, seed)
        found = headstart.compare(
            data, backbones=case.backbone, weights=case.weights, wanted=case.preprocess, cache=folder / "cache",
            out=folder / "compared", seed=seed,
        )  # fmt: skip
        predicted = next(entry for entry in found.advice if entry["about"] == "finetune")
        compared = time.perf_counter() - begin
        head = headstart.fit_head(
            data, cache=folder / "cache", out=folder / "head", wanted={"backbone": case.backbone}, seed=seed
        ).out
        trained = finetuned(case, data, folder, epochs, seed)
        result = headstart.evaluate(head, data, against=trained, cache=folder / "cache")
        seconds = time.perf_counter() - begin - compared
    against = result.against
    assert against is not None
    return {"case": case, "found": found, "predicted": predicted, "n": len(result.y), "against": against,
            "head": result.scores["accuracy"], "compared": compared, "seconds": seconds}  # fmt: skip


def truth_of(run: dict[str, Any]) -> str:
    """Return whether the network pays, hurts, or neither beyond chance."""
    against = run["against"]
    if against["p_value"] >= 0.05:
        return "no difference"
    return "pays" if against["only_second"] > against["only_first"] else "hurts"


def verdict_of(predicted: str, truth: str) -> str:
    """Return whether a prediction was right."""
    if predicted == "cannot be told":
        return "-"
    return "right" if (predicted == "likely") == (truth == "pays") else "wrong"


def difference(run: dict[str, Any]) -> str:
    """Return the difference of accuracies in points with its 95 % interval, paired, by the normal approximation."""
    n, lost, won = run["n"], run["against"]["only_first"], run["against"]["only_second"]
    gain = (won - lost) / n
    half = 1.96 * math.sqrt(max(won + lost - n * gain**2, 0.0)) / n
    return f"{100 * gain:+.1f} ({100 * (gain - half):+.1f} to {100 * (gain + half):+.1f})"


def print_row(run: dict[str, Any]) -> None:
    truth, predicted = truth_of(run), run["predicted"]["prediction"]
    print(
        f"| {run['case'].name} | {run['found'].train} | {run['n']} | {100 * run['found'].rows[0].cv_accuracy:.1f} | "
        f"{predicted} | {100 * run['head']:.1f} | {100 * run['against']['accuracy']:.1f} | {difference(run)} | "
        f"{run['against']['p_value']:.2g} | {truth} | {verdict_of(predicted, truth)} | {run['compared']:.0f} | "
        f"{run['seconds']:.0f} |",
        flush=True,
    )


def print_total(runs: Sequence[dict[str, Any]]) -> None:
    """Print how many predictions were right, by what turned out, and beside constant answers."""
    truths = [truth_of(run) for run in runs]
    answers = {
        "the advice": [run["predicted"]["prediction"] for run in runs],
        'always "unlikely"': ["unlikely"] * len(runs),
        'always "likely"': ["likely"] * len(runs),
    }
    print("\n| | right | wrong | cannot be told | right where it pays | where nothing differs | where it hurts |\n"
          "|---|---|---|---|---|---|---|")  # fmt: skip
    for name, predictions in answers.items():
        verdicts = [verdict_of(*pair) for pair in zip(predictions, truths, strict=True)]
        by_truth = []
        for wanted in ("pays", "no difference", "hurts"):
            mine = [verdict for verdict, truth in zip(verdicts, truths, strict=True) if truth == wanted]
            by_truth.append(f"{mine.count('right')} of {len(mine)}")
        counts = (str(verdicts.count(verdict)) for verdict in ("right", "wrong", "-"))
        print(f"| {name} | {' | '.join(counts)} | {' | '.join(by_truth)} |")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, metavar="N", help="[default: 10, of photographs 5]")
    parser.add_argument("--cases", nargs="+", metavar="WORD", help="those whose name contains one of the words")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    samples = os.environ.get("HEADSTART_SAMPLES")
    if not samples:
        raise SystemExit("set HEADSTART_SAMPLES to the folder of the sample sets")
    logging.getLogger("headstart").setLevel(logging.ERROR)
    cases = [case for case in CASES if not options.cases or any(word in case.name for word in options.cases)]
    with tempfile.TemporaryDirectory() as name:
        digits = Path(name) / "digits"
        write_digits(digits)
        print("| case | train | val | head, cross-validated % | prediction | head, validation % | finetuned % | "
              "difference (95 % interval) | p | truth | | s, compare | s, finetune |\n|" + "---|" * 13)  # fmt: skip
        runs = []
        for case in cases:
            data = digits if case.data == "digits" else Path(samples, case.data)
            runs.append(run_case(case, data, options.epochs or case.epochs, options.seed))
            print_row(runs[-1])
        print_total(runs)


if __name__ == "__main__":
    main()

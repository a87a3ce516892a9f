"""Small runs of training end to end: a dozen drawn pictures, a small network with random weights, two epochs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from command_line import SHAPES, draw

NETWORK = "mobilenet_v3_small"  # with batch norms, 52 modules, 0.9 million parameters
SIDE = 32
OPTIONS: dict[str, Any] = {
    "backbone": NETWORK, "weights": "none", "crop": SIDE, "resize": SIDE, "batch_size": 4, "epochs": 2, "device": "cpu",
}  # fmt: skip


def drawn(folder: Path) -> Path:
    """Draw two classes of eight pictures to train on, of which three become dev, and three each for validation."""
    for split, numbers in (("train", range(8)), ("val", range(8, 11))):
        for shape in SHAPES[:2]:
            (folder / split / shape).mkdir(parents=True)
            for number in numbers:
                draw(shape, number, side=96).save(folder / split / shape / f"{number:02d}.jpg")
    return folder


def train(data: Path, out: Path, **options: Any):
    """Train in this process."""
    from headstart.classify.finetune.job import finetune

    return finetune(data, out=out, **{**OPTIONS, **options})


def words(data: Path, out: Path, *more: str, **options: Any) -> list[str]:
    """Return the same as words for the command line."""
    found = ["finetune", str(data), "--out", str(out)]
    for name, value in {**OPTIONS, **options}.items():
        option = "--" + name.replace("_", "-")
        found += [option] if value is True else [option, str(value)]
    return [*found, *more]


def losses(history: list[dict[str, Any]]) -> list[tuple[float | None, ...]]:
    """Return the losses of each epoch, which must not differ where nothing differs; its seconds may."""
    return [(row["train_loss"], row["dev_loss"], row["dev_accuracy"], row["lr"]) for row in history]


def result(out: Path) -> tuple[Any, ...]:
    """Return what a saved model is: its history, its scores, and the digests of all its numbers, which name the files."""
    content = json.loads((out / "model.json").read_text())
    facts = content["facts"]
    return losses(facts["history"]), facts["best_epoch"], content["scores"], content["tensors"], content.get("backbone")


def kept(out: Path) -> Path:
    return out.with_name(out.name + ".checkpoint")


def position(out: Path) -> tuple[int, int]:
    """Return the epoch and the steps of it that the checkpoint holds; (0, 0) where there is none."""
    try:
        content = json.loads((kept(out) / "checkpoint.json").read_text())
    except FileNotFoundError:
        return 0, 0
    return content["epoch"], content["step"]


def stop_after(calls: int):
    """Return a question that is answered by yes from the call after so many on; `asked` counts."""

    def stopped() -> bool:
        stopped.asked += 1
        return stopped.asked > calls

    stopped.asked = 0
    return stopped


def weights_of(model: Any) -> dict[str, np.ndarray]:
    """Return the numbers of a trained network by name."""
    return {**model.body, **model.network.arrays()}

"""The main job on pictures that ship with scikit-learn: no network and no data of one's own needed."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .classify.evaluate import evaluate
from .classify.evaluation import Evaluation
from .classify.fit import fit_head
from .classify.fitted import Fit
from .classify.predict import load
from .classify.prediction import Prediction
from .errors import DataError
from .extract.job import Extraction, extract

logger = logging.getLogger("headstart")

BACKBONE = "efficientnet_lite0"
IMAGES_PER_CLASS = 60
SIDE = 64  # pixels; the originals have 8
MARKER = ".made-by-headstart-demo"


@dataclass(frozen=True, slots=True)
class Demo:
    """What the demo did."""

    extraction: Extraction
    fit: Fit
    evaluation: Evaluation
    predictions: list[Prediction]
    seconds: float

    def summary(self) -> dict[str, Any]:
        """Return the fields of ``demo --json``: those of each step."""
        return {
            "extract": self.extraction.summary(),
            "fit_head": self.fit.summary(),
            "evaluate": self.evaluation.summary(),
            "predict": {"predictions": [row.as_dict() for row in self.predictions]},
            "seconds": round(self.seconds, 3),
        }

    def lines(self) -> list[str]:
        """Return the closing lines."""
        return [
            f"done in {self.seconds:.0f} s. With your own pictures, one folder a class:",
            "  headstart extract photos",
            "  headstart fit-head",
            "  headstart predict models/photos-resnet18-logistic new/",
        ]


def run(folder: Path) -> Demo:
    """Write the pictures, embed them, fit a head, score it, and predict three.

    Parameters
    ----------
    folder : Path
        Holds the pictures, the cache and the model; may be deleted afterwards.

    Raises
    ------
    DataError
        `folder` holds something else.
    """
    begin = time.perf_counter()
    images = folder / "digits"
    write_digits(images)
    _step(f"headstart extract {images} --backbone {BACKBONE}")
    extraction = extract(images, BACKBONE, cache=folder / "cache")
    _tell(extraction.lines()[:-1])
    _step("headstart fit-head")
    fit = fit_head(images, cache=folder / "cache", out=folder / "model", overwrite=True)
    _tell(fit.lines()[:-1])
    _step(f"headstart evaluate {fit.out}")
    evaluation = evaluate(fit.out, cache=folder / "cache")
    _tell(evaluation.lines())
    pictures = [images / f"{digit}" / "000.png" for digit in (3, 7, 8)]
    _step(f"headstart predict {fit.out} {' '.join(map(str, pictures))}")
    predictions = load(fit.out, cache=folder / "cache").predict(pictures)
    _tell([f"{row.path}: {row.label}, {100 * (row.probability or 0):.1f} %" for row in predictions])
    return Demo(extraction, fit, evaluation, predictions, time.perf_counter() - begin)


def _step(command: str) -> None:
    logger.info("")
    logger.info("$ %s", command)


def _tell(lines: list[str]) -> None:
    for line in lines:
        logger.info("%s", line)


def write_digits(folder: Path) -> None:
    """Write handwritten digits as PNG files, one folder a class; files that are there stay as they are.

    Parameters
    ----------
    folder : Path
        Made when it is not there. A folder of other things is refused.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).exists():
        raise DataError(f"{folder} holds something else; name another folder with --out")
    digits = load_digits()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).write_text("Handwritten digits of scikit-learn, written by `headstart demo`. May be deleted.\n")
    for digit in range(10):
        (folder / str(digit)).mkdir(exist_ok=True)
        for number, pixels in enumerate(digits.images[digits.target == digit][:IMAGES_PER_CLASS]):
            path = folder / str(digit) / f"{number:03d}.png"
            if not path.exists():
                # Dark strokes on white, as a pencil makes them; 16 is the darkest of scikit-learn's values.
                grey = Image.fromarray((255 - np.minimum(pixels * 16, 255)).astype(np.uint8))
                grey.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path)

"""Predictions as a picture: each image under what the model says of it, marked right or wrong where that is known."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from ..extract.options import DEFAULT_MAX_PIXELS
from .grid_image import FRAMED, MAX_PICTURES, Block, Tile, as_png, draw_blocks
from .lettering import GREEN, GREY, RED, Line
from .result_file import check_file, check_no_input, write_file
from .thumbnails import Pixels, thumbnails

if TYPE_CHECKING:
    from .prediction import Prediction

logger = logging.getLogger("headstart.classify")

LIMIT = 64  # pictures that are shown unless asked
COLUMNS = 8
COLOURS = {"right": GREEN, "wrong": RED, "": GREY}


@dataclass(frozen=True, slots=True)
class PredictionGrid:
    """Where predictions are to be drawn, and how many of them.

    Attributes
    ----------
    out : Path
        The PNG file.
    limit : int, default 64
        Of more pictures, so many are shown, evenly chosen in the order of their paths.
    max_pixels : int, default 89,478,485
        Larger pictures cannot be read.
    """

    out: Path
    limit: int = LIMIT
    max_pixels: int = DEFAULT_MAX_PIXELS

    def draw(self, predictions: Sequence[Prediction], classes: Sequence[str]) -> Drawn | None:
        """Draw predictions and write the file.

        A picture's class is known where the folder that it lies in is named like one of the classes.

        Parameters
        ----------
        predictions : sequence of Prediction
        classes : sequence of str
            Those of the model.

        Returns
        -------
        Drawn or None
            None where none of the pictures can be read, and nothing was written.

        Raises
        ------
        OutputError
            The file is one of the pictures, or cannot be written.
        """
        check_no_input(self.out, (row.path for row in predictions), option="--grid")
        readable = [row for row in predictions if row.error is None]
        chosen = [readable[place] for place in _evenly(len(readable), self.limit)]
        made = thumbnails([os.fsencode(row.path) for row in chosen], FRAMED, self.max_pixels)
        shown = [(row, pixels) for row, pixels in zip(chosen, made, strict=True) if not isinstance(pixels, str)]
        if not shown:
            logger.warning("%s was not written: none of the pictures can be read", self.out)
            return None
        judged = [_judged(row, classes) for row, _ in shown]
        marks = [mark for mark, _ in judged]
        tiles = [_tile(*pair, *judgement) for pair, judgement in zip(shown, judged, strict=True)]
        png = as_png(draw_blocks([Block(_heading(marks), tiles)], _columns(len(shown))))
        write_file(self.out, png, option="--grid")
        left_out = len(predictions) - len(readable) + len(chosen) - len(shown)
        right, wrong = marks.count("right"), marks.count("wrong")
        drawn = Drawn(self.out, len(png), len(shown), len(readable), left_out, right, wrong)
        drawn.tell()
        return drawn


@dataclass(frozen=True, slots=True)
class Drawn:
    """A written grid of predictions.

    Attributes
    ----------
    out : Path
    bytes : int
        Size of the file.
    shown : int
        Pictures in it.
    of : int
        Pictures that have a prediction.
    left_out : int
        Pictures that could not be read.
    right, wrong : int
        Of those shown whose class is known.
    """

    out: Path
    bytes: int
    shown: int
    of: int
    left_out: int
    right: int
    wrong: int

    def summary(self) -> dict[str, Any]:
        """Return what ``predict --json`` has under ``grid``."""
        fields = ("bytes", "shown", "of", "left_out", "right", "wrong")
        return {"out": str(self.out), **{name: getattr(self, name) for name in fields}}

    def tell(self) -> None:
        """Say on the log what was drawn; standard output is for the predictions."""
        chosen = "" if self.shown == self.of else f" of {self.of}, evenly chosen (--grid-limit shows more)"
        logger.info("wrote %s: %d pictures%s", self.out, self.shown, chosen)
        known = self.right + self.wrong
        right = f": {self.right} right, {self.wrong} wrong" if known else ""
        logger.info("the folder's name is a class for %d of them%s", known, right)
        if self.left_out:
            logger.info("left out %d that could not be read", self.left_out)


def plan_grid(
    out: Path | None, limit: int | None = None, overwrite: bool = False, max_pixels: int | None = None
) -> PredictionGrid | None:
    """Check what was asked for before any prediction is made.

    Parameters
    ----------
    out : Path or None
        The PNG file; None where no grid is wanted.
    limit : int, optional
        The most pictures that are shown, up to 1000; 64 where it is None.
    overwrite : bool, default False
        Replace a file that is there.
    max_pixels : int, optional
        Larger pictures cannot be read; 89,478,485 where it is None.

    Raises
    ------
    UsageError
        A limit out of range, a name that does not end in .png, or options of a grid without one.
    OutputError
        The file is there already.
    """
    if out is None:
        if limit is not None or overwrite:
            raise UsageError("--grid-limit and --overwrite have a meaning with --grid alone")
        return None
    if limit is not None and not 0 < limit <= MAX_PICTURES:
        raise UsageError(f"--grid-limit must be a whole number from 1 to {MAX_PICTURES}; got {limit}")
    check_file(out, ".png", overwrite=overwrite, option="--grid")
    return PredictionGrid(out, limit or LIMIT, max_pixels or DEFAULT_MAX_PIXELS)


def _evenly(count: int, limit: int) -> list[int]:
    if count <= limit:
        return list(range(count))
    places: list[int] = np.linspace(0, count - 1, limit).round().astype(np.int64).tolist()
    return places


def _columns(count: int) -> int:
    """Return the pictures in a row: all of a few, else a grid about half as wide again as high, with few gaps."""
    if count <= 5:
        return count
    about = min(COLUMNS, int(np.ceil(np.sqrt(1.5 * count))))
    return min((about, min(COLUMNS, about + 1), about - 1), key=lambda columns: -count % columns)


def _judged(row: Prediction, classes: Sequence[str]) -> tuple[str, str]:
    """Return "right", "wrong" or "" where nobody knows, and the true class. Of several labels a folder says nothing."""
    truth = Path(row.path).absolute().parent.name
    if row.labels is not None or truth not in classes:
        return "", ""
    return ("right" if row.label == truth else "wrong"), truth


def _heading(marks: Sequence[str]) -> tuple[Line, ...]:
    unknown = marks.count("")
    if unknown == len(marks):
        return (Line("class not known", colour=GREY),)
    lines = [Line(f"{marks.count(mark)} {mark}", colour=COLOURS[mark], mark=mark) for mark in ("right", "wrong")]
    return (*lines, *([Line(f"{unknown} whose class is not known", colour=GREY)] if unknown else ()))


def _tile(row: Prediction, pixels: Pixels, mark: str, truth: str) -> Tile:
    colour = COLOURS[mark]
    probability = "" if row.probability is None else f" {100 * row.probability:.1f} %"
    said = Line(row.label or "none of the labels", probability, colour, mark=mark)
    verdict = f"wrong, is {truth}" if mark == "wrong" else mark
    title = [said, Line(verdict, colour=colour, size=13)] if verdict else [said]
    return Tile(pixels, tuple(title), (Line(Path(row.path).name, colour=GREY, size=12),), colour)

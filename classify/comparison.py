"""Backbones and heads side by side, as `compare` measured them, and how that is told and kept."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..cache.publish import make_folder, publish
from ..cache.temporary import is_temporary
from ..errors import CacheError, OutputError, printable
from ..extract.views import PLAIN, Views

FORMAT = 1
JSON_FILE, CSV_FILE, PAGE_FILE = "compare.json", "compare.csv", "compare.html"
# Of a row, what is of no use outside of this process.
_INSIDE = ("right", "name")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One backbone with one head. Fractions, not percent.

    Attributes
    ----------
    name : str
        For people; no two rows share it.
    backbone, layer, weights : str
        Of the feature space, and the weights as they were asked for: "default", "none" or a file.
    space : str
        Its id.
    head : str
        "logistic", "linear", "mlp", "knn" or "ncm".
    cv_accuracy, low, high : float
        Share of training images that were right when they were held out, and its 95 % Wilson interval; of images with
        several labels those count whose labels are all right.
    cv_map : float or None
        Mean average precision of the same predictions, where an image may have several labels.
    log_loss : float
        Of the same predictions, calibrated.
    train_accuracy : float
        Of the head fitted to all training images, on these.
    dim : int
        Width of the embedding.
    parameters : int or None
        Of the backbone without its classifier.
    images_per_second : float or None
        Read, decoded and embedded on this machine; None where it could not be measured.
    licence : str
        Of the weights.
    pareto : bool
        No other row is at least as accurate and at least as fast, and better in one of them.
    choice : str
        What cross-validation chose.
    command : str
        Fits this head and scores it on the validation images.
    right : ndarray of shape (n,), dtype bool
        Which training images were right when they were held out; one order for all rows.
    """

    name: str
    backbone: str
    layer: str
    weights: str
    space: str
    head: str
    cv_accuracy: float
    low: float
    high: float
    cv_map: float | None
    log_loss: float
    train_accuracy: float
    dim: int
    parameters: int | None
    images_per_second: float | None
    licence: str
    pareto: bool
    choice: str
    command: str
    right: np.ndarray

    @property
    def score(self) -> float:
        """What rows are ranked by: mean average precision where there is one, else accuracy."""
        return self.cv_accuracy if self.cv_map is None else self.cv_map

    @property
    def cost(self) -> float:
        """Seconds an image; infinite where it is not known."""
        return 1 / self.images_per_second if self.images_per_second else float("inf")

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON and CSV have of it."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name not in _INSIDE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What `compare` found.

    Attributes
    ----------
    root : str
        The dataset as the user named it.
    rows : list of Row
        The most accurate first.
    advice : list of dict
        Each with ``about`` ("differences", "finetune" or "more_images") and ``text``, and the figures behind it.
    train, val : int
        Training images, which all of this is measured on, and validation images, which were not looked at.
    classes : tuple of str
    folds : int
    out : Path
        Where it is kept.
    chosen : int
        The row that the next command takes: the cheapest of those that cannot be told from the best.
    seconds : float
    views : Views, default `PLAIN`
        Of each training image, on which heads were trained; they were measured on plain crops.
    """

    on_stdout: ClassVar[bool] = True

    root: str
    rows: list[Row]
    advice: list[dict[str, Any]]
    train: int
    val: int
    classes: tuple[str, ...]
    folds: int
    out: Path
    chosen: int
    seconds: float
    views: Views = PLAIN

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels; rows are ranked by mean average precision then."""
        return self.rows[0].cv_map is not None

    def summary(self) -> dict[str, Any]:
        """Return the fields of ``compare --json``, which ``compare.json`` holds too."""
        return {
            "rows": [row.as_dict() for row in self.rows],
            "advice": self.advice,
            "data": self.root,
            "classes": list(self.classes),
            "train": self.train,
            "val": self.val,
            "folds": self.folds,
            **self.views.summary(),
            "measure": "map" if self.multi_label else "accuracy",
            "next": self.rows[self.chosen].command,
            "seconds": round(self.seconds, 3),
            "out": str(self.out),
        }

    def lines(self) -> list[str]:
        """Return the table, what it means, the advice and the next command."""
        untouched = f"the {self.val} validation images were not looked at" if self.val else "no validation images"
        score = "score the one that you choose on the validation images, once" if self.val else "fit the one you choose"
        views = f" ({self.views.count} views each, {self.views.augment})" if self.views.count > 1 else ""
        return [
            f"{printable(self.root)}: {self.train} training images{views}, {len(self.classes)} classes, "
            f"{self.folds} folds; {untouched}",
            *table(self.rows),
            "* no other row is at least as accurate and as fast, and better in one of the two",
            *(f"- {entry['text']}" for entry in self.advice),
            f"{score}; next: {self.rows[self.chosen].command}",
            f"saved in {printable(str(self.out))}, {self.seconds:.0f} s",
        ]


def table(rows: Sequence[Row]) -> list[str]:
    """Return rows as aligned text, a heading first."""
    several = rows[0].cv_map is not None
    heading = ["", "backbone", "head", "all right" if several else "accuracy", "95 % interval", "log loss", "dim",
               "parameters", "images/s", "licence"]  # fmt: skip
    cells = [heading, *(_cells(row) for row in rows)]
    if several:
        for line, extra in zip(cells, ["mAP", *(f"{100 * row.score:.1f} %" for row in rows)], strict=True):
            line.insert(3, extra)
    left = {0, 1, 2, len(cells[0]) - 1}
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]


def _cells(row: Row) -> list[str]:
    backbone = row.name.removesuffix(f"+{row.head}")
    return [
        "*" if row.pareto else "",
        printable(backbone),
        row.head,
        f"{100 * row.cv_accuracy:.1f} %",
        f"{100 * row.low:.1f} to {100 * row.high:.1f}",
        f"{row.log_loss:.3f}",
        str(row.dim),
        "-" if row.parameters is None else f"{row.parameters / 1e6:.1f} M",
        "-" if row.images_per_second is None else f"{row.images_per_second:.0f}",
        printable(row.licence),
    ]


def check_folder(out: Path, *, overwrite: bool = False) -> None:
    """Raise where a comparison must not be written: over another one without `overwrite`, or into any other folder.

    Raises
    ------
    OutputError
    """
    above = next(folder for folder in (out.absolute(), *out.absolute().parents) if os.path.lexists(folder))
    if not above.is_dir():
        raise OutputError(f"{printable(str(out))} cannot be made, for {above} is a file; name another one with --out")
    if not os.access(above, os.W_OK):
        raise OutputError(f"{printable(str(out))}: no permission to write into {above}; name another one with --out")
    if not out.is_dir():
        return
    ours = (JSON_FILE, CSV_FILE, PAGE_FILE)
    names = [path.name for path in out.iterdir() if not is_temporary(path.name)]
    if any(name not in ours for name in names):
        raise OutputError(f"{printable(str(out))} is a folder of something else; name another one with --out")
    if JSON_FILE in names and not overwrite:
        raise OutputError(
            f"{printable(str(out))} holds a comparison already; pass --overwrite to replace it, or --out to keep both"
        )


def save(comparison: Comparison, page: str | None, *, overwrite: bool = False) -> None:
    """Write a comparison into its folder: table and page first, and last the JSON, by which the folder is whole.

    Parameters
    ----------
    comparison : Comparison
    page : str or None
        The HTML page; where it is None, one that is there is removed, as it would tell of another comparison.
    overwrite : bool, default False

    Raises
    ------
    OutputError
        As `check_folder`, or the disk could not be written.
    """
    out = comparison.out
    check_folder(out, overwrite=overwrite)
    content = {"format": FORMAT, **comparison.summary()}
    try:
        make_folder(out.absolute())
        if page is None:
            (out / PAGE_FILE).unlink(missing_ok=True)
        else:
            publish(out / PAGE_FILE, page.encode("utf-8", "backslashreplace"))
        publish(out / CSV_FILE, as_csv(comparison.rows).encode(errors="surrogateescape"))
        publish(out / JSON_FILE, json.dumps(content, indent=1, allow_nan=False).encode("ascii"))
    except CacheError as error:
        raise OutputError(f"the comparison was not saved: {str(error).replace('--cache', '--out')}") from error


def as_csv(rows: Sequence[Row]) -> str:
    """Return rows as CSV text, the fields of `Row.as_dict` in its order; what is not known is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0].as_dict()), lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.as_dict() for row in rows)
    return text.getvalue()

"""Predictions on their way out: as lines for people, as CSV or as JSON, each as soon as it is known."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import printable
from ..extract.views import PLAIN, Views
from .prediction import Prediction

if TYPE_CHECKING:
    from .prediction_grid import PredictionGrid
    from .sorting import Sorter

logger = logging.getLogger("headstart.classify")

COLUMNS = ("path", "label", "probability", "error", "set", "novelty", "unsure")


@dataclass(slots=True)
class Predictions:
    """Predictions as they are printed, one after the other; they can be gone through once.

    Attributes
    ----------
    rows : generator of Prediction
    classes : sequence of str
        Those of the model.
    form : {"table", "csv", "jsonl"}, default "table"
        What a line is: for people, or for programs.
    top : int, optional
        How many of the likeliest classes are shown. 1 where it is None, and all of them in JSON.
    grid : PredictionGrid, optional
        Draws them when all are known, for which they are kept in memory.
    sorter : Sorter, optional
        Copies each picture.
    views : Views, default `PLAIN`
        Over which probabilities were averaged.
    """

    rows: Generator[Prediction, None, None]
    classes: Sequence[str]
    form: str = "table"
    top: int | None = None
    grid: PredictionGrid | None = None
    sorter: Sorter | None = None
    on_stdout: ClassVar[bool] = True
    views: Views = PLAIN
    _more: dict[str, Any] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Return the fields of ``predict --json``."""
        rows = [row.as_dict(self.top) for row in self._passing()]
        return {"predictions": rows, **self.views.summary(), **self._more}

    def lines(self) -> Iterator[str]:
        """Yield the lines, each when its picture has been classified and copied."""
        lines_of = {"csv": self._csv_lines, "jsonl": self._json_lines}.get(self.form, self._lines)
        if self.form == "csv":
            yield _csv_line(COLUMNS)
        with contextlib.closing(self._passing()) as rows:
            for row in rows:
                yield from lines_of(row)

    def _passing(self) -> Generator[Prediction, None, None]:
        """Yield the predictions, having copied each picture; at the end, say what was done beside."""
        count = unread = 0
        kept: list[Prediction] = []
        with contextlib.closing(self.rows):
            for row in self.rows:
                count, unread = count + 1, unread + (row.error is not None)
                if self.sorter:
                    self.sorter.take(row)
                if self.grid:
                    kept.append(row)
                yield row
        if unread:
            logger.warning("%d of %d pictures could not be read", unread, count)
        if self.sorter:
            self.sorter.tell()
            self._more["sorted"] = self.sorter.summary()
        drawn = self.grid.draw(kept, self.classes) if self.grid else None
        if drawn:
            self._more["grid"] = drawn.summary()

    def _lines(self, row: Prediction) -> Iterator[str]:
        if row.error is not None:
            yield f"{printable(row.path)}: not read, {row.error}"
            return
        named = [(name, (row.probabilities or {})[name]) for name in row.labels or ()]
        one_line = self.top in (None, 1)
        shown = named if row.labels is not None and one_line and not row.unsure else row.likeliest(self.top or 1)
        guesses = ", ".join(f"{printable(name)} {100 * value:.1f} %" for name, value in shown) or "none of the labels"
        guesses = f"unsure ({guesses})" if row.unsure else guesses
        sets = "" if row.classes is None else f"; one of {{{', '.join(map(printable, row.classes))}}}"
        unlike = "; unlike any training picture" if row.unlike_training else ""
        yield f"{printable(row.path)}: {guesses}{sets}{unlike}"

    def _csv_lines(self, row: Prediction) -> Iterator[str]:
        if row.error is not None:
            yield _csv_line([_cell(row.path), "", "", _cell(row.error), "", "", "false"])
            return
        novelty = "" if row.novelty is None else f"{row.novelty:.6f}"
        sets, unsure = _cell("|".join(row.classes or ())), "true" if row.unsure else "false"
        guesses = [(row.label or "", row.probability or 0.0)] if self.top in (None, 1) else row.likeliest(self.top or 1)
        for name, value in guesses:
            yield _csv_line([_cell(row.path), _cell(name), f"{value:.6f}", "", sets, novelty, unsure])

    def _json_lines(self, row: Prediction) -> Iterator[str]:
        yield json.dumps(row.as_dict(self.top), allow_nan=False)


def _csv_line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(cells)  # which is why names with either of the two are quoted
    return text.getvalue().removesuffix("\r\n")


def _cell(text: str) -> str:
    """Keep a spreadsheet from taking a name for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text

"""Tables of a report: what is taken for what, with the pictures behind each number, and class by class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import printable
from .findings import Findings
from .page import counted

MOST_CLASSES = 30  # of a confusion matrix that a person can look through
_MOST_OF_A_LABEL = 100  # pictures in a cell, where a picture is in as many cells as it has labels
MOST_IN_CELLS = 5000  # pictures whose names are kept for cells, the wrong ones first


@dataclass(frozen=True, slots=True)
class Cell:
    """A number that opens pictures.

    Attributes
    ----------
    id : int
    count : int
    title : str
        What the pictures have in common.
    tone : str
        Class of its colour, by its share of its row.
    rows : list of int
        Of `Findings.labelled`: the surest errors, or the least sure right answers, first.
    """

    id: int
    count: int
    title: str
    tone: str
    rows: list[int]


@dataclass(frozen=True, slots=True)
class Confusion:
    """What is taken for what, or, with several labels an image, what of each label was found.

    Attributes
    ----------
    heads : list of str
        Of the columns.
    rows : list of dict
        ``label`` and ``cells``.
    left_out : int
        Classes that have no row.
    """

    heads: list[str]
    rows: list[dict[str, Any]]
    left_out: int

    def cells(self) -> list[Cell]:
        """Return all cells that pictures are behind."""
        return [cell for row in self.rows for cell in row["cells"] if cell.count]


def confusion(found: Findings) -> Confusion:
    """Count what is taken for what, and find the pictures behind each number."""
    return _of_labels(found) if found.evaluation.multi_label else _of_classes(found)


def _order(found: Findings) -> np.ndarray:
    """Return the places of the evaluation, the surest errors first and the surest right answers last."""
    right, sure = found.evaluation.right(), found.confidence()
    return np.lexsort((np.where(right, sure, -sure), right))[:MOST_IN_CELLS]


def _of_classes(found: Findings) -> Confusion:
    evaluation = found.evaluation
    y, predicted, classes = evaluation.y, evaluation.predicted, evaluation.classes
    table = np.zeros((len(classes), len(classes)), int)
    np.add.at(table, (y, predicted), 1)
    shown = _most_confused(table)
    behind: dict[tuple[int, int], list[int]] = {}
    for place in _order(found).tolist():
        behind.setdefault((int(y[place]), int(predicted[place])), []).append(int(found.scored[place]))
    rows = []
    for row in shown:
        cells = []
        for column in shown:
            count, total = int(table[row, column]), int(table[row].sum())
            title = _title(count, classes[row], None if row == column else classes[column])
            tone = _tone(count, total, good=row == column)
            cells.append(Cell(int(row) * len(classes) + int(column), count, title, tone, behind.get((row, column), [])))
        rows.append({"label": classes[row], "cells": cells})
    return Confusion([classes[column] for column in shown], rows, len(classes) - len(shown))


def _most_confused(table: np.ndarray) -> list[int]:
    """Return the classes to show, ascending: all, or those that take part in most errors."""
    if len(table) <= MOST_CLASSES:
        return list(range(len(table)))
    errors = table.sum(axis=0) + table.sum(axis=1) - 2 * np.diag(table)
    most = np.lexsort((-table.sum(axis=1), -errors))[:MOST_CLASSES]
    return sorted(most.tolist())


def _title(count: int, label: str, other: str | None) -> str:
    pictures = counted(count, "picture")
    if other is None:
        return f"{pictures} of {printable(label)}, recognised"
    return f"{pictures} of {printable(label)}, taken for {printable(other)}"


def _tone(count: int, total: int, *, good: bool) -> str:
    if not count:
        return ""
    share = count / max(1, total)
    step = 1 + sum(share > bound for bound in ((0.25, 0.5, 0.75) if good else (0.05, 0.15, 0.4)))
    return f"{'good' if good else 'bad'}-{step}"


_KINDS = (("found", "found", True), ("missed", "left out wrongly", False), ("given wrongly", "given wrongly", False))


def _of_labels(found: Findings) -> Confusion:
    evaluation = found.evaluation
    y, given = evaluation.y, evaluation.predicted
    parts = (y & given, y & ~given, ~y & given)
    errors = parts[1].sum(axis=0) + parts[2].sum(axis=0)
    most = np.argsort(-errors, kind="stable")[: 10 * MOST_CLASSES]
    rows, order = [], _order(found)
    for label in np.sort(most).tolist():
        cells = []
        for number, (part, (_, words, good)) in enumerate(zip(parts, _KINDS, strict=True)):
            behind = order[part[order, label]][:_MOST_OF_A_LABEL]
            count, total = int(part[:, label].sum()), max(1, int(y[:, label].sum()))
            title = f"{printable(evaluation.classes[label])}: {words} in {counted(count, 'picture')}"
            rows_behind = found.scored[behind].tolist()
            cells.append(Cell(3 * label + number, count, title, _tone(count, total, good=good), rows_behind))
        rows.append({"label": evaluation.classes[label], "cells": cells})
    return Confusion([head for head, _, _ in _KINDS], rows, len(evaluation.classes) - len(rows))


_CLASS_COLUMNS = (("precision", "Precision"), ("recall", "Recall"), ("f1", "F1"))
_LABEL_COLUMNS = (*_CLASS_COLUMNS, ("average_precision", "Average precision"), ("threshold", "Given from"))


def per_class(found: Findings) -> tuple[list[dict[str, str]], list[dict[str, Any]]]:
    """Return the columns and rows of the table of classes."""
    several = found.evaluation.multi_label
    columns = [{"key": key, "heading": heading} for key, heading in (_LABEL_COLUMNS if several else _CLASS_COLUMNS)]
    return columns, found.evaluation.scores["per_label" if several else "per_class"]

"""The scores of a model on images whose logits lie in a table: sums over blocks, and columns where ranks count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .conformal import conformal_threshold, prediction_sets
from .held_out import column_groups, ece_of, gaps
from .metrics import (
    ECE_BINS,
    binary_auc,
    confusion_matrix,
    log_loss,
    scores_by,
    top_k_accuracy,
    top_k_of,
    wilson_interval,
)
from .model import SavedModel
from .multilabel import binary_log_loss, score_of_label, scores_by_label
from .scores import COVERAGE
from .scratch import Table


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """Logits of images of one split, with their labels, and what the nearest class mean says of them.

    Attributes
    ----------
    logits : Table of shape (n, K), dtype float64
    target : ndarray of shape (n,), dtype int, or of shape (n, K), dtype bool
        In the order of the table.
    nearest : ndarray of shape (n,), dtype int64, or None
        The class whose mean is nearest.
    """

    logits: Table
    target: np.ndarray
    nearest: np.ndarray | None


def scores_in_blocks(model: SavedModel, rows: ScoredRows, memory: int) -> dict[str, Any]:
    """Return what `headstart.classify.scores.scores_of` does but for ``baseline``.

    Parameters
    ----------
    model : SavedModel
    rows : ScoredRows
        At least one.
    memory : int
        Bytes that columns of it may take at a time.
    """
    return (_label_scores if model.multi_label else _class_scores)(model, rows, memory)


def _pieces(rows: ScoredRows) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start, logits in rows.logits.blocks(max(1, (4 << 20) // (8 * rows.logits.shape[1]))):
        yield rows.target[start : start + len(logits)], logits


def _class_scores(model: SavedModel, rows: ScoredRows, memory: int) -> dict[str, Any]:
    n, n_classes = rows.logits.shape
    k, sets = top_k_of(n_classes), None
    if model.true_probabilities.size:
        sets = conformal_threshold(model.true_probabilities, COVERAGE)
    confusion, loss, top = np.zeros((n_classes, n_classes), np.int64), 0.0, 0.0
    gap, gap_before = np.zeros(ECE_BINS), np.zeros(ECE_BINS)
    held, size, single = 0, 0, 0
    for y, logits in _pieces(rows):
        proba = model.probabilities(logits)
        confusion += confusion_matrix(y, proba.argmax(axis=1), n_classes)
        loss += len(y) * log_loss(y, proba)
        top += len(y) * top_k_accuracy(y, proba, k) if k else 0.0
        gap += gaps(y, proba)
        gap_before += gaps(y, model.probabilities(logits, 1.0))
        if sets is not None:
            chosen = prediction_sets(proba, sets)
            held += int(chosen[np.arange(len(y)), y].sum())
            size, single = size + int(chosen.sum()), single + int((chosen.sum(axis=1) == 1).sum())
    full = scores_by(
        confusion, model.classes, top_k=top / n if k else None, roc_auc=_roc_auc(model, rows, memory),
        log_loss=loss / n, ece=ece_of(gap, n),
    )  # fmt: skip
    full |= {"ece_uncalibrated": ece_of(gap_before, n), "temperature": model.temperature, "conformal": None}
    if sets is not None:
        low, high = wilson_interval(held, n)
        full["conformal"] = {
            "promised": COVERAGE, "threshold": sets, "n": n, "coverage": held / n, "low": low, "high": high,
            "mean_size": size / n, "single": single / n,
        }  # fmt: skip
    return full


def _roc_auc(model: SavedModel, rows: ScoredRows, memory: int) -> float | None:
    """Return the area under the curve, as `metrics.roc_auc`, with some columns in memory at a time."""
    n, n_classes = rows.logits.shape
    largest, total = np.empty(n), np.empty(n)
    for start, logits in rows.logits.blocks(max(1, (4 << 20) // (8 * n_classes))):
        scaled = logits / model.temperature
        piece = slice(start, start + len(logits))
        largest[piece] = scaled.max(axis=1)
        total[piece] = np.exp(scaled - largest[piece, None]).sum(axis=1)
    areas = []
    for low, high in [(1, 2)] if n_classes == 2 else column_groups(n, n_classes, memory):
        for label, column in zip(range(low, high), _columns(rows, low, high).T, strict=True):
            proba = np.exp(column / model.temperature - largest) / total
            areas.append(binary_auc(rows.target == label, proba))
    known = [area for area in areas if area is not None]
    return float(np.mean(known)) if known else None


def _columns(rows: ScoredRows, low: int, high: int) -> np.ndarray:
    return rows.logits.columns(low, high, max(1, (4 << 20) // (8 * rows.logits.shape[1])))


def _label_scores(model: SavedModel, rows: ScoredRows, memory: int) -> dict[str, Any]:
    n, n_labels = rows.logits.shape
    thresholds = np.array(model.thresholds)
    exact, loss, gap, gap_before = 0, 0.0, np.zeros(ECE_BINS), np.zeros(ECE_BINS)
    for Y, logits in _pieces(rows):
        proba = model.probabilities(logits)
        exact += int(((proba >= thresholds) == Y).all(axis=1).sum())
        loss += len(Y) * binary_log_loss(Y, proba)
        gap += gaps(Y, proba)
        gap_before += gaps(Y, model.probabilities(logits, 1.0))
    table: list[dict[str, Any]] = []
    for low, high in column_groups(n, n_labels, memory):
        proba = model.probabilities(_columns(rows, low, high))
        table += [
            score_of_label(rows.target[:, low + i], proba[:, i] >= thresholds[low + i], proba[:, i])
            for i in range(high - low)
        ]
    full = scores_by_label(table, model.classes, thresholds, n=n, exact=exact, log_loss=loss / n,
                           ece=ece_of(gap, n * n_labels))  # fmt: skip
    return full | {
        "accuracy": full["subset_accuracy"],
        "ece_uncalibrated": ece_of(gap_before, n * n_labels),
        "temperature": model.temperature,
        "conformal": None,
    }

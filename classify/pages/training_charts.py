"""Charts of training: loss and accuracy by epoch, the test of learning rates, the learning curve, few shots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from ..curve import LearningCurve
from ..few_shots import FewShots
from .frame import (
    BAND,
    MARK,
    STYLES,
    WIDTH,
    Key,
    few_ticks,
    framed,
    legend,
    legend_height,
    log_ticks,
    loss_axis,
    note,
    number_words,
    percent,
    share_axis,
)
from .svg import COLOURS, Sheet, sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def loss_curves(
    history: Sequence[Mapping[str, Any]],
    *,
    best_epoch: int | None = None,
    held_out: str = "dev",
    prefix: str = "losses",
) -> Markup:
    """Draw loss and accuracy by epoch, of training and of pictures that were held out.

    Parameters
    ----------
    history : sequence of dict
        Of a saved model's facts: ``epoch``, ``train_loss``, ``dev_loss``, ``dev_accuracy``; None where nothing was
        measured. At least one row.
    best_epoch : int, optional
        That was kept.
    held_out : str, default "dev"
        What the pictures are called that were held out.
    prefix : str, default "losses"
    """
    rows = {name: _measured(history, name) for name in ("train_loss", "dev_loss", "dev_accuracy")}
    lines = [("train", STYLES[1], "train_loss"), (held_out, STYLES[0], "dev_loss")]
    keys = [Key(words, style) for words, style, name in lines if len(rows[name][0])]
    scored = len(rows["dev_accuracy"][0]) > 0
    bottom = 400.0 if scored else 240.0
    with sheet(prefix, WIDTH, bottom + legend_height(keys)) as page:
        middle = 220.0 if scored else bottom
        upper = framed(page, "" if scored else "epoch", "loss", bottom=middle, noted=best_epoch is not None)
        for _, style, name in lines:
            _by_epoch(upper, rows[name], style)
        losses = np.concatenate([rows["train_loss"][1], rows["dev_loss"][1]])
        if len(losses):
            loss_axis(upper, losses.min(), losses.max())
        panels = [upper]
        if scored:
            lower = framed(page, "epoch", f"accuracy on {held_out}", top=212, bottom=bottom)
            _by_epoch(lower, rows["dev_accuracy"], STYLES[0])
            share_axis(lower, rows["dev_accuracy"][1])
            panels.append(lower)
        _epochs(page, panels, history, best_epoch)
        legend(page, keys, bottom)
        return page.markup("Loss and accuracy by epoch", _history_words(history, rows, best_epoch, held_out))


def _measured(history: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return epochs and values of what was measured, two of shape (n,) float64."""
    found = [(row["epoch"], row[name]) for row in history if row.get(name) is not None and math.isfinite(row[name])]
    pairs = np.array(found, float).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _by_epoch(axes: Axes, line: tuple[np.ndarray, np.ndarray], style: Mapping[str, Any]) -> None:
    """Draw a line, with marks where epochs are few enough to tell them apart."""
    axes.plot(*line, **{**MARK, **style, "markevery": max(1, len(line[0]) // 12)}, clip_on=False)


def _epochs(page: Sheet, panels: Sequence[Axes], history: Sequence[Mapping[str, Any]], best: int | None) -> None:
    first, last = history[0]["epoch"], history[-1]["epoch"]
    for axes in panels:
        axes.set_xlim(first - 0.5 * (first == last), last + 0.5 * (first == last))
        if axes is panels[-1]:
            few_ticks(axes.xaxis, 6, whole=True)
        else:
            axes.set_xticks([])
        if best is not None:
            note(page, axes, best, f"kept: epoch {best}" if axes is panels[0] else "")


def _history_words(
    history: Sequence[Mapping[str, Any]],
    rows: Mapping[str, tuple[np.ndarray, np.ndarray]],
    best: int | None,
    held_out: str,
) -> str:
    last = int(history[-1]["epoch"])
    words = [f"{last} epoch{'' if last == 1 else 's'}"]
    named = {"train_loss": "training loss", "dev_loss": f"{held_out} loss"}
    for name, what in named.items():
        values = rows[name][1]
        if len(values):
            went = f"went from {values[0]:.4f} to" if len(values) > 1 else "was"
            words.append(f"{what} {went} {values[-1]:.4f}")
    epochs, accuracy = rows["dev_accuracy"]
    if len(epochs):
        top = int(accuracy.argmax())
        words.append(f"the best {held_out} accuracy was {percent(accuracy[top])}, in epoch {int(epochs[top])}")
    if best is not None:
        words.append(f"epoch {best} was kept")
    return "; ".join(words) + "."


def rate_curve(curve: Sequence[Mapping[str, Any]], chosen: float, *, prefix: str = "rates") -> Markup:
    """Draw the learning rates of a range test against the loss at each, and the rate that was read off.

    Parameters
    ----------
    curve : sequence of dict
        ``lr``, rising, and ``loss``. At least one.
    chosen : float
    prefix : str, default "rates"
    """
    x, y = (np.array([float(row[name]) for row in curve]) for name in ("lr", "loss"))
    with sheet(prefix, WIDTH, 280) as page:
        axes = framed(page, "learning rate, logarithmic", "loss, a running mean over steps", bottom=280, noted=True)
        axes.set_xscale("log")
        axes.plot(x, y, **{**STYLES[0], "marker": None}, linewidth=2.0)
        loss_axis(axes, y.min(), y.max())
        low, high = min(x.min(), chosen), max(x.max(), chosen)
        axes.set_xlim(low / 1.1, high * 1.1)
        log_ticks(axes.xaxis, low, high)
        note(page, axes, chosen, f"lr = {number_words(chosen)}")
        lowest = int(y.argmin())
        words = f"The loss is lowest, {y[lowest]:.4f}, at a learning rate of {number_words(x[lowest])}"
        words += f" of the {len(x)} from {number_words(x[0])} to {number_words(x[-1])}"
        return page.markup("Loss over the learning rate", f"{words}; chosen: {number_words(chosen)}.")


def learning_curve(curve: LearningCurve, *, prefix: str = "curve") -> Markup:
    """Draw how good the head is when it is fitted on fewer images, with the 95 % interval of the mean.

    Parameters
    ----------
    curve : LearningCurve
        With one point or more.
    prefix : str, default "curve"
    """
    n, mean, low, high = (np.array([point[key] for point in curve.points], float) for key in _CURVE_KEYS)
    what = "mean average precision" if curve.measure == "map" else "accuracy"
    with sheet(prefix, WIDTH, 260) as page:
        axes = framed(page, "training images", f"{what} on images set aside", bottom=260)
        axes.fill_between(n, low, high, color=COLOURS["s0"], **BAND)
        axes.plot(n, mean, **MARK, **STYLES[0])
        share_axis(axes, low, high)
        room = 0.04 * (n.max() - n.min()) or 1
        axes.set_xlim(n.min() - room, n.max() + room)
        few_ticks(axes.xaxis, 6, whole=True)
        points = [
            f"{int(size):,} images {percent(at)} ({percent(a)} to {percent(b)})"
            for size, at, a, b in zip(n, mean, low, high, strict=True)
        ]
        return page.markup("Learning curve", f"{what.capitalize()} with {'; '.join(points)}; {curve.verdict}.")


def few_shots(found: FewShots, *, prefix: str = "shots") -> Markup:
    """Draw how good the head is with a few images a class, with the 95 % interval of the mean.

    Parameters
    ----------
    found : FewShots
        With one point or more; where images have views, fits to plain crops alone are drawn too.
    prefix : str, default "shots"
    """
    shots = np.array([point["shots"] for point in found.points], float)
    lines = {"all views" if found.views > 1 else "": found.points}
    if found.views > 1:
        lines["plain crops alone"] = [point["plain"] for point in found.points]
    keys = [Key(words, style) for words, style in zip(lines, STYLES, strict=False) if words]
    with sheet(prefix, WIDTH, 260 + legend_height(keys)) as page:
        axes = framed(page, "images a class", "accuracy on images set aside", bottom=260)
        axes.set_xscale("log")
        shares = [np.array([[point[key] for key in _CURVE_KEYS[1:]] for point in rows]).T for rows in lines.values()]
        for (mean, low, high), style in zip(shares, STYLES, strict=False):
            axes.fill_between(shots, low, high, color=style["color"], **BAND)
            axes.plot(shots, mean, **{**MARK, **style})
        share_axis(axes, *shares)
        axes.set_xlim(shots[0] / 1.1, shots[-1] * 1.1)
        _doubling_ticks(axes.xaxis, shots)
        legend(page, keys, 260)
        words = [
            f"{name}: {_shots_words(rows, shots)}" if name else _shots_words(rows, shots)
            for name, rows in lines.items()
        ]
        return page.markup("Few shots", f"Accuracy by images a class, {'; '.join(words)}.")


def _doubling_ticks(axis: Any, shots: np.ndarray) -> None:
    """Give a logarithmic axis ticks at 1, 2, 4 and so on, as far as curves go."""
    from matplotlib.ticker import FixedLocator

    log_ticks(axis, shots[0], shots[-1])
    axis.set_major_locator(FixedLocator([2.0**power for power in range(int(np.log2(shots[-1])) + 1)]))


def _shots_words(rows: Sequence[Mapping[str, float]], shots: np.ndarray) -> str:
    told = [
        f"{int(size)} {percent(row['mean'])} ({percent(row['low'])} to {percent(row['high'])})"
        for row, size in zip(rows, shots, strict=True)
    ]
    return ", ".join(told)


_CURVE_KEYS = ("n", "mean", "low", "high")

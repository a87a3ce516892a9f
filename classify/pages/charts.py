"""The charts of the report: how settings were chosen, how training went, how far confidence can be trusted.

Each is one inline ``svg`` element, of which `svg.py` says what it may hold. `scatter` and `pareto` are in files of
their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from ..curve import LearningCurve
from ..metrics import Reliability
from .frame import (
    LINE,
    MARK,
    STYLES,
    WIDTH,
    Key,
    few_ticks,
    framed,
    legend,
    legend_height,
    log_ticks,
    note,
    number_words,
    percent_ticks,
    shortened,
)
from .pareto import Contender, pareto, pareto_front
from .scatter import scatter
from .svg import COLOURS, Sheet, sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "Contender",
    "learning_curve",
    "loss_curves",
    "pareto",
    "pareto_front",
    "rate_curve",
    "reliability",
    "scatter",
    "search_curve",
    "setting_dots",
]

_BAND: dict[str, Any] = {"alpha": 0.2, "linewidth": 0}
_RING: dict[str, Any] = {
    "marker": "o",
    "markersize": 12.0,
    "markerfacecolor": "none",
    "markeredgecolor": COLOURS["ink"],
}
_MOST_SETTINGS = 12
_ROW = 36.0  # a setting's words, and its dot below them
_LOG_BEYOND = 6.0  # times the lowest loss: a linear axis would hide what is low


def reliability(before: Reliability, after: Reliability | None = None, *, prefix: str = "reliability") -> Markup:
    """Draw how often answers of each confidence are right, before and after temperature scaling.

    Parameters
    ----------
    before, after : Reliability
        Of the same answers and bins; one curve where `after` is None.
    prefix : str, default "reliability"
        What ids begin with.
    """
    named = [("before temperature scaling", before)] + ([("after", after)] if after is not None else [])
    keys = [Key(words, STYLES[1 - number]) for number, (words, _) in enumerate(named)]
    keys = [*keys, Key("as sure as right", {"color": COLOURS["muted"], "linewidth": 1.2, "marker": None})]
    bottom = 370.0
    with sheet(prefix, WIDTH, bottom + legend_height(keys)) as page:
        axes = framed(page, "", "share that is right", bottom=268)
        axes.plot([0, 1], [0, 1], color=COLOURS["muted"], linewidth=1.2)
        for (_, found), key in zip(named, keys, strict=False):
            _reliability_line(axes, found, key.style)
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        percent_ticks(axes.yaxis)
        axes.set_xticks([])
        _counts(page, named[-1][1], bottom)
        legend(page, keys, bottom)
        return page.markup("Reliability: confidence against accuracy", _reliability_words(before, after))


def _reliability_line(axes: Axes, found: Reliability, style: Mapping[str, Any]) -> None:
    full = found.counts > 0
    x, y = found.confidence[full], found.accuracy[full]
    axes.plot(x, y, **{**style, "marker": None}, linewidth=2.0)
    size = (3.5 + 6.5 * np.sqrt(found.counts[full] / max(1, found.counts.max()))) ** 2
    axes.scatter(
        x, y, size, color=style["color"], marker=style["marker"], edgecolors=COLOURS["paper"], zorder=3, clip_on=False
    )


def _counts(page: Sheet, found: Reliability, bottom: float) -> None:
    """Draw how many answers have each confidence, below the curve and on its axis."""
    axes = framed(page, "confidence", f"answers, {int(found.counts.sum()):,} in all", top=258, bottom=bottom)
    axes.bar(found.edges[:-1], found.counts, np.diff(found.edges) * 0.9, align="edge", color=COLOURS["s0"])
    axes.set(xlim=(0, 1), ylim=(0, max(1, found.counts.max()) * 1.05))
    axes.set_yticks([0, int(found.counts.max())])
    percent_ticks(axes.xaxis)


def _reliability_words(before: Reliability, after: Reliability | None) -> str:
    n = int(before.counts.sum())
    words = f"Of {n:,} answers, confidence and accuracy are {_percent(before.ece)} apart on average"
    if after is not None:
        words += f" before temperature scaling and {_percent(after.ece)} after it"
    last = after or before
    full = np.flatnonzero(last.counts)
    if not len(full):
        return "No answers, so nothing is known of their confidence."
    bins = [
        f"{_percent(last.confidence[k])} sure, {_percent(last.accuracy[k])} right ({last.counts[k]:,} answers)"
        for k in full
    ]
    return f"{words} (ECE, {len(last.counts)} bins). By confidence: {'; '.join(bins)}."


def search_curve(
    values: Sequence[float],
    losses: Sequence[float],
    spread: Sequence[float] | None,
    chosen: float,
    *,
    name: str = "C",
    prefix: str = "search",
) -> Markup:
    """Draw the cross-validated log loss over one setting that was searched: C of logistic regression, k of knn.

    Parameters
    ----------
    values : sequence of float
        Above 0, ascending.
    losses : sequence of float
        The mean log loss of the folds at each.
    spread : sequence of float, optional
        Standard deviation over folds.
    chosen : float
        One of `values`.
    name : str, default "C"
    prefix : str, default "search"
    """
    x, y = np.asarray(values, float), np.asarray(losses, float)
    with sheet(prefix, WIDTH, 280) as page:
        axes = framed(page, f"{name}, logarithmic", "log loss of held-out rows", bottom=280, noted=True)
        axes.set_xscale("log")
        low, high = y.min(), y.max()
        if spread is not None:
            half = np.asarray(spread, float)
            axes.fill_between(x, np.maximum(y - half, low / 2), y + half, color=COLOURS["s0"], **_BAND)
            low, high = min(low, max((y - half).min(), low / 2)), (y + half).max()
        axes.plot(x, y, **STYLES[0], **MARK)
        _loss_axis(axes, low, high)
        log_ticks(axes.xaxis, x.min(), x.max())
        best = float(y[np.abs(x - chosen).argmin()])
        axes.plot([chosen], [best], **_RING)
        note(page, axes, chosen, f"{name} = {number_words(chosen)}")
        return page.markup(f"Log loss over {name}", _search_words(name, x, y, spread, chosen, best))


def _search_words(
    name: str, x: np.ndarray, y: np.ndarray, spread: Sequence[float] | None, chosen: float, best: float
) -> str:
    found = f"{name} = {number_words(chosen)} with log loss {best:.4f}"
    if spread is not None:
        found += f" (folds differ by {spread[int(np.abs(x - chosen).argmin())]:.4f})"
    if len(x) == 1:
        return f"Nothing was searched: {found} in cross-validation."
    tried = f"{len(x)} values of {name} from {number_words(x[0])} to {number_words(x[-1])}"
    return f"{tried} were tried in cross-validation; chosen: {found}; the worst had {y.max():.4f}."


def _loss_axis(axes: Axes, low: float, high: float) -> None:
    """Set the limits of a loss's axis, logarithmic where losses are of several sizes."""
    if low > 0 and high > _LOG_BEYOND * low:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.15, high * 1.15)
        log_ticks(axes.yaxis, low, high, 5)
        return
    room = 0.08 * (high - low) or max(0.1 * abs(high), 0.01)
    axes.set_ylim(max(0, low - room) if low >= 0 else low - room, high + room)
    few_ticks(axes.yaxis)


def setting_dots(rows: Sequence[Mapping[str, Any]], *, prefix: str = "settings") -> Markup:
    """Draw the cross-validated log loss of each setting of a grid that was searched, best first.

    Parameters
    ----------
    rows : sequence of dict
        Of ``cv_["grid"]``: ``log_loss`` (None where training diverged), ``accuracy``, and the setting.
    prefix : str, default "settings"
    """
    done = sorted((row for row in rows if row["log_loss"] is not None), key=lambda row: float(row["log_loss"]))
    lost = [row for row in rows if row["log_loss"] is None]
    shown = [*done, *lost][:_MOST_SETTINGS]
    varying = _varying(rows)
    height = _ROW * len(shown) + 2 * LINE + 15
    with sheet(prefix, WIDTH, height) as page:
        axes = framed(page, "log loss of held-out rows", "", top=-LINE, bottom=height, left=14)
        axes.set_ylim(len(shown) - 0.3, -0.7)
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        axes.set_yticks([])
        losses = [float(row["log_loss"]) for row in shown if row["log_loss"] is not None]
        if losses:
            _dots(axes, losses)
        for number, row in enumerate(shown):
            y = float(page.pixels(axes, np.zeros(1), np.array([number - 0.32]))[1][0])
            words = _setting_words(row, varying) + ("" if row["log_loss"] is not None else ": diverged")
            page.text(18, y, shortened(words, WIDTH - 32), bold=number == 0 and bool(losses), halo=True)
        return page.markup("Log loss of each setting", _settings_words(done, lost, varying))


def _dots(axes: Axes, losses: Sequence[float]) -> None:
    """Draw one dot a row, ascending, with a ring around the best."""
    axes.hlines(range(len(losses)), 0, losses, color=COLOURS["grid"], linewidth=1.2, zorder=1)
    axes.plot(losses, range(len(losses)), **{**MARK, **STYLES[0], "markersize": 9.0, "linestyle": "none"})
    axes.plot(losses[:1], [0], **{**_RING, "markersize": 14.0})
    room = 0.1 * (losses[-1] - losses[0]) or 0.1 * losses[0] or 0.01
    axes.set_xlim(max(0, losses[0] - room), losses[-1] + room)
    few_ticks(axes.xaxis, 5)


def _varying(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of what differs between settings; all of them where nothing does."""
    names = [name for name in rows[0] if name not in ("log_loss", "accuracy", "epochs")] if rows else []
    return [name for name in names if len({str(row[name]) for row in rows}) > 1] or names


def _setting_words(row: Mapping[str, Any], names: Sequence[str]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_value_words(row[name])}" for name in names)


def _value_words(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "-".join(map(str, value)) or "none"
    return number_words(value) if isinstance(value, int | float) else str(value)


def _settings_words(
    done: Sequence[Mapping[str, Any]], lost: Sequence[Mapping[str, Any]], varying: Sequence[str]
) -> str:
    if not done:
        return f"All {len(lost)} settings diverged."
    words = (
        f"Of {len(done) + len(lost)} settings in cross-validation, {_setting_words(done[0], varying)} has the lowest"
    )
    words += f" log loss, {done[0]['log_loss']:.4f}"
    words += f"; the worst had {done[-1]['log_loss']:.4f}" if len(done) > 1 else ""
    return words + (f"; {len(lost)} diverged." if lost else ".")


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
            _loss_axis(upper, losses.min(), losses.max())
        panels = [upper]
        if scored:
            lower = framed(page, "epoch", f"accuracy on {held_out}", top=212, bottom=bottom)
            _by_epoch(lower, rows["dev_accuracy"], STYLES[0])
            _share_axis(lower, rows["dev_accuracy"][1])
            panels.append(lower)
        _epochs(page, panels, history, best_epoch)
        legend(page, keys, bottom)
        return page.markup("Loss and accuracy by epoch", _history_words(history, rows, best_epoch, held_out))


def _measured(history: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return epochs and values of what was measured, two of shape (n,) float64."""
    found = [(row["epoch"], row[name]) for row in history if row.get(name) is not None]
    pairs = np.array(found, float).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _by_epoch(axes: Axes, line: tuple[np.ndarray, np.ndarray], style: Mapping[str, Any]) -> None:
    """Draw a line, with marks where epochs are few enough to tell them apart."""
    axes.plot(*line, **{**MARK, **style, "markevery": max(1, len(line[0]) // 12)}, clip_on=False)


def _share_axis(axes: Axes, *values: np.ndarray) -> None:
    """Set the limits of an axis of shares to what is there, and no further than 0 and 1."""
    low, high = min(map(np.min, values)), max(map(np.max, values))
    room = max(0.08 * (high - low), 0.01)
    axes.set_ylim(max(0.0, low - room), min(1.0, high + room))
    percent_ticks(axes.yaxis)


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
        words.append(f"the best {held_out} accuracy was {_percent(accuracy[top])}, in epoch {int(epochs[top])}")
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
        _loss_axis(axes, y.min(), y.max())
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
        axes.fill_between(n, low, high, color=COLOURS["s0"], **_BAND)
        axes.plot(n, mean, **MARK, **STYLES[0])
        _share_axis(axes, low, high)
        room = 0.04 * (n.max() - n.min()) or 1
        axes.set_xlim(n.min() - room, n.max() + room)
        few_ticks(axes.xaxis, 6, whole=True)
        points = [
            f"{int(size):,} images {_percent(at)} ({_percent(a)} to {_percent(b)})"
            for size, at, a, b in zip(n, mean, low, high, strict=True)
        ]
        return page.markup("Learning curve", f"{what.capitalize()} with {'; '.join(points)}; {curve.verdict}.")


_CURVE_KEYS = ("n", "mean", "low", "high")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"

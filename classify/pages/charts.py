"""The charts of pages, and of them those of choices: which settings were tried, how far confidence can be trusted.

Each function returns one inline ``svg`` element, of which `svg.py` says what it may hold. All of them can be had from
here, whatever file they are in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from ..metrics import Reliability
from .frame import (
    BAND,
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
    loss_axis,
    note,
    number_words,
    percent,
    percent_ticks,
    shortened,
)
from .pareto import Contender, pareto
from .scatter import scatter
from .svg import COLOURS, Sheet, sheet
from .training_charts import few_shots, learning_curve, loss_curves, rate_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "Contender",
    "few_shots",
    "learning_curve",
    "loss_curves",
    "pareto",
    "rate_curve",
    "reliability",
    "scatter",
    "search_curve",
    "setting_dots",
]

_RING: dict[str, Any] = {
    "marker": "o",
    "markersize": 12.0,
    "markerfacecolor": "none",
    "color": COLOURS["ink"],
    "markeredgecolor": COLOURS["ink"],
}
_MOST_SETTINGS = 12
_ROW = 36.0  # a setting's words, and its dot below them


def reliability(before: Reliability, after: Reliability | None = None, *, prefix: str = "reliability") -> Markup:
    """Draw how often answers of each confidence are right, before and after temperature scaling.

    Parameters
    ----------
    before, after : Reliability
        Of the same answers and bins; one curve where `after` is None.
    prefix : str, default "reliability"
        What ids begin with.
    """
    named = [("accuracy at each confidence", before)]
    if after is not None:
        named = [("before temperature scaling", before), ("after", after)]
    keys = [Key(words, style) for (words, _), style in zip(named, (*STYLES[1::-1],)[-len(named) :], strict=True)]
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
    words = f"Of {n:,} answers, confidence and accuracy are {percent(before.ece)} apart on average"
    if after is not None:
        words += f" before temperature scaling and {percent(after.ece)} after it"
    last = after or before
    full = np.flatnonzero(last.counts)
    if not len(full):
        return "No answers, so nothing is known of their confidence."
    bins = [
        f"{percent(last.confidence[k])} sure, {percent(last.accuracy[k])} right ({last.counts[k]:,} answers)"
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
            axes.fill_between(x, np.maximum(y - half, low / 2), y + half, color=COLOURS["s0"], **BAND)
            low, high = min(low, max((y - half).min(), low / 2)), (y + half).max()
        axes.plot(x, y, **STYLES[0], **MARK)
        loss_axis(axes, low, high)
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

"""Accuracy against speed: which of many models is worth its time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from ..advice import pareto as front_of
from .frame import (
    LINE,
    MARK,
    WIDTH,
    Key,
    framed,
    legend,
    legend_height,
    log_ticks,
    number_words,
    percent_ticks,
    shortened,
    text_width,
)
from .svg import COLOURS, Sheet, sheet

_FONT = 12.0
_HEIGHT = 330.0
_FAR = 14.0  # user units from a point to its name, beyond which a line leads from one to the other


@dataclass(frozen=True, slots=True)
class Contender:
    """A model in a comparison.

    Attributes
    ----------
    name : str
    accuracy, low, high : float
        Share that is right, and its 95 % interval; 0 to 1.
    seconds : float
        For one image; above 0.
    """

    name: str
    accuracy: float
    low: float
    high: float
    seconds: float


def pareto(rows: Sequence[Contender], *, prefix: str = "pareto") -> Markup:
    """Draw accuracy with its interval against seconds an image, the front of the best joined by a line.

    Parameters
    ----------
    rows : sequence of Contender
        At least one.
    prefix : str, default "pareto"
        What ids begin with.
    """
    front = np.array(front_of([row.accuracy for row in rows], [row.seconds for row in rows]))
    x, y, low, high = (
        np.array([getattr(row, name) for row in rows]) for name in ("seconds", "accuracy", "low", "high")
    )
    best: dict[str, Any] = {"color": COLOURS["s0"], "marker": "o", "linestyle": "none", **MARK, "markersize": 9.0}
    rest: dict[str, Any] = {"color": COLOURS["muted"], "marker": "s", "linestyle": "none", **MARK, "markersize": 7.0}
    keys = [Key("no other is both faster and better", {**best, "linestyle": "-"})]
    keys += [] if front.all() else [Key("another is", rest)]
    with sheet(prefix, WIDTH, _HEIGHT + legend_height(keys)) as page:
        axes = framed(page, "seconds an image, logarithmic", "accuracy, 95 % interval", bottom=_HEIGHT)
        axes.set_xscale("log")
        order = np.flatnonzero(front)[np.argsort(x[front], kind="stable")]
        room = (x.max() / x.min()) ** 0.12 if x.max() > x.min() else 1.5
        gap = max(0.06 * (high.max() - low.min()), 0.01)
        axes.set_xlim(x.min() / room, x.max() * room)
        axes.set_ylim(max(0, low.min() - gap), min(1.02, high.max() + gap))
        for chosen, style in ((~front, rest), (front, best)):
            axes.vlines(x[chosen], low[chosen], high[chosen], color=style["color"], linewidth=1.2)
            axes.plot(x[chosen], y[chosen], **style)
        end = x.max() * room
        steps: dict[str, Any] = {"where": "post", "color": best["color"], "linewidth": 1.5, "zorder": 1}
        axes.step([*x[order], end], [*y[order], y[order[-1]]], **steps)
        percent_ticks(axes.yaxis)
        log_ticks(axes.xaxis, x.min() / room, x.max() * room, 5)
        lines = [
            np.column_stack(page.pixels(axes, *np.array(ends, float).T))
            for ends in _segments(x, low, high, [*x[order], end], y[order])
        ]
        _label(page, rows, np.column_stack(page.pixels(axes, x, y)), lines, front)
        legend(page, keys, _HEIGHT)
        return page.markup("Accuracy against time", _words(rows, front, order))


_Box = tuple[float, float, float, float]  # left, top, right, bottom


def _segments(
    x: np.ndarray, low: np.ndarray, high: np.ndarray, steps_x: Sequence[float], steps_y: np.ndarray
) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Return the ends of all lines of the chart, in its data: intervals, and the steps of the front."""
    found = [((a, b), (a, c)) for a, b, c in zip(x, low, high, strict=True)]
    found += [((a, y), (b, y)) for (a, b), y in zip(itertools.pairwise(steps_x), steps_y, strict=True)]
    rises = zip(steps_x[1:], itertools.pairwise(steps_y), strict=False)
    return found + [((a, y), (a, z)) for a, (y, z) in rises]


def _label(
    page: Sheet, rows: Sequence[Contender], points: np.ndarray, lines: Sequence[np.ndarray], front: np.ndarray
) -> None:
    """Write names beside their points where there is room, those of the front first; the rest go without."""
    taken: list[_Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in points.tolist()]
    taken += [(*ends.min(axis=0).tolist(), *ends.max(axis=0).tolist()) for ends in lines]
    for at in sorted(range(len(rows)), key=lambda row: not front[row]):
        words = shortened(rows[at].name, 170, _FONT)
        for x, y, anchor in _beside(*points[at].tolist()):
            box = _box(x, y, anchor, text_width(words, _FONT))
            inside = (
                box[0] >= 2 and box[2] <= page.width - 2 and box[1] >= LINE + 4 and box[3] <= _HEIGHT - 2 * LINE - 8
            )
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                if abs(y - points[at][1]) > _FAR:
                    page.line([points[at][0], x], [points[at][1], y - 4], color=COLOURS["muted"], linewidth=0.8)
                page.text(x, y, words, anchor=anchor, size=_FONT, bold=bool(front[at]), halo=True)
                break


def _beside(x: float, y: float) -> list[tuple[float, float, str]]:
    """Return places for words near a point, the best first, with the end of them that is there."""
    near = [(x + 9, y - 5, "start"), (x + 9, y + 13, "start"), (x - 9, y - 5, "end"), (x - 9, y + 13, "end")]
    far = [
        (x + side * 9, y + shift, anchor)
        for shift in (-18, 26, -31, 39)
        for side, anchor in ((1, "start"), (-1, "end"))
    ]
    return near + far


def _box(x: float, y: float, anchor: str, width: float) -> _Box:
    left = x if anchor == "start" else x - width
    return left, y - _FONT + 2, left + width, y + 3


def _overlap(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _words(rows: Sequence[Contender], front: np.ndarray, order: np.ndarray) -> str:
    told = [f"{rows[k].name} ({100 * rows[k].accuracy:.1f} %, {number_words(rows[k].seconds)} s)" for k in order]
    return f"Of {len(rows)} models, {int(front.sum())} are such that none is both faster and better: {', '.join(told)}."

"""What charts have in common: axes with few words, ticks that can be read, a legend below."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import printable
from .svg import COLOURS, FONT, Sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 400.0
LINE = 19.0  # user units from one line of words to the next
_LETTER = 0.56  # of the font's size: the width of a letter, on average and in most fonts
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

# Lines differ in more than their colour.
STYLES: tuple[dict[str, Any], ...] = (
    {"color": COLOURS["s0"], "linestyle": "-", "marker": "o"},
    {"color": COLOURS["s1"], "linestyle": (0, (5, 3)), "marker": "s"},
    {"color": COLOURS["s2"], "linestyle": (0, (1, 2)), "marker": "D"},
)
MARK: dict[str, Any] = {
    "linewidth": 2.0,
    "markersize": 6.0,
    "markeredgewidth": 1.0,
    "markeredgecolor": COLOURS["paper"],
}
BAND: dict[str, Any] = {"alpha": 0.2, "linewidth": 0}
_LOG_BEYOND = 6.0  # times the lowest loss: a linear axis would hide what is low


@dataclass(frozen=True, slots=True)
class Key:
    """One line of a legend: a style that lines are drawn in, and what they show."""

    words: str
    style: dict[str, Any]


def framed(
    page: Sheet, x_title: str, y_title: str, *, top: float = 0.0, bottom: float, noted: bool = False, left: float = 50.0
) -> Axes:
    """Return axes between two heights of a sheet, with room for their ticks and titles in between.

    The title of the y axis stands above it: turned by 90 degrees it is hard to read, and takes width from a phone.
    Where axes are `noted`, there is a line of room between the two for `note`.
    """
    foot = bottom - (2 * LINE + 6 if x_title else LINE)
    axes = page.axes(left, top + LINE * (1 + noted) + 9, page.width - 14, foot)
    axes.grid(axis="y")
    page.text(2, top + LINE - 5, y_title, colour="muted")
    if x_title:
        page.text((left + page.width - 14) / 2, bottom - 5, x_title, colour="muted", anchor="middle")
    return axes


def note(page: Sheet, axes: Axes, x: float, words: str) -> None:
    """Draw a line at a place of the x axis, and say above it what is there."""
    axes.axvline(x, zorder=1, color=COLOURS["muted"], linewidth=1.2, linestyle=(0, (3, 3)))
    at = float(page.pixels(axes, np.array([x]), np.array([axes.get_ylim()[0]]))[0][0])
    half = text_width(words) / 2 + 4
    top = page.height - axes.get_window_extent().y1
    page.text(min(max(at, half), page.width - half), top - 6, words, anchor="middle", bold=True)


def few_ticks(axis: Any, count: int = 5, *, whole: bool = False) -> None:
    """Give an axis so many ticks or fewer, at round numbers."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(count, integer=whole, steps=[1, 2, 5, 10], min_n_ticks=1))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def percent_ticks(axis: Any, count: int = 5) -> None:
    """Give an axis of shares from 0 to 1 ticks in percent."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(count, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.6g} %"))


def log_ticks(axis: Any, low: float, high: float, most: int = 6) -> None:
    """Give a logarithmic axis ticks at powers of ten, or at 1, 2 and 5 times them where those are too few."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis.set_major_locator(FixedLocator(log_places(low, high, most)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: number_words(value)))


def log_places(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers from `low` to `high`, both above 0, in about equal ratios."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for steps in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
        places = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        inside = [place for place in places if low * 0.999 <= place <= high * 1.001]
        if len(inside) >= 3:
            return inside[:: -(-len(inside) // most)]
    return inside or [low]


def loss_axis(axes: Axes, low: float, high: float) -> None:
    """Set the limits of a loss's axis, logarithmic where losses are of several sizes."""
    if low > 0 and high > _LOG_BEYOND * low:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.15, high * 1.15)
        log_ticks(axes.yaxis, low, high, 5)
        return
    room = 0.08 * (high - low) or max(0.1 * abs(high), 0.01)
    axes.set_ylim(max(0, low - room) if low >= 0 else low - room, high + room)
    few_ticks(axes.yaxis)


def share_axis(axes: Axes, *values: np.ndarray) -> None:
    """Set the limits of an axis of shares to what is there, and no further than 0 and 1."""
    low, high = min(map(np.min, values)), max(map(np.max, values))
    room = max(0.08 * (high - low), 0.01)
    axes.set_ylim(max(0.0, low - room), min(1.0, high + room))
    percent_ticks(axes.yaxis)


def number_words(value: float) -> str:
    """Return a number as a tick or a sentence shows it: ``0.001``, ``10⁻⁵``, ``2,000``."""
    if value and (abs(value) < 5e-4 or abs(value) >= 1e6):
        digits, power = f"{value:.2e}".split("e")
        digits = digits.rstrip("0").rstrip(".")
        ten = "10" + str(int(power)).translate(_SUPERSCRIPTS)
        return ten if digits == "1" else f"{digits}·{ten}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def percent(share: float) -> str:
    """Return a share, 0 to 1, in percent."""
    return f"{100 * share:.1f} %"


def text_width(words: str, size: float = FONT) -> float:
    """Return about how wide words are, in user units; no font is known."""
    return size * sum(_LETTER if ord(letter) < 0x1100 else 1.1 for letter in words)


def shortened(words: str, width: float, size: float = FONT) -> str:
    """Return words as one printable line that is no wider than so many units, with an ellipsis where they are cut."""
    words = printable(words)
    if text_width(words, size) <= width:
        return words
    room = width - text_width("…", size)
    kept = itertools.takewhile(
        lambda end: end <= room, itertools.accumulate(text_width(letter, size) for letter in words)
    )
    return words[: sum(1 for _ in kept)] + "…"


def legend_height(keys: Sequence[Key], width: float = WIDTH) -> float:
    """Return how high `legend` will be."""
    return LINE * len(_rows(keys, width)) + (6 if keys else 0)


def legend(page: Sheet, keys: Sequence[Key], top: float) -> None:
    """Write keys in lines of as many as fit, below `top`."""
    for number, row in enumerate(_rows(keys, page.width)):
        x, y = 8.0, top + LINE * (number + 1) - 5
        for key in row:
            page.line([x, x + 12, x + 24], [y - 4.5] * 3, markevery=[1], **{**MARK, **key.style})
            page.text(x + 31, y, key.words)
            x += _key_width(key)


def _rows(keys: Sequence[Key], width: float) -> list[list[Key]]:
    rows: list[list[Key]] = []
    used = np.inf
    for key in keys:
        if used + _key_width(key) > width:
            rows.append([])
            used = 8.0
        rows[-1].append(key)
        used += _key_width(key)
    return rows


def _key_width(key: Key) -> float:
    return 31 + text_width(key.words) + 14

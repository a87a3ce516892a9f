"""The map of embeddings: a mark for each picture, by which a page can show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from .frame import LINE, shortened, text_width
from .projection import Projection
from .svg import N_SERIES, Sheet, sheet

MOST_POINTS = 3000  # beyond which a page grows heavy, and a map dark
_WIDTH, _HEIGHT, _MARGIN = 480.0, 400.0, 12.0
_FONT = 14.0
# Shapes of a radius of about 4, each with a class's colour, so that neither has to tell classes apart by itself.
_SHAPES = (
    "M4 0A4 4 0 1 1-4 0A4 4 0 1 1 4 0Z",  # disc
    "M-3.5-3.5H3.5V3.5H-3.5Z",  # square
    "M0-4.8L4.4 3.2H-4.4Z",  # triangle
    "M0-5L5 0 0 5-5 0Z",  # diamond
    "M0 4.8L4.4-3.2H-4.4Z",  # triangle on its tip
    "M-1.5-4.5H1.5V-1.5H4.5V1.5H1.5V4.5H-1.5V1.5H-4.5V-1.5H-1.5Z",  # plus
    "M0-5L1.3-1.7 4.8-1.5 2.1.7 3 4 0 2.1-3 4-2.1.7-4.8-1.5-1.3-1.7Z",  # star
    "M-4.5-3L-3-4.5 0-1.5 3-4.5 4.5-3 1.5 0 4.5 3 3 4.5 0 1.5-3 4.5-4.5 3-1.5 0Z",  # cross
    "M-4.6 0L-2.3-4H2.3L4.6 0 2.3 4H-2.3Z",  # hexagon
    "M-5-2.5H5V2.5H-5Z",  # bar
)
_DOT = "M2.5 0A2.5 2.5 0 1 1-2.5 0A2.5 2.5 0 1 1 2.5 0Z"  # of all that is in no series
_OTHERS = N_SERIES


@dataclass(frozen=True, slots=True)
class _Series:
    """What classes are drawn as.

    Attributes
    ----------
    of_class : ndarray of shape (K,), dtype int
        The series of each class, 0 to 9, or 10 for all that share a dot.
    names : list of str
        Of the series, in their order.
    others : str
        What the shared dot stands for; empty where nothing is one.
    """

    of_class: np.ndarray
    names: list[str]
    others: str


def scatter(
    projection: Projection,
    labels: np.ndarray,
    classes: Sequence[str],
    *,
    wrong: np.ndarray | None = None,
    held_out: np.ndarray | None = None,
    numbers: np.ndarray | None = None,
    prefix: str = "map",
) -> Markup:
    """Draw a mark for each picture where its embedding lies.

    Colour and shape tell classes apart; of more than ten, the nine in which most predictions are wrong (or that have
    most pictures, where none is known to be), while the others share a grey dot. Marks are filled, those of pictures
    that were held out hollow, and wrong predictions have a ring. A mark is a ``use`` with the number of its picture in
    ``data-picture``; none takes the focus.

    Parameters
    ----------
    projection : Projection
        Of n pictures; of more than 3,000 so many are drawn that are chosen by chance, the same each time.
    labels : ndarray of shape (n,), dtype int
        0 to K - 1, or -1 for a picture without a label.
    classes : sequence of str, K
    wrong, held_out : ndarray of shape (n,), dtype bool, optional
        Whether the prediction is wrong, and whether the picture is one of validation; none where they are None.
    numbers : ndarray of shape (n,), dtype int, optional
        What pictures are called by in ``data-picture``; 0 to n - 1 where it is None.
    prefix : str, default "map"
        What ids begin with.
    """
    n = len(labels)
    none = np.zeros(n, bool)
    wrong, held_out = (none if flags is None else np.asarray(flags, bool) for flags in (wrong, held_out))
    numbers = np.arange(n) if numbers is None else numbers
    rows = _drawn(n)
    series = _series(np.asarray(labels), classes, wrong)
    kinds = np.append(series.of_class, _OTHERS)[np.asarray(labels)[rows]]  # a label of -1 is the last one, others
    rings, hollow = wrong[rows], held_out[rows]
    keys = _keys(series, bool(rings.any()), bool(hollow.any()))
    places = _places(keys)
    height = _HEIGHT + (places[-1][1] + 10 if places else 0)
    with sheet(prefix, _WIDTH, height) as page:
        x, y = _laid_out(page, projection.points[rows])
        used = {*zip(kinds.tolist(), hollow.tolist(), rings.tolist(), strict=True)} | {key[1:] for key in keys}
        _symbols(page, used, 1.0 if len(rows) <= 500 else 0.8 if len(rows) <= 1500 else 0.7)
        marks = page.add("g", {"class": "marks"})
        # By chance, so that no class covers another; the other classes are below all, what went wrong is on top.
        order = np.random.default_rng(0).permutation(len(rows))
        for at in order[np.lexsort((kinds[order] != _OTHERS, rings[order]))]:
            kind = _id(int(kinds[at]), bool(hollow[at]), bool(rings[at]))
            attributes = {"href": f"#{prefix}{kind}", "class": _colour(int(kinds[at])), "x": x[at], "y": y[at]}
            page.child(marks, "use", {**attributes, "data-picture": str(int(numbers[rows[at]]))})
        _write_keys(page, keys, places)
        return page.markup("Map of the embeddings", _words(projection, rows, n, series, wrong, held_out), kind="map")


def _drawn(n: int) -> np.ndarray:
    """Return the rows that are drawn, ascending."""
    if n <= MOST_POINTS:
        return np.arange(n)
    return np.sort(np.random.default_rng(0).choice(n, MOST_POINTS, replace=False))


def _series(labels: np.ndarray, classes: Sequence[str], wrong: np.ndarray) -> _Series:
    if len(classes) <= N_SERIES:
        return _Series(np.arange(len(classes)), list(classes), "no label" if (labels < 0).any() else "")
    count, mistaken = (
        np.bincount(labels[rows], minlength=len(classes)) for rows in (labels >= 0, (labels >= 0) & wrong)
    )
    shown = np.sort(np.lexsort((-count, -mistaken))[: N_SERIES - 1])
    of_class = np.full(len(classes), _OTHERS)
    of_class[shown] = np.arange(len(shown))
    return _Series(of_class, [classes[k] for k in shown], f"{len(classes) - len(shown)} other classes")


def _laid_out(page: Sheet, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where the points lie on the sheet: a unit is as long in both directions, as distances are compared."""
    axes = page.axes(0, 0, _WIDTH, _HEIGHT)
    axes.axis("off")
    low, high = (points.min(axis=0), points.max(axis=0)) if len(points) else (np.zeros(2), np.ones(2))
    middle, span = (low + high) / 2, (high - low).astype(float)
    inside = np.array([_WIDTH, _HEIGHT]) - 2 * _MARGIN
    unit = float((span / inside).max()) or 1.0
    half = unit * np.array([_WIDTH, _HEIGHT]) / 2
    axes.set(xlim=(middle[0] - half[0], middle[0] + half[0]), ylim=(middle[1] - half[1], middle[1] + half[1]))
    return page.pixels(axes, points[:, 0], points[:, 1])


def _id(kind: int, hollow: bool, ring: bool) -> str:
    return f"-{kind}{'h' * hollow}{'r' * ring}"


def _colour(kind: int) -> str:
    return "muted" if kind == _OTHERS else f"s{kind}"


def _symbols(page: Sheet, wanted: set[tuple[int, bool, bool]], size: float) -> None:
    """Define each mark that is used, in the colour of what uses it, smaller where there are many."""
    defs = page.add("defs")
    for kind, hollow, ring in sorted(wanted):
        group = page.child(
            defs, "g", {"id": f"{page.prefix}{_id(kind, hollow, ring)}", "transform": f"scale({size:g})"}
        )
        shape = _DOT if kind == _OTHERS else _SHAPES[kind]
        paint = {"fill": "var(--paper)", "stroke": "currentColor", "stroke-width": "1.5"}
        filled = {"fill": "currentColor", "stroke": "var(--paper)", "stroke-width": "0.6"}
        page.child(group, "path", {"d": shape, **(paint if hollow else filled)})
        if ring:
            page.child(
                group,
                "circle",
                {"r": "7.5", "fill": "none", "stroke": "var(--bad)", "stroke-width": "1.8"},
            )


_Keys = list[tuple[str, int, bool, bool]]


def _keys(series: _Series, rings: bool, hollow: bool) -> _Keys:
    """Return words, series, hollow and ring of each key of the legend."""
    keys: _Keys = [(name, kind, False, False) for kind, name in enumerate(series.names)]
    keys += [(series.others, _OTHERS, False, False)] if series.others else []
    keys += [("validation", 0, True, False)] if hollow else []
    return keys + ([("predicted wrongly", 0, False, True)] if rings else [])


def _places(keys: _Keys) -> list[tuple[float, float]]:
    """Return where each key stands below the map, in lines of as many as fit."""
    places, x, y = [], 12.0, LINE
    for words, *_ in keys:
        width = 34 + min(text_width(words, _FONT), _WIDTH - 60)
        if x > 12 and x + width > _WIDTH:
            x, y = 12.0, y + LINE + 2
        places.append((x, y))
        x += width
    return places


def _write_keys(page: Sheet, keys: _Keys, places: list[tuple[float, float]]) -> None:
    for (words, kind, hollow, ring), (x, y) in zip(keys, places, strict=True):
        of_class = not hollow and not ring
        at = {"x": x, "y": _HEIGHT + y - 4.5, "class": _colour(kind) if of_class else "muted"}
        page.add("use", {"href": f"#{page.prefix}{_id(kind, hollow, ring)}", **at})
        page.text(x + 12, _HEIGHT + y, shortened(words, _WIDTH - 60, _FONT), size=_FONT)


def _words(
    projection: Projection, rows: np.ndarray, n: int, series: _Series, wrong: np.ndarray, held_out: np.ndarray
) -> str:
    drawn = f"{n:,} pictures" if len(rows) == n else f"{len(rows):,} of {n:,} pictures, drawn by chance,"
    how = "UMAP, in which neighbours stay together and other distances mean little"
    if projection.explained is not None:
        first, second = projection.explained
        how = f"the two principal axes, which hold {100 * (first + second):.1f} % of the variance"
        how += f" ({100 * first:.1f} and {100 * second:.1f})"
    words = f"{drawn} of {len(series.of_class)} classes laid out by {how}"
    words += f"; {int(held_out[rows].sum()):,} are of validation" if held_out.any() else ""
    return words + (f"; {int(wrong[rows].sum()):,} are predicted wrongly" if wrong.any() else "") + "."

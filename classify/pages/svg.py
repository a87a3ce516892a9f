"""Charts that matplotlib draws, as SVG that may stand in a page: no styles, no metadata, colours by class.

matplotlib writes a document of its own, with colours and fonts in ``style`` attributes. A page with a strict content
security policy ignores those, and one with a dark theme needs other colours. So charts are drawn in stand-in colours,
each of which becomes a class; `charts.css` gives the classes their colours.

Words from outside (classes, files, models) never pass through matplotlib, which would read mathematics into a class
called ``$x$`` and hide one called ``_x``: they are put into the tree as text.
"""

from __future__ import annotations

import importlib
import io
import logging
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup

from ...errors import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

N_SERIES = 10
FONT = 13.0  # user units: 11 px where a chart of 400 units is as narrow as a phone

_NAMES = ("ink", "muted", "grid", "paper", "bad", *(f"s{number}" for number in range(N_SERIES)))
# Colours that matplotlib passes on as they are, and that nothing of its own has.
COLOURS: Mapping[str, str] = {name: f"#0a0b{number:02x}" for number, name in enumerate(_NAMES, 1)}
_NAME_OF = {colour: name for name, colour in COLOURS.items()}

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "{http://www.w3.org/1999/xlink}href"
_LOCK = threading.Lock()  # what matplotlib is set to holds for the whole process

# Set for every chart, over matplotlib's defaults: what the person at the keyboard has set for charts of theirs would
# otherwise be drawn here.
_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "headstart",
    "text.parse_math": False,
    "text.usetex": False,
    "font.size": FONT,
    "text.color": COLOURS["ink"],
    "axes.edgecolor": COLOURS["muted"],
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 1.0,
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "xtick.labelsize": FONT,
    "ytick.labelsize": FONT,
    "ytick.major.size": 0.0,
    "xtick.major.pad": 5.0,
    "xtick.minor.size": 0.0,
    "ytick.minor.size": 0.0,
    "path.simplify": False,
}


class Sheet:
    """A chart on its way from matplotlib to the page; made by `sheet`, and of use inside its ``with`` alone.

    Coordinates of what is added by hand are those of the SVG: user units from the upper left corner.

    Parameters
    ----------
    prefix : str
        What all ids begin with, another one for each chart of a page.
    width, height : float
        User units.
    """

    def __init__(self, prefix: str, width: float, height: float) -> None:
        from matplotlib.figure import Figure

        if not re.fullmatch(r"[A-Za-z][\w-]*", prefix, re.ASCII):
            raise ValueError(f"a prefix of ids is a letter, then letters, digits, - and _, and is {prefix!r}")
        self.prefix, self.width, self.height = prefix, width, height
        # At 72 dots per inch, which the SVG backend always has, a point is a user unit.
        self._figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        self._figure.patch.set_visible(False)
        self._added: list[ElementTree.Element] = []

    def axes(self, left: float, top: float, right: float, bottom: float) -> Axes:
        """Return axes between these edges, in user units."""
        size = ((right - left) / self.width, (bottom - top) / self.height)
        axes = self._figure.add_axes((left / self.width, 1 - bottom / self.height, *size))
        axes.patch.set_visible(False)
        return axes

    def line(self, x: Sequence[float], y: Sequence[float], **style: Any) -> None:
        """Draw a line outside of any axes, in user units, in the style that matplotlib's lines have."""
        from matplotlib.lines import Line2D

        at = [1 - value / self.height for value in y]
        self._figure.add_artist(Line2D([value / self.width for value in x], at, **style))

    def pixels(self, axes: Axes, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where data lie on the sheet, once the limits of the axes are set; two of shape (n,) float64."""
        found = axes.transData.transform(np.column_stack([x, y]).astype(np.float64))
        return found[:, 0], self.height - found[:, 1]

    def add(self, tag: str, attributes: Mapping[str, Any] | None = None, text: str | None = None) -> Any:
        """Add an element over all that was drawn so far, and return it; numbers are cut to two decimals."""
        element = _element(tag, attributes or {}, text)
        self._added.append(element)
        return element

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        colour: str = "ink",
        anchor: str = "start",
        size: float = FONT,
        bold: bool = False,
        halo: bool = False,
    ) -> None:
        """Add words as they are, whatever they are; y is that of the line they stand on.

        A halo of the paper's colour keeps them apart from the lines that they cross.
        """
        attributes = {"x": x, "y": y, "class": colour, "fill": "currentColor", "font-size": size}
        attributes |= {} if anchor == "start" else {"text-anchor": anchor}
        attributes |= {"font-weight": "bold"} if bold else {}
        attributes |= {"stroke": "var(--paper)", "stroke-width": 3, "paint-order": "stroke"} if halo else {}
        if words:
            self.add("text", attributes, printable(words))

    def child(self, parent: Any, tag: str, attributes: Mapping[str, Any], text: str | None = None) -> Any:
        """Add an element inside one that was added, and return it."""
        element = _element(tag, attributes, text)
        parent.append(element)
        return element

    def markup(self, title: str, description: str, *, kind: str = "") -> Markup:
        """Return the chart as one ``svg`` element.

        Parameters
        ----------
        title : str
            What the chart is.
        description : str
            What it shows, in words with numbers, for those who do not see it.
        kind : str, optional
            A class ``chart-KIND`` beside ``chart``, where the style sheet treats it in a way of its own.
        """
        root = self._drawn()
        _tidy(root, self.prefix)
        svg = _element(
            "svg",
            {
                "xmlns": _SVG,
                "class": f"chart chart-{kind}" if kind else "chart",
                "role": "img",
                "aria-labelledby": f"{self.prefix}-title {self.prefix}-desc",
                "viewBox": f"0 0 {self.width:g} {self.height:g}",
                "stroke-linejoin": "round",
                "font-size": FONT,
            },
        )
        self.child(svg, "title", {"id": f"{self.prefix}-title"}, printable(title))
        self.child(svg, "desc", {"id": f"{self.prefix}-desc"}, printable(description))
        svg.extend([kept for child in root for kept in _unwrapped(child)])
        svg.extend(self._added)
        return Markup(ElementTree.tostring(svg, encoding="unicode"))

    def _drawn(self) -> ElementTree.Element:
        from matplotlib.backends.backend_svg import FigureCanvasSVG

        text = io.StringIO()
        canvas: Any = FigureCanvasSVG(self._figure)
        canvas.print_svg(text, metadata={"Date": None})
        root = ElementTree.fromstring(text.getvalue())
        for element in root.iter():
            element.tag = element.tag.removeprefix(f"{{{_SVG}}}")
        return root


@contextmanager
def sheet(prefix: str, width: float, height: float) -> Iterator[Sheet]:
    """Lend a `Sheet`, with matplotlib set as charts of a page need it; one thread after another gets one.

    Parameters
    ----------
    prefix : str
        What all ids begin with, another one for each chart of a page.
    width, height : float
        User units. The page decides how large a unit is.
    """
    with _LOCK:
        _load_quietly()
        import matplotlib

        settings: Any = dict(matplotlib.rcParamsDefault)
        for name in _LEFT_ALONE:
            settings.pop(name, None)
        settings.update(_SETTINGS)
        with matplotlib.rc_context(settings):
            yield Sheet(prefix, width, height)


_LEFT_ALONE = ("backend", "backend_fallback", "interactive", "toolbar", "timezone", "date.epoch")


def _load_quietly() -> None:
    """Import matplotlib without its words on fonts that it looks up once, and on a home that it cannot write to."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        importlib.import_module("matplotlib.backends.backend_svg")
        importlib.import_module("matplotlib.font_manager")
    finally:
        logger.setLevel(level)


def _element(tag: str, attributes: Mapping[str, Any], text: str | None = None) -> ElementTree.Element:
    element = ElementTree.Element(tag, {name: _written(value) for name, value in attributes.items()})
    element.text = text
    return element


def _written(value: Any) -> str:
    return value if isinstance(value, str) else _short(float(value))


def _short(number: float) -> str:
    text = f"{number:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


_NUMBER = re.compile(r"-?\d+\.\d+")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_KEPT = {
    *("fill", "fill-opacity", "fill-rule", "stroke", "stroke-width", "stroke-opacity", "stroke-linecap"),
    *("stroke-linejoin", "stroke-dasharray", "stroke-dashoffset", "opacity", "font-size", "text-anchor"),
}


def _tidy(root: ElementTree.Element, prefix: str) -> None:
    """Turn what matplotlib wrote into what a page may hold, in place."""
    names: dict[str, str] = {}  # of what is referred to

    def renamed(name: str) -> str:
        return names.setdefault(name, f"{prefix}-{len(names)}")

    for element in root.iter():
        _style_to_attributes(element)
        _shorten(element)
        if _XLINK in element.attrib:
            element.set("href", f"#{renamed(element.attrib.pop(_XLINK).removeprefix('#'))}")
        if "clip-path" in element.attrib:
            inside = _REFERENCE.fullmatch(element.attrib["clip-path"])
            assert inside is not None
            element.set("clip-path", f"url(#{renamed(inside[1])})")
    for shape in root.iterfind(".//defs/path"):  # of markers: each use of one gives it its colours
        for attribute in ("fill", "stroke", "class"):
            shape.attrib.pop(attribute, None)
    for element in root.iter():
        name = element.attrib.pop("id", None)
        if name in names:
            element.set("id", names[name])


def _style_to_attributes(element: ElementTree.Element) -> None:
    for pair in filter(str.strip, element.attrib.pop("style", "").split(";")):
        name, value = map(str.strip, pair.split(":", 1))
        if name in _KEPT:
            element.set(name, value.removesuffix("px"))
    found = {name: element.get(name, "") for name in ("fill", "stroke")}
    colours = {name: _NAME_OF[value] for name, value in found.items() if value in _NAME_OF}
    # One colour an element, beside the paper's, which is written where both are.
    chosen = {name for name in colours.values() if name != "paper"} or set(colours.values())
    for attribute, name in colours.items():
        element.set(attribute, "currentColor" if name in chosen else "var(--paper)")
    if chosen:
        (name,) = chosen
        element.set("class", name)


def _shorten(element: ElementTree.Element) -> None:
    for name in ("d", "x", "y", "width", "height", "transform", "stroke-dasharray", "stroke-width"):
        if name in element.attrib:
            short = _NUMBER.sub(lambda found: _short(float(found[0])), element.attrib[name])
            element.set(name, " ".join(short.split()))
    if element.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
    if element.tag != "text":
        element.text = None
    element.tail = None


def _unwrapped(element: ElementTree.Element) -> list[ElementTree.Element]:
    """Return an element without groups that say nothing, as a list: none, or what was in them."""
    if element.tag in ("metadata", "style"):
        return []
    children = [kept for child in element for kept in _unwrapped(child)]
    element[:] = children
    if element.tag == "g" and not element.attrib:
        return children
    return [] if element.tag in ("g", "defs") and not children else [element]

"""Templates to pages: each is one file that asks nobody for anything, and whose policy tells the browser so."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from ...errors import printable

if TYPE_CHECKING:
    from jinja2 import Environment

_STYLES = ("page.css", "charts.css")


def render(template: str, **context: Any) -> str:
    """Return a page as HTML.

    Everything in it is escaped but what the templates themselves say and what is `Markup`. Scripts and styles are those
    of this package, by their hash; the page may load nothing, send nothing and be framed by nobody.

    Parameters
    ----------
    template : str
        A file of this folder that extends ``base.html``.
    **context
        What the template names.
    """
    style = "".join(_text(name) for name in _STYLES)
    script = _text("page.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {"policy": policy, "style": Markup(style), "script": Markup(script)}
    return _environment().get_template(template).render(**parts, **context)


def as_data(value: Any) -> Markup:
    """Return a value as JSON that a ``script`` element may hold, whatever names are in it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character, code in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        text = text.replace(character, code)
    return Markup(text)


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader(__package__, ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"percent": percent, "named": printable, "counted": counted, "tied": tied}
    return found


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share as a person reads it, or a dash where it is not known."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"  # noqa: RUF001  (a dash, as in a table)


def tied(text: str) -> str:
    """Return a sentence in which no line ends between a number and its per cent sign."""
    return text.replace(" %", "\u00a0%")


def counted(count: int, one: str, several: str | None = None) -> str:
    """Return a number with its noun."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def _text(name: str) -> str:
    return (files(__package__) / name).read_text("utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

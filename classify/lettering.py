r"""Text in pictures: names from outside, of any script and length, in one line of a given width.

Pillow's built-in font has little more than ASCII. A text with other letters is set in the font of the system, of
those below, that has most of them; letters that none has are escaped, as in ``\u4e2d``. Fonts are not looked for in the
working directory.
"""

from __future__ import annotations

import functools
import os
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from ..errors import printable

if TYPE_CHECKING:
    from PIL import Image, ImageFont

Colour = tuple[int, int, int]

INK: Colour = (31, 35, 40)
GREY: Colour = (89, 99, 110)
GREEN: Colour = (17, 99, 41)
RED: Colour = (190, 30, 38)
"""Each of them has a contrast of 5 or more to white."""

LONGEST = 400  # letters of a name that are looked at; far fewer fit
# The usual fonts of Linux, Windows and macOS, and those with many scripts.
SYSTEM_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "LiberationSans-Regular.ttf",
    "arial.ttf",
    "Arial.ttf",
    "Arial Unicode.ttf",
    "msyh.ttc",
    "YuGothM.ttc",
    "malgun.ttf",
    "PingFang.ttc",
)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of text.

    Attributes
    ----------
    text : str
        Cut with an ellipsis where it is too long.
    after : str, default ""
        Stands behind it and is never cut.
    colour : tuple of 3 int
    size : int, default 14
        Of the letters, in pixels.
    mark : {"", "right", "wrong"}, default ""
        A tick or a cross before the text.
    """

    text: str
    after: str = ""
    colour: Colour = INK
    size: int = 14
    mark: str = ""

    @property
    def height(self) -> int:
        """In pixels, with the space to the next line."""
        return round(self.size * 1.4)


def draw_line(image: Image.Image, corner: tuple[int, int], width: int, line: Line) -> None:
    """Draw a line of text; nothing is drawn outside its `width` and height.

    Parameters
    ----------
    image : PIL.Image.Image
        In RGB.
    corner : tuple of 2 int
        Left and top.
    width : int
        In pixels.
    line : Line
    """
    from PIL import Image

    # Drawn on a mask of its own: marks piled upon letters, as Unicode allows, must not reach into other lines.
    mask = Image.new("L", (width, line.height))
    left = _draw_mark(mask, line) if line.mark else 0.0
    room = width - left - _width(line.after, line.size)
    left += _draw_text(mask, left, fitted(line.text, room, line.size), line.size)
    _draw_text(mask, left, line.after, line.size)
    image.paste(line.colour, corner, mask)


def fitted(text: str, width: float, size: int) -> str:
    """Return as much of a text as fits in `width` pixels, as one printable line, with an ellipsis where it is cut.

    Parameters
    ----------
    text : str
        Of any characters.
    width : float
    size : int
        Of the letters, in pixels.

    Returns
    -------
    str
        Empty where not even the ellipsis fits.
    """
    text = unicodedata.normalize("NFC", printable(text[:LONGEST]))
    if _width(text, size) <= width:
        return text
    fits, too_long = 0, len(text)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        fits, too_long = (middle, too_long) if _width(text[:middle] + "…", size) <= width else (fits, middle)
    return text[:fits].rstrip() + "…" if fits else ""


def _width(text: str, size: int) -> float:
    font, letters = _set_in(text, size)
    return font.getlength(letters) if letters else 0.0


def _draw_text(mask: Image.Image, left: float, text: str, size: int) -> float:
    """Draw on a mask and return how wide the text is."""
    from PIL import ImageDraw

    if not text:
        return 0.0
    font, letters = _set_in(text, size)
    ImageDraw.Draw(mask).text((left, size * 1.05), letters, fill=255, font=font, anchor="ls")
    return font.getlength(letters)


def _draw_mark(mask: Image.Image, line: Line) -> float:
    """Draw a tick or a cross, larger and then reduced so that its edges are smooth; return the room that it takes."""
    from PIL import Image, ImageDraw

    side, fine = line.size, 8
    strokes = {
        "right": [[(0.08, 0.55), (0.36, 0.84), (0.92, 0.2)]],
        "wrong": [[(0.14, 0.18), (0.84, 0.88)], [(0.84, 0.18), (0.14, 0.88)]],
    }[line.mark]
    drawn = Image.new("L", (side * fine, side * fine))
    for stroke in strokes:
        points = [(x * side * fine, y * side * fine) for x, y in stroke]
        ImageDraw.Draw(drawn).line(points, fill=255, width=max(2, side * fine // 7), joint="curve")
    mask.paste(drawn.resize((side, side), Image.Resampling.LANCZOS), (0, round(side * 0.12)))
    return side * 1.3


# Fonts


def _set_in(text: str, size: int) -> tuple[ImageFont.FreeTypeFont, str]:
    """Return the font for a text, and the text with the letters escaped that the font lacks."""
    font = _built_in(size)
    lacking = _lacking(font, text)
    if lacking:
        font = min((font, *_of_the_system(size)), key=lambda other: len(_lacking(other, text)))
        lacking = _lacking(font, text)
    return font, "".join(_escaped(letter) if letter in lacking else letter for letter in text)


def _escaped(letter: str) -> str:
    return "..." if letter == "…" else letter.encode("unicode_escape").decode("ascii")


@functools.cache
def _built_in(size: int) -> ImageFont.FreeTypeFont:
    from PIL import ImageFont

    return cast("ImageFont.FreeTypeFont", ImageFont.load_default(size))  # as it always is where a size is given


@functools.cache
def _of_the_system(size: int) -> tuple[ImageFont.FreeTypeFont, ...]:
    from PIL import ImageFont

    found = []
    for name in SYSTEM_FONTS:
        try:
            # In the root folder, where none is: Pillow then looks in the system's folders and nowhere else.
            found.append(ImageFont.truetype(os.sep + name, size))
        except OSError:
            continue
    return tuple(found)


def _lacking(font: ImageFont.FreeTypeFont, text: str) -> set[str]:
    return {letter for letter in set(text) if not letter.isascii() and not _has(font, letter)}


@functools.lru_cache(maxsize=1 << 16)
def _has(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    """Tell whether a font has a letter: what it lacks is drawn as U+FFFF is, which no font has."""
    return _drawn(font, letter) != _drawn(font, "\uffff")


def _drawn(font: ImageFont.FreeTypeFont, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)

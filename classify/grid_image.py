"""Pictures in a grid with a heading over each block and a title over each picture, as one PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .lettering import Colour, Line, draw_line

if TYPE_CHECKING:
    from PIL import Image

SIDE = 160  # pixels of a picture's cell; five of them beside each other fill a README
MARGIN, GAP, BETWEEN = 20, 10, 20
UNDER_HEADING, UNDER_TITLE, UNDER_PICTURE = 8, 4, 2
FRAME = 4  # pixels around a picture whose frame has a meaning
BARE, FRAMED = SIDE - 2, SIDE - 2 * FRAME  # the long side of a picture in an edge of one pixel, and in a frame
PAGE = 5  # cells; narrower blocks stand beside each other up to this width
WHITE: Colour = (255, 255, 255)
GROUND: Colour = (240, 242, 244)
EDGE: Colour = (208, 213, 219)

MAX_PICTURES: int = 1000
"""The most pictures of one grid: drawing it takes some 350 MB."""


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """One picture.

    Attributes
    ----------
    pixels : ndarray of uint8, shape (h, w, 3)
        No longer than `BARE`, or `FRAMED` where it has a frame; it lies in the middle of its cell.
    title : tuple of Line
        Above it.
    caption : tuple of Line
        Below it.
    frame : tuple of 3 int, optional
        The colour of a frame around the cell.
    """

    pixels: npt.NDArray[np.uint8]
    title: tuple[Line, ...] = ()
    caption: tuple[Line, ...] = ()
    frame: Colour | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Pictures that belong together, under a heading; all its tiles take as much room as the largest."""

    heading: tuple[Line, ...]
    tiles: Sequence[Tile]

    def height(self, columns: int) -> int:
        """Return the pixels that the block takes with so many pictures in a row."""
        rows = -(-len(self.tiles) // columns)
        return self.heading_height + rows * self.row_height + max(0, rows - 1) * GAP

    @property
    def heading_height(self) -> int:
        """In pixels, with the space below."""
        return _height(self.heading) + (UNDER_HEADING if self.heading and self.tiles else 0)

    @property
    def row_height(self) -> int:
        """In pixels: a picture with its title and caption."""
        caption = max((_height(tile.caption) + UNDER_PICTURE for tile in self.tiles if tile.caption), default=0)
        return self.title_height + SIDE + caption

    @property
    def title_height(self) -> int:
        """In pixels, of the longest title, with the space below."""
        return max((_height(tile.title) + UNDER_TITLE for tile in self.tiles if tile.title), default=0)


def draw_blocks(blocks: Sequence[Block], columns: int) -> Image.Image:
    """Draw blocks below each other; narrow ones also beside each other.

    Parameters
    ----------
    blocks : sequence of Block
    columns : int
        The most pictures in a row.

    Returns
    -------
    PIL.Image.Image
        In RGB, on white; its size grows with the number of pictures.
    """
    from PIL import Image

    columns = max(1, min(columns, max(len(block.tiles) for block in blocks)))
    beside = max(1, min(len(blocks), PAGE // columns))
    cells = columns * beside if beside > 1 else max(columns, 2)  # room for a heading over a single picture
    lines = [blocks[start : start + beside] for start in range(0, len(blocks), beside)]
    heights = [max(block.height(columns) for block in line) for line in lines]
    height = 2 * MARGIN + sum(heights) + BETWEEN * (len(lines) - 1)
    image = Image.new("RGB", (2 * MARGIN + _across(cells), height), WHITE)
    top = MARGIN
    for line, line_height in zip(lines, heights, strict=True):
        for place, block in enumerate(line):
            left = MARGIN + place * (_across(columns) + GAP)
            _draw_block(image, (left, top), block, columns, _across(cells if beside == 1 else columns))
        top += line_height + BETWEEN
    return image


def as_png(image: Image.Image) -> bytes:
    """Return the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _height(lines: Sequence[Line]) -> int:
    return sum(line.height for line in lines)


def _across(cells: int) -> int:
    return cells * (SIDE + GAP) - GAP


def _draw_block(image: Image.Image, corner: tuple[int, int], block: Block, columns: int, width: int) -> None:
    left, top = corner
    _draw_lines(image, corner, width, block.heading)
    for number, tile in enumerate(block.tiles):
        row, column = divmod(number, columns)
        place = (left + column * (SIDE + GAP), top + block.heading_height + row * (block.row_height + GAP))
        _draw_lines(image, place, SIDE, tile.title)
        place = (place[0], place[1] + block.title_height)
        _draw_picture(image, place, tile)
        _draw_lines(image, (place[0], place[1] + SIDE + UNDER_PICTURE), SIDE, tile.caption)


def _draw_lines(image: Image.Image, corner: tuple[int, int], width: int, lines: Sequence[Line]) -> None:
    left, top = corner
    for line in lines:
        draw_line(image, (left, top), width, line)
        top += line.height


def _draw_picture(image: Image.Image, corner: tuple[int, int], tile: Tile) -> None:
    from PIL import Image

    left, top = corner
    high, wide = tile.pixels.shape[:2]
    # The edge of a cell without a frame keeps a white picture from being lost on the page.
    edge = FRAME if tile.frame else 1
    image.paste(tile.frame or EDGE, (left, top, left + SIDE, top + SIDE))
    image.paste(GROUND, (left + edge, top + edge, left + SIDE - edge, top + SIDE - edge))
    image.paste(Image.fromarray(tile.pixels), (left + (SIDE - wide) // 2, top + (SIDE - high) // 2))

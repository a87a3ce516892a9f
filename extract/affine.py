"""Rotating, shearing and shifting an image in whole numbers, so that every machine gives the same pixels.

An image is three planes, (3, H, W) uint8, of any strides. Places are measured from the image's upper left corner in
pixels, so that the middle of the first pixel is at (0.5, 0.5). On photographs a value differs from torchvision's by at
most 2 levels of 255, but at the image's edges: between a pixel and the fill torchvision weighs the pixel twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .pixel_ops import Planes
from .portable import sine_cosine

_BITS = 16  # behind the point of a place
_ONE = 1 << _BITS
_LANES = (0, 16, 32)  # where red, green and blue lie within 64 bits
_ROUNDING = np.uint64(sum(128 << lane for lane in _LANES))
_AT_ONCE = 1 << 14  # pixels: what they need stays in the second level cache


class Affine(NamedTuple):
    """From a place (x, y) in the result to that in the image: (xx x + xy y + x0, yx x + yy y + y0)."""

    xx: float
    xy: float
    x0: float
    yx: float
    yy: float
    y0: float


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    high: int
    wide: int


def rotation(degrees: float, high: int, wide: int) -> Affine:
    """Turn an image of `high` by `wide` pixels around its middle, against the clock, by at most 180 degrees."""
    sine, cosine = sine_cosine(degrees)
    x, y = wide / 2, high / 2
    return Affine(cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y)


def shear_x(slope: float) -> Affine:
    """Move each row to the left by `slope` times its distance from the upper edge."""
    return Affine(1.0, slope, 0.0, 0.0, 1.0, 0.0)


def shear_y(slope: float) -> Affine:
    """Move each column up by `slope` times its distance from the left edge."""
    return Affine(1.0, 0.0, 0.0, slope, 1.0, 0.0)


def shifted(image: Planes, right: int, down: int, fill: tuple[int, int, int]) -> Planes:
    """Move an image by whole pixels, which may be negative; what becomes empty gets `fill`."""
    high, wide = image.shape[1:]
    result = np.empty_like(image)
    result[...] = np.array(fill, dtype=np.uint8)[:, None, None]
    left, top = max(0, min(right, wide)), max(0, min(down, high))
    result[:, top : max(0, high + down), left : max(0, wide + right)] = image[
        :, max(0, -down) : max(0, high - down), max(0, -right) : max(0, wide - right)
    ]
    return result


def warped(image: Planes, by: Affine, box: Box, *, smooth: bool, fill: tuple[int, int, int]) -> Planes:
    """Return a part of an image that is bent as a whole; only the part is computed.

    Parameters
    ----------
    image : array, (3, H, W) uint8
    by : Affine
    box : Box
        Which part of the result.
    smooth : bool
        Between four pixels (bilinear), not the nearest one's value.
    fill : tuple of int
        Red, green and blue, 0 to 255, of what lies around the image.

    Returns
    -------
    array, (3, box.high, box.wide) uint8
        C-contiguous.
    """
    x, y = _Axis.of(by.xx, by.xy, by.x0, box), _Axis.of(by.yx, by.yy, by.y0, box)
    (left, right), (top, bottom) = x.needed(image.shape[2]), y.needed(image.shape[1])
    source = _packed(image[:, top:bottom, left:right], fill)
    x, y = x.within(left, right), y.within(top, bottom)
    result = np.empty((3, box.high, box.wide), dtype=np.uint8)
    rows = max(1, _AT_ONCE // box.wide)
    for start in range(0, box.high, rows):
        these = slice(start, start + rows)
        values = (_between if smooth else _nearest)(source, x.places(these), y.places(these))
        for channel, lane in enumerate(_LANES):
            result[channel, these] = values >> np.uint64(lane)  # the lower 8 bits of that
    return result


@dataclass(frozen=True, slots=True)
class _Axis:
    """Where the middles of pixels come from along one axis: a column's share and a row's, which add up.

    Both count from the middle of the image's first pixel, with 16 bits behind the point.
    """

    columns: NDArray[Any]
    rows: NDArray[Any]
    border: int | None = None
    """The last place that is looked at, where the first is 0; None where all places are between them."""

    @classmethod
    def of(cls, by_column: float, by_row: float, start: float, box: Box) -> _Axis:
        across, down = np.arange(box.left, box.left + box.wide) + 0.5, np.arange(box.top, box.top + box.high) + 0.5
        return cls(_fixed(by_column * across), _fixed(by_row * down + (start - 0.5)))

    def ends(self) -> tuple[int, int]:
        return int(self.columns.min() + self.rows.min()), int(self.columns.max() + self.rows.max())

    def needed(self, length: int) -> tuple[int, int]:
        """Return from which pixel to which an image of that length is looked at."""
        least, most = self.ends()
        first = min(max(least >> _BITS, 0), length)
        return first, min(max((most >> _BITS) + 2, first), length)

    def within(self, first: int, stop: int) -> _Axis:
        """Count from the border of an image that is packed from pixel `first` to `stop`."""
        moved = _Axis(self.columns, self.rows - (first - 1) * _ONE)
        least, most = moved.ends()
        border = (stop - first + 1) * _ONE
        # Half the bits take half the time, and are enough below 32,768 pixels.
        kind = np.int32 if least >= -(2**31) and max(most, border) < 2**31 - _ONE else np.int64
        return _Axis(
            moved.columns.astype(kind), moved.rows.astype(kind), None if least >= 0 and most <= border else border
        )

    def places(self, rows: slice) -> NDArray[Any]:
        places: NDArray[Any] = self.columns + self.rows[rows, None]
        if self.border is not None:
            np.maximum(places, 0, out=places)
            np.minimum(places, self.border, out=places)
        return places


def _fixed(places: NDArray[Any]) -> NDArray[np.int64]:
    # To multiply by a power of two is exact, and rint rounds as IEEE 754 says.
    rounded: NDArray[np.int64] = np.rint(places * _ONE).astype(np.int64)
    return rounded


def _packed(image: Planes, fill: tuple[int, int, int]) -> NDArray[np.uint64]:
    """Put each pixel into 64 bits, 16 a channel, with a border of `fill`: one pixel above and left, two on the others.

    The upper 16 bits are never looked at, and no sum reaches from a channel's into the next.
    """
    high, wide = image.shape[1:]
    lanes = np.empty((high + 3, wide + 3, 4), dtype="<u2")
    pixels: NDArray[np.uint64] = lanes.view("<u8")[..., 0]
    for border in (pixels[:1], pixels[-2:], pixels[:, :1], pixels[:, -2:]):
        border[...] = sum(value << lane for value, lane in zip(fill, _LANES, strict=True))
    for channel in range(3):
        lanes[1:-2, 1:-2, channel] = image[channel]
    return pixels


def _nearest(source: NDArray[np.uint64], x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.uint64]:
    x += _ONE // 2
    y += _ONE // 2
    return source.ravel().take(_index(x, y, source.shape[1]))


def _between(source: NDArray[np.uint64], x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.uint64]:
    """Weigh four pixels, all channels at once; the weights are whole numbers, 256 in all."""
    wide, pixels = source.shape[1], source.ravel()
    index = _index(x, y, wide)
    right, lower = ((places >> 8) & 255 for places in (x, y))
    both = (right * lower + 128) >> 8
    right -= both
    lower -= both
    total = np.full(index.shape, _ROUNDING)
    for offset, weight in ((0, 256 - both - right - lower), (1, right), (wide, lower), (wide + 1, both)):
        pixel = pixels[offset:].take(index)
        pixel *= weight.astype(np.uint64)
        total += pixel
    total >>= np.uint64(8)
    return total


def _index(x: NDArray[Any], y: NDArray[Any], wide: int) -> NDArray[np.intp]:
    index = (y >> _BITS).astype(np.intp)
    index *= wide
    index += x >> _BITS
    return index

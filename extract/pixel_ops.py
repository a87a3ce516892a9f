"""Changes of colour in whole numbers, so that every machine gives the same pixels.

They mean what torchvision's functions of the same names mean, which compute in float32 and cut fractions off: these
round, and a value differs from torchvision's by at most 2 levels of 255. An image is three planes, (3, H, W) uint8, red
first, as numpy is quick where the last axis is a long one. No function changes what it is given.

Factors are as torchvision has them: 0 to 2, where 1 leaves the image as it is. They are rounded to 16 bits behind the
point.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Planes: TypeAlias = NDArray[np.uint8]

_ONE = 1 << 16  # the number 1 with 16 bits behind the point
_HALF = _ONE // 2
_LUMA = (19595, 38470, 7471)  # ITU-R 601's weights of red, green and blue, as Pillow rounds them: together, _ONE
_LEVELS = np.arange(256)


def brightness(image: Planes, factor: float) -> Planes:
    """Multiply by `factor`: 0 is black."""
    return _looked_up(image, [_levels(_LEVELS * _fixed(factor))] * 3)


def contrast(image: Planes, factor: float) -> Planes:
    """Move away from the mean grey of the image: a factor of 0 gives that."""
    much = _fixed(factor)
    total = sum(weight * int(plane.sum(dtype=np.int64)) for weight, plane in zip(_LUMA, image, strict=True))
    grey = total * (_ONE - much) // (image[0].size * _ONE)
    return _looked_up(image, [_levels(_LEVELS * much + grey)] * 3)


def saturation(image: Planes, factor: float) -> Planes:
    """Move away from each pixel's own grey: a factor of 0 gives that."""
    much = _fixed(factor)
    red, green, blue = (np.multiply(plane, weight, dtype=np.int32) for plane, weight in zip(image, _LUMA, strict=True))
    grey = (red + green + blue + _HALF) >> 16
    grey *= _ONE - much
    return np.stack([_levels(np.multiply(plane, much, dtype=np.int32) + grey) for plane in image])


def hue(image: Planes, turn: float) -> Planes:
    """Turn the circle of hues by `turn` of it, -0.5 to 0.5.

    Lightest and darkest channel of a pixel keep their values. With c, the difference between them, as the unit, a hue
    is a number from 0 to 6 c: 0 is red, 2 c green, 4 c blue. A channel is lightest within c around its own hue, darkest
    beyond 2 c, and falls evenly in between.
    """
    red, green, blue = image.astype(np.int32)
    lightest = np.maximum(np.maximum(red, green), blue)
    darkest = np.minimum(np.minimum(red, green), blue)
    chroma = lightest - darkest
    at = np.where(
        lightest == red,
        green - blue,
        np.where(lightest == green, 2 * chroma + blue - red, 4 * chroma + red - green),
    )
    # 8 c is as far as a hue gets from a channel's, 27 bits here.
    unit = chroma << 16
    at <<= 16
    at += chroma * _fixed(turn * 6)
    darkest <<= 16
    darkest += _HALF
    return np.stack([_of_hue(at - 2 * channel * unit, unit, darkest) for channel in range(3)])


def sharpness(image: Planes, factor: float) -> Planes:
    """Move away from a blurred image: a factor of 0 gives that. The outermost pixels stay as they are.

    The blur is Pillow's: weights of 1 for the eight neighbours and of 5 for the pixel, over 13.
    """
    if min(image.shape[1:]) <= 2:
        return image.copy()
    result = image.copy()
    wide = image.astype(np.int16)
    rows = wide[:, :-2] + wide[:, 1:-1]
    rows += wide[:, 2:]
    blurred = rows[:, :, :-2] + rows[:, :, 1:-1]
    blurred += rows[:, :, 2:]
    middle = wide[:, 1:-1, 1:-1]
    blurred += middle << 2
    blurred += 6
    blurred //= 13
    blurred -= middle
    change = np.multiply(blurred, _ONE - _fixed(factor), dtype=np.int32)
    change += middle.astype(np.int32) << 16
    result[:, 1:-1, 1:-1] = _levels(change)
    return result


def posterize(image: Planes, bits: int) -> Planes:
    """Keep the upper `bits`, 0 to 8, of each value."""
    return image & np.uint8(256 - (1 << (8 - bits)))


def solarize(image: Planes, threshold: int) -> Planes:
    """Invert each value from `threshold`, 0 to 256, on."""
    return image if threshold > 255 else np.where(image >= np.uint8(threshold), ~image, image)


def autocontrast(image: Planes) -> Planes:
    """Stretch each channel to 0 to 255; one of a single value stays as it is."""
    return _looked_up(image, [_stretched(int(plane.min()), int(plane.max())) for plane in image])


def equalize(image: Planes) -> Planes:
    """Even out the histogram of each channel, as Pillow does."""
    return _looked_up(image, [_equalized(np.bincount(plane.ravel(), minlength=256)) for plane in image])


def as_planes(pixels: NDArray[np.uint8]) -> Planes:
    """Return (H, W, 3) as (3, H, W), C-contiguous."""
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def as_pixels(planes: Planes) -> NDArray[np.uint8]:
    """Return (3, H, W) as (H, W, 3), C-contiguous, with memory of its own."""
    pixels = np.empty((*planes.shape[1:], 3), dtype=np.uint8)
    for channel, plane in enumerate(planes):  # five times faster than to copy the transposed array
        pixels[..., channel] = plane
    return pixels


def _fixed(number: float) -> int:
    return round(number * _ONE)


def _levels(fixed: NDArray[np.int32] | NDArray[np.int64]) -> NDArray[np.uint8]:
    """Round numbers with 16 bits behind the point, which are changed, to 0 to 255."""
    fixed += _HALF
    fixed >>= 16
    return np.clip(fixed, 0, 255, out=fixed).astype(np.uint8)


def _looked_up(image: Planes, tables: list[NDArray[np.uint8]]) -> Planes:
    result = np.empty(image.shape, dtype=np.uint8)
    for plane, table, new in zip(image, tables, result, strict=True):
        # "clip" is quicker than to raise, and no value is outside the table.
        np.take(table, plane, out=new, mode="clip")
    return result


def _of_hue(offset: NDArray[np.int32], unit: NDArray[np.int32], darkest: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Return a channel by how far the hue is from its own, at most 8 units either way."""
    away = np.abs(offset, out=offset)
    np.minimum(away, np.abs(away - 6 * unit), out=away)
    light = np.subtract(2 * unit, away, out=away)
    np.minimum(light, unit, out=light)
    np.maximum(light, 0, out=light)
    light += darkest
    light >>= 16
    return light.astype(np.uint8)


def _stretched(low: int, high: int) -> NDArray[np.uint8]:
    if low == high:
        return _LEVELS.astype(np.uint8)
    wide = high - low
    return np.clip((2 * 255 * (_LEVELS - low) + wide) // (2 * wide), 0, 255).astype(np.uint8)


def _equalized(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    step = (int(counts.sum()) - int(counts[counts.nonzero()[0][-1]])) // 255
    if step == 0:
        return _LEVELS.astype(np.uint8)
    before = np.cumsum(counts) - counts
    table: NDArray[np.uint8] = np.minimum((before + step // 2) // step, 255).astype(np.uint8)
    return table

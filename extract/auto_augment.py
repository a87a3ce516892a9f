"""RandAugment (arXiv 1909.13719) and TrivialAugment (arXiv 2103.10158) with the operations and ranges of torchvision.

Magnitudes are the steps from 0 to 30. What is signed goes either way, each half of the time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import pixel_ops
from .affine import Affine, Box, rotation, shear_x, shear_y, shifted, warped
from .draws import Draws
from .pixel_ops import Planes

STEPS = 30
"""The largest magnitude."""

RAND_OPERATIONS = 2
RAND_MAGNITUDE = 9


@dataclass(frozen=True, slots=True)
class Bending:
    """How an image is sampled that is rotated or sheared.

    Attributes
    ----------
    smooth : bool
        Bilinear, not nearest.
    fill : tuple of int
        Red, green and blue, 0 to 255, of what becomes empty.
    """

    smooth: bool
    fill: tuple[int, int, int]

    def __call__(self, image: Planes, by: Affine, box: Box | None = None) -> Planes:
        """Bend an image, (3, H, W) uint8, and return the part of it that `box` names, by default all."""
        return warped(image, by, box or Box(0, 0, *image.shape[1:]), smooth=self.smooth, fill=self.fill)


@dataclass(frozen=True, slots=True)
class _Ranges:
    """What the largest magnitude is: a slope, degrees, a change of a factor, bits taken away, pixels."""

    shear: float
    rotate: float
    factor: float
    bits: int
    shift: Callable[[int, int], int]
    """From a side in pixels and a magnitude to whole pixels."""


_RAND = _Ranges(shear=0.3, rotate=30.0, factor=0.9, bits=4, shift=lambda side, step: side * 150 * step // (331 * STEPS))
_TRIVIAL = _Ranges(shear=0.99, rotate=135.0, factor=0.99, bits=6, shift=lambda _, step: 32 * step // STEPS)

_SIGNED = (
    *("shear x", "shear y", "translate x", "translate y", "rotate"),
    *("brightness", "color", "contrast", "sharpness"),
)
OPERATIONS = ("identity", *_SIGNED, "posterize", "solarize", "autocontrast", "equalize")


def rand_augment(image: Planes, draws: Draws, bending: Bending) -> Planes:
    """Do two operations, drawn of 14 and perhaps the same twice, each with magnitude 9."""
    for _ in range(RAND_OPERATIONS):
        image = _changed(image, draws, draws.choice(OPERATIONS), RAND_MAGNITUDE, bending, _RAND)
    return image


def trivial_augment(image: Planes, draws: Draws, bending: Bending) -> Planes:
    """Do one operation of 14 with one magnitude of 31."""
    name, step = draws.choice(OPERATIONS), draws.below(STEPS + 1)
    return _changed(image, draws, name, step, bending, _TRIVIAL)


def _changed(image: Planes, draws: Draws, name: str, step: int, bending: Bending, ranges: _Ranges) -> Planes:
    if name in _SIGNED:
        return _signed(image, name, step, -1 if draws.chance(0.5) else 1, bending, ranges)
    if name == "posterize":
        return pixel_ops.posterize(image, 8 - round(ranges.bits * step / STEPS))
    if name == "solarize":
        return pixel_ops.solarize(image, -(-255 * (STEPS - step) // STEPS))
    if name == "autocontrast":
        return pixel_ops.autocontrast(image)
    return pixel_ops.equalize(image) if name == "equalize" else image


def _signed(image: Planes, name: str, step: int, sign: int, bending: Bending, ranges: _Ranges) -> Planes:
    high, wide = image.shape[1:]
    part = sign * step / STEPS
    if name == "translate x":
        return shifted(image, sign * ranges.shift(wide, step), 0, bending.fill)
    if name == "translate y":
        return shifted(image, 0, sign * ranges.shift(high, step), bending.fill)
    if name == "rotate":
        return bending(image, rotation(part * ranges.rotate, high, wide))
    if name in ("shear x", "shear y"):
        return bending(image, (shear_x if name == "shear x" else shear_y)(part * ranges.shear))
    return _COLOURS[name](image, 1 + part * ranges.factor)


_COLOURS: dict[str, Callable[[Planes, float], Planes]] = {
    "brightness": pixel_ops.brightness,
    "color": pixel_ops.saturation,
    "contrast": pixel_ops.contrast,
    "sharpness": pixel_ops.sharpness,
}

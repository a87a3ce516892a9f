"""Resizing and cropping as nodes of ONNX, value for value what `extract/preprocess.py` does.

ONNX has a node `Resize` that filters when it shrinks, but its runtimes round otherwise than torch: with onnxruntime one
value in two hundred differs by a level, and at the border of a picture by up to 16. So the nodes here compute torch's
own weights. Along each axis its kernel for bytes adds up whole numbers: bytes times weights of at most 15 bits, all
scaled by the largest power of two that leaves them so. Such a sum is a matrix product, exact in float32 but for ties,
and only the rows and columns of the crop are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ...extract.preprocess import MAX_ASPECT
from .network import Geometry

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

_WEIGHT_BITS, _MOST_SHIFT = 15, 22  # of torch's weights (`UpSampleKernel.cpp`)
_TAPS = {"bilinear": 2, "bicubic": 4}
_CUBIC = -0.5  # the cubic filter's parameter where torch filters, Keys 1981
Pair = tuple[str, str]  # names of two lengths or positions, along the height and the width


def fits(geometry: Geometry) -> bool:
    """Tell whether a resizing can be told in nodes: not that without a filter, which rounds in ways of its own."""
    return geometry.interpolation not in _TAPS or geometry.antialias


@dataclass(slots=True)
class Nodes:
    """Nodes of a graph as they are made; names begin with `prefix`.

    Attributes
    ----------
    nodes : list of NodeProto
    constants : list of TensorProto
    """

    prefix: str = "pixels_"
    nodes: list[NodeProto] = field(default_factory=list)
    constants: list[TensorProto] = field(default_factory=list)
    _known: dict[tuple[str, tuple[int, ...], bytes], str] = field(default_factory=dict)

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Append a node and return the name of its output."""
        from onnx import helper

        output = output or f"{self.prefix}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def constant(self, value: Any, dtype: Any) -> str:
        """Return the name of a constant; equal ones are kept once."""
        from onnx import numpy_helper

        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = f"{self.prefix}constant_{len(self.constants)}"
            self.constants.append(numpy_helper.from_array(array, self._known[key]))
        return self._known[key]

    def whole(self, value: int) -> str:
        """Return the name of a whole number, as an array of one."""
        return self.constant([value], np.int64)

    def real(self, value: float) -> str:
        """Return the name of a number of 64 bits."""
        return self.constant(value, np.float64)

    def cast(self, name: str, dtype: Any) -> str:
        """Append a change of type."""
        from onnx import helper

        return self.add("Cast", name, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def crops(self, image: str, geometries: Sequence[Geometry], outputs: Sequence[str]) -> None:
        """Turn pictures into what networks see.

        Parameters
        ----------
        image : str
            Name of pictures of one size, (N, H, W, 3) uint8.
        geometries : sequence of Geometry
        outputs : sequence of str
            The names that the results get, (N, S, S, 3) uint8 each.
        """
        image, size = self._trimmed(image)
        for geometry, output in zip(geometries, outputs, strict=True):
            self._crop(image, size, geometry, output)

    def _trimmed(self, image: str) -> tuple[str, Pair]:
        """Cut strips to `MAX_ASPECT`; return the picture with its height and width."""
        shape = self.add("Shape", image)
        sides = [self.add("Gather", shape, self.whole(axis), axis=0) for axis in (1, 2)]
        limit = self.add("Mul", self.add("Min", *sides), self.whole(MAX_ASPECT))
        kept = [self.add("Min", side, limit) for side in sides]
        starts = [self._div(self.add("Sub", side, left), 2) for side, left in zip(sides, kept, strict=True)]
        return self._cut(image, starts, kept, (1, 2)), (kept[0], kept[1])

    def _crop(self, image: str, size: Pair, geometry: Geometry, output: str) -> None:
        smooth = geometry.interpolation in _TAPS
        if smooth:
            image = self.cast(self.add("Transpose", image, perm=[0, 3, 1, 2]), np.float32)
        *before, last = self._sizes(size, geometry)
        for wanted in before:
            image = self._resized(image, size, wanted, (self.whole(0), self.whole(0)), wanted, geometry)
            size = wanted
        side = self.whole(geometry.crop)
        starts = (self._middle(last[0], side), self._middle(last[1], side))
        image = self._resized(image, size, last, starts, (side, side), geometry)
        if smooth:
            self.add("Transpose", self.cast(image, np.uint8), perm=[0, 2, 3, 1], output=output)
        else:
            self.add("Identity", image, output=output)

    def _sizes(self, size: Pair, geometry: Geometry) -> list[Pair]:
        """Return the sizes to which a picture is resized, one after the other; the last holds the crop."""
        resize, crop = geometry.resize, geometry.crop
        if resize is None:  # enlarged where it is smaller than the crop
            small = self.add("Less", self.add("Min", *size), self.whole(crop))
            larger = self._scaled(size, crop)
            return [(self._either(small, larger[0], size[0]), self._either(small, larger[1], size[1]))]
        first = (self.whole(resize[0]), self.whole(resize[1])) if isinstance(resize, tuple) else None
        first = first or self._scaled(size, resize if isinstance(resize, int) else 0)
        shortest = min(resize) if isinstance(resize, tuple) else resize
        return [first, self._scaled(first, crop)] if shortest < crop else [first]

    def _scaled(self, size: Pair, short: int) -> Pair:
        """Return a size whose short side is `short`; the long one is rounded down."""
        high, wide = size
        least = self.whole(short)
        one = self.add("Max", least, self.add("Div", self.add("Mul", least, high), wide))
        return one, self.add("Max", least, self.add("Div", self.add("Mul", least, wide), high))

    def _middle(self, length: str, side: str) -> str:
        """Return where a crop begins; half pixels are rounded to the even neighbour."""
        rest = self.add("Sub", length, side)
        odd = self.add("Mod", self._div(rest, 2), self.whole(2))
        return self._div(self.add("Add", rest, odd), 2)

    def _resized(self, image: str, size: Pair, wanted: Pair, starts: Pair, lengths: Pair, geometry: Geometry) -> str:
        """Resize to `wanted`, of which the part of `lengths` from `starts` on is computed; the width comes first."""
        if geometry.interpolation not in _TAPS:
            for axis in (1, 0):
                found = self._nearest(size[axis], wanted[axis], geometry.interpolation)
                found = self._cut(found, [starts[axis]], [lengths[axis]], (0,))
                image = self.add("Gather", image, found, axis=axis + 1)
            return image
        for axis in (1, 0):
            weights = self._weights(size[axis], wanted[axis], _TAPS[geometry.interpolation])
            power = self._power(weights)
            weights = self._as_whole(self._cut(weights, [starts[axis]], [lengths[axis]], (0,)), power)
            unit = self.cast(self.add("Div", self.real(1), power), np.float32)
            if axis:
                image = self.add("MatMul", image, self.add("Transpose", weights, perm=[1, 0]))
            else:
                image = self.add("MatMul", weights, image)
            image = self.add("Floor", self.add("Add", self.add("Mul", image, unit), self.constant(0.5, np.float32)))
            image = self.add("Clip", image, self.constant(0, np.float32), self.constant(255, np.float32))
        return image

    def _nearest(self, length: str, wanted: str, interpolation: str) -> str:
        """Return which row of a picture each row of the result is, (wanted,) int64, in float32 as torch counts."""
        scale = self.add("Div", self.cast(length, np.float32), self.cast(wanted, np.float32))
        place = self.cast(self._range(wanted), np.float32)
        if interpolation == "nearest-exact":
            place = self.add("Add", place, self.constant(0.5, np.float32))
        found = self.cast(self.add("Floor", self.add("Mul", place, scale)), np.int64)
        return self.add("Min", found, self.add("Sub", length, self.whole(1)))

    def _weights(self, length: str, wanted: str, taps: int) -> str:
        """Return the weights of an axis, (wanted, length) float64, each row with the sum 1."""
        half = self.real(0.5)
        scale = self.add("Div", self.cast(length, np.float64), self.cast(wanted, np.float64))
        spread = self.add("Max", scale, self.real(1))
        places = self.add("Unsqueeze", self.cast(self._range(wanted), np.float64), self.whole(1))
        centre = self.add("Mul", self.add("Add", places, half), scale)
        source = self.add("Add", self.cast(self._range(length), np.float64), half)
        # Beyond the filter's reach the kernel is 0 by itself.
        away = self.add("Abs", self.add("Mul", self.add("Sub", source, centre), self.add("Div", self.real(1), spread)))
        kernel = self._triangle(away) if taps == _TAPS["bilinear"] else self._cubic(away)
        return self.add("Div", kernel, self.add("ReduceSum", kernel, self.whole(1), keepdims=1))

    def _power(self, weights: str) -> str:
        """Return the largest power of two that keeps the largest weight of all within 15 bits, float64."""
        powers = 2.0 ** np.arange(_MOST_SHIFT + 1)
        # Opset 18 has the axes of ReduceMax as an input; none are all of them.
        largest = self.add("ReduceMax", weights, keepdims=0)
        tried = self.add("Mul", largest, self.constant(powers[1:], np.float64))
        tried = self.add("Floor", self.add("Add", tried, self.real(0.5)))
        fitting = self.cast(self.add("Less", tried, self.real(2.0**_WEIGHT_BITS)), np.int64)
        shift = self.add("ReduceSum", fitting, keepdims=0)
        return self.add("Gather", self.constant(powers, np.float64), shift, axis=0)

    def _as_whole(self, weights: str, power: str) -> str:
        """Return weights times a power of two as whole numbers, float32, halves away from 0."""
        size = self.add("Floor", self.add("Add", self.add("Mul", self.add("Abs", weights), power), self.real(0.5)))
        return self.cast(self.add("Mul", size, self.add("Sign", weights)), np.float32)

    def _triangle(self, away: str) -> str:
        return self.add("Max", self.add("Sub", self.real(1), away), self.real(0))

    def _cubic(self, away: str) -> str:
        """Return ((a + 2) x - (a + 3)) x^2 + 1 up to x = 1, (((x - 5) x + 8) x - 4) a up to 2, and 0 beyond."""
        inner = self.add("Sub", self.add("Mul", away, self.real(_CUBIC + 2)), self.real(_CUBIC + 3))
        inner = self.add("Add", self.add("Mul", self.add("Mul", inner, away), away), self.real(1))
        outer = self.add("Add", self.add("Mul", self.add("Sub", away, self.real(5)), away), self.real(8))
        outer = self.add("Sub", self.add("Mul", outer, away), self.real(4))
        outer = self.add("Mul", outer, self.real(_CUBIC))
        within = self.cast(self.add("Less", away, self.real(2)), np.float64)
        return self._either(self.add("Less", away, self.real(1)), inner, self.add("Mul", outer, within))

    def _either(self, condition: str, one: str, other: str) -> str:
        return self.add("Where", condition, one, other)

    def _range(self, length: str) -> str:
        zero, one = self.constant(0, np.int64), self.constant(1, np.int64)
        return self.add("Range", zero, self.add("Squeeze", length), one)

    def _div(self, name: str, by: int) -> str:
        return self.add("Div", name, self.whole(by))

    def _cut(self, value: str, starts: Sequence[str], lengths: Sequence[str], axes: Sequence[int]) -> str:
        """Take `lengths` from `starts` on along some axes."""
        first = starts[0] if len(starts) == 1 else self.add("Concat", *starts, axis=0)
        count = lengths[0] if len(lengths) == 1 else self.add("Concat", *lengths, axis=0)
        return self.add("Slice", value, first, self.add("Add", first, count), self.constant(list(axes), np.int64))

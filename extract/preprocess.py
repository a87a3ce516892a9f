"""Decoded pixels in, the network's input out, still as uint8: resize, centre crop, and what to normalise with.

Resizing is what torchvision v2 does with a channels-last uint8 tensor on a CPU, value for value, through the same
kernel of torch, so that torchvision itself, seconds to import, is not needed. It is four times faster than the float
path that `weights.transforms()` takes for a tensor. Against that path it differs by at most 1 level of 255 (bilinear)
and, where bicubic overshoots, by a dozen in single pixels; against Pillow, with which published accuracies were
measured, by at most 2. Cropping follows torchvision's rounding. One departure: where torchvision would pad an image
smaller than the crop with black, the image is enlarged.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError

if TYPE_CHECKING:
    import torch

# The input of one network for one image, (S, S, 3) uint8: a tensor on the device where a GPU decoded it.
Pixels: TypeAlias = "NDArray[np.uint8] | torch.Tensor"

INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic")
# Longer than this times its height (or the reverse), an image is cut to its centre before it is resized: a strip of
# one pixel by a million would otherwise become gigabytes on the way to the crop.
MAX_ASPECT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """How decoded pixels become the input of one network.

    Attributes
    ----------
    resize : int or tuple of int or None
        Short side in pixels after resizing, or (height, width) whatever the aspect; None leaves the size alone.
    crop : int
        Side in pixels of the centre crop, which is the network's input.
    interpolation : str, default "bilinear"
        One of `INTERPOLATIONS`.
    antialias : bool, default True
        Whether shrinking filters first (bilinear and bicubic only).
    mean, std : tuple of float
        Per channel (red, green, blue) on the 0 to 1 scale; the input is (x / 255 - mean) / std.

    Raises
    ------
    UsageError
        A value that no image could be prepared with.
    """

    resize: int | tuple[int, int] | None
    crop: int
    interpolation: str = "bilinear"
    antialias: bool = True
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        sizes = self.resize if isinstance(self.resize, tuple) else (self.resize,)
        if any(size is not None and size < 1 for size in sizes):
            raise UsageError(f"resize must be 1 pixel or more, or none; got {self.resize}")
        if self.crop < 1:
            raise UsageError(f"crop must be 1 pixel or more; got {self.crop}")
        if self.interpolation not in INTERPOLATIONS:
            raise UsageError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}; got {self.interpolation!r}")
        _check_channels("mean", self.mean, lambda value: math.isfinite(value), "a number")
        _check_channels("std", self.std, lambda value: math.isfinite(value) and value > 0, "above 0")

    def as_dict(self) -> dict[str, object]:
        """Return the fields as JSON has them (tuples as lists), the same for equal preprocessings."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Preprocess:
        """Rebuild from `as_dict`, lists as tuples."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
        }
        return cls(**values)

    def override(
        self,
        *,
        resize: int | str | Sequence[int] | None = None,
        crop: int | None = None,
        interpolation: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> Preprocess:
        """Return a copy with what is given changed; None leaves a field, and resize "none" means no resizing."""
        given: dict[str, Any] = {
            "resize": resize,
            "crop": crop,
            "interpolation": interpolation,
            "mean": None if mean is None else tuple(mean),
            "std": None if std is None else tuple(std),
        }
        changes = {name: value for name, value in given.items() if value is not None}
        if resize is not None:
            changes["resize"] = _parse_resize(resize)
        return dataclasses.replace(self, **changes)


def to_input(pixels: NDArray[np.uint8], preprocess: Preprocess) -> tuple[NDArray[np.uint8], bool]:
    """Resize and crop one image to the network's input.

    Safe to call from many threads at once; each call uses the calling thread alone, so torch's own number of threads
    neither helps nor multiplies.

    Parameters
    ----------
    pixels : array, (H, W, 3) uint8
        Decoded image, red first.
    preprocess : Preprocess
        Sizes and interpolation.

    Returns
    -------
    image : array, (crop, crop, 3) uint8
        C-contiguous.
    enlarged : bool
        True where the image, after any resize, was smaller than the crop and was enlarged to it.
    """
    import torch

    # Views are numpy's, and one call is torch's: each of torch's, be it only a view, lets go of the interpreter's lock,
    # for which sixteen threads then queue.
    batch = _batch_of_one(pixels)
    images, enlarged = resized(torch.from_numpy(batch.transpose(0, 3, 1, 2)), preprocess)
    return np.ascontiguousarray(_center_crop(images.numpy()[0], preprocess.crop).transpose(1, 2, 0)), enlarged


def as_batch(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Return one decoded image, (H, W, 3) uint8, as a batch of one, (1, H, W, 3), strips cut to `MAX_ASPECT`.

    It shares the memory of `pixels` where that is possible.
    """
    import torch

    return torch.from_numpy(_batch_of_one(pixels))


def resized_to(pixels: NDArray[np.uint8], size: tuple[int, int], preprocess: Preprocess) -> NDArray[np.uint8]:
    """Resize one image, (H, W, 3) uint8, to `size`, height and width, whatever `preprocess.resize` is.

    It may share memory with `pixels`.
    """
    import torch

    batch = torch.from_numpy(_batch_of_one(pixels).transpose(0, 3, 1, 2))
    image: NDArray[np.uint8] = _resize(batch, size, preprocess).numpy()[0].transpose(1, 2, 0)
    return image


def trimmed(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cut an image, (H, W, 3), that is longer than `MAX_ASPECT` times its short side to its centre; a view."""
    return _trim(pixels)


def _batch_of_one(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    # Readers of Pillow images and of bytes hand out read-only arrays, which torch would warn about.
    writable = np.require(_trim(pixels), requirements=["C", "W"])
    # A batch of one with its channels last in memory, the layout of torch's fast uint8 kernels. Its first stride counts
    # there, though one image has no use for it: reshaping sets it, a new axis would have stride 0.
    return writable.reshape(1, *writable.shape)


def to_inputs(images: torch.Tensor, preprocess: Preprocess) -> tuple[torch.Tensor, bool]:
    """Resize and crop images of one size, on the device where they are.

    Parameters
    ----------
    images : Tensor, (n, H, W, 3) uint8
        Decoded, red first.
    preprocess : Preprocess

    Returns
    -------
    images : Tensor, (n, crop, crop, 3) uint8
        A view of those that were resized.
    enlarged : bool
        As `to_input`.
    """
    images, enlarged = resized(images.permute(0, 3, 1, 2), preprocess)
    return _center_crop(images, preprocess.crop).permute(0, 2, 3, 1), enlarged


def resized(images: torch.Tensor, preprocess: Preprocess) -> tuple[torch.Tensor, bool]:
    """Do all of `to_inputs` but the crop: images, (n, 3, H, W) uint8, come out with sides of at least the crop."""
    if preprocess.resize is not None:
        images = _resize(images, preprocess.resize, preprocess)
    enlarged = min(images.shape[-2:]) < preprocess.crop
    if enlarged:
        images = _resize(images, preprocess.crop, preprocess)
    return images, enlarged


def _resize(images: torch.Tensor, size: int | tuple[int, int], preprocess: Preprocess) -> torch.Tensor:
    import torch
    from torch.nn.functional import interpolate

    before = (images.shape[-2], images.shape[-1])
    after = size if isinstance(size, tuple) else _scaled(before, size)
    if after == before:
        return images
    smooth = preprocess.interpolation in ("bilinear", "bicubic")
    on_cpu = images.device.type == "cpu"
    resized = interpolate(
        images if on_cpu or not smooth else images.float(),  # torch resizes bytes smoothly on a CPU alone
        size=list(after),
        mode=preprocess.interpolation,
        align_corners=False if smooth else None,
        antialias=preprocess.antialias and smooth,
    )
    return resized if resized.dtype == torch.uint8 else resized.round_().clamp_(0, 255).to(torch.uint8)


def _scaled(shape: tuple[int, int], short: int) -> tuple[int, int]:
    # The long side is rounded down, as torchvision does.
    high, wide = shape
    return (int(short * high / wide), short) if wide <= high else (short, int(short * wide / high))


def _center_crop(images: Any, side: int) -> Any:
    """Crop images, the last two axes of a tensor or an array."""
    # Half pixels are rounded to the even neighbour, as torchvision does.
    top, left = (round((length - side) / 2.0) for length in images.shape[-2:])
    return images[..., top : top + side, left : left + side]


def _trim(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    high, wide = pixels.shape[:2]
    limit = MAX_ASPECT * min(high, wide)
    if max(high, wide) <= limit:
        return pixels
    top, left = max(0, high - limit) // 2, max(0, wide - limit) // 2
    return pixels[top : top + limit, left : left + limit]


def _parse_resize(resize: int | str | Sequence[int]) -> int | tuple[int, int] | None:
    if resize == "none":
        return None
    if isinstance(resize, int):
        return resize
    if isinstance(resize, str) or len(resize) != 2:
        raise UsageError(f"resize must be a number of pixels, height and width, or none; got {resize}")
    return resize[0], resize[1]


def _check_channels(name: str, values: Sequence[float], good: Any, wanted: str) -> None:
    if len(values) != 3 or not all(good(value) for value in values):
        found = ",".join(str(value) for value in values)
        raise UsageError(f"{name} must be three numbers (red,green,blue), each {wanted}; got {found}")

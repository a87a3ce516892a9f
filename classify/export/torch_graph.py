"""A classifier as a program of `torch.export`."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ...extract.preprocess import MAX_ASPECT
from .network import Geometry, Whole
from .tracing import quiet, traced

if TYPE_CHECKING:
    from torch import Tensor, nn

METADATA_FILE = "headstart.json"
_EXAMPLE = (2, 301, 467, 3)  # any numbers that no network has for its own


def torch_file(whole: Whole, metadata: dict[str, str], *, pictures: bool) -> bytes:
    """Return the bytes of a file that `torch.export.load` reads.

    Parameters
    ----------
    whole : Whole
    metadata : dict of str to str
        Put beside the program, as `METADATA_FILE`.
    pictures : bool
        Whether the program begins with whole pictures, (N, H, W, 3) uint8, or with crops, (N, S, S, 3) uint8.
    """
    import torch
    from torch.export import Dim

    side = whole.geometries[0].crop
    sizes = {0: Dim("N"), 1: Dim("H"), 2: Dim("W")} if pictures else {0: Dim("N")}
    example = torch.zeros(_EXAMPLE if pictures else (2, side, side, 3), dtype=torch.uint8)
    program = traced(_one_input(whole, pictures), (example,), (sizes,))
    file = io.BytesIO()
    with quiet():
        torch.export.save(program, file, extra_files={METADATA_FILE: json.dumps(metadata)})
    return file.getvalue()


def torch_runner(data: bytes) -> Callable[[np.ndarray], np.ndarray]:
    """Return what runs an exported file: images (N, H, W, 3) uint8 to probabilities (N, K) float32."""
    import torch

    with quiet():
        module = torch.export.load(io.BytesIO(data)).module()

    def run(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            found: np.ndarray = module(torch.from_numpy(images)).numpy()
        return found

    return run


def _one_input(whole: Whole, pictures: bool) -> nn.Module:
    """Return a module whose only argument is called ``image``."""
    from torch import nn

    network, geometries = whole.module, whole.geometries

    class Program(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: Tensor) -> Any:
            return self.network(*_crops(image, geometries) if pictures else (image,))

    return Program().eval()


def _crops(image: Tensor, geometries: tuple[Geometry, ...]) -> list[Tensor]:
    image = _trimmed(image.permute(0, 3, 1, 2))
    return [_cropped(_resized(image, each), each.crop).permute(0, 2, 3, 1) for each in geometries]


def _trimmed(images: Tensor) -> Tensor:
    """Cut strips, (n, 3, H, W), to `MAX_ASPECT`."""
    import torch

    high, wide = images.shape[-2:]
    limit = MAX_ASPECT * torch.sym_min(high, wide)
    for axis, length in ((2, high), (3, wide)):
        kept = torch.sym_min(length, limit)
        places = torch.arange(kept) + (length - kept) // 2
        images = images.index_select(axis, places)
    return images.contiguous(memory_format=torch.channels_last)


def _resized(images: Tensor, geometry: Geometry) -> Tensor:
    """Do what `preprocess.resized` does, without a branch that depends on the size of a picture."""
    import torch

    high, wide = images.shape[-2:]
    resize, crop = geometry.resize, geometry.crop
    if resize is None:
        short = torch.sym_max(torch.sym_min(high, wide), crop)
        return _interpolated(images, _scaled(high, wide, short), geometry)
    size = resize if isinstance(resize, tuple) else _scaled(high, wide, resize)
    images = _interpolated(images, size, geometry)
    if (min(resize) if isinstance(resize, tuple) else resize) < crop:
        images = _interpolated(images, _scaled(size[0], size[1], crop), geometry)
    return images


def _scaled(high: Any, wide: Any, short: Any) -> tuple[Any, Any]:
    import torch

    return torch.sym_max(short, short * high // wide), torch.sym_max(short, short * wide // high)


def _interpolated(images: Tensor, size: tuple[Any, Any], geometry: Geometry) -> Tensor:
    from torch.nn.functional import interpolate

    smooth = geometry.interpolation in ("bilinear", "bicubic")
    return interpolate(
        images,
        size=list(size),
        mode=geometry.interpolation,
        align_corners=False if smooth else None,
        antialias=geometry.antialias and smooth,
    )


def _cropped(images: Tensor, side: int) -> Tensor:
    import torch

    for axis in (2, 3):
        rest = images.shape[axis] - side
        start = (rest + rest // 2 % 2) // 2  # half pixels are rounded to the even neighbour
        images = images.index_select(axis, torch.arange(side) + start)
    return images

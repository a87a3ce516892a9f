"""Pictures of any size, small: each read once and decoded as for a network, a bounded number of them at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from ..errors import DecodeError
from ..extract.access import read_anywhere
from ..extract.decode import decode
from ..extract.device import available_cores

Pixels = npt.NDArray[np.uint8]


def thumbnails(paths: Sequence[bytes], side: int, max_pixels: int) -> Iterator[Pixels | str]:
    """Make small views of pictures in threads, one a core, each of which holds one whole picture at most.

    Parameters
    ----------
    paths : sequence of bytes
    side : int
        Length of the long side in pixels.
    max_pixels : int
        Larger pictures are not decoded.

    Yields
    ------
    ndarray of uint8, shape (h, w, 3), or str
        In the order of `paths`; a picture that cannot be read is the reason why.
    """
    with ThreadPoolExecutor(available_cores(), "thumbnail") as pool:
        yield from pool.map(lambda path: _thumbnail(path, side, max_pixels), paths)


def _thumbnail(path: bytes, side: int, max_pixels: int) -> Pixels | str:
    try:
        return shrunk(decode(read_anywhere(path)[0], max_pixels=max_pixels).pixels, side)
    except DecodeError as error:
        return str(error)


def shrunk(pixels: Pixels, side: int) -> Pixels:
    """Return the whole picture with its long side `side` pixels long; a smaller one is enlarged.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (H, W, 3)
    side : int

    Returns
    -------
    ndarray of uint8, shape (h, w, 3)
        At least one pixel high and wide.
    """
    from PIL import Image

    high, wide = pixels.shape[:2]
    longest = max(high, wide)
    size = (max(1, round(wide * side / longest)), max(1, round(high * side / longest)))
    # Averaging whole blocks first saves most of the time of a large picture; a gap of 3 leaves no difference to see.
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0))

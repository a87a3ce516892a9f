"""How much memory a fit may take, what it takes whatever its rows are, and what is left for blocks of them."""

from __future__ import annotations

import re

from ..errors import UsageError
from ..extract.device import available_cores
from .passes import TILE_ROWS, WHOLE_CURVATURE_UP_TO

_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", 1)}
_UNITS |= {f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGT", 1)}
_SIZE = re.compile(r"([0-9]*\.?[0-9]+)\s*([A-Z]*)")
AUTO = "auto"
# Of a training set that is fitted in memory: all embeddings, those to train on, standardised, and by fold.
COPIES = 4.5
_LARGEST_BLOCK = 32 << 20  # bytes; larger ones gain nothing
_SMALLEST_BLOCK = 1 << 20
_VECTORS = 30  # as long as all coefficients, that the solver holds: 8 pairs of steps, and what one step is made of
_SQUARES = 6  # of the features' second moment and its eigenvectors


def parse_memory(given: str | int) -> int | None:
    """Return a size in bytes; None for "auto".

    Parameters
    ----------
    given : str or int
        Bytes, or a number with a unit: 500MB (of a thousand), 2GiB (of 1024).

    Raises
    ------
    UsageError
        It is no size.
    """
    if given == AUTO:
        return None
    match = _SIZE.fullmatch(str(given).strip().upper())
    size = float(match[1]) * _UNITS.get(match[2], 0) if match else 0
    if size < 1:
        raise UsageError(f"--memory takes a size such as 500MB or 2GiB, or auto, and got {given!r}")
    return int(size)


def in_words(size: float) -> str:
    """Return bytes for a person."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1e3:.0f} kB"


def evaluation_bytes(n_fits: int, n_outputs: int, width: int, threads: int | None = None) -> int:
    """Return what one pass takes beside its rows: coefficients by fold, and for each thread sums and a tile."""
    coefficients = n_fits * n_outputs * (width + 1)
    square = 8 * width * width if width <= WHOLE_CURVATURE_UP_TO else 0
    workers = threads or available_cores()
    tile = TILE_ROWS * (8 * width + 4 * 8 * n_fits * n_outputs)
    return 4 * (n_fits + 1) * coefficients + (workers + 1) * (16 * coefficients + 2 * square) + workers * tile


def solver_bytes(n_fits: int, n_outputs: int, width: int) -> int:
    """Return what the solver takes where it runs, whatever the rows are."""
    square = 8 * width * width if width <= WHOLE_CURVATURE_UP_TO else 0
    return 8 * _VECTORS * n_fits * n_outputs * (width + 1) + _SQUARES * square


def reading_bytes(largest_part: int) -> int:
    """Return what reading takes, by the bytes of the largest part."""
    return 3 * largest_part + (64 << 20)


def block_rows_for(width: int, room: int) -> int:
    """Return how many rows a block has, of so many float32 numbers each, where two have to fit into some room."""
    return max(1, min(_LARGEST_BLOCK, max(_SMALLEST_BLOCK, room // 4)) // (4 * width))

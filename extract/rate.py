"""How many pictures a second a network takes on this machine, by a short pass that leaves the cache alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ..errors import DecodeError
from .decode import decode
from .embedder import Embedder
from .files import read_regular
from .preprocess import Pixels, to_input

PICTURES = 32  # that are decoded, at most
SECONDS = 1.0  # that decoding, and again the network, is watched for
_BATCH = 8  # on a CPU, where larger ones are hardly faster
_LEAST = 3  # batches


def images_per_second(embedder: Embedder, files: Sequence[str | bytes]) -> float | None:
    """Time reading, decoding and the forward pass of some pictures, with all cores for each in turn.

    The network is loaded and warmed up before the clock runs; files come from the system's memory. Of several batches
    the fastest counts, which other work on the machine disturbed least. On a CPU decoding
    and the network share the cores, so their seconds add up; beside a GPU they run at once, and the slower one counts.

    Parameters
    ----------
    embedder : Embedder
    files : sequence of path
        Pictures; those that cannot be read are left out.

    Returns
    -------
    float or None
        Pictures a second; None where none of them can be read.
    """
    pixels, decoding = _decoded(embedder, files)
    if not pixels:
        return None
    embedding = _forward_seconds(embedder, pixels)
    together = decoding + embedding if embedder.device.kind == "cpu" else max(decoding, embedding)
    return 1 / together


def _decoded(embedder: Embedder, files: Sequence[str | bytes]) -> tuple[list[Pixels], float]:
    """Return the network's input of some pictures, and the seconds that one takes where all cores decode."""

    def prepared(path: str | bytes) -> Pixels | None:
        try:
            decoded = decode(read_regular(path), max_pixels=embedder.run.max_pixels)
        except DecodeError:
            return None
        return to_input(decoded.pixels, embedder.preprocess)[0]

    chosen = [files[place] for place in np.linspace(0, len(files) - 1, min(PICTURES, len(files))).round().astype(int)]
    threads = embedder.run.threads
    found: list[Pixels] = []
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(prepared, chosen[:threads]))  # imports what decoders need
        seconds: list[float] = []
        for start in range(0, len(chosen), 4 * threads):
            some, begin = chosen[start : start + 4 * threads], time.perf_counter()
            found += [pixels for pixels in pool.map(prepared, some) if pixels is not None]
            seconds.append((time.perf_counter() - begin) / len(some))
            if sum(seconds) * 4 * threads > SECONDS:
                break
    return found, min(seconds, default=0.0)


def _forward_seconds(embedder: Embedder, pixels: Sequence[Pixels]) -> float:
    """Return the seconds that one picture takes in the network: the fastest of some batches."""
    embedder.embed(pixels[:1])  # loads the network
    begin = time.perf_counter()
    embedder.embed(pixels[:1])
    slow = (time.perf_counter() - begin) * _LEAST * _BATCH > SECONDS
    size = embedder.batch_size if embedder.device.kind != "cpu" else 1 if slow else _BATCH
    batch = np.stack([pixels[place % len(pixels)] for place in range(size)])
    if not slow:
        embedder.embed(batch)  # prepares what depends on the size
    seconds: list[float] = []
    while sum(seconds) < SECONDS or (len(seconds) < _LEAST and sum(seconds) < 2 * SECONDS):
        begin = time.perf_counter()
        embedder.embed(batch)
        seconds.append(time.perf_counter() - begin)
    return min(seconds) / size

"""Whether an exported file says what `headstart predict` says, found out by running it on pictures."""

from __future__ import annotations

import io
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...cache.source import Source, source_of
from ...errors import DataError, DecodeError, HeadstartError
from ...extract.access import read_anywhere
from ...extract.decode import decode
from ...extract.elsewhere import location
from ...extract.images import ImageList, list_images
from ...extract.options import RunOptions
from ...extract.plan import base_folder, limited
from ...extract.preprocess import to_input
from ..model import SavedModel
from ..predict import Classifier
from .network import Geometry

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger("headstart.classify")

Runner = Callable[[np.ndarray], np.ndarray]

TOLERANCE = 1e-3  # the largest difference of probabilities with which a file may be left
SYNTHETIC_SIZES = ((480, 640), (640, 480), (300, 300), (97, 61), (1200, 400), (30, 40), (512, 511), (224, 224))
SYNTHETIC_SEED = 0
_BATCH_PIXELS = 4_000_000  # of pictures that are run together, so that memory stays small


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture and what `predict` says of it.

    Attributes
    ----------
    path : Path
    pixels : ndarray of shape (H, W, 3), dtype uint8
        As headstart decodes it.
    expected : ndarray of shape (K,), dtype float64
        Probabilities.
    """

    path: str
    pixels: np.ndarray
    expected: np.ndarray


@dataclass(frozen=True, slots=True)
class Pictures:
    """What a file is compared on.

    Attributes
    ----------
    name : str
        What they are, for people: the dataset, or "synthetic pictures".
    rows : list of Picture
        At least one.
    """

    name: str
    rows: list[Picture]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came out.

    Attributes
    ----------
    max_difference : float
        Largest difference of a probability from that of `predict`, given pictures as headstart decodes them.
    alone_difference : float
        The same, given pictures as Pillow alone reads (and, where the graph begins after it, resizes) them.
    """

    max_difference: float
    alone_difference: float


def pictures_for(
    model: SavedModel, data: Source | None, cache: str | os.PathLike[str] | None, run: RunOptions, limit: int
) -> Pictures:
    """Find pictures to compare on, and predict them.

    Parameters
    ----------
    model : SavedModel
    data : Path or None
        The dataset, or the one that the model was trained on where that is still there, or else synthetic pictures.
    cache : path, optional
        Where `predict` looks for embeddings.
    run : RunOptions
    limit : int
        How many at most, evenly chosen.

    Raises
    ------
    DataError
        None of the pictures of `data` can be read.
    """
    images = list_images(data) if data is not None else _trained_on(model)
    if images is not None:
        base = base_folder(images)
        paths = [os.fsdecode(location(base, path)) for path in limited(images, limit).paths]
        rows = _predicted(model, paths, cache, run)
        if rows:
            return Pictures(str(images.root), rows)
        if data is not None:
            raise DataError(f"none of the pictures that were looked at in {data} can be read; name other DATA")
    logger.warning("no pictures to compare on: the dataset is not there any more; taking synthetic ones, or name DATA")
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(path) for path in _synthetic(Path(folder), limit)]
        return Pictures("synthetic pictures", _predicted(model, paths, Path(folder) / "cache", run))


def compare(runner: Runner, pictures: Pictures, crop: Geometry | None) -> Comparison:
    """Run an exported file on pictures.

    Parameters
    ----------
    runner : callable
        Images (n, H, W, 3) uint8 to probabilities (n, K) float32.
    pictures : Pictures
    crop : Geometry or None
        What pictures must go through first where the graph does not begin with whole ones.
    """
    rows = pictures.rows
    inputs = [row.pixels if crop is None else to_input(row.pixels, crop.preprocess())[0] for row in rows]
    difference = _differences(runner, inputs, rows)
    alone = difference.copy()
    for place, row in enumerate(rows):
        read = _by_pillow(row, crop)
        if read is not None and not np.array_equal(read, inputs[place]):
            alone[place] = _differences(runner, [read], [row])[0]
    return Comparison(float(difference.max()), float(alone.max()))


def _trained_on(model: SavedModel) -> ImageList | None:
    """List the dataset that a model was trained on; None where it is not there, or can be read no more."""
    source = source_of(model.training.get("source", ""))
    if not model.training.get("source") or not source.exists():
        return None
    try:
        return list_images(source, layout=model.training.get("layout", "auto"))
    except HeadstartError as error:
        logger.debug("the dataset of the model cannot be listed: %s", error)
        return None


def _predicted(
    model: SavedModel, paths: Sequence[str], cache: str | os.PathLike[str] | None, run: RunOptions
) -> list[Picture]:
    """Return those of the pictures that can be read, with what `predict` says of them."""
    rows = []
    for prediction in Classifier(model, cache, run).predict(paths):
        if prediction.error is None and prediction.probabilities is not None:
            path = prediction.path
            try:
                pixels = decode(read_anywhere(path)[0], max_pixels=run.max_pixels).pixels
            except DecodeError:  # gone since, or replaced
                continue
            rows.append(Picture(path, pixels, np.array([prediction.probabilities[name] for name in model.classes])))
    return rows


def _synthetic(folder: Path, limit: int) -> Iterator[Path]:
    """Write smooth, noisy pictures of several shapes, the same ones each time."""
    from PIL import Image

    rng = np.random.default_rng(SYNTHETIC_SEED)
    for number, (high, wide) in enumerate(SYNTHETIC_SIZES[:limit]):
        blobs = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        smooth = np.asarray(blobs.resize((wide, high), Image.Resampling.BICUBIC), np.int16)
        noisy = (smooth + rng.integers(-20, 21, smooth.shape)).clip(0, 255).astype(np.uint8)
        path = folder / f"{number}.png"
        Image.fromarray(noisy).save(path)
        yield path


def _differences(runner: Runner, inputs: Sequence[np.ndarray], rows: Sequence[Picture]) -> np.ndarray:
    """Return the largest difference for each picture, (n,) float64; those of one size go through together."""
    result = np.full(len(rows), np.inf)
    for places in _batches(inputs):
        found = runner(np.stack([inputs[place] for place in places]))
        expected = np.stack([rows[place].expected for place in places])
        if found.shape == expected.shape:
            result[places] = np.abs(found - expected).max(axis=1)
    return np.where(np.isfinite(result), result, np.inf)  # what is no number is no probability


def _batches(inputs: Sequence[np.ndarray]) -> Iterator[list[int]]:
    by_size: dict[tuple[int, ...], list[int]] = {}
    for place, pixels in enumerate(inputs):
        by_size.setdefault(pixels.shape, []).append(place)
    for (high, wide, _), places in by_size.items():
        count = max(1, _BATCH_PIXELS // (high * wide))
        yield from (places[start : start + count] for start in range(0, len(places), count))


def _by_pillow(row: Picture, crop: Geometry | None) -> np.ndarray | None:
    """Return the input as a program without headstart makes it; None where Pillow cannot read the picture."""
    from PIL import Image, ImageOps

    try:
        image: Image.Image = ImageOps.exif_transpose(Image.open(io.BytesIO(read_anywhere(row.path)[0])))
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        image = image.convert("RGB")
    except Exception:  # noqa: BLE001  (decoders answer bad bytes with whatever exception those led them to)
        return None
    return np.asarray(image if crop is None else resized_by_pillow(image, crop))


def resized_by_pillow(image: Image, crop: Geometry) -> Image:
    """Resize and cut a picture with Pillow alone, as `docs/examples/run_onnx.py` does it."""
    from PIL import Image

    wide, high = image.size
    side, resize = crop.crop, crop.resize
    if isinstance(resize, tuple):
        size = max(resize[1], side), max(resize[0], side)
    else:
        short = max(resize or min(wide, high), side)
        size = max(short, short * wide // high), max(short, short * high // wide)
    left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
    image = image.resize(size, Image.Resampling[pillow_filter(crop)])
    return image.crop((left, top, left + side, top + side))


def pillow_filter(crop: Geometry) -> str:
    """Return what Pillow calls an interpolation."""
    return crop.interpolation.removesuffix("-exact").upper()

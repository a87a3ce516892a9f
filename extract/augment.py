"""Random augmentation of one decoded picture: the seed alone decides, in any thread and on any machine.

The recipes are torchvision's, and their pixels nearly so. They are not computed by torchvision, whose transforms draw
from a generator that all threads share, and round by what the processor has. Here nothing is drawn but from `Draws`,
and pixels are computed in whole numbers, by numpy and, where they are resized, by torch. So a cached view may be named
by what it was drawn from, and is the same wherever it is made.
"""

from __future__ import annotations

import hashlib
import math
import operator
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from . import pixel_ops
from .affine import Box, rotation
from .auto_augment import Bending, rand_augment, trivial_augment
from .draws import Draws
from .pixel_ops import Planes, as_pixels, as_planes
from .portable import exponential
from .preprocess import Preprocess, as_batch, resized, resized_to, to_input, trimmed

# What a preset does has a number, which goes up whenever the same seed would give other pixels or other chances: a
# cached view names the preset and this number.
RECIPE_VERSIONS = {
    "none": 1,  # the evaluation's preprocessing
    "flip": 2,  # the same, mirrored half of the time
    "tutorial": 2,  # random resized crop, flip
    "crop": 2,  # the evaluation's resize, random crop, flip
    "strong": 2,  # rotation, random resized crop, flip, colour jitter
    "randaugment": 2,  # random resized crop, flip, RandAugment
    "trivial": 2,  # random resized crop, flip, TrivialAugment
}
PRESETS = tuple(RECIPE_VERSIONS)

AREA = (0.08, 1.0)  # of the picture, of a random resized crop; torchvision's, as are the next two
RATIO = (3 / 4, 4 / 3)  # of its width and height
TRIES = 10
LOG_RATIO = 0.28768207245178096  # of 4/3
ROTATION = 15  # degrees either way
# Brightness, contrast, saturation and hue, and how often: MoCo v2 (main_moco.py --aug-plus). The first three are also
# fb.resnet.torch's and timm's for training with labels.
JITTER = (0.4, 0.4, 0.4, 0.1)
JITTER_CHANCE = 0.8
# A larger picture is first shrunk to this many times the crop's area before it is rotated, as that takes time for each
# pixel: one of 3:2 keeps a short side of twice the crop.
MOST_ROTATED = 6

_starting = threading.Lock()


class Augment:
    """One preset of random augmentation, before one network; safe to call from many threads at once.

    Parameters
    ----------
    preset : str
        One of `PRESETS`: "none" is the evaluation's preprocessing, `to_input`, itself; "flip" mirrors it half of the
        time; "tutorial" crops a random part of 8 to 100 % of the area and resizes it to the crop, and mirrors, as all
        that follow do; "crop" resizes as the evaluation does and crops at random, enlarging what is smaller than the
        crop; "strong" rotates by up to 15 degrees before that random part is taken, and changes colours after it;
        "randaugment" and "trivial" do what their papers do to it (arXiv 1909.13719 with 2 operations of magnitude 9,
        and arXiv 2103.10158, as torchvision has both).
    preprocess : Preprocess
        Sizes, interpolation and antialias. What rotates or shears knows no bicubic interpolation, and takes bilinear
        for it. Where it leaves a corner empty, there the mean goes that the network's input is normalised by, as timm
        has it: about 1 % of the pixels of "strong", and none in half of its pictures, as the random part is taken last.

    Raises
    ------
    UsageError
        An unknown preset.

    Notes
    -----
    The pixels depend on the picture, the preset, the preprocessing and the seed, and on nothing else: not on other
    threads, not on the processor, not on torch's number of threads. No other generator is drawn from.
    """

    def __init__(self, preset: str, preprocess: Preprocess) -> None:
        if preset not in RECIPE_VERSIONS:
            raise UsageError(f"augment must be one of {', '.join(PRESETS)}; got {preset!r}")
        self.preset = preset
        self.preprocess = preprocess

    def __repr__(self) -> str:
        return f"Augment({self.preset!r}, {self.preprocess!r})"

    def __call__(self, pixels: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
        """Augment one picture.

        Parameters
        ----------
        pixels : array, (H, W, 3) uint8
            Decoded image, red first; it stays as it is.
        seed : int
            0 to 2**64 - 1; `image_seed` makes good ones.

        Returns
        -------
        array, (crop, crop, 3) uint8
            C-contiguous, writable, with memory of its own.
        """
        image = _RECIPES[self.preset](trimmed(pixels), self.preprocess, Draws(seed))
        own = image.flags.c_contiguous and image.flags.writeable and not np.may_share_memory(image, pixels)
        return image if own else np.array(image, order="C")


def image_seed(*parts: int | bytes | str) -> int:
    """Return a seed for one picture, 0 to 2**63 - 1, from whatever tells it apart, such as (seed, epoch, digest).

    It is the beginning of the SHA-256 of the parts, each with its kind and length before it, so that no two sequences
    of parts are written alike. Pictures of equal parts, such as exact copies in one epoch, get equal seeds.
    """
    digest = hashlib.sha256()
    for part in parts:
        kind, content = _written(part)
        digest.update(kind + len(content).to_bytes(8, "big") + content)
    return int.from_bytes(digest.digest()[:8], "big") >> 1


def one_thread() -> None:
    """Let torch compute with one thread in the calling thread, from now on; to be a thread pool's initializer.

    Other threads, the caller of the pool among them, keep the number that they have. torch's number belongs to each
    thread, but setting it also sets what threads get that have not computed yet; another thread sets that back.
    """
    import torch

    with _starting:
        before = torch.get_num_threads()
        if before == 1:
            return
        torch.set_num_threads(1)
        restoring = threading.Thread(target=torch.set_num_threads, args=(before,))
        restoring.start()
        restoring.join()


def _written(part: int | bytes | str) -> tuple[bytes, bytes]:
    if isinstance(part, str):
        return b"s", part.encode("utf-8", "surrogateescape")
    if isinstance(part, bytes):
        return b"b", part
    return b"i", str(operator.index(part)).encode()


# Recipes: a picture, (H, W, 3) uint8, becomes (crop, crop, 3) uint8, of any strides. The order of the draws is part of
# what a recipe is.


def _none(pixels: NDArray[np.uint8], preprocess: Preprocess, draws: Draws) -> NDArray[np.uint8]:
    return to_input(pixels, preprocess)[0]


def _flip(pixels: NDArray[np.uint8], preprocess: Preprocess, draws: Draws) -> NDArray[np.uint8]:
    return _mirrored(to_input(pixels, preprocess)[0], draws)


def _tutorial(pixels: NDArray[np.uint8], preprocess: Preprocess, draws: Draws) -> NDArray[np.uint8]:
    box = _random_box(pixels.shape[0], pixels.shape[1], draws)
    part = pixels[box.top : box.top + box.high, box.left : box.left + box.wide]
    return _mirrored(_cropped_size(part, preprocess), draws)


def _crop(pixels: NDArray[np.uint8], preprocess: Preprocess, draws: Draws) -> NDArray[np.uint8]:
    images, _ = resized(as_batch(pixels).permute(0, 3, 1, 2), preprocess)
    image, side = images.numpy()[0].transpose(1, 2, 0), preprocess.crop
    top, left = (draws.below(length - side + 1) for length in image.shape[:2])
    return _mirrored(image[top : top + side, left : left + side], draws)


def _strong(pixels: NDArray[np.uint8], preprocess: Preprocess, draws: Draws) -> NDArray[np.uint8]:
    pixels = _shrunk(pixels, preprocess)
    high, wide = pixels.shape[:2]
    turn = rotation(draws.uniform(-ROTATION, ROTATION), high, wide)
    part = _bending(preprocess)(pixels.transpose(2, 0, 1), turn, _random_box(high, wide, draws))
    image = _mirrored(_cropped_size(as_pixels(part), preprocess), draws)
    return as_pixels(_jittered(as_planes(image), draws)) if draws.chance(JITTER_CHANCE) else image


def _randaugment(pixels: NDArray[np.uint8], preprocess: Preprocess, draws: Draws) -> NDArray[np.uint8]:
    image = as_planes(_tutorial(pixels, preprocess, draws))
    return as_pixels(rand_augment(image, draws, _bending(preprocess)))


def _trivial(pixels: NDArray[np.uint8], preprocess: Preprocess, draws: Draws) -> NDArray[np.uint8]:
    image = as_planes(_tutorial(pixels, preprocess, draws))
    return as_pixels(trivial_augment(image, draws, _bending(preprocess)))


_RECIPES: dict[str, Callable[[NDArray[np.uint8], Preprocess, Draws], NDArray[np.uint8]]] = {
    "none": _none,
    "flip": _flip,
    "tutorial": _tutorial,
    "crop": _crop,
    "strong": _strong,
    "randaugment": _randaugment,
    "trivial": _trivial,
}


def _mirrored(image: NDArray[np.uint8], draws: Draws) -> NDArray[np.uint8]:
    return image[:, ::-1] if draws.chance(0.5) else image


def _cropped_size(pixels: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.uint8]:
    return resized_to(pixels, (preprocess.crop, preprocess.crop), preprocess)


def _random_box(high: int, wide: int, draws: Draws) -> Box:
    """Draw the part of an image of that size that a random resized crop takes."""
    for _ in range(TRIES):
        area = high * wide * draws.uniform(*AREA)
        ratio = exponential(draws.uniform(-LOG_RATIO, LOG_RATIO))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= wide and 0 < down <= high:
            return Box(draws.below(high - down + 1), draws.below(wide - across + 1), down, across)
    return _central_box(high, wide)


def _central_box(high: int, wide: int) -> Box:
    """Return the largest part in the middle whose ratio is allowed."""
    across = min(wide, round(high * RATIO[1]))
    down = min(high, round(wide / RATIO[0]))
    return Box((high - down) // 2, (wide - across) // 2, down, across)


def _shrunk(pixels: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.uint8]:
    """Shrink a picture that is too large to be rotated as it is."""
    high, wide = pixels.shape[:2]
    scale = math.sqrt(MOST_ROTATED * preprocess.crop**2 / (high * wide))
    if scale >= 1:
        return pixels
    return resized_to(pixels, (max(1, int(high * scale)), max(1, int(wide * scale))), preprocess)


def _bending(preprocess: Preprocess) -> Bending:
    red, green, blue = (min(255, max(0, round(255 * mean))) for mean in preprocess.mean)
    return Bending("nearest" not in preprocess.interpolation, (red, green, blue))


def _jittered(image: Planes, draws: Draws) -> Planes:
    """Change brightness, contrast, saturation and hue, in any order."""
    order = draws.permutation(4)
    *around_one, turn = JITTER
    amounts = [draws.uniform(1 - most, 1 + most) for most in around_one] + [draws.uniform(-turn, turn)]
    changes = (pixel_ops.brightness, pixel_ops.contrast, pixel_ops.saturation, pixel_ops.hue)
    for which in order:
        image = changes[which](image, amounts[which])
    return image

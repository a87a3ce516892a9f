"""Random augmentation of one decoded picture, on torchvision.transforms.v2: the seed alone decides, in any thread.

torchvision draws from torch's global generator, which all threads share, so that with it what one picture becomes would
depend on what else is drawn at that moment. Here a mode, of which each thread has its own, hands every random
operation below the transforms a generator of the call's own. The pixels are those that torchvision gives after
`torch.manual_seed(seed)` in a program that does nothing else.
"""

from __future__ import annotations

import hashlib
import math
import operator
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .preprocess import Preprocess, as_batch, resized, to_inputs

if TYPE_CHECKING:
    import torch
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

# What a preset does has a number, which goes up whenever the same seed would give other pixels or other chances: a
# cached view names the preset and this number. torchvision's own changes are not in it.
RECIPE_VERSIONS = {
    "none": 1,  # the evaluation's preprocessing
    "flip": 1,  # the same, mirrored half of the time
    "tutorial": 1,  # RandomResizedCrop, flip
    "crop": 1,  # the evaluation's resize, RandomCrop, flip
    "strong": 1,  # rotation, RandomResizedCrop, flip, colour jitter
    "randaugment": 1,  # RandomResizedCrop, flip, RandAugment
    "trivial": 1,  # RandomResizedCrop, flip, TrivialAugmentWide
}
PRESETS = tuple(RECIPE_VERSIONS)

ROTATION = 15  # degrees either way
# Brightness, contrast, saturation and hue, and how often: MoCo v2 (main_moco.py --aug-plus). The first three are also
# fb.resnet.torch's and timm's for training with labels.
JITTER = (0.4, 0.4, 0.4, 0.1)
JITTER_CHANCE = 0.8
# A rotation takes 45 bytes a pixel, and 1.7 s for a photograph of 12 million pixels, so a larger picture is first
# shrunk to this many times the crop's area: one of 3:2 keeps a short side of twice the crop.
MOST_ROTATED = 6

_OF_C = (
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
)

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
    threads, not on torch's number of threads. torch's global generator is left as it is. Between releases of
    torchvision or torch, or between kinds of processors, single values may differ.
    """

    def __init__(self, preset: str, preprocess: Preprocess) -> None:
        if preset not in RECIPE_VERSIONS:
            raise UsageError(f"augment must be one of {', '.join(PRESETS)}; got {preset!r}")
        import torch

        self.preset = preset
        self.preprocess = preprocess
        # This thread's number of threads is settled before others change, for a moment, what new threads get.
        torch.get_num_threads()
        self._draw = None if preset == "none" else _transforms(preset, preprocess)

    def __repr__(self) -> str:
        return f"Augment({self.preset!r}, {self.preprocess!r})"

    def __call__(self, pixels: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
        """Augment one picture.

        Parameters
        ----------
        pixels : array, (H, W, 3) uint8
            Decoded image, red first; it stays as it is.
        seed : int
            0 to 2**64 - 1, of which torch uses the lower 32 bits; `image_seed` makes good ones.

        Returns
        -------
        array, (crop, crop, 3) uint8
            C-contiguous, writable, with memory of its own.
        """
        import torch

        with torch.inference_mode(), _here_alone():
            image = self._prepare(as_batch(pixels))
            if self._draw is not None:
                with _seeded()(seed):
                    image = self._draw(image)
        return np.array(image.permute(1, 2, 0).numpy(), order="C")

    def _prepare(self, batch: torch.Tensor) -> torch.Tensor:
        """Do what is not random: (1, H, W, 3) uint8 to (3, h, w) uint8."""
        if self.preset in ("none", "flip"):
            batch, _ = to_inputs(batch, self.preprocess)
        images = batch.permute(0, 3, 1, 2)
        if self.preset == "crop":
            images, _ = resized(images, self.preprocess)
        return _shrunk(images[0], self.preprocess) if self.preset == "strong" else images[0]


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


def _shrunk(image: torch.Tensor, preprocess: Preprocess) -> torch.Tensor:
    """Shrink an image, (3, H, W) uint8, that is too large to be rotated as it is."""
    from torchvision.transforms import InterpolationMode, v2

    high, wide = image.shape[-2:]
    scale = math.sqrt(MOST_ROTATED * preprocess.crop**2 / (high * wide))
    if scale >= 1:
        return image
    smaller: torch.Tensor = v2.functional.resize(
        image,
        [max(1, int(length * scale)) for length in (high, wide)],
        InterpolationMode(preprocess.interpolation),
        antialias=preprocess.antialias,
    )
    return smaller


def _transforms(preset: str, preprocess: Preprocess) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what is random: (3, h, w) uint8 to (3, crop, crop) uint8."""
    from torchvision.transforms import InterpolationMode, v2

    mode = InterpolationMode(preprocess.interpolation)
    part = v2.RandomResizedCrop(preprocess.crop, interpolation=mode, antialias=preprocess.antialias)
    flip = v2.RandomHorizontalFlip()
    # For what rotates and shears.
    bent: dict[str, Any] = {
        "interpolation": InterpolationMode("nearest" if "nearest" in mode.value else "bilinear"),
        "fill": [min(255, max(0, round(255 * mean))) for mean in preprocess.mean],
    }
    steps: dict[str, list[Any]] = {
        "flip": [flip],
        "tutorial": [part, flip],
        "crop": [v2.RandomCrop(preprocess.crop), flip],
        "strong": [
            v2.RandomRotation(ROTATION, **bent),
            part,
            flip,
            v2.RandomApply([v2.ColorJitter(*JITTER)], p=JITTER_CHANCE),
        ],
        "randaugment": [part, flip, v2.RandAugment(**bent)],
        "trivial": [part, flip, v2.TrivialAugmentWide(**bent)],
    }
    pipeline: Callable[[torch.Tensor], torch.Tensor] = v2.Compose(steps[preset])
    return pipeline


@contextmanager
def _here_alone() -> Iterator[None]:
    """Let torch compute with one thread within.

    Several round the mean of a picture, of which contrast is a change, differently from 512 pixels a side.
    """
    import torch

    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@cache
def _seeded() -> Callable[[int], TorchFunctionMode]:
    """Return the class of the mode; torch is imported when it is first asked for."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Seeded(TorchFunctionMode):
        """Within, in this thread, random operations draw from a generator of its own.

        torch marks operations that draw. A function of C is known by the operation of its name; what is written in
        Python, or has no such operation, may hide several, so that `_drawing` looks into it. To look into everything
        takes up to 0.6 ms a picture, while no other thread can run Python.
        """

        def __init__(self, seed: int) -> None:
            super().__init__()
            self._generator = torch.Generator().manual_seed(seed)
            self._drawing = _drawing()(self._generator)

        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            kwargs = kwargs or {}
            draws = _draws(func.__name__) if isinstance(func, _OF_C) else None
            if draws is None:
                with self._drawing:
                    return func(*args, **kwargs)
            if draws and kwargs.get("generator") is None:
                kwargs = {**kwargs, "generator": self._generator}
            return func(*args, **kwargs)

    return Seeded


@cache
def _drawing() -> Callable[[torch.Generator], TorchDispatchMode]:
    """Return the class of the mode that looks into a function."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Drawing(TorchDispatchMode):  # type: ignore[no-untyped-call]
        """Within, the operations that torch's functions end in get the generator, where torch marks them as random."""

        def __init__(self, generator: torch.Generator) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self._generator = generator

        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            kwargs = kwargs or {}
            if _is_random(func) and kwargs.get("generator") is None:
                return _with_generator(func)(*args, **{**kwargs, "generator": self._generator})
            return func(*args, **kwargs)

    return Drawing


@cache
def _draws(name: str) -> bool | None:
    """Tell from its name whether a function of C draws, from a generator that it takes; None where that is unknown."""
    import torch

    if name.startswith("__"):  # operators, and what reads an attribute
        return False
    packet = getattr(torch.ops.aten, name, None)
    if packet is None:
        return None
    overloads = [getattr(packet, overload) for overload in packet.overloads()]
    if not any(_is_random(overload) for overload in overloads):
        return False
    return True if any(_arguments(overload)[1] for overload in overloads) else None


def _is_random(func: Any) -> bool:
    import torch

    return torch.Tag.nondeterministic_seeded in func.tags


@cache
def _with_generator(func: Any) -> Any:
    """Return `func`, an operation of torch, or its overload that differs by taking a generator.

    Raises
    ------
    RuntimeError
        There is none: what it drew would not follow from the seed.
    """
    packet = func.overloadpacket
    wanted, _ = _arguments(func)
    for overload in (func, *(getattr(packet, name) for name in packet.overloads())):
        arguments, draws_from = _arguments(overload)
        if draws_from and arguments == wanted:
            return overload
    raise RuntimeError(f"{func} draws random numbers and takes no generator, so no seed can fix an augmentation by it")


def _arguments(func: Any) -> tuple[list[tuple[str, str]], bool]:
    """Return the names and types of an operation's arguments but the generator, and whether it takes one."""
    arguments = [(argument.name, str(argument.type)) for argument in func._schema.arguments]
    others = [argument for argument in arguments if argument[0] != "generator"]
    return others, len(others) < len(arguments)

"""What a user may ask of an extraction, as one frozen record that travels through all its stages."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..cache.space import FeatureSpace
from ..errors import UsageError
from .device import DEVICES, PRECISIONS, available_cores

DEFAULT_BACKBONE = "resnet18"
# Width times height of the largest image that is decoded unless asked: a gigabyte at 12 bytes a pixel, as Pillow.
DEFAULT_MAX_PIXELS = 89_478_485
ENGINES = ("local", "dask", "ray")
_ADDRESSES = {
    "dask": "tcp://HOST:8786, as `dask scheduler` prints it",
    "ray": "auto, or HOST:6379 as `ray start --head` prints it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceOptions:
    """What decides on the feature space. None means: as the backbone's weights have it.

    Attributes
    ----------
    backbone : str, default "resnet18"
    weights : str, default "default"
        "default", "none" (random, from `seed`) or the path of a state dict.
    layer, pool : str, optional
        The module whose output is taken, and how its map becomes a vector.
    resize : int or "none", optional
        Length of the short side in pixels, or no resizing.
    crop : int, optional
        Side of the centre crop in pixels.
    interpolation : str, optional
    mean, std : tuple of 3 floats, optional
        Normalisation of values between 0 and 1.
    precision : str, default "auto"
    store_dtype : str, default "float32"
        "float32" or "float16".
    decoder : {"cpu", "gpu", "either"}, default "cpu"
        "gpu": JPEGs are decoded by an NVIDIA GPU too, which makes a feature space of its own; "either": for such a
        space, with a GPU or without.
    seed : int, default 0
        For random weights.
    """

    backbone: str = DEFAULT_BACKBONE
    weights: str = "default"
    layer: str | None = None
    pool: str | None = None
    resize: int | str | None = None
    crop: int | None = None
    interpolation: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    precision: str = "auto"
    store_dtype: str = "float32"
    decoder: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        _check_word("precision", self.precision, PRECISIONS)
        _check_word("store_dtype", self.store_dtype, ("float32", "float16"))
        _check_word("decoder", self.decoder, ("cpu", "gpu", "either"))
        _check_number("seed", self.seed, 0)

    def overrides(self) -> dict[str, Any]:
        """Return the preprocessing that was asked for, without what was left to the weights."""
        names = ("resize", "crop", "interpolation", "mean", "std")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def request(self) -> dict[str, Any]:
        """Return what a feature space does not say but is needed to embed more images in it."""
        return {"weights": self.weights, "seed": self.seed}

    def words(self) -> str:
        """Return them as the command line takes them: the backbone, and what differs from the defaults."""
        given = {"backbone": self.backbone}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            # A size of two numbers comes from the weights alone: no option names one.
            if value != item.default and not (item.name == "resize" and isinstance(value, tuple | list)):
                given[item.name] = "gpu" if value == "either" else value
        return as_words(given)

    @classmethod
    def for_space(cls, space: FeatureSpace, request: dict[str, Any]) -> SpaceOptions:
        """Return the options that lead to `space` again, given the `request` that was kept with it."""
        preprocess = space.preprocess
        resize = preprocess["resize"]
        return cls(
            backbone=space.backbone,
            weights=request.get("weights", "default"),
            layer=space.layer,
            pool=space.pool,
            resize="none" if resize is None else resize,
            crop=preprocess["crop"],
            interpolation=preprocess["interpolation"],
            mean=tuple(preprocess["mean"]),
            std=tuple(preprocess["std"]),
            precision=space.precision,
            store_dtype=space.dtype,
            decoder="either" if space.fast_path else "cpu",
            seed=request.get("seed", 0),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How an extraction goes about its work; nothing here changes an embedding by more than its last bits.

    Attributes
    ----------
    device : str, default "auto"
    batch_size : int, optional
        Images a forward pass; found out where it is None. When given, the last batch is padded to it and nothing is
        changed on the way, so that every row is computed by the same kernels.
    workers : int, optional
        Threads that read and decode, of all processes of this machine together, or of one worker of a cluster; one a
        core where it is None.
    max_pixels : int, default 89,478,485
        Larger images are failures.
    processes : int, optional
        How many share the work. Where it is None: one a GPU, or up to four for a long run; 1 on a CPU.
    compile : {"auto", "always", "never"}, default "auto"
        Whether the network is compiled; "auto" where the images left repay the seconds that it takes, and not where a
        batch size was given.
    """

    device: str = "auto"
    batch_size: int | None = None
    workers: int | None = None
    max_pixels: int = DEFAULT_MAX_PIXELS
    processes: int | None = None
    compile: str = "auto"

    def __post_init__(self) -> None:
        _check_word("device", self.device, DEVICES)
        _check_word("compile", self.compile, ("auto", "always", "never"))
        for name in ("batch_size", "workers", "processes", "max_pixels"):
            _check_number(name, getattr(self, name), 1)

    @property
    def threads(self) -> int:
        """How many threads read and decode: those asked for, or one a core."""
        return self.workers or available_cores()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Where an extraction is done.

    Attributes
    ----------
    engine : {"local", "dask", "ray"}, default "local"
        On this machine, or by the workers of a cluster that is there, which share the cache and the images with it.
    address : str, optional
        Of the cluster: what ``dask scheduler`` or ``ray start --head`` prints, or the path of Dask's scheduler file.
    shard_images : int, optional
        Images that a worker is given at a time; where it is None 2,000, or fewer where that makes less than four times
        for each worker.
    """

    engine: str = "local"
    address: str | None = None
    shard_images: int | None = None

    def __post_init__(self) -> None:
        _check_word("engine", self.engine, ENGINES)
        _check_number("shard_images", self.shard_images, 1)
        if self.engine == "local" and self.address is not None:
            raise UsageError(f"--address {self.address} names a cluster: pass --engine dask or --engine ray with it")
        if self.engine != "local" and not self.address:
            raise UsageError(f"--engine {self.engine} needs --address: {_ADDRESSES[self.engine]}")

    @property
    def local(self) -> bool:
        """Whether this machine does the work."""
        return self.engine == "local"

    def check(self, run: RunOptions) -> None:
        """Check them against how the work is done.

        Raises
        ------
        UsageError
            They exclude each other.
        """
        if not self.local and run.processes is not None:
            raise UsageError(
                f"--processes is for this machine, and --engine {self.engine} has the cluster's workers: leave one out"
            )
        if self.local and self.shard_images is not None and run.processes == 1:
            raise UsageError("one process takes no shards, and --shard-images has no effect: pass --processes 2")


def check_limit(limit: int | None) -> None:
    """Check how many images at most are to be taken; None for all.

    Raises
    ------
    UsageError
        Not a whole number above 0.
    """
    _check_number("limit", limit, 1)


def as_words(options: Mapping[str, Any]) -> str:
    """Return options with their values as the command line takes them."""
    return " ".join(f"--{name.replace('_', '-')} {_as_word(value)}" for name, value in options.items())


def _as_word(value: object) -> str:
    return shlex.quote(",".join(map(str, value)) if isinstance(value, tuple | list) else str(value))


def _check_word(name: str, value: object, words: tuple[str, ...]) -> None:
    if value not in words:
        raise UsageError(f"{name} must be one of {', '.join(words)}; got {value!r}")


def _check_number(name: str, value: object, least: int) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
        raise UsageError(f"{name} must be a whole number, {least} or more; got {value!r}")

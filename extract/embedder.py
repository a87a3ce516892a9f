"""Batches of pixels in, rows of a feature space out; the network is loaded when the first batch needs it."""

from __future__ import annotations

import importlib.metadata
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..cache.listing import RACY_NS
from ..cache.memo import recall, remember
from ..cache.space import FeatureSpace
from ..errors import BackboneError, CacheError, CacheFormatError, DeviceError
from .backbone import BackboneRequest, load_backbone, request_key
from .decode import DECODER_RULES
from .device import Device, choose_device, is_out_of_memory, keep_freed_memory, resolve_precision, to_device
from .fold import fold_batch_norms
from .memory import available_memory, bytes_an_image, fitting_batch
from .options import RunOptions, SpaceOptions
from .preprocess import Preprocess

if TYPE_CHECKING:
    from .backbone import Backbone

logger = logging.getLogger("headstart.extract")


class Embedder:
    """A feature space and the means to compute rows of it.

    Parameters
    ----------
    space : FeatureSpace
        What is to be computed; the network is held against it when it is loaded.
    options : SpaceOptions
        What leads to it.
    run : RunOptions
    backbone : Backbone, optional
        The network, where it had to be loaded already to find the space.
    on_change : callable, optional
        Called with the loaded network when its weights turn out not to be those of `space`.
    """

    def __init__(
        self,
        space: FeatureSpace,
        options: SpaceOptions,
        run: RunOptions,
        backbone: Backbone | None = None,
        on_change: Callable[[Backbone], None] = lambda _: None,
    ) -> None:
        self.space = space
        self.options = options
        self.run = run
        self.preprocess = Preprocess.from_dict(space.preprocess)
        self._backbone = backbone
        self._on_change = on_change
        self._device: Device | None = None
        self._batch_size: int | None = None

    @classmethod
    def resolve(cls, options: SpaceOptions, run: RunOptions, cache: Path, *, write: bool = True) -> Embedder:
        """Find the feature space that `options` ask for.

        What the request resolved to is remembered in the cache, so the second time neither torch nor the weights are
        looked at; without `write` it is only looked up there.

        Raises
        ------
        BackboneError
            Unknown backbone, layer or pooling, or weights that do not fit or cannot be had.
        DeviceError
            The device asked for is not on this machine.
        """
        key = _key(options)
        facts, backbone = recall(cache, key), None
        if facts is None:
            backbone = _load(options, choose_device(run.device))
            facts = _facts(backbone)
            if write:
                _remember(cache, key, backbone)
        return cls(_space(options, facts), options, run, backbone, partial(_remember, cache, key))

    @staticmethod
    def recalled(options: SpaceOptions, cache: Path) -> FeatureSpace | None:
        """Return the space that `resolve` found for the same options before, None where it did not."""
        facts = recall(cache, _key(options))
        return None if facts is None else _space(options, facts)

    @classmethod
    def for_space(cls, space: FeatureSpace, request: dict[str, Any], run: RunOptions) -> Embedder:
        """Return what computes more rows of a known space, given the `request` that was kept with it.

        Raises
        ------
        CacheFormatError
            This version decodes pictures by other rules than the space was made with.
        """
        if space.decoder != DECODER_RULES:
            raise CacheFormatError(
                f"the embeddings were made with decoder rules {space.decoder}, this headstart has {DECODER_RULES}: "
                "extract and fit again"
            )
        return cls(space, SpaceOptions.for_space(space, request), run)

    @property
    def backbone(self) -> Backbone:
        """The loaded network, on its device; loading takes seconds, the first time.

        Raises
        ------
        BackboneError
            Its weights are not those of the space.
        """
        if self._backbone is None:
            backbone = _load(self.options, self.device)
            if backbone.weights != self.space.weights or backbone.dim != self.space.dim:
                self._on_change(backbone)
                raise BackboneError(
                    f"the weights of {self.space.backbone} are not those that the embeddings were made with: expected "
                    f"{self.space.weights[:8]}, found {backbone.weights[:8]}; run `headstart extract` and fit again"
                )
            self._backbone = backbone
        return self._backbone

    def load(self) -> None:
        """Load the network now, and see how large a batch may be, instead of when the first batch comes.

        Raises
        ------
        BackboneError
            As `backbone`.
        """
        _ = self.backbone, self.batch_size

    @property
    def device(self) -> Device:
        """Where the forward pass runs."""
        if self._device is None:
            self._device = choose_device(self.run.device)
        return self._device

    @property
    def batch_size(self) -> int:
        """Images a forward pass takes now; it shrinks when the device's memory is full.

        On a CPU it is bounded beforehand by half of the memory that is free, and asking for the first time loads the
        network to see what an image takes.
        """
        if self._batch_size is None:
            wanted = self.run.batch_size or self.device.batch_size
            self._batch_size = self._bounded(wanted) if self.device.kind == "cpu" else wanted
        return self._batch_size

    def _bounded(self, wanted: int) -> int:
        available = available_memory()
        if available is None:
            return wanted
        try:
            with self.device.autocast(self.space.precision):
                an_image = bytes_an_image(self.backbone)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return 1  # if that is too much again, `embed` says so
        size = fitting_batch(wanted, an_image, available)
        if size < wanted:
            logger.log(
                logging.WARNING if self.run.batch_size else logging.INFO,
                "batches of %d images instead of %d: one may take %d MB, and %d MB of memory are free",
                size, wanted, an_image // 1_000_000, available // 1_000_000,
            )  # fmt: skip
        return size

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        """Compute rows.

        Parameters
        ----------
        pixels : ndarray of shape (n, S, S, 3), dtype uint8
            What `preprocess` made of n images, at least one and at most `batch_size`.

        Returns
        -------
        ndarray of shape (n, D), dtype of the space
            On a device whose memory is full the batch is halved until it fits.

        Raises
        ------
        DeviceError
            Not even one image fits.
        """
        done: list[np.ndarray] = []
        begin, size = 0, len(pixels)
        while begin < len(pixels):
            batch = pixels[begin : begin + size]
            try:
                done.append(self._forward(batch))
                begin += len(batch)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(len(batch), error)
                size = self.batch_size
        return np.concatenate(done)

    def _halve(self, count: int, error: Exception) -> None:
        """Go on with half of the batch that did not fit, which held `count` images before it was padded."""
        where = "this machine" if self.device.kind == "cpu" else self.device.name
        tried = max(count, self.batch_size) if self.run.batch_size else count
        if tried == 1:
            advice = "a smaller --crop" if self.device.kind == "cpu" else "--device cpu or a smaller --crop"
            raise DeviceError(f"{where} has too little memory for one image; pass {advice}") from error
        self._batch_size = tried // 2
        logger.warning("out of memory on %s: going on with batches of %d", where, self._batch_size)

    def _forward(self, pixels: np.ndarray) -> np.ndarray:
        import torch

        count = len(pixels)
        if self.run.batch_size and count < self.batch_size:
            pixels = np.concatenate([pixels, np.repeat(pixels[-1:], self.batch_size - count, axis=0)])
        with self.device.autocast(self.space.precision):
            rows = self.backbone.embed(to_device(torch.from_numpy(pixels), self.device))
        with np.errstate(over="ignore"):  # the caller looks for infinities, row by row
            result: np.ndarray = rows[:count].float().cpu().numpy().astype(self.space.dtype)
        return result


def _key(options: SpaceOptions) -> dict[str, Any]:
    return {"backbone": request_key(_request(options)), "preprocess": _jsonable(options.overrides())}


def _space(options: SpaceOptions, facts: dict[str, Any]) -> FeatureSpace:
    precision, dtype = resolve_precision(options.precision), options.store_dtype
    return FeatureSpace(backbone=options.backbone, **facts, decoder=DECODER_RULES, precision=precision, dtype=dtype)


def _request(options: SpaceOptions) -> BackboneRequest:
    return BackboneRequest(options.backbone, options.weights, options.layer, options.pool, options.seed)


def _load(options: SpaceOptions, device: Device) -> Backbone:
    logger.info(
        "loading %s on %s (%s), %s", options.backbone, device.kind, device.name, resolve_precision(options.precision)
    )
    if device.kind == "cpu":
        keep_freed_memory()
    backbone = load_backbone(_request(options), **options.overrides())
    fold_batch_norms(backbone)
    return backbone.to(device.kind)


def _remember(cache: Path, key: dict[str, Any], backbone: Backbone) -> None:
    """Remember what a request resolved to, under the file that was read: its name may have led to another before."""
    file = backbone.file
    if file and time.time_ns() - max(file["mtime_ns"], file["ctime_ns"]) < RACY_NS:
        return  # a file written a moment ago may be written again and look the same: found out anew next time
    try:
        remember(cache, {**key, "backbone": {**key["backbone"], "file": file}}, _facts(backbone))
    except CacheError as error:
        # Only speed is lost: a read-only cache can still be read.
        logger.debug("the backbone's facts were not remembered: %s", error)


def _facts(backbone: Backbone) -> dict[str, Any]:
    """Return what of a loaded backbone enters the feature space."""
    return {
        "library": backbone.library,
        "weights": backbone.weights,
        "layer": backbone.layer,
        "pool": backbone.pool,
        "dim": backbone.dim,
        "preprocess": backbone.preprocess.as_dict(),
    }


def _jsonable(overrides: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in overrides.items()}


def library_versions() -> dict[str, str]:
    """Return the versions of what decides on values, kept beside a feature space without being part of it."""
    names = ("torch", "torchvision", "timm", "pillow", "simplejpeg", "numpy")
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions

"""Batches of pixels in, rows of a feature space out; the network is loaded when the first batch needs it."""

from __future__ import annotations

import importlib.metadata
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..cache.memo import recall, remember
from ..cache.space import FeatureSpace
from ..errors import BackboneError, CacheError, DeviceError
from .backbone import BackboneRequest, load_backbone, request_key
from .decode import DECODER_RULES
from .device import Device, choose_device, is_out_of_memory, keep_freed_memory, resolve_precision, to_device
from .options import RunOptions, SpaceOptions
from .preprocess import Preprocess

if TYPE_CHECKING:
    from .backbone import Backbone

logger = logging.getLogger("headstart.extract")


class Embedder:
    """A feature space and the means to compute rows of it.

    Parameters
    ----------
    options : SpaceOptions
    run : RunOptions
    cache : Path
        Where what the request resolves to is remembered; with that at hand `space` is known without torch.

    Attributes
    ----------
    space : FeatureSpace
    preprocess : Preprocess
    """

    def __init__(self, options: SpaceOptions, run: RunOptions, cache: Path) -> None:
        self.options = options
        self.run = run
        self._request = BackboneRequest(options.backbone, options.weights, options.layer, options.pool, options.seed)
        self._backbone: Backbone | None = None
        self._device: Device | None = None
        self._batch_size = run.batch_size
        self._precision = resolve_precision(options.precision)
        self._cache = cache
        facts = recall(cache, self._key())
        if facts is None:
            facts = _facts(self._load())
            self._remember(facts)
        self.preprocess = Preprocess.from_dict(facts["preprocess"])
        self.space = FeatureSpace(
            backbone=options.backbone,
            **facts,
            decoder=DECODER_RULES,
            precision=self._precision,
            dtype=options.store_dtype,
        )

    def _key(self) -> dict[str, Any]:
        return {"backbone": request_key(self._request), "preprocess": _jsonable(self.options.overrides())}

    def _remember(self, facts: dict[str, Any]) -> None:
        try:
            remember(self._cache, self._key(), facts)
        except CacheError as error:
            # Only speed is lost: a read-only cache can still be read.
            logger.debug("the backbone's facts were not remembered: %s", error)

    @property
    def backbone(self) -> Backbone:
        """The loaded network, on its device; loading takes seconds, the first time.

        Raises
        ------
        BackboneError
            Its weights are not those that the space was remembered with.
        """
        if self._backbone is None:
            backbone = self._load()
            if backbone.weights != self.space.weights:
                self._remember(_facts(backbone))
                raise BackboneError(
                    f"the weights of {self.space.backbone} changed while they were in use: expected "
                    f"{self.space.weights[:8]}, found {backbone.weights[:8]}; run again"
                )
        assert self._backbone is not None  # for the type checker: _load has just set it
        return self._backbone

    def _load(self) -> Backbone:
        kind = self.device.kind  # a device that is not here is said before weights are looked for
        logger.info("loading %s on %s (%s), %s", self.options.backbone, kind, self.device.name, self._precision)
        backbone = load_backbone(self._request, **_jsonable(self.options.overrides()))
        if kind == "cpu":
            keep_freed_memory()
        self._backbone = backbone.to(kind)
        return self._backbone

    @property
    def device(self) -> Device:
        """Where the forward pass runs."""
        if self._device is None:
            self._device = choose_device(self.run.device)
        return self._device

    @property
    def batch_size(self) -> int:
        """Images a forward pass takes now; it shrinks when the device's memory is full."""
        return self._batch_size or self.device.batch_size

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        """Compute rows.

        Parameters
        ----------
        pixels : ndarray of shape (n, S, S, 3), dtype uint8
            What `preprocess` made of n images, at most `batch_size`.

        Returns
        -------
        ndarray of shape (n, D), dtype of the space
            On a device whose memory is full the batch is halved until it fits.
        """
        try:
            return self._forward(pixels)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if len(pixels) == 1:
                raise DeviceError(
                    f"{self.device.name} has too little memory for one image; pass --device cpu or a smaller --crop"
                ) from error
        self._batch_size = max(1, len(pixels) // 2)
        logger.warning("out of memory on %s: going on with batches of %d", self.device.name, self._batch_size)
        size = self._batch_size
        return np.concatenate([self.embed(pixels[i : i + size]) for i in range(0, len(pixels), size)])

    def _forward(self, pixels: np.ndarray) -> np.ndarray:
        import torch

        count = len(pixels)
        if self.run.batch_size and count < self.run.batch_size:
            pixels = np.concatenate([pixels, np.repeat(pixels[-1:], self.run.batch_size - count, axis=0)])
        with self.device.autocast(self.space.precision):
            rows = self.backbone.embed(to_device(torch.from_numpy(pixels), self.device))
        with np.errstate(over="ignore"):  # the caller looks for infinities, row by row
            result: np.ndarray = rows[:count].float().cpu().numpy().astype(self.space.dtype)
        return result


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

"""A saved model that answers from memory: a picture's bytes in, what the model says of it out, nothing kept."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from ...errors import BackboneError
from ...extract.decode import decode
from ...extract.embedder import Embedder
from ...extract.plan import NOT_FINITE
from ...extract.preprocess import Pixels, to_input
from ..model import check_bodies
from ..predict import Classifier
from ..prediction import Prediction

logger = logging.getLogger("headstart.classify")

# What each network takes of one picture, (S, S, 3) uint8, in the order of the embedders.
Inputs: TypeAlias = tuple[Pixels, ...]


class ModelRunner:
    """The networks and the head of a classifier, ready to answer.

    Parameters
    ----------
    classifier : Classifier
        Its cache is neither read nor written.
    coverage : float, optional
        Also give sets of classes that hold the right one this often, between 0 and 1.

    Raises
    ------
    UsageError
        The model cannot give such sets.
    CacheFormatError
        The model was made by other rules of decoding than this version has.
    """

    def __init__(self, classifier: Classifier, coverage: float | None = None) -> None:
        self.classifier = classifier
        self._threshold = classifier.threshold(coverage)
        self._embedders = classifier.embedders
        self._preprocess = [embedder.preprocess for embedder in self._embedders]

    @property
    def device(self) -> str:
        """Where the networks run, for people."""
        device = self._embedders[0].device
        return f"{device.kind} ({device.name})"

    def load(self, batch_size: int | None = None) -> int:
        """Load the networks and send pictures through everything once, so that the first caller waits no longer.

        Parameters
        ----------
        batch_size : int, optional
            Pictures a forward pass; what suits the device where it is None.

        Returns
        -------
        int
            How many a pass may take: what was asked for, or what fits into memory.

        Raises
        ------
        BackboneError
            The weights are not those that the model was made with, or cannot be had.
        ModelError
            Weights of the model's own are gone or damaged.
        DeviceError
            Not even one picture fits.
        """
        try:
            for embedder in self._embedders:
                embedder.load()
        except BackboneError:
            check_bodies(self.classifier.model)
            raise
        size = min(embedder.resize_batch(batch_size or embedder.batch_size) for embedder in self._embedders)
        grey = tuple(np.full((each.crop, each.crop, 3), 128, np.uint8) for each in self._preprocess)
        for count in {1, size}:
            self.predict([grey] * count)
        return min(size, *(embedder.batch_size for embedder in self._embedders))

    def read(self, data: bytes) -> Inputs:
        """Decode a picture and prepare it for each network; any number of threads may call this at once.

        Parameters
        ----------
        data : bytes
            The whole file.

        Raises
        ------
        DecodeError
            The bytes are no picture that can be decoded; the message is the reason alone.
        """
        pixels = decode(data, max_pixels=self.classifier.run.max_pixels).pixels
        made = {preprocess: to_input(pixels, preprocess)[0] for preprocess in set(self._preprocess)}
        return tuple(made[preprocess] for preprocess in self._preprocess)

    def predict(self, pictures: Sequence[Inputs]) -> list[Prediction]:
        """Say what the model sees in prepared pictures, as `Classifier.predict` does of files.

        Parameters
        ----------
        pictures : sequence of Inputs, n

        Returns
        -------
        list of Prediction
            In their order, each with an empty path.
        """
        X = self._embed(pictures)
        good = np.flatnonzero(np.isfinite(X).all(axis=1))
        described = self.classifier.describe([""] * len(good), X[good], self._threshold)
        rows = dict(zip(good.tolist(), described, strict=True))
        return [rows.get(row) or Prediction("", error=NOT_FINITE) for row in range(len(pictures))]

    def _embed(self, pictures: Sequence[Inputs]) -> np.ndarray:
        """Compute the embeddings, (n, D) float32, of the model's spaces side by side."""
        columns: dict[str, np.ndarray] = {}
        for embedder, pixels in zip(self._embedders, zip(*pictures, strict=True), strict=True):
            rows = _embed_all(embedder, pixels)
            columns |= {space.id: part for space, part in zip(embedder.spaces, embedder.columns(rows), strict=True)}
        return np.concatenate([columns[space.id] for space in self.classifier.spaces], axis=1, dtype=np.float32)


def _embed_all(embedder: Embedder, pixels: Sequence[Pixels]) -> np.ndarray:
    """Embed any number of pictures; a network whose memory was full once takes fewer at a time than were gathered."""
    done: list[np.ndarray] = []
    place = 0
    while place < len(pixels):
        batch = pixels[place : place + embedder.batch_size]
        done.append(embedder.embed(batch))
        place += len(batch)
    return np.concatenate(done)

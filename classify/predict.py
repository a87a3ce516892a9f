"""A saved model put to use: embed pictures through the cache, and say what they show."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..cache.listing import Listing
from ..cache.space import FeatureSpace
from ..cache.store import FeatureStore, cache_dir
from ..errors import BackboneError, UsageError, printable
from ..extract.embed import embed_listing
from ..extract.embedder import Embedder
from ..extract.features import gather_joined
from ..extract.images import list_paths
from ..extract.options import RunOptions
from ..extract.plan import base_folder, failure_rules, unread_listing
from ..extract.resolve import embedders_of
from .conformal import conformal_threshold, prediction_sets
from .model import SavedModel, check_bodies, load_model
from .prediction import Prediction

if TYPE_CHECKING:
    from .prediction_grid import Drawn

logger = logging.getLogger("headstart.classify")


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predictions as a table.

    Attributes
    ----------
    rows : list of Prediction
    top : int, default 1
        How many of the likeliest classes a line shows.
    as_csv : bool, default False
    grid : Drawn, optional
        The picture that was drawn of them.
    """

    rows: list[Prediction]
    top: int = 1
    as_csv: bool = False
    grid: Drawn | None = None
    on_stdout: ClassVar[bool] = True

    def summary(self) -> dict[str, Any]:
        """Return the fields of ``predict --json``."""
        grid = {"grid": self.grid.summary()} if self.grid else {}
        return {"predictions": [row.as_dict() for row in self.rows], **grid}

    def lines(self) -> list[str]:
        """Return the table, one picture a line."""
        return self._csv_lines() if self.as_csv else [self._line(row) for row in self.rows]

    def _line(self, row: Prediction) -> str:
        if row.error is not None:
            return f"{printable(row.path)}: not read, {row.error}"
        named = [(name, (row.probabilities or {})[name]) for name in row.labels or ()]
        shown = named if row.labels is not None and self.top == 1 else row.likeliest(self.top)
        guesses = ", ".join(f"{printable(name)} {100 * value:.1f} %" for name, value in shown) or "none of the labels"
        sets = "" if row.classes is None else f"; one of {{{', '.join(map(printable, row.classes))}}}"
        unlike = "; unlike any training picture" if row.unlike_training else ""
        return f"{printable(row.path)}: {guesses}{sets}{unlike}"

    def _guesses(self, row: Prediction) -> list[tuple[str, float]]:
        """Return what a line of the CSV is for: the likeliest classes, or all labels that are given together."""
        if row.labels is None or self.top > 1 or row.error is not None:
            return row.likeliest(self.top)
        return [("|".join(row.labels), row.probability or 0.0)]

    def _csv_lines(self) -> list[str]:
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["path", "label", "probability", "error", "set", "novelty"])
        for row in self.rows:
            novelty = "" if row.novelty is None else f"{row.novelty:.6f}"
            sets = _cell("|".join(row.classes or ()))
            for name, value in self._guesses(row):
                table.writerow([_cell(row.path), _cell(name), f"{value:.6f}", "", sets, novelty])
            if row.error is not None:
                table.writerow([_cell(row.path), "", "", _cell(row.error), "", ""])
        return text.getvalue().rstrip("\n").split("\n")


def _cell(text: str) -> str:
    """Keep a spreadsheet from taking a name for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def paths_from_lines(data: bytes) -> list[Path]:
    """Return the paths of a list: one a line, or, where there is a NUL byte in it, one before each of those."""
    separator = b"\0" if b"\0" in data else b"\n"
    return [Path(os.fsdecode(line)) for line in data.split(separator) if line]


class Classifier:
    """A saved model with the means to embed new pictures.

    Parameters
    ----------
    model : SavedModel
    cache : path, optional
        Where embeddings are looked up and kept.
    run : RunOptions, optional
        Device, batch size, workers.
    """

    def __init__(
        self, model: SavedModel, cache: str | os.PathLike[str] | None = None, run: RunOptions | None = None
    ) -> None:
        self.model = model
        self.store = FeatureStore(cache_dir(cache))
        self.spaces = tuple(FeatureSpace.from_dict(space) for space in model.spaces)
        self.run = run or RunOptions()
        self._embedders: list[Embedder] = []

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the columns of `predict_proba`."""
        return self.model.classes

    @property
    def embedders(self) -> list[Embedder]:
        """What computes rows of the model's feature spaces, one a network; each loads its network when it is used.

        Raises
        ------
        CacheFormatError
            The model was made by other rules of decoding than this version has.
        """
        if not self._embedders:
            requests = self.model.training.get("requests", [{}] * len(self.spaces))
            self._embedders = embedders_of(self.spaces, requests, self.run)
        return self._embedders

    def embed(self, listing: Listing, base: bytes) -> Listing:
        """Embed the images of a listing that the cache lacks in any of the model's feature spaces.

        Each network runs once for all of its layers and each picture is decoded once for all networks, whose weights
        are checked when they load.

        Parameters
        ----------
        listing : Listing
        base : bytes
            The folder that its paths are relative to.

        Returns
        -------
        Listing
            With digests and failures filled in.
        """
        try:
            return embed_listing(self.store, self.embedders, listing, base)[0]
        except BackboneError:
            check_bodies(self.model)  # a file of the model's own that is gone or damaged has a better line to say it
            raise

    def predict(self, paths: Iterable[str | os.PathLike[str]], *, coverage: float | None = None) -> list[Prediction]:
        """Classify pictures.

        Parameters
        ----------
        paths : iterable of path
            Pictures, and folders of pictures.
        coverage : float, optional
            Also give sets of classes that hold the right one this often, between 0 and 1.

        Returns
        -------
        list of Prediction
            One a picture, sorted by path; those that cannot be read say why.

        Raises
        ------
        DataNotFoundError
            A path is not there.
        UsageError
            The coverage is not between 0 and 1, or the model cannot give such sets.
        """
        threshold = self.threshold(coverage)
        images = list_paths([Path(path) for path in paths])
        listing = unread_listing(images, failure_rules(self.run.max_pixels))
        return self._describe(self.embed(listing, base_folder(images)), threshold)

    def predict_proba(self, features: np.ndarray) -> np.ndarray:
        """Return the probabilities (n, K) float64 of embeddings (n, D), those of the model's spaces side by side."""
        return self.model.predict_proba(features)

    def threshold(self, coverage: float | None) -> float | None:
        """Return the probability from which a class belongs to sets of a coverage; None where none was asked for.

        Parameters
        ----------
        coverage : float or None
            How often a set is to hold the right class, between 0 and 1.

        Raises
        ------
        UsageError
            The coverage is not between 0 and 1, or the model cannot give such sets.
        """
        if coverage is None:
            return None
        true = self.model.true_probabilities
        if self.model.multi_label:
            raise UsageError("--coverage asks for sets of which one class is right; this model gives several labels")
        if not true.size:
            again = "train it with --select-on dev" if self.model.kind == "finetuned" else "fit the head again"
            raise UsageError(f"the model has no probabilities of unseen images to draw up sets by; {again}")
        threshold = conformal_threshold(true, coverage)
        if threshold == 0:
            logger.warning(
                "%d training images are too few for a coverage of %g: every set holds all classes", len(true), coverage
            )
        return threshold

    def describe(self, paths: Sequence[str], X: np.ndarray, threshold: float | None = None) -> list[Prediction]:
        """Say what the model sees in pictures whose embeddings are known.

        Parameters
        ----------
        paths : sequence of str, n
        X : ndarray of shape (n, D), dtype float32
            Embeddings in the model's spaces, side by side; finite.
        threshold : float, optional
            As `threshold` gives it, for sets of classes.

        Returns
        -------
        list of Prediction
            In the order of `paths`.
        """
        proba = self.predict_proba(X)
        novelty = None if self.model.novelty is None or not len(X) else self.model.novelty.score(X)
        return [
            self._prediction(path, proba[row], threshold, None if novelty is None else float(novelty[row]))
            for row, path in enumerate(paths)
        ]

    def _describe(self, listing: Listing, threshold: float | None) -> list[Prediction]:
        usable = np.flatnonzero(listing.usable)
        names = [os.fsdecode(name) for name in listing.paths]
        X = gather_joined(self.store, self.spaces, listing.digest[usable])
        rows = dict(zip(usable.tolist(), self.describe([names[row] for row in usable], X, threshold), strict=True))
        return [rows.get(row) or Prediction(name, error=listing.failures[row]) for row, name in enumerate(names)]

    def _prediction(self, path: str, proba: np.ndarray, threshold: float | None, novelty: float | None) -> Prediction:
        best = int(proba.argmax())
        probabilities = {name: float(value) for name, value in zip(self.classes, proba, strict=True)}
        label, labels, classes = self.classes[best], None, None
        if self.model.multi_label:
            given = np.flatnonzero(proba >= np.array(self.model.thresholds))
            labels = [self.classes[place] for place in given]
            label = "|".join(labels)
        if threshold is not None:
            chosen = np.flatnonzero(prediction_sets(proba[None], threshold)[0])
            classes = [self.classes[place] for place in chosen[np.argsort(-proba[chosen], kind="stable")]]
        return Prediction(
            path, label, float(proba[best]), probabilities, labels=labels, classes=classes, novelty=novelty
        )


def load(
    model: str | os.PathLike[str],
    *,
    cache: str | os.PathLike[str] | None = None,
    device: str = "auto",
    **options: Any,
) -> Classifier:
    """Load a saved model for prediction.

    Parameters
    ----------
    model : path
        The model's folder.
    cache : path, optional
        The cache's folder; ``HEADSTART_CACHE`` or ``.headstart`` where it is None.
    device : {"auto", "cpu", "cuda", "mps"}, default "auto"
    **options
        Further fields of `RunOptions`: batch_size, workers, max_pixels.

    Raises
    ------
    ModelError
        The folder holds no model, or a damaged one.
    """
    return Classifier(load_model(Path(model)), cache, RunOptions(device=device, **options))

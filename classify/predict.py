"""A saved model put to use: embed pictures through the cache, and say what they show."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..cache.listing import Listing
from ..cache.source import Named
from ..cache.space import FeatureSpace
from ..cache.store import FeatureStore, cache_dir
from ..errors import BackboneError, UsageError
from ..extract.augment import PRESETS
from ..extract.embed import embed_listing, embed_stepwise
from ..extract.embedder import Embedder
from ..extract.images import list_paths
from ..extract.options import RunOptions
from ..extract.plan import base_folder, failure_rules, unread_listing
from ..extract.recent import RecentRows
from ..extract.resolve import embedders_of
from ..extract.views import DEFAULT_AUGMENT, PLAIN, Views
from .conformal import conformal_threshold, prediction_sets
from .model import SavedModel, check_bodies, load_model
from .prediction import Prediction
from .threads import one_thread_each
from .views import plain_of

logger = logging.getLogger("headstart.classify")

ANSWER_SHARE = 9  # times as long as the last answers took, at least: they must not slow the run down
SCORED = 32  # pictures that are scored at once, always the same ones: rounding must not depend on how fast a run goes
ANSWER_BYTES = 32 << 20  # of embeddings and probabilities that are in memory at once


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is wanted of each prediction: the probability from which a class belongs to the set, and to be named."""

    threshold: float | None
    min_probability: float


class Classifier:
    """A saved model with the means to embed new pictures.

    Parameters
    ----------
    model : SavedModel
    cache : path, optional
        Where embeddings are looked up and kept.
    run : RunOptions, optional
        Device, batch size, workers.
    views : Views, default `PLAIN`
        Over which the probabilities of new pictures are averaged; see `views_for`.
    """

    def __init__(
        self,
        model: SavedModel,
        cache: str | os.PathLike[str] | None = None,
        run: RunOptions | None = None,
        views: Views = PLAIN,
    ) -> None:
        self.model = model
        self.views = views
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

    def embed(self, listing: Listing, base: bytes, views: Views | None = None) -> Listing:
        """Embed the views of the images of a listing that the cache lacks in any of the model's feature spaces.

        Each network runs once for all of its layers and each picture is decoded once for all networks, whose weights
        are checked when they load.

        Parameters
        ----------
        listing : Listing
        base : bytes
            The folder that its paths are relative to.
        views : Views, optional
            Other ones than those over which probabilities are averaged.

        Returns
        -------
        Listing
            With digests and failures filled in.
        """
        with self._own_bodies():
            return embed_listing(self.store, self.embedders, listing, base, views=views or self.views)[0]

    def predict(
        self,
        paths: Iterable[Named],
        *,
        coverage: float | None = None,
        min_probability: float = 0.0,
    ) -> list[Prediction]:
        """Classify pictures, and return when all are done; see `stream`."""
        return list(self.stream(paths, coverage=coverage, min_probability=min_probability))

    def stream(
        self,
        paths: Iterable[Named],
        *,
        coverage: float | None = None,
        min_probability: float = 0.0,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Generator[Prediction, None, None]:
        """Classify pictures one after the other, as they come out of the network.

        All of it is one run at the speed of ``extract``, and memory does not grow with what was answered. A run that is
        left before its end, by closing the generator or dropping it, keeps what was embedded. Where several
        processes share the work (one a GPU, unless ``run`` says otherwise), the first answer comes when all pictures
        have been embedded.

        Parameters
        ----------
        paths : iterable of path
            Pictures, and folders of pictures at any depth. They are all listed before the first is read.
        coverage : float, optional
            Also give sets of classes that hold the right one this often, between 0 and 1.
        min_probability : float, default 0
            A picture whose likeliest class has less than this gets no label and is `unsure`; where pictures may have
            several labels, those that have less are not given.
        stopped : callable, optional
            Asked before each picture; when it says True the run ends, and what was embedded is kept. It is answered but
            for the last few.

        Returns
        -------
        generator of Prediction
            One a picture, sorted by path; those that cannot be read say why.

        Raises
        ------
        DataNotFoundError
            A path is not there.
        UsageError
            The coverage is not between 0 and 1, or the model cannot give such sets; or the probability is not between 0
            and 1.
        KeyboardInterrupt
            While it is gone through: `stopped` said True.
        """
        if not 0 <= min_probability <= 1:
            raise UsageError(f"a probability lies between 0 and 1; got {min_probability:g}")
        asked = _Asked(self.threshold(coverage), min_probability)
        images = list_paths(paths)
        listing = unread_listing(images, failure_rules(self.run.max_pixels))
        return self._stream(listing, base_folder(images), asked, stopped)

    def _stream(
        self, listing: Listing, base: bytes, asked: _Asked, stopped: Callable[[], bool]
    ) -> Generator[Prediction, None, None]:
        """Answer whenever some pictures are through and the last answers are a moment ago, or there are many."""
        done, due = 0, 0.0
        recent, views = RecentRows(self.store, self.spaces, self.views), self.views
        scored_bytes = SCORED * views.count * (4 * sum(space.dim for space in self.spaces) + 8 * len(self.classes))
        most = SCORED * max(1, ANSWER_BYTES // scored_bytes)
        with self._own_bodies():
            steps = embed_stepwise(self.store, self.embedders, listing, base, stopped, recent=recent, views=views)
            with contextlib.closing(steps):
                for through in steps:
                    ended = through == len(listing)
                    ready = through if ended else through - through % SCORED
                    while done < ready and (ended or time.monotonic() >= due or ready - done >= most):
                        begin, last = time.monotonic(), min(ready, done + most)
                        answers = self._answers(listing, range(done, last), recent, asked)
                        # Of their own time, not of what the caller does with them.
                        now = time.monotonic()
                        due = now + ANSWER_SHARE * (now - begin)
                        yield from answers
                        done = last
        if done < len(listing):
            raise KeyboardInterrupt

    def predict_proba(self, features: np.ndarray) -> np.ndarray:
        """Return the probabilities (n, K) float64 of embeddings (n, D), those of the model's spaces side by side.

        Of embeddings (n, V, D) of V views of each picture they are averaged over views.
        """
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
        if self.views.count > 1:
            raise UsageError(
                "--coverage was calibrated on probabilities of one view, and --views averages several: leave one out"
            )
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
        proba, asked = self.predict_proba(X), _Asked(threshold, 0.0)
        novelty = None if self.model.novelty is None or not len(X) else self.model.novelty.score(X)
        return [
            self._prediction(path, proba[row], asked, None if novelty is None else float(novelty[row]))
            for row, path in enumerate(paths)
        ]

    @contextlib.contextmanager
    def _own_bodies(self) -> Iterator[None]:
        try:
            yield
        except BackboneError:
            check_bodies(self.model)  # a file of the model's own that is gone or damaged has a better line to say it
            raise

    def _answers(self, listing: Listing, rows: range, recent: RecentRows, asked: _Asked) -> Iterator[Prediction]:
        """Score some pictures; the predictions, each with all its probabilities, are made one by one."""
        failed = listing.failures.rows
        low, high = np.searchsorted(failed, (rows.start, rows.stop))
        usable = np.setdiff1d(np.arange(rows.start, rows.stop), failed[low:high])
        X = recent.gather(listing.digest[usable])
        ends = np.searchsorted(usable, np.arange(rows.start + SCORED, rows.stop, SCORED))
        together = [block for block in np.split(X, ends) if len(block)]
        novelty = None
        with one_thread_each():  # more would wait, spinning, while threads of ours decode
            proba = [one for block in together for one in self.predict_proba(block)]
            if self.model.novelty is not None:
                novelty = [one for block in together for one in self.model.novelty.score(plain_of(block))]
        place_of = {row: place for place, row in enumerate(usable.tolist())}

        def answer(row: int) -> Prediction:
            path = os.fsdecode(listing.paths[row])
            if row not in place_of:
                return Prediction(path, error=listing.failures[row])
            place = place_of[row]
            new = None if novelty is None else float(novelty[place])
            return self._prediction(path, proba[place], asked, new)

        return map(answer, rows)

    def _prediction(self, path: str, proba: np.ndarray, asked: _Asked, novelty: float | None) -> Prediction:
        best = int(proba.argmax())
        probabilities = {name: float(value) for name, value in zip(self.classes, proba, strict=True)}
        unsure = bool(proba[best] < asked.min_probability)
        label: str | None = None if unsure else self.classes[best]
        labels, classes = None, None
        if self.model.multi_label:
            passed = np.flatnonzero(proba >= np.array(self.model.thresholds))
            given = [self.classes[place] for place in passed if proba[place] >= asked.min_probability]
            unsure = bool(passed.size) and not given
            labels, label = given, None if unsure else "|".join(given)
        if asked.threshold is not None:
            chosen = np.flatnonzero(prediction_sets(proba[None], asked.threshold)[0])
            classes = [self.classes[place] for place in chosen[np.argsort(-proba[chosen], kind="stable")]]
        return Prediction(
            path, label, float(proba[best]), probabilities,
            labels=labels, classes=classes, novelty=novelty, unsure=unsure,
        )  # fmt: skip


def views_for(model: SavedModel, count: int | None, augment: str | None = None) -> Views:
    """Return the views over which the probabilities of new pictures are averaged.

    Parameters
    ----------
    model : SavedModel
    count : int or None
        How many of each picture, the plain crop among them; the plain crop alone where it is None.
    augment : str, optional
        The preset of the others; that by which the model's training pictures were augmented where it is None, or
        "tutorial" where they were plain crops.

    Raises
    ------
    UsageError
        As `Views`.
    """
    if augment is None and count not in (None, 1):
        augment = _preset_of(model)
    views = Views.asked(count, augment)
    if views.augment == model.views.augment:
        warn_of_recipe(model)
    return views


def _preset_of(model: SavedModel) -> str:
    """Return the preset by which a model's training pictures were augmented; the default where none was."""
    augment = model.views.augment
    if "mode" in model.facts:
        augment = model.facts.get("settings", {}).get("augment", augment)
    return augment if augment in PRESETS and augment != PLAIN.augment else DEFAULT_AUGMENT


def warn_of_recipe(model: SavedModel) -> None:
    """Say so where the views that a model was trained on are drawn in another way by now."""
    views = model.views
    recipes = views.recipes()
    if model.training.get("recipes", recipes) != recipes:
        logger.warning(
            "the preset %s is another one than it was when the model was trained: its views are other pictures now; "
            "fit the head again to train on those",
            views.augment,
        )


def load(
    model: str | os.PathLike[str],
    *,
    cache: str | os.PathLike[str] | None = None,
    device: str = "auto",
    views: int | None = None,
    augment: str | None = None,
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
    views, augment : int and str, optional
        As in `views_for`.
    **options
        Further fields of `RunOptions`: batch_size, workers, max_pixels.

    Raises
    ------
    ModelError
        The folder holds no model, or a damaged one.
    """
    saved = load_model(Path(model))
    return Classifier(saved, cache, RunOptions(device=device, **options), views_for(saved, views, augment))

"""A head fitted to rows that are never in memory all at once: what is learnt, scored and told of them by blocks."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import CacheMissError, UsageError
from ..extract.features import Features
from ..extract.lacking import lacking_words
from ..extract.memory import available_memory
from ..extract.options import EngineOptions
from .block_scores import ScoredRows, scores_in_blocks
from .budget import (
    COPIES,
    evaluation_bytes,
    in_words,
    parse_memory,
    reading_bytes,
    solver_bytes,
)
from .conformal import thinned
from .dataset import LabelledSet
from .head import Head
from .metrics import accuracy, majority_baseline
from .model import SavedModel
from .multilabel import mean_average_precision
from .novelty import Novelty, novelty_between, novelty_rows
from .preparation import standardisation_of
from .scratch import Table
from .several import LabelsHead
from .share import Share, Survey
from .stored import StoredRows, largest_part, piece_rows
from .team import LocalTeam, Team, total

logger = logging.getLogger("headstart.classify")

_HERE = EngineOptions()
_UNKNOWN_FREE = 4 << 30  # bytes that are taken for free where the system does not say


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """How a fit by blocks goes.

    Attributes
    ----------
    limit : int
        Bytes that it may take beside the interpreter, its libraries and the columns of labels and digests; on each
        worker, where there are some.
    where : EngineOptions, default this machine
    given : bool, default True
        Whether somebody gave the limit; workers take half of what is free where they are otherwise.
    """

    limit: int
    where: EngineOptions = _HERE
    given: bool = True


def plan_blocks(features: Features, memory: str | int, engine: str, address: str | None) -> BlockPlan | None:
    """Return how to go by blocks, or None where all is fitted in memory.

    Parameters
    ----------
    features : Features
        Nothing is read of them.
    memory : str or int
        What may be taken; where it is "auto", half of what is free.
    engine : {"local", "dask", "ray"}
    address : str or None

    Raises
    ------
    UsageError
        A size or an engine that is none, or an address without an engine.
    """
    limit = parse_memory(memory)
    where = EngineOptions(engine=engine, address=address)
    free = available_memory()
    if not where.local:
        return BlockPlan(limit or (free or _UNKNOWN_FREE) // 2, where, given=limit is not None)
    needed = int(COPIES * 4 * len(features.rows) * features.views.count * sum(features.dims))
    if limit is None:
        if free is None or needed <= free // 2:
            return None
        logger.info(
            "training in memory would take %s, more than half of the %s that are free: going by blocks (--memory)",
            in_words(needed), in_words(free),
        )  # fmt: skip
        return BlockPlan(free // 2, given=False)
    return None if needed <= limit else BlockPlan(limit)


def check_blocks(plan: BlockPlan, asked: Mapping[str, object]) -> None:
    """Raise UsageError where something is asked for that takes all rows at once.

    Parameters
    ----------
    plan : BlockPlan
    asked : mapping of str to object
        Options by the words of the command line; None or False where they were not given.
    """
    given = [words for words, value in asked.items() if value]
    if given:
        how = "over workers" if not plan.where.local else f"by blocks, in {in_words(plan.limit)}"
        raise UsageError(
            f"{given[0]} takes all embeddings at once, and this fit goes {how}: leave it out, or give more --memory"
        )


@dataclass(frozen=True, slots=True)
class ByBlocks:
    """What is told of a fit by blocks.

    Attributes
    ----------
    limit : int or None
        Bytes that it may take; None where each worker takes half of what is free there.
    engine : str
    workers : int
        Shards that the rows were divided into.
    rows_bytes : int
        Of the training rows.
    blocks, passes : int
        Blocks of the rows, and how often all of them were gone over.
    put_aside : int
        Bytes that lay in scratch files.
    """

    limit: int | None
    engine: str
    workers: int
    rows_bytes: int
    blocks: int
    passes: int
    put_aside: int

    def summary(self) -> dict[str, Any]:
        """Return ``memory`` as ``fit-head --json`` has it."""
        return {"limit": self.limit, "blocks": self.blocks, "passes": self.passes, "put_aside": self.put_aside}

    def line(self) -> str:
        """Return it for a person."""
        where = "" if self.engine == "local" else f" on {self.workers} workers ({self.engine})"
        within = "" if self.limit is None else f", within {in_words(self.limit)}{' each' if where else ''}"
        aside = f", {in_words(self.put_aside)} put aside meanwhile" if self.put_aside else ""
        return (
            f"by blocks{where}: {in_words(self.rows_bytes)} of embeddings in {self.blocks} blocks, {self.passes} "
            f"passes{within}{aside}"
        )


class BlockFit:
    """Fits a head to the training images of a dataset, block by block; use it as a context, which lets all go.

    Parameters
    ----------
    data : LabelledSet
    head : Head
        Unfitted.
    plan : BlockPlan
    seed : int

    Attributes
    ----------
    head : Head
        Fitted.
    novelty : Novelty or None
    """

    def __init__(self, data: LabelledSet, head: Head, plan: BlockPlan, seed: int) -> None:
        head.check_blocks()
        self.head, self._data, self._plan = head, data, plan
        self._mine = data.split == "train"
        self._y, self._folds = head.begin(
            data.labels("train"), data.features.classes, data.group[self._mine], data.features.dims
        )
        self._picked = _Picked.of(data, self._mine, seed)
        self._check_limit()
        self._team = self._gathered()
        self._survey: Survey

    def __enter__(self) -> BlockFit:
        try:
            self._fit()
        except BaseException:
            self._team.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._team.close()

    @property
    def _classes(self) -> int:
        return len(self._data.features.classes)

    def _check_limit(self) -> None:
        features, limit = self._data.features, self._plan.limit
        width, n_fits = sum(features.dims), max(1, self.head.cv)
        fit = evaluation_bytes(n_fits, self._classes, width) + (4 << 20)
        fit += solver_bytes(n_fits, self._classes, width) if self._plan.where.local else 0
        least = max(fit, reading_bytes(largest_part(features.store, features.spaces))) + self._picked.nbytes(width)
        if limit < least:
            raise UsageError(
                f"--memory {in_words(limit)} is less than this fit takes whatever the number of rows: give it "
                f"{in_words(least)} or more"
            )

    def _gathered(self) -> Team:
        features = self._data.features
        beside = self._picked.nbytes(sum(features.dims))
        if self._plan.where.local:
            beside += solver_bytes(max(1, self.head.cv), self._classes, sum(features.dims))
        share = Share(
            root=features.store.root.absolute(),
            spaces=features.spaces,
            views=features.views,
            digest=features.digest[self._data.rows[self._mine]],
            target=self._y,
            fold=self._folds,
            picked=self._picked.numbers,
            memory=self._plan.limit - beside,
            device=getattr(self.head, "device", "cpu"),
        )
        if self._plan.where.local:
            return LocalTeam(share)
        from .cluster import ClusterTeam

        share = share if self._plan.given else replace(share, memory=0)
        return ClusterTeam(share, self._plan.where, self._plan.limit)

    def _fit(self) -> None:
        several = self._y.ndim == 2
        try:
            self._survey = total(self._team, "survey", 0 if several else self._classes, self.head.l2_norm)
        except CacheMissError as error:
            raise CacheMissError(
                lacking_words(self._data.features, self._data.rows[self._mine]) or str(error)
            ) from error
        self.novelty = self._picked.novelty(self._team, self._survey.picked)
        self._survey = replace(self._survey, picked=self._survey.picked[:0].copy())
        self.head.prepare_over(self._team, self._survey)
        self.head.fit_over(self._team, self._y, self._folds)

    def true_probabilities(self) -> np.ndarray:
        """Return what cross-validation gave the true classes, ascending, thinned evenly where they are many."""
        if self._y.ndim == 2 or not self.head.cv_:
            return np.zeros(0)
        return thinned(np.concatenate(self._team.every("true_probabilities", self.head.temperature_)))

    def measured(self, model: SavedModel) -> dict[str, Any]:
        """Return the scores of the head, as `headstart.classify.scores.measured`."""
        head, n = self.head, len(self._y)
        thresholds = head.thresholds_ if isinstance(head, LabelsHead) else None
        network = np.column_stack([head.network_.weights[-1], head.network_.biases[-1]])
        right = total(self._team, "right", network, head.temperature_, thresholds)
        scores: dict[str, Any] = {
            "train": {"n": n, "accuracy": right / n},
            "cv": head.cv_ or None,
            "temperature": head.temperature_,
        }
        several = self._y.ndim == 2
        if not (self._data.split == "val").any():
            nothing = {"map": None} if several else {"majority": None, "nearest_mean": None}
            return scores | {"val": None, "baseline": nothing, "conformal": None, "per_class": []}
        rows = self._scored(model)
        full = scores_in_blocks(model, rows, self._plan.limit // 2)
        rows.logits.close()
        table = full.pop("per_label" if several else "per_class")
        full.pop("confusion", None)
        conformal = full.pop("conformal")
        return scores | {
            "val": full,
            "baseline": self._baseline(rows),
            "conformal": conformal,
            "per_class": table,
        }

    def told(self) -> ByBlocks:
        """Return how it went."""
        rows = len(self._y) * self._data.features.views.count * sum(self._data.features.dims) * 4
        return ByBlocks(
            None if self._team.name != "local" and not self._plan.given else self._plan.limit,
            self._team.name,
            len(self._team.parts),
            rows,
            total(self._team, "blocks_a_pass"),
            self._team.passes,
            total(self._team, "put_aside"),
        )

    def _baseline(self, rows: ScoredRows) -> dict[str, Any]:
        if rows.nearest is None:
            by_chance = np.broadcast_to(self._y.mean(axis=0), rows.target.shape)
            return {"map": mean_average_precision(rows.target, by_chance)}
        return {
            "majority": majority_baseline(self._y, rows.target),
            "nearest_mean": accuracy(rows.target, rows.nearest),
        }

    def _scored(self, model: SavedModel) -> ScoredRows:
        """Read the validation images once, and return their logits and the class whose mean is nearest."""
        features, mine = self._data.features, self._data.split == "val"
        stored = StoredRows(features.store, features.spaces, features.digest[self._data.rows[mine]])
        target = self._data.labels("val")
        small = 8 * len(stored) * self._classes <= self._plan.limit // 4
        logits, order = Table(len(stored), self._classes, in_memory=small, dtype=np.float64), np.empty(len(stored), int)
        nearest = None if target.ndim == 2 else np.empty(len(stored), np.int64)
        means = _Means(self._survey, self._y) if target.ndim == 1 else None
        done = 0
        try:
            for numbers, rows in joined_blocks(stored, self._plan.limit // 4):
                logits.put(done, model.logits(rows))
                order[done : done + len(numbers)] = numbers
                if means is not None and nearest is not None:
                    nearest[done : done + len(numbers)] = means.nearest(rows)
                done += len(numbers)
        except CacheMissError as error:
            raise CacheMissError(lacking_words(features) or str(error)) from error
        return ScoredRows(logits, target[order], nearest)


def joined_blocks(stored: StoredRows, memory: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield numbers and whole rows (m, D) of images; of several spaces by way of a table that they are put into."""
    if len(stored.spaces) == 1:
        yield from stored.blocks(0)
        return
    table = Table(len(stored), stored.width, in_memory=4 * len(stored) * stored.width <= memory)
    for place, columns in enumerate(stored.columns()):
        for numbers, rows in stored.blocks(place):
            table.put_columns(numbers, columns.start, rows)
    for start, rows in table.blocks(piece_rows(stored.width)):
        yield np.arange(start, start + len(rows)), rows
    table.close()


class _Means:
    """The mean of each class, standardised, as `metrics.nearest_mean_baseline` has it."""

    def __init__(self, survey: Survey, y: np.ndarray) -> None:
        self._mean, self._scale = standardisation_of(*survey.raw.unbiased())
        counts = np.bincount(y, minlength=len(survey.class_sums))
        self._present = np.flatnonzero(counts)
        means = survey.class_sums[self._present] / counts[self._present, None]
        self._centres = ((means - self._mean) / self._scale).astype(np.float32)

    def nearest(self, rows: np.ndarray) -> np.ndarray:
        Z = (rows - self._mean) / self._scale
        distance = (self._centres**2).sum(axis=1) - 2 * (Z @ self._centres.T)
        return np.asarray(self._present[distance.argmin(axis=1)])


@dataclass(frozen=True, slots=True)
class _Picked:
    """The training images whose embeddings tell what is new, by their numbers among the training images."""

    numbers: np.ndarray
    kept: np.ndarray
    probe: np.ndarray
    group: np.ndarray

    @classmethod
    def of(cls, data: LabelledSet, mine: np.ndarray, seed: int) -> _Picked:
        group = data.group[mine]
        if len(np.unique(group)) < 2:
            none = np.zeros(0, np.int64)
            return cls(none, none, none, group)
        kept, probe = novelty_rows(data.y[mine], random_state=seed)
        return cls(np.union1d(kept, probe), kept, probe, group)

    def nbytes(self, width: int) -> int:
        """Return what they take at most: once as they come from the shards, and once as they are kept."""
        return 3 * 4 * len(self.numbers) * width

    def novelty(self, team: Team, rows: np.ndarray) -> Novelty | None:
        """Return what is learnt of the rows, which the shards gave one after the other."""
        if not len(self.numbers):
            return None
        given = np.concatenate([part[np.isin(part, self.numbers)] for part in team.parts])
        order = np.argsort(given)
        kept, probe = (rows[order[np.searchsorted(given[order], some)]] for some in (self.kept, self.probe))
        return novelty_between(kept, probe, self.group[self.kept], self.group[self.probe])

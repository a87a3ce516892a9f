"""Shards that work together: in this process, or on the workers of a cluster; and the solver's passes over them."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from .shard import Shard
from .share import Share
from .task import Float, Sums, Task, summed

# What goes over all rows that were put aside.
PASSES = frozenset({"run", "losses", "keep", "gram", "project", "class_means", "right", "judge"})


class Team:
    """Shards, asked all at once.

    Attributes
    ----------
    name : str
        Of the engine.
    parts : list of ndarray
        The images of each shard, by their numbers.
    n_views, memory : int
        As in `Share`.
    passes : int
        How often all rows were gone over.
    """

    name: str

    def __init__(self, share: Share, parts: list[np.ndarray]) -> None:
        self.n_views, self.memory = share.views.count, share.memory
        self.parts, self.passes = parts, 0

    def every(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of each shard, and return what each returned, in the order of the shards."""
        self.passes += method in PASSES
        return self._call(method, arguments)

    def _call(self, method: str, arguments: tuple[Any, ...]) -> list[Any]:
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what the shards hold."""
        raise NotImplementedError


class LocalTeam(Team):
    """One shard, in this process.

    Attributes
    ----------
    shard : Shard
    """

    name = "local"

    def __init__(self, share: Share) -> None:
        super().__init__(share, [np.arange(len(share.digest))])
        self.shard = Shard(share)

    def _call(self, method: str, arguments: tuple[Any, ...]) -> list[Any]:
        return [getattr(self.shard, method)(*arguments)]

    def close(self) -> None:
        """Let memory and disk go."""
        self.shard.close()


def total(team: Team, method: str, *arguments: Any) -> Any:
    """Return the sum of what the shards return: numbers, arrays, or what else can be added; dicts name by name."""
    first, *others = team.every(method, *arguments)
    for other in others:
        first = {name: first[name] + other[name] for name in first} if isinstance(first, dict) else first + other
    return first


def share_of(share: Share, images: np.ndarray, place: tuple[int, int] = (0, 1)) -> Share:
    """Return what belongs to some images of a share, by their numbers in it; it is one of so many shards."""
    picked = np.flatnonzero(np.isin(images, share.picked))
    return Share(
        share.root, share.spaces, share.views, share.digest[images], share.target[images], share.fold[images],
        picked, share.memory, share.threads, share.device, place,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Rows that lie in shards; they are never read here. See `headstart.classify.task.Rows`."""

    shape: tuple[int, int]

    @property
    def dtype(self) -> Float:
        """In which products are computed."""
        return np.dtype(np.float32)

    def blocks(self) -> NoReturn:
        """Raise: the rows are asked for sums where they are."""
        raise TypeError("rows of shards are read by the shards alone")


class TeamPasses:
    """Passes over the rows of all shards; see `headstart.classify.task.PassesLike`.

    Parameters
    ----------
    team : Team
    task : Task
        The whole task, whose rows are elsewhere.
    folds : bool
        Whether each fit leaves a fold out, or all rows are fitted.
    """

    def __init__(self, team: Team, task: Task, *, folds: bool) -> None:
        self.task, self.count = task, 0
        self.pool: Executor | None = None
        self._team, self._folds = team, folds

    def run(self, W: np.ndarray, active: np.ndarray, *, curvature: bool = False) -> Sums:
        """Compute loss and gradient of the active fits, as `PassesLike` says."""
        self.count += 1
        return summed(self._team.every("run", W, active, curvature, self._folds))

    def decide(self, W: np.ndarray) -> NoReturn:
        """Raise: logits of all images would have to travel. Shards say what comes of them, see `Shard.losses`."""
        raise TypeError("logits stay in the shards")

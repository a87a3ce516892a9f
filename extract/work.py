"""What one process has to do: some images, the networks that they go through, and the cache that the rows go to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..cache.index import KeyIndex
from ..cache.store import FeatureStore
from .batches import Target
from .embedder import Embedder
from .runner import Outcome, run
from .suspects import Watch


@dataclass(frozen=True, slots=True)
class Work:
    """Images to look at.

    Attributes
    ----------
    names : list of bytes, N
        Paths relative to `base`, or absolute.
    stat : ndarray of shape (N, 4), dtype int64
        What the files were when they were listed.
    todo : ndarray of shape (n,), dtype int64
        Which of them to look at, in this order.
    base : bytes
        Folder of the names.
    shares : int, default 1
        How many shares of this size the run was divided into.
    """

    names: list[bytes]
    stat: np.ndarray
    todo: np.ndarray
    base: bytes
    shares: int = 1

    def share(self, number: int, count: int) -> Work:
        """Return one of `count` shares of what is to do, about equal, with no more than its own names."""
        mine = np.array_split(self.todo, count)[number]
        return Work([self.names[row] for row in mine.tolist()], self.stat[mine], np.arange(len(mine)), self.base, count)


@dataclass(frozen=True, slots=True)
class Hooks:
    """How a run is told to stop, and tells how it goes; see `headstart.extract.runner.run`."""

    stopped: Callable[[], bool] = lambda: False
    progress: Callable[[int], None] = lambda _: None
    on_rate: Callable[[float, int], None] = lambda _rate, _done: None


def embed_work(
    store: FeatureStore,
    embedders: Sequence[Embedder],
    held: dict[str, KeyIndex],
    work: Work,
    descriptor: int | None,
    hooks: Hooks,
) -> Outcome:
    """Embed images in this process.

    Parameters
    ----------
    store : FeatureStore
        In which `prepare` was called for all spaces.
    embedders : sequence of Embedder
    held : dict of str to KeyIndex
        What the cache holds, by space.
    work : Work
    descriptor : int or None
        The file in which this process is announced, for `Watch`.
    hooks : Hooks

    Returns
    -------
    Outcome
        Without `embedded` and `misses`.
    """
    spaces = [space for embedder in embedders for space in embedder.spaces]
    expected = len(work.todo) * work.shares * sum(space.row_bytes for space in spaces)
    alone = work.shares == len(spaces) == 1
    with contextlib.ExitStack() as stack:
        targets = [
            Target(
                embedder,
                tuple(held[space.id] for space in embedder.spaces),
                tuple(
                    stack.enter_context(store.writer(space, expected=expected, alone=alone))
                    for space in embedder.spaces
                ),
            )
            for embedder in embedders
        ]
        watch = stack.enter_context(Watch(store.root, descriptor, alone=work.shares == 1))
        outcome = run(
            work.names, work.stat, work.todo, work.base, targets, embedders[0].run, store.root,
            watch=watch, stopped=hooks.stopped, progress=hooks.progress, on_rate=hooks.on_rate,
        )  # fmt: skip
        outcome.tried = watch.tried
        return outcome

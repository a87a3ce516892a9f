"""What one process does: images of a run through the networks, and the rows into the cache."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from ..cache.index import KeyIndex
from ..cache.store import FeatureStore
from .batches import Target
from .embedder import Embedder
from .runner import Hooks, Outcome, Steps, Work, result_of, run_in_steps
from .suspects import Watch


def embed_work(
    store: FeatureStore,
    embedders: Sequence[Embedder],
    held: dict[str, KeyIndex],
    work: Work,
    descriptor: int | None,
    hooks: Hooks,
) -> Outcome:
    """Embed images in this process; see `embed_in_steps`."""
    return result_of(embed_in_steps(store, embedders, held, work, descriptor, hooks))


def embed_in_steps(
    store: FeatureStore,
    embedders: Sequence[Embedder],
    held: dict[str, KeyIndex],
    work: Work,
    descriptor: int | None,
    hooks: Hooks,
) -> Steps:
    """Embed images in this process, an image a step.

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

    Yields
    ------
    tuple of (int, Outcome)
        As `headstart.extract.runner.run_in_steps`.

    Returns
    -------
    Outcome
        Without `embedded` and `misses`.
    """
    spaces = [space for embedder in embedders for space in embedder.spaces]
    expected = work.rows * work.shares * sum(space.row_bytes for space in spaces)
    alone, recipes = work.shares == len(spaces) == 1, work.views.recipes()
    with contextlib.ExitStack() as stack:
        targets = [
            Target(
                embedder,
                tuple(held[space.id] for space in embedder.spaces),
                tuple(
                    stack.enter_context(store.writer(space, expected=expected, alone=alone, recipes=recipes))
                    for space in embedder.spaces
                ),
            )
            for embedder in embedders
        ]
        watch = stack.enter_context(Watch(store.root, descriptor, alone=work.shares == 1))
        outcome = yield from run_in_steps(work, targets, embedders[0].run, store.root, watch, hooks)
        outcome.tried = watch.tried
        outcome.device = embedders[0].device.kind if outcome.images else "none"
        return outcome

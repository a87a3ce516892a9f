"""Which engine does a run's work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..embedder import Embedder
from ..options import EngineOptions, RunOptions
from ..scale import processes_for
from .local import LocalEngine
from .shards import Engine, shard_count


@contextlib.contextmanager
def engine_for(
    options: EngineOptions, embedders: Sequence[Embedder], images: int, *, at_once: bool
) -> Iterator[Engine | None]:
    """Yield what is to embed so many images, None for this process alone.

    Parameters
    ----------
    options : EngineOptions
    embedders : sequence of Embedder
    images : int
    at_once : bool
        Whether rows are wanted as they come, for which several processes are not begun for speed alone.

    Raises
    ------
    MissingExtraError
        The engine's package is not installed.
    EngineError
        The cluster cannot be reached.
    """
    if options.local:
        count = processes_for(embedders[0].run, embedders, images, at_once=at_once)
        yield LocalEngine(count, embedders[0].device.kind == "cuda") if count > 1 else None
        return
    with _cluster(options, embedders[0].run) as engine:
        yield engine


def division(options: EngineOptions, run: RunOptions, images: int) -> tuple[int, int]:
    """Return how many processes there are now to share so many images, and into how many shards they would be cut.

    What a machine with GPUs would start by itself is not counted: it is found out when there is work for it.

    Raises
    ------
    MissingExtraError, EngineError
        As `engine_for`.
    """
    if options.local:
        workers = processes_for(replace(run, processes=run.processes or 1), [], images)
    else:
        with _cluster(options, run) as engine:
            workers = engine.workers()
    if not images:
        return workers, 0
    return workers, 1 if options.local and workers == 1 else shard_count(images, workers, options.shard_images)


def _cluster(options: EngineOptions, run: RunOptions) -> contextlib.AbstractContextManager[Engine]:
    assert options.address is not None
    if options.engine == "dask":
        from .dask_engine import dask_engine

        return dask_engine(options.address, run)
    from .ray_engine import ray_engine

    return ray_engine(options.address, run)

"""What `predict` does from its words to its lines: check what is asked for, load the model, classify."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

from ..cache.source import Named, Source, source_of
from ..errors import UsageError
from ..extract.options import RunOptions
from .model import load_model
from .predict import Classifier, views_for
from .prediction_grid import plan_grid
from .prediction_table import Predictions
from .sorting import Sorter

logger = logging.getLogger("headstart.classify")

STDIN = Path("-")


def predict(
    model: Path,
    paths: Iterable[Source],
    *,
    cache: str | os.PathLike[str] | None = None,
    form: str = "table",
    top: int | None = None,
    coverage: float | None = None,
    min_probability: float = 0.0,
    sort_into: Path | None = None,
    grid: Path | None = None,
    grid_limit: int | None = None,
    overwrite: bool = False,
    views: int | None = None,
    augment: str | None = None,
    stopped: Callable[[], bool] = lambda: False,
    **run: Any,
) -> Predictions:
    """Classify pictures with a saved model, one after the other as the result is read.

    Parameters
    ----------
    model : Path
        The model's folder.
    paths : iterable of Path
        Pictures, and folders of pictures.
    cache : Path, optional
        The cache's folder.
    form, top
        As `Predictions`.
    coverage, min_probability, stopped
        As `Classifier.stream`.
    sort_into : Path, optional
        Folder into which pictures are copied by class; see `Sorter`.
    grid, grid_limit, overwrite
        As `plan_grid`.
    views, augment
        As `views_for`.
    **run
        Fields of `RunOptions`.

    Returns
    -------
    Predictions

    Raises
    ------
    ModelError, DataError, UsageError, OutputError
        As their messages say.
    """
    paths, options = list(paths), RunOptions(**run)
    drawing = plan_grid(grid, grid_limit, overwrite, options.max_pixels)
    saved = load_model(model)
    classifier = Classifier(saved, cache, options, views_for(saved, views, augment))
    if classifier.views.count > 1:
        logger.info("probabilities are averages over %d views (%s)", classifier.views.count, classifier.views.augment)
    rows = classifier.stream(paths, coverage=coverage, min_probability=min_probability, stopped=stopped)
    sorter = None if sort_into is None else Sorter(sort_into, classifier.classes, paths)
    return Predictions(
        rows, classifier.classes, form=form, top=top, grid=drawing, sorter=sorter, views=classifier.views
    )


def read_paths(paths: Iterable[Named], listed: IO[bytes]) -> list[Source]:
    """Return the paths that were named, with those of a list instead of ``-``.

    Parameters
    ----------
    paths : iterable of Path
    listed : binary file
        The list, which is read to its end where it is asked for: one path a line, or, where there is a NUL byte in it,
        one before each of those.
    """
    sources = [source_of(path) for path in paths]
    named = [path for path in sources if path != STDIN]
    if len(named) == len(sources):
        return named
    found = paths_from_lines(listed.read())
    if not found and not named:
        raise UsageError("the list on standard input is empty")
    return named + found


def paths_from_lines(data: bytes) -> list[Source]:
    """Return the paths of a list: one a line, or, where there is a NUL byte in it, one before each of those."""
    if b"\0" in data:
        return [source_of(os.fsdecode(line)) for line in data.split(b"\0") if line]
    return [source_of(os.fsdecode(_without_return(line))) for line in data.split(b"\n") if line.rstrip(b"\r")]


def _without_return(line: bytes) -> bytes:
    """Return a line of a list made on Windows without its carriage return, unless a file's name ends in one."""
    return line[:-1] if line.endswith(b"\r") and not os.path.lexists(line) else line

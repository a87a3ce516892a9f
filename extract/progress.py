"""A progress bar with rate and time left on a terminal, and nothing anywhere else."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import sys
from collections.abc import Callable, Iterator

_shown = contextvars.ContextVar("shown", default=False)


@contextlib.contextmanager
def progress_bar(total: int, what: str, unit: str = "img") -> Iterator[Callable[[int], None]]:
    """Show progress on standard error while the block runs; nothing inside a block that shows it already.

    Parameters
    ----------
    total : int
        Steps in all.
    what : str
        The word before the bar.
    unit : str, default "img"
        What a step is.

    Yields
    ------
    callable
        To be told the number of steps since the last call.
    """
    quiet = not logging.getLogger("headstart").isEnabledFor(logging.INFO)
    if quiet or not total or _shown.get() or sys.stderr is None or not sys.stderr.isatty():
        yield lambda _: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=what, unit=unit, file=sys.stderr, dynamic_ncols=True, leave=False) as bar:
        _shown.set(True)
        try:
            yield lambda count: bar.update(count) and None
        finally:
            _shown.set(False)

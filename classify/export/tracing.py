"""Tracing a module of torch, without what torch says meanwhile."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ...errors import HeadstartError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

_TALKERS = ("torch", "onnxscript", "onnx_ir")
logger = logging.getLogger("headstart.classify")


def traced(module: nn.Module, examples: tuple[Tensor, ...], dynamic: tuple[Any, ...]) -> ExportedProgram:
    """Trace a module into a graph that runs without it.

    Parameters
    ----------
    module : Module
        In eval mode; it takes any number of tensors.
    examples : tuple of Tensor
        What it is called with; no axis that varies may be 0 or 1 long.
    dynamic : tuple
        Which axes vary, as `torch.export` takes them: one entry an argument of the module.

    Raises
    ------
    HeadstartError
        torch cannot.
    """
    import torch

    try:
        with torch.no_grad(), quiet():
            # Strictly, that is by reading the code: the exception by which a tap ends the pass would confuse a tracer
            # that only watches modules being called.
            return torch.export.export(module, examples, dynamic_shapes=dynamic, strict=True)
    except Exception as error:
        # What torch raises where it meets something that it cannot trace is of two dozen classes.
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise HeadstartError(f"this network cannot be traced by torch.export: {reason}; --debug shows more") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what torch and its exporter print, log and warn of from the terminal, unless debugging."""
    if logger.isEnabledFor(logging.DEBUG):
        yield
        return
    talkers = [logging.getLogger(name) for name in (*_TALKERS, *_children(_TALKERS))]
    levels = [talker.level for talker in talkers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for talker in talkers:
            talker.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for talker, level in zip(talkers, levels, strict=True):
                talker.setLevel(level)


def _children(names: tuple[str, ...]) -> list[str]:
    """Return the loggers below some that have a level of their own, as torch gives them."""
    loggers = logging.Logger.manager.loggerDict.items()
    below = tuple(f"{name}." for name in names)
    return [name for name, found in loggers if name.startswith(below) and isinstance(found, logging.Logger)]

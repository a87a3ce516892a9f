"""What a run and the processes that share its work tell each other, and how.

The messages are pickled. They go through pipes between processes of one run and are never at rest, so whoever could
put another one there could run code here anyway.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import IO

from ..cache.place import Place
from ..cache.space import FeatureSpace
from .options import RunOptions, SpaceOptions
from .runner import Outcome, Work


@dataclass(frozen=True, slots=True)
class Order:
    """What the parent tells a process: its number, the spaces of each network, its share, and the cores it may use."""

    number: int
    cache: Place
    networks: list[tuple[list[FeatureSpace], list[SpaceOptions]]]
    run: RunOptions
    work: Work
    cores: list[int]


@dataclass(frozen=True, slots=True)
class Message:
    """What a process tells the parent: one of the fields.

    Attributes
    ----------
    log : tuple of (int, str), optional
        Level and text of a line for people.
    progress : int
        Images since the last message.
    rate : tuple of (float, int), optional
        Images a second, and images so far.
    error : tuple of (str, str), optional
        Class and text of what ended it.
    trace : str
        Where that was.
    outcome : Outcome, optional
        What it did; the last message.
    """

    log: tuple[int, str] | None = None
    progress: int = 0
    rate: tuple[float, int] | None = None
    error: tuple[str, str] | None = None
    trace: str = ""
    outcome: Outcome | None = None


def send(stream: IO[bytes], message: Order | Message) -> None:
    """Write one message.

    Raises
    ------
    OSError
        Nobody listens.
    """
    pickle.dump(message, stream)
    stream.flush()


def receive(stream: IO[bytes]) -> Order | Message:
    """Wait for the next message.

    Raises
    ------
    EOFError
        There is no further one, or it ends in the middle.
    """
    try:
        message: Order | Message = pickle.load(stream)
    except pickle.UnpicklingError as error:
        raise EOFError("a message was cut short") from error
    return message

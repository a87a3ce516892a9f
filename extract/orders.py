"""What a run and those who share its work tell each other, and how it goes through a pipe.

The messages are pickled. They go between processes of one run, through pipes or through the scheduler of a cluster, and
are never at rest, so whoever could put another one there could run code here anyway.
"""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..cache.space import FeatureSpace
from .options import RunOptions, SpaceOptions
from .runner import Outcome, Work

Network = tuple[list[FeatureSpace], list[SpaceOptions]]

_LENGTH = 8  # bytes before a message that say how long it is


@dataclass(frozen=True, slots=True)
class Token:
    """By which a worker of a cluster shows that it is fit for a run.

    Attributes
    ----------
    version : str
        Of headstart.
    path : Path
        A small file in the cache.
    content : bytes
        What it holds.
    files : tuple of bytes
        Files outside the cache that the run needs.
    """

    version: str
    path: Path
    content: bytes
    files: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be done of a run by whoever gets it.

    Attributes
    ----------
    run_name : str
        No two runs have the same.
    number : int
        Of the shard.
    cache : Path
    networks : list of tuple of (list of FeatureSpace, list of SpaceOptions)
        The spaces of each network, and what leads to them.
    run : RunOptions
    work : Work
        Without perceptual hashes that are known.
    hashes_of : str or None
        The dataset in whose latest listing those are; None where none are wanted.
    token : Token or None
        What to check before the first shard of a run; None on the run's own machine.
    """

    run_name: str
    number: int
    cache: Path
    networks: list[Network]
    run: RunOptions
    work: Work
    hashes_of: str | None
    token: Token | None


@dataclass(frozen=True, slots=True)
class Record:
    """What became of a shard.

    Attributes
    ----------
    worker : str
        The process that did it.
    outcome : Outcome
        By the places of the images in the shard.
    log : tuple of (int, str)
        Levels and texts of lines for people that have not been told otherwise.
    """

    worker: str
    outcome: Outcome
    log: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Message:
    """What is told of a shard while it is done, or at its end: one of the fields.

    Attributes
    ----------
    log : tuple of (int, str), optional
        Level and text of a line for people.
    through : int, optional
        Images of the shard that have gone through by now.
    error : tuple of (str, str), optional
        Class and text of what ended it.
    trace : str
        Where that was.
    record : Record, optional
        What became of it.
    """

    log: tuple[int, str] | None = None
    through: int | None = None
    error: tuple[str, str] | None = None
    trace: str = ""
    record: Record | None = None


def send(stream: IO[bytes], message: Order | Message) -> None:
    """Write one message.

    Raises
    ------
    OSError
        Nobody listens.
    """
    data = pickle.dumps(message)
    stream.write(len(data).to_bytes(_LENGTH, "little") + data)
    stream.flush()


def receive(descriptor: int) -> Any:
    """Wait for the next message, an `Order` or a `Message`.

    It is read from a descriptor and not from a file object, whose lock a thread that waits would hold when its process
    ends.

    Raises
    ------
    EOFError
        There is no further one, or it ends in the middle.
    """
    length = int.from_bytes(_read(descriptor, _LENGTH), "little")
    return pickle.loads(_read(descriptor, length))


def _read(descriptor: int, count: int) -> bytes:
    read = bytearray()
    while len(read) < count:
        piece = os.read(descriptor, count - len(read))
        if not piece:
            raise EOFError("nothing more comes")
        read += piece
    return bytes(read)

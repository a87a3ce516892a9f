"""What one request may ask for, and how it is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...errors import HeadstartError, UsageError

MIB = 1 << 20
HELD = 8  # bodies of the largest size that may be in memory at once, of all requests together


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may ask for, and all together.

    Attributes
    ----------
    max_bytes : int, default 33,554,432
        Of one request's body. Bodies of all requests together may take eight times that.
    max_pictures : int, default 64
        In one request.
    queue : int, default 256
        Pictures of all requests that may wait or be worked on.
    timeout : float, default 30.0
        Seconds that a request may take to arrive, and again to be worked on, and again to be sent back.
    connections : int, default 512
        That may be open at once.

    Raises
    ------
    UsageError
        A limit that is not above 0.
    """

    max_bytes: int = 32 * MIB
    max_pictures: int = 64
    queue: int = 256
    timeout: float = 30.0
    connections: int = 512

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pictures", "queue", "connections"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UsageError(f"{name} must be a whole number, 1 or more; got {value!r}")
        if not 0 < self.timeout < math.inf:
            raise UsageError(f"timeout must be a number of seconds above 0; got {self.timeout!r}")
        if self.queue < self.max_pictures:
            raise UsageError(
                f"queue must have room for the {self.max_pictures} pictures of a request; got {self.queue}"
            )


class RequestError(HeadstartError, ValueError):
    """A request that is refused.

    Parameters
    ----------
    status : int
        Of the answer, 400 or more.
    message : str
        One line for whoever asked.
    headers : dict of str to str, optional
        What the answer says beside the message.
    """

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}


def busy(what: str) -> RequestError:
    """Return the refusal of what there is no room for at the moment."""
    return RequestError(503, f"{what}; try again in a moment", {"Retry-After": "1"})

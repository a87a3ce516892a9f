"""What the server does with pictures, whatever protocol they came by: decode in threads, embed in batches, answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from ...errors import DecodeError
from ..prediction import UNLIKE, Prediction
from .batcher import Batcher, FullError, Room
from .limits import HELD, Limits, busy
from .model_runner import Inputs, ModelRunner
from .uploads import Picture

logger = logging.getLogger("headstart.classify")


@dataclass(slots=True)
class Counts:
    """What was done since the start.

    Attributes
    ----------
    requests : int
        That asked for predictions.
    pictures : int
        That were answered, readable or not.
    unreadable : int
    refused : int
        Requests that were answered with a status of 400 or more.
    """

    requests: int = 0
    pictures: int = 0
    unreadable: int = 0
    refused: int = 0


class Service:
    """Answers requests for predictions; to be used within one event loop.

    Parameters
    ----------
    runner : ModelRunner
        Loaded.
    limits : Limits
    name : str
        Of the model, for people.
    batch_size : int
        Pictures a forward pass, at most.
    workers : int
        Threads that decode.
    wait : float, default 0
        Seconds that a batch which is not full waits for more pictures.
    facts : dict, optional
        What `about` says beside the model, its classes and the limits.
    """

    def __init__(
        self,
        runner: ModelRunner,
        limits: Limits,
        name: str,
        *,
        batch_size: int,
        workers: int,
        wait: float = 0.0,
        facts: dict[str, Any] | None = None,
    ) -> None:
        self.limits = limits
        self.held = Room(HELD * limits.max_bytes)
        self.counts = Counts()
        self._runner = runner
        self._name = name
        self.batch_size = batch_size
        self.device = runner.device
        self._facts = facts or {}
        self._room = Room(limits.queue)
        self._decoders = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self._batcher = Batcher[Inputs, Prediction](runner.predict, batch_size=batch_size, wait=wait)

    async def work(self) -> None:
        """Send batches through the model until cancelled."""
        try:
            await self._batcher.run()
        finally:
            self._batcher.close()
            self._decoders.shutdown(wait=False, cancel_futures=True)

    def about(self) -> dict[str, Any]:
        """Return what a client may want to know: the model and its classes, and the limits."""
        model = self._runner.classifier.model
        return {
            "ready": True,
            "model": self._name,
            "kind": model.kind,
            "classes": list(model.classes),
            "multi_label": model.multi_label,
            "unlike": UNLIKE,
            "limits": {
                "max_bytes": self.limits.max_bytes,
                "max_pictures": self.limits.max_pictures,
                "max_pixels": self._runner.classifier.run.max_pixels,
            },
            **self._facts,
        }

    @property
    def batches(self) -> int:
        """How many batches went through the network."""
        return self._batcher.batches

    async def predict(self, pictures: Sequence[Picture]) -> list[Prediction]:
        """Say what the model sees in pictures; one that cannot be read has an error instead.

        Raises
        ------
        RequestError
            503: too many are waiting, or it took longer than the limit.
        """
        try:
            with self._room.share() as take:
                take(len(pictures))
                async with asyncio.timeout(self.limits.timeout):
                    rows = await self._all(pictures)
        except FullError:
            raise busy(f"{self._room.taken} pictures are waiting already") from None
        except TimeoutError:
            raise busy(f"the answer took longer than {self.limits.timeout:g} s") from None
        self.counts.pictures += len(rows)
        self.counts.unreadable += sum(row.error is not None for row in rows)
        return rows

    async def _all(self, pictures: Sequence[Picture]) -> list[Prediction]:
        """Work on pictures side by side; the first error ends the others."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._one(picture)) for picture in pictures]
        except* Exception as errors:  # noqa: BLE001  (raised again, without its group)
            raise _first(errors) from None
        return [task.result() for task in tasks]

    async def _one(self, picture: Picture) -> Prediction:
        loop = asyncio.get_running_loop()
        try:
            inputs = await loop.run_in_executor(self._decoders, self._runner.read, picture.data)
        except DecodeError as error:
            return Prediction(picture.name, error=str(error))
        return replace(await self._batcher.submit(inputs), path=picture.name)


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error

"""Whether to compile a network: the seconds that takes are weighed against what the images left would gain.

Both are measured on this machine, once, and remembered in the cache. Before that, a guess decides.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from ..cache.memo import recall, remember
from ..cache.place import Place
from ..errors import CacheError, DeviceError
from .device import available_cores, use_threads
from .taps import drift

if TYPE_CHECKING:
    from torch import Tensor

    from .embedder import Embedder, Forward

logger = logging.getLogger("headstart.extract")

# What compiling is taken for where it was not measured yet: seconds, and how much faster. Measured on 2 cores: 7 s and
# 1.22 times (mobilenet_v3_small), 13 s and 1.05 times (resnet18); on an H100 4 to 15 s and 1.5 times (resnet18).
GUESS = {"cpu": (15.0, 1.1), "cuda": (15.0, 1.4)}
# Of the largest number of a row. In half precision any other order of operations moves rows about as far as the
# precision itself does, which `benchmarks/gpu.py` measures.
TOLERANCE = {"float32": 1e-4, "float16": 3e-2, "bfloat16": 3e-1}
WORTH_KEEPING = 1.02
OPTIONS: dict[str, dict[str, Any]] = {
    "cpu": {"options": {"freezing": True}},
    "cuda": {"mode": "reduce-overhead"},  # CUDA graphs
}


class _MovedError(ValueError):
    """The compiled network does not compute the same."""


class Compiler:
    """Compiles the network of an embedder where that repays.

    Parameters
    ----------
    embedder : Embedder
    cache : Path or RemotePath
        Where figures are remembered.
    """

    def __init__(self, embedder: Embedder, cache: Place) -> None:
        self._embedder = embedder
        self._cache = cache
        self._seconds = 0.0

    def repays(self, images: int, rate: float) -> bool:
        """Tell whether `images` more, at `rate` a second in the network as it is, gain more than compiling takes."""
        device = self._embedder.device
        if device.kind not in GUESS:
            return False
        known = recall(self._cache, self._key())
        seconds, gain = (known["seconds"], known["gain"]) if known else GUESS[device.kind]
        saved = images / rate * (1 - 1 / gain) - seconds if gain > 0 else 0.0
        logger.log(
            logging.INFO if saved > 0 else logging.DEBUG,
            "%s %s: %d images left at %.0f/s, compiling takes %.0f s and makes it %.2f times as fast (%s)",
            "compiling" if saved > 0 else "not compiling", self._embedder.name, images, rate, seconds, gain,
            "as measured before" if known else "a guess",
        )  # fmt: skip
        return saved > 0

    def compile(self) -> None:
        """Compile, for batches of the size that the embedder has now, and check the result.

        Raises
        ------
        DeviceError
            It was asked for, and cannot be had.
        """
        embedder, begin = self._embedder, time.perf_counter()
        try:
            embedder.faster = (embedder.batch_size, embedder.computed(self._compiled))
        except _MovedError as error:
            self._give_up(str(error), error)
            self._remember(0.0)
        # What torch's compiler and the C++ compiler that it calls may raise is in no list; the network still runs.
        except Exception as error:  # noqa: BLE001
            self._give_up(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", error)
        self._seconds = time.perf_counter() - begin

    def judge(self, before: float, after: float) -> None:
        """Keep the compiled network if it is faster (images a second before and after), and remember the figures."""
        gain = after / before
        if self._embedder.faster is None:
            return
        logger.info(
            "compiled in %.1f s: %.0f images/s in the network, %.0f before%s",
            self._seconds, after, before, "" if gain >= WORTH_KEEPING else "; going on as before",
        )  # fmt: skip
        if gain < WORTH_KEEPING:
            self._embedder.faster = None
        self._remember(gain)

    def _compiled(self) -> Forward:
        import torch

        embedder = self._embedder
        backbone, size, side = embedder.backbone, embedder.batch_size, embedder.preprocess.crop
        tap = torch.compile(backbone.tap, dynamic=False, **OPTIONS[embedder.device.kind])

        def forward(batch: Tensor) -> Tensor:
            with torch.inference_mode():
                rows: Tensor = tap(backbone.normalise(batch))
                return rows.clone() if embedder.device.kind == "cuda" else rows  # a CUDA graph writes there again

        noise = torch.randint(0, 256, (size, side, side, 3), generator=torch.Generator().manual_seed(0))
        batch = noise.to(torch.uint8).to(backbone.device)
        # With the threads that batches get: for another number of them torch compiles again.
        if embedder.threads is not None:
            use_threads(embedder.threads)
        with embedder.device.autocast(embedder.spaces[0].precision):
            moved = drift(
                backbone.embed(batch).float(), forward(batch).float(), [output.dim for output in backbone.outputs]
            )
        if moved > TOLERANCE[embedder.spaces[0].precision]:
            raise _MovedError(f"it moves embeddings by {moved:.1e}")
        return forward

    def _give_up(self, why: str, error: Exception) -> None:
        if self._embedder.run.compile == "always":
            raise DeviceError(f"{self._embedder.name} cannot be compiled ({why}); pass --compile never") from error
        logger.info("%s is not compiled: %s", self._embedder.name, why)

    def _key(self) -> dict[str, Any]:
        import torch

        embedder = self._embedder
        return {
            "compiled": embedder.name,
            "layers": [space.layer for space in embedder.spaces],
            "crop": embedder.preprocess.crop,
            "batch": embedder.batch_size,
            "precision": embedder.spaces[0].precision,
            "device": embedder.device.name,
            "cores": available_cores(),
            "torch": torch.__version__,
        }

    def _remember(self, gain: float) -> None:
        try:
            remember(self._cache, self._key(), {"seconds": round(self._seconds, 1), "gain": round(gain, 3)})
        except CacheError as error:  # only a guess is lost
            logger.debug("what compiling gained was not remembered: %s", error)

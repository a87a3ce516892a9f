"""JPEGs decoded and resized on an NVIDIA GPU by nvImageCodec, beside the threads that decode on the processor.

It is offered pictures and takes those that it can be trusted with, as long as it has room; the rest stays with the
processor's threads, so that both work at once. Only plain JPEGs are taken: three components, upright, with their end
marker, of a size within the limit. What it refuses, the processor judges by the rules of `headstart.extract.decode`.

Its inverse transform and its resizing round otherwise than the processor's do, which moves embeddings by more than
1e-4. So rows that it may have had a part in are a feature space of their own, and it has to be asked for.

The library decodes on a CPU too, which no run is helped by, but tests are.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import queue
import threading
from collections import defaultdict
from collections.abc import Collection
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import simplejpeg

from ..errors import DeviceError, MissingExtraError
from .decode import jpeg_orientation
from .device import Device
from .preprocess import MAX_ASPECT, Preprocess, to_inputs

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("headstart.extract")

FAST_PATH = "nvimagecodec"
"""Names the feature spaces that it may have had a part in."""

BATCH = 64  # pictures that it is given at once, at most; as many more may wait
_END_MARKER = b"\xff\xd9"
_TAIL = 64  # bytes at the end among which the end marker must be; cameras put some behind it

Inputs = dict[Preprocess, tuple["Tensor", bool]]


@dataclass(frozen=True, slots=True)
class _Request:
    data: bytes
    wanted: frozenset[Preprocess]
    answer: Future[Inputs | None] = field(default_factory=Future)


class GpuDecoder:
    """Decodes in batches, in a thread of its own. Use it as a context manager.

    Parameters
    ----------
    device : Device
        "cuda"; or "cpu", for tests.
    max_pixels : int
        Larger pictures are not taken.

    Raises
    ------
    MissingExtraError
        nvImageCodec is not installed.
    DeviceError
        It cannot work here.
    """

    def __init__(self, device: Device, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._decoder, self._params = _library(device)
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(2 * BATCH)
        self._thread = threading.Thread(target=self._work, name="gpu-decode", daemon=True)

    def __enter__(self) -> GpuDecoder:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._requests.put(None)
        self._thread.join()

    def offer(self, data: bytes, wanted: Collection[Preprocess]) -> Future[Inputs | None] | None:
        """Offer a picture.

        Parameters
        ----------
        data : bytes
            The whole file.
        wanted : collection of Preprocess
            What is to be made of it.

        Returns
        -------
        Future or None
            None where it does not take it. The future gives (S, S, 3) uint8 on the device for each of `wanted`, and
            whether the picture was enlarged for it; or None where the picture could not be decoded after all.
        """
        if not _is_plain(data, self._max_pixels) or not self._room.acquire(blocking=False):
            return None
        request = _Request(data, frozenset(wanted))
        self._requests.put(request)
        return request.answer

    def _work(self) -> None:
        ended = False
        while not ended:
            batch = [self._requests.get()]
            with contextlib.suppress(queue.Empty):
                while len(batch) < BATCH:
                    batch.append(self._requests.get_nowait())
            requests = [request for request in batch if request is not None]
            ended = len(requests) < len(batch)
            self._answer(requests)

    def _answer(self, requests: list[_Request]) -> None:
        try:
            answers = self._decoded(requests) if requests else []
        # Whatever goes wrong here, memory that is full for one, goes wrong for this batch: the processor decodes it.
        except Exception as error:  # noqa: BLE001
            logger.debug("a batch of pictures is decoded by the processor: %r", error)
            answers = [None] * len(requests)
        for request, answer in zip(requests, answers, strict=True):
            self._room.release()
            request.answer.set_result(answer)

    def _decoded(self, requests: list[_Request]) -> list[Inputs | None]:
        import torch

        pictures = self._decoder.decode([request.data for request in requests], params=self._params)
        groups: dict[tuple[tuple[int, ...], frozenset[Preprocess]], list[int]] = defaultdict(list)
        tensors = {place: _tensor(picture) for place, picture in enumerate(pictures) if picture is not None}
        for place, tensor in tensors.items():
            if tensor.shape[-1] == 3:
                groups[tuple(tensor.shape), requests[place].wanted].append(place)
        answers: list[Inputs | None] = [None] * len(requests)
        for (_, wanted), places in groups.items():
            images = torch.stack([tensors[place] for place in places])
            made = {preprocess: to_inputs(images, preprocess) for preprocess in wanted}
            for number, place in enumerate(places):
                answers[place] = {
                    preprocess: (inputs[number].contiguous(), enlarged)
                    for preprocess, (inputs, enlarged) in made.items()
                }
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.current_stream().synchronize()  # other threads, on other streams, find them complete
        return answers


def gpu_decoder(wanted: str, device: Device, max_pixels: int) -> GpuDecoder | None:
    """Return a decoder for pictures that are decoded as `wanted`: by the "gpu", or by "either".

    Where rows are added to such spaces on a machine that has none, a laptop say, the processor decodes all: that it had
    a part is in their name already.

    Raises
    ------
    DeviceError, MissingExtraError
        It was asked for, and there is no NVIDIA GPU, or nvImageCodec is not installed or does not work.
    """
    try:
        require_gpu(device)
        return GpuDecoder(device, max_pixels)
    except (DeviceError, MissingExtraError) as error:
        if wanted == "gpu":
            raise
        logger.info("pictures are decoded by the processor: %s", error)
        return None


def require_gpu(device: Device) -> None:
    """Check that a device can decode.

    Raises
    ------
    DeviceError
        It is no NVIDIA GPU.
    """
    if device.kind != "cuda":
        raise DeviceError(f"--decoder gpu needs an NVIDIA GPU, and this runs on {device.kind}; pass --decoder cpu")


def _library(device: Device) -> tuple[Any, Any]:
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.nvimgcodec") is None:
        raise MissingExtraError(
            'decoding on a GPU needs nvImageCodec, which is not installed; run `pip install "headstart[gpu]"`'
        )
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")  # a picture that it cannot decode is no news for people
    from nvidia import nvimgcodec

    on_cpu = {"device_id": nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY, "backends": [nvimgcodec.Backend(nvimgcodec.CPU_ONLY)]}
    try:
        decoder = nvimgcodec.Decoder(**({} if device.kind == "cuda" else on_cpu))
    except RuntimeError as error:
        raise DeviceError(f"nvImageCodec cannot work here ({error}); pass --decoder cpu") from error
    # Orientation is left alone: only upright pictures are taken.
    return decoder, nvimgcodec.DecodeParams(apply_exif_orientation=False, color_spec=nvimgcodec.ColorSpec.SRGB)


def _tensor(picture: Any) -> Tensor:
    """Return the pixels of a decoded picture, (H, W, channels) uint8, without a copy."""
    import torch

    on_device = "DEVICE" in str(picture.buffer_kind)
    return torch.as_tensor(picture, device="cuda") if on_device else torch.from_numpy(np.asarray(picture))


def _is_plain(data: bytes, max_pixels: int) -> bool:
    """Tell whether a file is a JPEG that any decoder reads alike, as far as its head and its end show."""
    if not data.startswith(b"\xff\xd8\xff") or _END_MARKER not in data[-_TAIL:]:
        return False
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return False
    good_size = height * width <= max_pixels and max(height, width) <= MAX_ASPECT * min(height, width)
    return good_size and space == "YCbCr" and jpeg_orientation(data) == 1

"""Batches on their way to a GPU, in the order of events that a stand-in for torch.cuda records."""

import numpy as np
import pytest
import torch

from headstart.extract.device import Device, exact_float32
from headstart.extract.embedder import Embedder
from headstart.extract.options import RunOptions, SpaceOptions
from headstart.extract.transfer import BUFFERS, Pinned, Plain
from support import make_space


class Cuda:
    """Streams and events that write down what is asked of them."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.events = 0

    def Stream(self):  # noqa: N802
        return self

    def Event(self, **_):  # noqa: N802
        self.events += 1
        return Event(self, self.events)

    def stream(self, _):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def current_stream(self):
        return self

    def wait_stream(self, _):
        self.log.append("wait for the copy")


class Event:
    def __init__(self, cuda: Cuda, number: int) -> None:
        self.cuda, self.number = cuda, number

    def record(self) -> None:
        self.cuda.log.append(f"record {self.number}")

    def synchronize(self) -> None:
        self.cuda.log.append(f"synchronize {self.number}")

    def elapsed_time(self, other: "Event") -> float:
        return 1000.0 * (other.number - self.number)


@pytest.fixture
def pinned(monkeypatch):
    """Page-locked memory and the GPU are ordinary memory here."""
    cuda, empty, to = Cuda(), torch.empty, torch.Tensor.to
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **options: empty(*shape, **options))
    monkeypatch.setattr(
        torch.Tensor,
        "to",
        lambda self, where, **options: self.clone() if where == "cuda" else to(self, where, **options),
    )
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
    monkeypatch.setattr(torch.cuda, "Stream", cuda.Stream)
    monkeypatch.setattr(torch.cuda, "Event", cuda.Event)
    found = Pinned()
    found._cuda = cuda
    return found, cuda


def images(count: int, first: int = 0) -> list[np.ndarray]:
    return [np.full((4, 4, 3), first + number, np.uint8) for number in range(count)]


def test_a_buffer_is_filled_again_only_when_its_copy_is_through(pinned):
    found, cuda = pinned
    batches = [found.to_device(images(3, 10 * turn)) for turn in range(3)]
    copies = [line for line in cuda.log if line in {f"record {n}" for n in (1, 2)} or line.startswith("synchronize")]
    assert copies == [
        "synchronize 1", "record 1", "synchronize 2", "record 2", "synchronize 1", "record 1",
    ]  # fmt: skip
    assert BUFFERS == 2
    for turn, batch in enumerate(batches):
        np.testing.assert_array_equal(batch.numpy(), np.stack(images(3, 10 * turn)))


def test_the_last_image_pads_a_batch_and_larger_batches_get_larger_buffers(pinned):
    found, _ = pinned
    for count, padding in ((2, 2), (5, 0), (1, 3), (4, 4)):
        batch = found.to_device(images(count), padding)
        assert batch[:, 0, 0, 0].tolist() == [*range(count), *[count - 1] * padding]


def test_images_that_are_there_already_keep_their_places(pinned):
    found, _ = pinned
    mixed = [torch.from_numpy(image) if number % 2 else image for number, image in enumerate(images(5))]
    assert found.to_device(mixed, 2)[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 4, 4]
    assert found.to_device([torch.from_numpy(image) for image in images(3)])[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert Plain(Device("cpu", "")).to_device(mixed, 2)[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 4, 4]


def test_rows_are_waited_for_by_an_event_of_their_own(pinned):
    found, cuda = pinned
    found.to_device(images(1))
    first = found.fetch(torch.ones(1, 2))
    found.to_device(images(1))
    found.fetch(torch.zeros(1, 2))
    cuda.log.clear()
    assert first().tolist() == [[1.0, 1.0]]
    assert len(cuda.log) == 1 and cuda.log[0].startswith("synchronize"), "one event, and no whole stream"


def test_the_time_of_a_batch_is_that_between_its_own_events(pinned):
    found, cuda = pinned
    found.to_device(images(1))
    begun = cuda.events
    seconds = found.finished(0.0)
    assert seconds() == cuda.events - begun
    found.to_device(images(1))
    found.to_device(images(1))  # halves of a batch that was too large
    begun = cuda.events - 1
    assert found.finished(0.0)() == cuda.events - begun


# The device


def test_threads_of_torch_are_put_back_when_a_run_is_over(lite):
    space = make_space(dim=1280, preprocess=lite.preprocess.as_dict())
    embedder, before = Embedder([space], [SpaceOptions()], RunOptions(device="cpu"), lite), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        embedder.load()
        embedder.embed(np.zeros((1, 224, 224, 3), np.uint8))
        embedder.rest()
        assert torch.get_num_threads() == 2
        embedder.threads = 1
        embedder.embed(np.zeros((1, 224, 224, 3), np.uint8))
        assert torch.get_num_threads() == 1
        embedder.rest()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_float32_is_not_tf32(monkeypatch):
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        exact_float32()
        assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (False, False)
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def test_processes_divide_the_memory_that_is_free(lite, monkeypatch):
    space = make_space(dim=1280, preprocess=lite.preprocess.as_dict())
    monkeypatch.setattr("headstart.extract.embedder.bytes_an_image", lambda _: 1_000_000)
    monkeypatch.setattr("headstart.extract.embedder.available_memory", lambda: 32_000_000)
    sizes = [
        Embedder([space], [SpaceOptions()], RunOptions(device="cpu", processes=count), lite).batch_size
        for count in (None, 1, 2, 4)
    ]
    assert sizes == [16, 16, 8, 4]

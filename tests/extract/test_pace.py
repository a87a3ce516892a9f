"""How a run finds its pace: sizes of batches, the share of the cores, what it does about memory."""

import logging
from collections.abc import Callable

import pytest

from headstart.extract.device import Device
from headstart.extract.options import RunOptions
from headstart.extract.pace import LARGEST, QUIET_IMAGES, TIMED_IMAGES, Pace, forward_threads
from support import make_space


@pytest.mark.parametrize(
    ("cores", "forward", "decode", "wanted"),
    [
        (2, 14.8e-3, 1.1e-3, 2),  # resnet18
        (2, 1.5e-3, 1.2e-3, 1),  # mobilenet_v3_small, beside pictures of its own cost
        (2, 0.1e-3, 5e-3, 1),
        (16, 10e-3, 1e-3, 15),
        (16, 1e-3, 1e-3, 8),
        (1, 1e-3, 1e-3, 1),
        (4, 0.0, 0.0, 1),
    ],
)
def test_cores_are_shared_by_what_each_side_takes(cores, forward, decode, wanted):
    assert forward_threads(cores, forward, decode) == wanted


class Network:
    """An embedder whose speed depends on its batches as `rate` says, and that holds `most` images."""

    def __init__(self, rate: Callable[[int], float], most: int = 10_000, kind: str = "cpu", **run: object) -> None:
        self.rate, self.most = rate, most
        self.device = Device(kind, "test")
        self.run = RunOptions(compile="never", **run)
        self.batch_size = self.run.batch_size or self.device.batch_size
        self.threads = self.faster = None
        self.most_threads = 2
        self.spaces = [make_space()]

    def resize_batch(self, wanted: int) -> int:
        self.batch_size = min(wanted, self.most) if self.device.kind == "cpu" else wanted
        return self.batch_size


def run(network: Network, tmp_path, images: int = 100_000, decode: float = 0.0) -> Pace:
    """Send all images through; a batch that a GPU has no room for is halved, as the embedder does it."""
    work = [0.0, 0]
    pace = Pace(network, images, lambda: (work[0], work[1]), tmp_path)
    pace.begin()
    while images > 0:
        if network.batch_size > network.most:
            network.batch_size //= 2
        count = min(network.batch_size, images)
        images -= count
        work[0], work[1] = work[0] + decode * count, work[1] + count
        pace.took(count, count / network.rate(count))
    return pace


@pytest.mark.parametrize(
    ("kind", "rate", "best"),
    [
        ("cpu", lambda size: 100.0, 16),
        ("cpu", lambda size: 100.0 + size, 64),
        ("cpu", lambda size: 1000 / size, 1),
        ("cpu", lambda size: {16: 100, 32: 120, 64: 121}[size], 32),
        ("cuda", lambda size: 100.0 * size, 1024),
        ("cuda", lambda size: 1000.0 * min(size, 300), 512),
        ("cuda", lambda size: 100.0, 128),
    ],
)
def test_batches_grow_or_shrink_as_long_as_that_is_faster(tmp_path, kind, rate, best):
    network = Network(rate, kind=kind)
    assert run(network, tmp_path).settled
    assert network.batch_size == best <= LARGEST[kind]


@pytest.mark.parametrize(("kind", "most", "best"), [("cpu", 40, 32), ("cuda", 300, 256), ("cuda", 100, 64)])
def test_batches_stay_within_memory(tmp_path, kind, most, best):
    network = Network(lambda size: 100.0 * size, most, kind)
    run(network, tmp_path)
    assert network.batch_size == best


def test_small_work_is_not_experimented_with(tmp_path):
    network = Network(lambda size: 100.0 * size)
    assert run(network, tmp_path, images=500).settled
    assert network.batch_size == 16
    assert not run(Network(lambda size: 100.0), tmp_path, images=20).settled


def test_a_batch_size_that_was_given_fixes_how_rows_are_computed(tmp_path):
    network = Network(lambda size: 100.0 * size, batch_size=8)
    run(network, tmp_path, decode=1.0)
    assert (network.batch_size, network.threads) == (8, None)


def test_cores_are_divided_anew_when_pictures_change(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("headstart.extract.pace.available_cores", lambda: 4)
    caplog.set_level(logging.DEBUG, "headstart")
    network, seen = Network(lambda size: 400.0), []  # 10 ms of one core
    network.most_threads = 4
    work = [0.0, 0]
    pace = Pace(network, 4000, lambda: (work[0], work[1]), tmp_path)
    pace.begin()
    for batch in range(250):
        cost = 0.1e-3 if batch < 100 else 30e-3
        count = network.batch_size
        work[0], work[1] = work[0] + count * cost, work[1] + count
        pace.took(count, count / 400)
        seen.append(network.threads)
    assert seen[50] == 4 and seen[-1] == 1
    assert [record.message for record in caplog.records if "of 4 threads" in record.message][-1].startswith(
        "the network gets 1 of 4 threads"
    )


def test_the_first_rate_is_taken_while_nothing_is_decoded():
    assert QUIET_IMAGES >= 16 + TIMED_IMAGES

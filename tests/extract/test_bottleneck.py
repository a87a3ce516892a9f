import pytest

from headstart.extract.bottleneck import Bottleneck


def bottleneck(forward, decode, write=0.0, device="cpu", workers=2):
    stages = {"read": 0.1, "decode": decode, "forward": forward, "write": write}
    return Bottleneck.of(stages, 10.0, device, workers, 16)


@pytest.mark.parametrize(
    ("found", "stage", "line"),
    [
        (bottleneck(9.7, 6.35), "forward", "bound by forward: 97 % busy; decoding could feed 3.1 times more"),
        (bottleneck(9.7, -0.1), "forward", "bound by forward: 97 % busy; decoding could feed a thousand times more"),
        (bottleneck(3.0, 18.9), "decode", "bound by decode: 95 % busy, 2 workers of 16 in use"),
        (
            bottleneck(1.7, 152.0, device="cuda", workers=16),
            "decode",
            "GPU idle 83 %: decoding bounds this run, 16 workers of 16 in use",
        ),
        (
            bottleneck(1.0, 1.0, write=8.0),
            "write",
            "bound by write: 80 % busy; the disk of the cache is slower than the network",
        ),
    ],
)
def test_the_busiest_stage_for_its_threads_is_named_with_what_the_others_could_do(found, stage, line):
    assert (found.stage, found.line()) == (stage, line)


def test_waiting_for_a_store_is_a_stage_of_its_own():
    stages = {"read": 330.0, "decode": 3.0, "forward": 5.0, "write": 0.1}
    found = Bottleneck.of(stages, 10.0, "cpu", 2, 2, waiting=32)
    assert found.line() == "bound by read: 97 % busy; the store is slower than decoding and the network"
    assert found.busy["decode"] == 0.15
    assert Bottleneck.of({**stages, "read": 100.0}, 10.0, "cpu", 2, 2, waiting=32).stage == "forward"


def test_shares_lie_between_none_and_all():
    found = bottleneck(30.0, 0.0)
    assert found.busy["forward"] == 1.0
    assert all(0 <= share <= 1 for share in found.busy.values())

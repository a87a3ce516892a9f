"""How a run is cut into shards, how records make the whole, and which options exclude each other."""

import importlib.util
import logging
from pathlib import Path

import numpy as np
import pytest
from command_line import BACKBONE, headstart, headstart_json, photos

import headstart as package
from headstart.cache.failures import Failures
from headstart.cache.names import Names
from headstart.errors import UsageError
from headstart.extract.engines.shards import Deaths, Report, Shards, Whole, shard_count
from headstart.extract.options import EngineOptions, RunOptions, SpaceOptions
from headstart.extract.orders import Record
from headstart.extract.runner import Hooks, Outcome, Work
from support import make_space

__all__ = ["headstart", "headstart_json", "photos"]  # fixtures


@pytest.mark.parametrize(
    ("images", "workers", "most", "count"),
    [
        (1_000_000, 2, None, 500),
        (4_000_000, 2, None, 2000),
        (100_000_000, 16, None, 2000),
        (100_000_000, 1000, None, 4000),
        (8_000, 2, None, 8),
        (8_000, 1, None, 4),
        (8_000, 100, None, 400),
        (100, 2, None, 7),
        (10, 8, None, 1),
        (100, 2, 30, 4),
        (100, 2, 1, 100),
        (10, 0, None, 1),
    ],
)
def test_into_how_many_shards(images, workers, most, count):
    assert shard_count(images, workers, most) == count


def cut(images: int, count: int, workers: int = 2, weights: str = "default") -> Shards:
    """Return the shards of a run that looks at every other image of a listing."""
    names = Names.of(b"%03d.jpg" % number for number in range(2 * images))
    work = Work(names, np.arange(8 * images).reshape(-1, 4), np.arange(0, 2 * images, 2), b"/base")
    networks = [([make_space()], [SpaceOptions(weights=weights)])]
    rows = np.array_split(work.todo, count)
    return Shards("run", Path("cache"), networks, RunOptions(), work, rows, workers, "photos")


def test_an_order_has_its_own_images_and_no_others():
    shards = cut(10, 4)
    work = shards.order(1).work
    assert list(work.names) == [b"006.jpg", b"008.jpg", b"010.jpg"]
    assert work.stat[:, 0].tolist() == [24, 32, 40] and work.todo.tolist() == [0, 1, 2]
    assert (work.shares, work.base, work.hashes) == (4, b"/base", None)
    assert shards.told(1) == "shard 2 of 4 (3 images from 006.jpg on)"


def test_an_order_says_what_the_worker_may_still_come_to():
    shards = cut(60, 6)
    assert [shards.order(number).work.ahead for number in range(6)] == [30, 30, 20, 20, 10, 10]


def test_workers_elsewhere_get_whole_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("weights.pth").touch()
    order = cut(4, 1, weights="weights.pth").elsewhere().order(0)
    assert order.cache == tmp_path / "cache"
    assert order.networks[0][1][0].weights == str(tmp_path / "weights.pth")
    assert cut(4, 1, weights="none").elsewhere().networks[0][1][0].weights == "none"


def record(count: int, worker: str, **changes: object) -> Record:
    outcome = Outcome.empty(count)
    for name, value in changes.items():
        setattr(outcome, name, value)
    return Record(worker, outcome)


def test_records_make_the_whole():
    whole = Whole(cut(6, 3))
    found = record(
        2,
        "one",
        failures=Failures.of({1: "broken"}),
        replaced=[0],
        images=2,
        seconds=2.0,
        workers=4,
        writers=1,
        device="cpu",
    )
    found.outcome.digest[:] = 7
    whole.add(2, found)
    whole.add(0, record(2, "one", images=1, seconds=3.0, workers=4, writers=1, tried={b"x": "why"}))
    assert whole.outcome().interrupted, "one is lacking"
    whole.add(1, record(2, "other", seconds=4.0, workers=2, writers=2, device="cuda"))
    outcome = whole.outcome()
    assert np.flatnonzero(outcome.digest.any(axis=1)).tolist() == [8, 10]
    assert (outcome.failures, outcome.replaced, outcome.tried) == ({10: "broken"}, [8], {b"x": "why"})
    assert (outcome.images, outcome.seconds, outcome.workers, outcome.writers) == (3, 5.0, 6, 3)
    assert (outcome.processes, outcome.shards, outcome.device) == (2, 3, "cpu+cuda")


def test_progress_never_goes_back_and_retries_are_told(caplog):
    told: list[int] = []
    report = Report(cut(40, 2), Hooks(progress=told.append))
    for number, images in ((0, 5), (1, 3), (0, 2), (0, 9), (1, 20)):
        report.through(number, images)
    assert told == [5, 3, 4, 17]
    with caplog.at_level(logging.WARNING, "headstart.extract"):
        report.again(1, "somebody died")
    assert report.retried == 1
    assert caplog.messages == [
        "somebody died: shard 2 of 2 (20 images from 040.jpg on) is embedded again, but for what was published"
    ]


def test_a_shard_that_comes_further_may_lose_any_number_of_workers():
    report = Report(cut(400, 2), Hooks())
    deaths = Deaths(report)
    assert [deaths.are_too_many(0) for _ in range(3)] == [False, False, True]
    for reached in range(10, 100, 10):
        report.through(1, reached)
        assert not deaths.are_too_many(1)
    assert [deaths.are_too_many(1) for _ in range(2)] == [False, True]


def test_the_rest_is_estimated_once(monkeypatch):
    monkeypatch.setattr("headstart.extract.engines.shards.ESTIMATE_AFTER", 0.0)
    rates: list[tuple[float, int]] = []
    report = Report(cut(400, 2), Hooks(on_rate=lambda rate, done: rates.append((rate, done))))
    for images in (10, 40, 90, 200):
        report.through(0, images)
    assert [done for _, done in rates] == [90] and rates[0][0] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--address", "tcp://host:8786"), "--address tcp://host:8786 names a cluster: pass --engine dask or"),
        (("--engine", "dask"), "--engine dask needs --address: tcp://HOST:8786, as `dask scheduler` prints it"),
        (("--engine", "ray"), "--engine ray needs --address: auto, or HOST:6379"),
        (("--engine", "dask", "--address", "x", "--processes", "2"), "--processes is for this machine"),
        (("--processes", "1", "--shard-images", "5"), "--shard-images has no effect"),
        (("--shard-images", "0"), "--shard-images"),
        (("--engine", "spark"), "spark"),
    ],
)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_options_that_exclude_each_other(headstart, photos, words, message, dry):
    status, _, err = headstart("extract", photos, *words, *dry)
    assert status == 2 and message in err and "Traceback" not in err


def test_from_python_too(photos):
    with pytest.raises(UsageError, match="needs --address"):
        package.extract(photos, engine="dask")
    with pytest.raises(UsageError, match="engine must be one of local, dask, ray"):
        EngineOptions(engine="spark")


def test_an_engine_that_is_not_installed(headstart, headstart_json, photos, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *more: None if name in ("distributed", "ray") else found(name, *more)
    )
    for engine in ("dask", "ray"):
        words = ("extract", photos, "--backbone", BACKBONE, "--engine", engine, "--address", "somewhere")
        error = headstart_json(*words, expect=1)["error"]
        assert error["type"] == "MissingExtraError"
        assert error["message"] == f'--engine {engine} needs a package; run `pip install "headstart[{engine}]"`'


def test_a_dry_run_of_processes_says_into_how_many_shards(headstart, headstart_json, photos):
    words = ("extract", photos, "--backbone", BACKBONE, "--dry-run")
    alone = headstart_json(*words)
    assert (alone["engine"], alone["workers"], alone["shards"]) == ("local", 1, 1)
    assert "shards" not in headstart(*words)[2], "36 images are not worth two processes"

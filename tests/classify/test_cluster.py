"""Heads on rows that are divided among workers: the same optimum, whoever dies on the way."""

import logging
import threading

import numpy as np
import pytest
from cached_datasets import classes_made, labels_made
from clusters import dask_cluster

import headstart
from headstart.cache.part import Keys
from headstart.cache.store import FeatureStore
from headstart.classify import cluster, crew
from headstart.classify.share import Share
from headstart.classify.team import share_of
from headstart.errors import HeadstartError, TrainingError
from headstart.extract.engines import connect
from headstart.extract.engines.connect import EngineError
from headstart.extract.views import PLAIN


@pytest.fixture(scope="module")
def dask(tmp_path_factory):
    pytest.importorskip("distributed", reason="Dask is not installed: pip install headstart[dask]")
    with dask_cluster(tmp_path_factory.mktemp("dask")) as running:
        running.add(3)
        yield running


def fits(made, folder, engine, address, **options):
    """Return a fit in memory and one over workers."""
    cache = made.put(folder / "cache")
    within = headstart.fit_head(cache=cache, out=folder / "a", near_copies="none", **options)
    return within, headstart.fit_head(cache=cache, out=folder / "b", engine=engine, address=address, **options)


def same(one, other, X):
    probabilities = [headstart.load(fit.out).model.predict_proba(X) for fit in (one, other)]
    np.testing.assert_allclose(*probabilities, atol=1e-5)
    assert one.model.temperature == pytest.approx(other.model.temperature, abs=1e-5)
    for name in ("accuracy", "log_loss"):
        assert one.model.scores["val"][name] == pytest.approx(other.model.scores["val"][name], abs=1e-5)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: classes_made(1200, 4, 16, spread=5.0), {"class_weight": "balanced", "cv": 3}),
        (lambda: labels_made(1200, 4, 16), {"C": 0.1, "cv": 3}),
        (lambda: classes_made(1200, 2, 16, spread=5.0), {"C": 0.1, "cv": 1, "pca": 8}),
        (lambda: classes_made(1200, 4, 16, spread=5.0), {"head": "ncm"}),
        (
            lambda: classes_made(1200, 4, 16, spread=5.0),
            {"head": "linear", "optimizer": "sgd", "lr": 0.1, "batch_size": 5000, "epochs": 12, "cv": 3},
        ),
    ],
    ids=["softmax", "labels", "without folds", "means", "steps"],
)
def test_workers_find_the_same_head_together(make, options, dask, tmp_path):
    made = make()
    within, over = fits(made, tmp_path, "dask", dask.address, **options)
    same(within, over, made.X)
    assert over.summary()["engine"] == "dask"
    assert over.blocks.workers == 3
    assert over.summary()["cv"] is None or over.summary()["cv"]["accuracy"] == pytest.approx(
        within.summary()["cv"]["accuracy"], abs=2e-3
    )
    np.testing.assert_allclose(within.model.novelty.distances, over.model.novelty.distances, rtol=1e-6)


@pytest.mark.parametrize(
    ("often", "options"),
    [
        ("run", {}),
        # The batches of a shard that was taken over go on where they were: its rows are dealt in the same order.
        ("step", {"head": "linear", "lr": 0.01, "epochs": 6, "batch_size": 300}),
    ],
)
def test_a_worker_that_is_killed_in_the_middle_changes_nothing(often, options, tmp_path, monkeypatch, caplog):
    pytest.importorskip("distributed", reason="Dask is not installed: pip install headstart[dask]")
    made = classes_made(3000, 4, 16, spread=5.0)
    (tmp_path / "dask").mkdir()
    asked = threading.Event()
    calls, real, killing = [], cluster.DaskEngine.ask, options == {}

    def ask(self, name, key, method, arguments):
        calls.append(method)
        if killing and calls.count(often) > 60 and not asked.is_set():
            asked.set()
            running.workers[1].kill()  # while it is asked for its sums
        return real(self, name, key, method, arguments)

    monkeypatch.setattr(cluster.DaskEngine, "ask", ask)
    with dask_cluster(tmp_path / "dask") as running, caplog.at_level(logging.WARNING, "headstart"):
        running.add(3)
        logging.getLogger("headstart").propagate = True
        within, over = fits(made, tmp_path, "dask", running.address, cv=3, **options)
        if options:
            killing, within = True, over
            calls.clear()
            cache = tmp_path / "cache"
            over = headstart.fit_head(
                cache=cache, out=tmp_path / "c", engine="dask", address=running.address, cv=3, **options
            )
    assert asked.is_set()
    assert "is lost; its rows go to" in caplog.text
    assert calls.count("hold") == 4  # the rows of one were put aside once more
    same(within, over, made.X)


def test_a_cluster_that_cannot_work_is_told_of_in_one_line(dask, tmp_path, monkeypatch):
    monkeypatch.setattr(connect, "CONNECT_SECONDS", 1)
    cache = classes_made(200, 3, 12).put(tmp_path / "cache")
    with pytest.raises(EngineError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        headstart.fit_head(cache=cache, out=tmp_path / "a", engine="dask", address="tcp://127.0.0.1:9")
    made = classes_made(200, 3, 12)
    made.X[8, 3] = np.inf
    with pytest.raises(TrainingError, match="NaN or infinity"):  # of a worker, as it raised it
        headstart.fit_head(cache=made.put(tmp_path / "b"), out=tmp_path / "c", engine="dask", address=dask.address)


def test_workers_say_what_they_cannot_do(tmp_path):
    share = Share(tmp_path / "nowhere", (), PLAIN, np.zeros((0, 32), np.uint8), *(np.zeros(0, np.int64),) * 3, memory=0)
    with pytest.raises(HeadstartError, match=r"a worker has headstart .*, and this is 0\.0\.0: install the same"):
        crew.hire("a", share, 1, "0.0.0")
    with pytest.raises(HeadstartError, match="a worker does not see the cache"):
        crew.hire("a", share, 1, headstart.__version__)
    with pytest.raises(crew.LackingShardError):
        crew.work("a", "losses", ())


def test_a_lease_lets_its_own_shard_go_and_no_other(tmp_path):
    (tmp_path / "spaces").mkdir()
    share = Share(tmp_path, (), PLAIN, np.zeros((0, 32), np.uint8), *(np.zeros(0, np.int64),) * 3, memory=1)
    first = crew.hire("b", share, 1, headstart.__version__)
    second = crew.hire("b", share, 1, headstart.__version__)
    del first
    assert "b" in crew._shards
    del second
    assert "b" not in crew._shards


def test_rows_are_divided_as_they_are_stored_and_picked_ones_stay_with_their_rows(tmp_path):
    made = classes_made(100, 3, 12)
    cache = made.put(tmp_path / "cache")
    order = np.random.default_rng(0).permutation(100)
    share = Share(
        cache, (made.space,), PLAIN, made.digest[order], made.y[order], np.arange(100), np.array([3, 50, 99]), memory=1
    )
    parts = cluster._divided(share, 3)
    assert sorted(map(len, parts)) == [33, 33, 34]
    index, _ = FeatureStore(cache).index(made.space.id)
    places = index.find(Keys.plain(share.digest))
    assert (np.diff(places[np.concatenate(parts)]) > 0).all()
    pieces = [share_of(share, part) for part in parts]
    picked = np.concatenate([part[piece.picked] for part, piece in zip(parts, pieces, strict=True)])
    assert sorted(picked.tolist()) == [3, 50, 99]
    assert all((piece.fold == part).all() for part, piece in zip(parts, pieces, strict=True))


@pytest.mark.slow
def test_ray_finds_the_same_head_and_survives_a_node_that_goes(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install headstart[ray]")
    from ray.cluster_utils import Cluster

    try:
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        other = nodes.add_node(num_cpus=1)
    except Exception as error:  # noqa: BLE001  (whatever keeps Ray from starting here is no fault of ours)
        pytest.skip(f"Ray does not start here: {error}")
    made = classes_made(1500, 3, 16, spread=5.0)
    real, calls, gone = cluster.RayEngine.ask, [], threading.Semaphore(1)

    def ask(self, name, key, method, arguments):
        calls.append(method)
        if calls.count("run") > 40 and gone.acquire(blocking=False):
            nodes.remove_node(other)
        return real(self, name, key, method, arguments)

    try:
        cluster.RayEngine.ask = ask
        within, over = fits(made, tmp_path, "ray", nodes.address, cv=3)
    finally:
        cluster.RayEngine.ask = real
        import ray

        ray.shutdown()
        nodes.shutdown()
    assert over.blocks.workers == 2
    assert calls.count("hold") == 3
    same(within, over, made.X)

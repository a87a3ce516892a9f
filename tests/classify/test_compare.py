"""One table of backbones and heads: the same folds for all, the validation images untouched, a folder that is ours."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from cached_datasets import classes_made, labels_made

from headstart import compare
from headstart.cache.datasets import load_listing
from headstart.cache.listing import save_listing
from headstart.cache.store import FeatureStore
from headstart.classify import compare as job
from headstart.classify.comparison import CSV_FILE, JSON_FILE, PAGE_FILE, as_csv, table
from headstart.errors import CacheMissError, DataNotFoundError, OutputError, UsageError
from headstart.extract.registry import BackboneInfo
from support import add_rows, make_space

SPEEDS = {"resnet18": 10.0, "second": 40.0}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Leave out what needs a network: the pictures of these datasets are not on the disk."""
    monkeypatch.setattr("headstart.classify.candidates.describe", lambda name: BackboneInfo(
        name, "torchvision", 12, 11_000_000, 224, "BSD-3-Clause", True))  # fmt: skip
    monkeypatch.setattr(
        "headstart.classify.candidates.Candidate.rate", lambda self, *_: SPEEDS.get(self.space.backbone)
    )


def put_second(cache, made, X, weights="default"):
    """Add a second space to the dataset, recorded by a later run; return its listing."""
    space = replace(make_space(dim=X.shape[1]), backbone="second", weights="b" * 64)
    add_rows(FeatureStore(cache), space, made.digest, X)
    listing = replace(made.listing(), spaces=(space.id,), request={"weights": weights})
    save_listing(cache, listing)
    return listing


@pytest.fixture
def two(tmp_path):
    """A dataset in two spaces, of which the second says less of the classes."""
    made = classes_made(120, spread=1.0)
    cache = made.put(tmp_path / "cache")
    noise = np.random.default_rng(1).standard_normal((120, 7)).astype(np.float32)
    put_second(cache, made, np.concatenate([made.X[:, :1], noise], axis=1))
    return made, cache


def test_every_backbone_goes_with_every_head_and_the_best_comes_first(two, tmp_path):
    _, cache = two
    found = compare(cache=cache, heads=["logistic", "ncm", "knn"], out=tmp_path / "out")
    assert {(row.backbone, row.head) for row in found.rows} == {
        (backbone, head) for backbone in SPEEDS for head in ("logistic", "ncm", "knn")
    }
    scores = [row.cv_accuracy for row in found.rows]
    assert scores == sorted(scores, reverse=True)
    for row in found.rows:
        assert row.low < row.cv_accuracy < row.high or row.cv_accuracy == 1.0
        assert row.cv_accuracy == row.right.mean() and len(row.right) == found.train == 90
        assert row.images_per_second == SPEEDS[row.backbone]
    assert found.rows[0].backbone == "resnet18"
    assert max(found.rows, key=lambda row: row.cv_accuracy).pareto
    fast = [row for row in found.rows if row.backbone == "second"]
    assert fast[0].pareto  # the best of the fastest


def test_a_row_is_what_fit_head_says_of_it(two, tmp_path):
    import headstart

    _, cache = two
    found = compare(cache=cache, backbones="second", heads="logistic", out=tmp_path / "out")
    fit = headstart.fit_head(cache=cache, wanted={"backbone": "second"}, out=tmp_path / "model")
    cv = fit.summary()["cv"]
    assert found.rows[0].cv_accuracy == cv["accuracy"]
    assert found.rows[0].log_loss == cv["log_loss_calibrated"]


def test_labels_of_validation_images_change_nothing(tmp_path):
    made = classes_made(120, spread=3.0)
    results = []
    for name in ("true", "wrong"):
        y = made.y.copy()
        if name == "wrong":
            y[made.split == "val"] = 0
        cache = replace(made, y=y).put(tmp_path / name)
        summary = compare(cache=cache, heads=["logistic", "knn"], out=tmp_path / f"out-{name}").summary()
        for row in summary["rows"]:
            del row["command"]  # which names the cache
        results.append({key: summary[key] for key in ("rows", "advice", "train", "val")})
    assert results[0] == results[1]


def test_all_rows_have_the_same_folds(two, tmp_path, monkeypatch):
    _, cache = two
    seen = []
    real = job.head_for

    def watched(data, train, kind, settings):
        seen.append((train[1:], settings))
        return real(data, train, kind, settings)

    monkeypatch.setattr(job, "head_for", watched)
    compare(cache=cache, heads=["logistic", "ncm"], out=tmp_path / "out", seed=3, cv=4)
    assert len(seen) == 4
    for (y, groups), settings in seen:
        assert np.array_equal(y, seen[0][0][0]) and np.array_equal(groups, seen[0][0][1])
        assert settings == {"cv": 4, "random_state": 3}


def test_the_next_command_takes_the_space_of_its_row(two, tmp_path):
    made, cache = two
    found = compare(cache=cache, out=tmp_path / "out", cv=4, seed=2)
    by_name = {row.backbone: row.command for row in found.rows}
    options = f"--cv 4 --seed 2 --cache {cache}"
    assert by_name["second"] == f"headstart fit-head photos --backbone second --head logistic {options}"
    assert found.summary()["next"] in by_name.values()
    # A newer space of the same backbone, with other weights, comes in between.
    other = replace(made.space, weights="c" * 64)
    add_rows(FeatureStore(cache), other, made.digest, made.X[:, ::-1].copy())
    save_listing(cache, replace(made.listing(), spaces=(other.id,), request={"weights": "none"}))
    found = compare(cache=cache, out=tmp_path / "again")
    commands = {(row.backbone, row.weights): row.command for row in found.rows}
    assert commands["resnet18", "none"].startswith("headstart fit-head photos --backbone resnet18 ")
    again, fit = commands["resnet18", "default"].split(" && ")
    assert again.startswith("headstart extract photos --backbone resnet18 ") and again.endswith(f" --cache {cache}")
    assert "--weights none" not in again and fit.startswith("headstart fit-head photos --backbone resnet18 ")
    assert {row.name for row in found.rows} == {"resnet18+logistic", "resnet18 (random)+logistic", "second+logistic"}


def test_a_space_that_lacks_images_is_left_out(two, tmp_path, caplog):
    made, cache = two
    more = classes_made(124, spread=1.0)
    made.digest = np.concatenate([made.digest, more.digest[-4:]])
    for name in ("X", "y", "split", "phash"):
        setattr(made, name, np.concatenate([getattr(made, name), getattr(more, name)[-4:]]))
    made.put(cache)
    with caplog.at_level("INFO"):
        found = compare(cache=cache, out=tmp_path / "out")
    assert [row.backbone for row in found.rows] == ["resnet18"]
    assert "left out, as 4 images have no embedding: second" in caplog.text
    with pytest.raises(DataNotFoundError, match=r"second have embedded all images of /somewhere/photos, which is not"):
        compare(cache=cache, backbones=["resnet18", "second"], out=tmp_path / "other")


def test_several_labels_are_ranked_by_mean_average_precision(tmp_path):
    cache = labels_made().put(tmp_path / "cache")
    found = compare(cache=cache, out=tmp_path / "out")
    assert found.rows[0].cv_map > found.rows[0].cv_accuracy
    assert found.summary()["measure"] == "map"
    assert "mAP" in table(found.rows)[0] and "all right" in table(found.rows)[0]
    assert found.advice[1]["prediction"] == "cannot be told"
    with pytest.raises(UsageError, match="several labels"):
        compare(cache=cache, heads=["logistic", "knn"], out=tmp_path / "other")


def test_what_is_written_is_what_was_found(two, tmp_path):
    _, cache = two
    out = tmp_path / "out"
    found = compare(cache=cache, out=out, page=lambda result: f"<p>{len(result.rows)} rows</p>")
    assert json.loads((out / JSON_FILE).read_text()) == {"format": 1, **found.summary()}
    rows = list(csv.DictReader((out / CSV_FILE).read_text().splitlines()))
    assert [row["backbone"] for row in rows] == [row.backbone for row in found.rows]
    assert [float(row["cv_accuracy"]) for row in rows] == [row.cv_accuracy for row in found.rows]
    assert (out / PAGE_FILE).read_text() == "<p>2 rows</p>"
    assert "right" not in rows[0] and as_csv(found.rows).count("\n") == 3


def test_a_folder_is_replaced_only_where_it_is_a_comparison_and_that_is_asked_for(two, tmp_path):
    _, cache = two
    out = tmp_path / "out"
    compare(cache=cache, out=out, page=lambda _: "an old page")
    before = (out / JSON_FILE).read_bytes()
    with pytest.raises(OutputError, match="holds a comparison already; pass --overwrite"):
        compare(cache=cache, out=out)
    assert (out / JSON_FILE).read_bytes() == before
    compare(cache=cache, out=out, overwrite=True, seed=1)
    assert (out / JSON_FILE).read_bytes() != before
    assert not (out / PAGE_FILE).exists()  # it told of another comparison
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="folder of something else"):
        compare(cache=cache, out=out, overwrite=True)
    with pytest.raises(OutputError, match=r"notes\.txt is a file"):
        compare(cache=cache, out=out / "notes.txt", overwrite=True)


def test_a_failed_write_leaves_the_old_comparison(two, tmp_path, monkeypatch):
    _, cache = two
    out = tmp_path / "out"
    compare(cache=cache, out=out)
    before = (out / JSON_FILE).read_bytes()
    calls = []

    def full(path, data):
        calls.append(path.name)
        if path.name == JSON_FILE:
            from headstart.errors import CacheError

            raise CacheError("the disk is full; name another folder with --cache")

    monkeypatch.setattr("headstart.classify.comparison.publish", full)
    with pytest.raises(OutputError, match="not saved: the disk is full; name another folder with --out"):
        compare(cache=cache, out=out, overwrite=True)
    assert (out / JSON_FILE).read_bytes() == before
    assert calls == [CSV_FILE, JSON_FILE]  # the JSON comes last


def test_mistakes_are_said_before_the_work(two, tmp_path):
    _, cache = two
    with pytest.raises(UsageError, match="--head must be one of"):
        compare(cache=cache, heads=["forest"])
    with pytest.raises(UsageError, match="named twice"):
        compare(cache=cache, backbones=["second", "second"], out=tmp_path / "out")
    with pytest.raises(CacheMissError, match="name those to compare with --backbone"):
        compare(cache=cache, wanted={"crop": 1}, out=tmp_path / "out")
    with pytest.raises(CacheMissError):
        compare(cache=tmp_path / "nothing", out=tmp_path / "out")
    assert load_listing(cache) is not None and not (tmp_path / "out").exists()


def test_an_interrupt_ends_it_before_the_next_row(two, tmp_path):
    _, cache = two
    with pytest.raises(KeyboardInterrupt, match="nothing was saved"):
        compare(cache=cache, out=tmp_path / "out", stopped=lambda: True)
    assert not (tmp_path / "out").exists()


def test_where_finetuning_is_likely_to_pay_its_command_is_named(tmp_path):
    made = classes_made(1500, spread=4.0)
    found = compare(cache=made.put(tmp_path / "cache"), out=tmp_path / "out")
    assert found.advice[1]["prediction"] == "likely"
    assert found.advice[1]["command"] == "headstart finetune photos --backbone resnet18"
    assert found.lines()[-4].endswith("try: headstart finetune photos --backbone resnet18")


def test_a_table_is_aligned(two, tmp_path):
    _, cache = two
    found = compare(cache=cache, heads=["logistic", "ncm"], out=tmp_path / "out")
    heading, *lines = table(found.rows)
    assert len(lines) == 4
    for word in ("backbone", "head", "licence"):
        column = heading.index(word)
        assert all(line[column - 1] == " " and line[column] != " " for line in lines)
    assert [line.startswith("*") for line in lines] == [row.pareto for row in found.rows]

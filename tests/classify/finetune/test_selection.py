"""Which epoch is taken, by which pictures, and that validation is looked at once, when all is over."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from finetuned import QUICK, Runs, Trained

import headstart
from headstart.classify.finetune import job, loop
from headstart.classify.finetune import run as whole
from headstart.classify.finetune.pictures import DEV, Pictures, load_pictures
from headstart.classify.finetune.ranks import Ranks
from headstart.classify.finetune.rates import below_lowest
from headstart.classify.metrics import accuracy, log_loss
from headstart.classify.model import load_model
from headstart.classify.network import softmax
from headstart.errors import DataError, ModelError, TrainingError
from headstart.extract.options import RunOptions

# Rates at which some epochs gain and others lose.
WAVERING = {**QUICK, "select_on": "dev", "epochs": 5, "lr": 0.003, "schedule": "constant"}


@pytest.fixture(scope="module")
def runs(few, tmp_path_factory) -> Runs:
    return Runs(few, tmp_path_factory.mktemp("selection"))


def divided(data: Path, folder: Path, **options) -> Pictures:
    return load_pictures(data, folder / "no-cache", RunOptions(), Ranks(), **options)


def split_of(pictures: Pictures) -> dict[bytes, str]:
    """Return the split of each picture by its content."""
    data = pictures.data
    digests = data.features.digest[data.rows]
    return {digest.tobytes(): split for digest, split in zip(digests, data.split.tolist(), strict=True)}


def logits_of(run: Trained, split: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Let a saved model look at the pictures of a split, by way of `extract`'s code; return logits and labels."""
    subset = run.result.pictures.part(split)
    classifier = headstart.load(run.result.out, cache=folder)
    found = {one.path: one for one in classifier.predict([Path(name.decode()) for name in subset.names])}
    rows = [found[name.decode()].probabilities for name in subset.names]
    proba = np.array([[row[name] for name in classifier.classes] for row in rows])
    return np.log(proba) * classifier.model.temperature, subset.y


@pytest.mark.parametrize("by", ["loss", "accuracy"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_saved_network_is_that_of_the_best_epoch(runs, tmp_path, by, seed):
    run = runs(**{**WAVERING, "select_by": by, "seed": seed})
    values = [(row["dev_accuracy"] if by == "accuracy" else 0.0, -row["dev_loss"]) for row in run.history]
    best = run.result.model.facts["best_epoch"]
    assert best == values.index(max(values))  # of equal accuracies that of the lower loss; the first of equals
    logits, y = logits_of(run, DEV, tmp_path)
    assert accuracy(y, logits.argmax(axis=1)) == run.history[best]["dev_accuracy"]
    assert log_loss(y, softmax(logits)) == pytest.approx(run.history[best]["dev_loss"], rel=1e-4)


def test_a_run_that_only_loses_gives_back_its_start(runs, few, tmp_path):
    run = runs(**{**WAVERING, "epochs": 2, "optimizer": "sgd", "lr": 30.0})
    assert run.result.model.facts["best_epoch"] == 0
    assert min(row["dev_loss"] for row in run.history[1:]) > run.history[0]["dev_loss"]
    plain = headstart.extract(few, backbone=QUICK["backbone"], resize=36, crop=32, cache=tmp_path)
    assert run.result.model.spaces[0]["weights"] == plain.spaces[0].weights  # the network as it was before


def test_validation_is_scored_once_and_after_the_last_step(few, tmp_path, monkeypatch):
    seen: list[str] = []
    names = {name: split for split in ("train", DEV, "val") for name in divided(few, tmp_path).part(split).names}

    def told(score):
        def run(stepper, inputs, *rest, **more):
            seen.append("+".join(sorted({names[name] for name in inputs.subset.names})))
            return score(stepper, inputs, *rest, **more)

        return run

    monkeypatch.setattr(whole, "score", told(whole.score))
    monkeypatch.setattr(loop, "score", told(loop.score))
    job.finetune(few, cache=tmp_path, out=tmp_path / "model", **{**QUICK, "select_on": "dev"})
    assert seen == [DEV, DEV, DEV, "train", DEV, "val"]


def test_labels_of_validation_change_its_score_and_nothing_else(runs, few, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(few, other)
    (other / "val" / "ants").rename(other / "val" / "ANTS")
    (other / "val" / "bees").rename(other / "val" / "ants")
    (other / "val" / "ANTS").rename(other / "val" / "bees")
    swapped = Trained(job.finetune(other, cache=tmp_path, out=tmp_path / "model", **WAVERING))
    run = runs(**WAVERING)
    assert run.same_as(swapped)
    one, two = (each.result.summary()["val"]["accuracy"] for each in (run, swapped))
    assert one == pytest.approx(1 - two)


def test_a_choice_by_validation_is_marked(runs):
    run = runs(**{**WAVERING, "select_on": "val"})
    summary = run.result.summary()
    assert summary["selected_on"] == "val"
    assert run.result.model.facts["selected_on"] == "val"
    best = run.history[summary["best_epoch"]]
    assert summary["val"]["accuracy"] == best["dev_accuracy"]
    assert any("selected on val" in line for line in run.result.lines())
    assert not (run.result.pictures.data.split == DEV).any()
    assert not any("selected on val" in line for line in runs(**WAVERING).result.lines())


def test_no_picture_moves_between_train_and_dev_when_others_arrive(samples, few, tmp_path):
    before = split_of(divided(few, tmp_path))
    more = tmp_path / "more"
    shutil.copytree(few, more)
    for name in ("ants", "bees"):
        for path in sorted((samples / "hymenoptera" / "train" / name).glob("*.jpg"))[12:40]:
            shutil.copy(path, more / "train" / name)
    after = split_of(divided(more, tmp_path))
    assert len(after) == len(before) + 56
    assert {digest: after[digest] for digest in before} == before
    assert {"train", DEV, "val"} == set(before.values())


def test_copies_are_on_one_side_of_train_and_dev(few, tmp_path):
    twice = tmp_path / "twice"
    shutil.copytree(few, twice)
    for path in sorted((few / "train").rglob("*.jpg")):
        shutil.copy(path, twice / "train" / path.parent.name / f"copy-{path.name}")
    data = divided(twice, tmp_path).data
    for group in np.unique(data.exact):
        assert len(set(data.split[data.exact == group])) == 1


def test_dev_is_a_share_of_what_validation_leaves(samples, tmp_path):
    data = divided(samples / "hymenoptera" / "train", tmp_path, val_fraction=0.3, dev_fraction=0.3).data
    counts = {name: int((data.split == name).sum()) for name in ("train", DEV, "val")}
    total = sum(counts.values())
    # By other bytes of the digest: 30 %, and 30 % of the rest, each within three standard deviations.
    assert abs(counts["val"] - 0.3 * total) < 3 * (total * 0.3 * 0.7) ** 0.5
    left = total - counts["val"]
    assert abs(counts[DEV] - 0.3 * left) < 3 * (left * 0.3 * 0.7) ** 0.5


def test_where_no_validation_split_is_the_one_of_fit_head_is_held_out(samples, tmp_path):
    source = samples / "hymenoptera" / "train"
    from headstart.classify.dataset import labelled_set
    from headstart.classify.splits import hold_out

    pictures = divided(source, tmp_path)
    features = pictures.data.features
    assert pictures.data.held_out
    assert np.array_equal(pictures.data.split == "val", hold_out(features.digest[pictures.data.rows], 0.2))
    assert np.array_equal(labelled_set(features).split == "val", pictures.data.split == "val")


def test_a_class_whose_pictures_are_all_held_out_is_an_error(few, tmp_path):
    lone = tmp_path / "lone"
    shutil.copytree(few, lone)
    pictures = divided(lone, tmp_path)
    held = next(name for name in pictures.part(DEV).names)
    for path in (lone / "train" / "bees").iterdir():
        path.unlink()
    shutil.copy(held.decode(), lone / "train" / "bees" / "only.jpg")
    Path(held.decode()).unlink(missing_ok=True)
    with pytest.raises(TrainingError, match=r"class 'bees' has no training image, for those.*held out as dev"):
        divided(lone, tmp_path)


def test_a_missing_validation_split_cannot_be_chosen_by(few, tmp_path):
    with pytest.raises(TrainingError, match="--select-on val needs a validation split, and there is none"):
        job.finetune(few / "train", out=tmp_path / "m", **{**QUICK, "select_on": "val"}, val_fraction=0.0)
    assert not (tmp_path / "m").exists()


def test_a_dataset_of_several_labels_an_image_is_refused(few, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("path,labels\n" + "".join(f"{path},a|b\n" for path in (few / "train" / "ants").iterdir()))
    with pytest.raises(DataError, match=r"may have several labels an image.*fit-head"):
        divided(table, tmp_path)


@pytest.fixture(scope="module")
def searched(few, tmp_path_factory) -> tuple[Trained, list[dict]]:
    folder = tmp_path_factory.mktemp("auto")
    run = Trained(job.finetune(few, cache=folder, out=folder / "model", **{**QUICK, "lr": "auto"}))
    return run, run.result.summary()["lr_search"]


def test_a_range_test_gives_the_same_rate_again_and_its_curve(few, tmp_path, searched):
    run, curve = searched
    again = job.finetune(few, cache=tmp_path, out=tmp_path / "model", **{**QUICK, "lr": "auto"}).summary()
    assert (again["lr"], again["lr_search"]) == (run.result.summary()["lr"], curve)
    rates = [row["lr"] for row in curve]
    assert rates == sorted(rates)
    assert rates[0] < again["lr"] < rates[-1]
    assert len(curve) <= 40
    assert all(np.isfinite(row["loss"]) for row in curve)
    assert json.loads((tmp_path / "model" / "model.json").read_bytes())["facts"]["lr_search"] == curve


def test_a_range_test_leaves_everything_as_it_was(runs, searched):
    run, _ = searched
    assert run.same_as(runs(**{**QUICK, "lr": run.result.summary()["lr"]}))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("extra", [{"train": "head"}, {"train": "head", "keep_frozen": False}, {"batch_size": 64}])
def test_a_range_test_of_few_pictures_or_a_head_alone_finds_a_rate(runs, extra, optimizer):
    summary = runs(**{**QUICK, "lr": "auto", "optimizer": optimizer, "limit": 14, **extra}).result.summary()
    assert summary["lr"] > 0
    assert summary["history"][-1]["train_loss"] < np.log(2) * 2


@pytest.mark.parametrize(
    ("losses", "rate"),
    [
        (
            [0, 0, *[2] * 8, 1.9, 1.5, 1.1, 1.3, 3],
            1e-6 * 2**12 / 10,
        ),  # what it was before it settled counts for nothing
        ([2], 1e-7),  # it was not a number from the second step on
    ],
)
def test_a_rate_is_read_off_a_curve_well_below_its_lowest_loss(losses, rate):
    curve = [{"lr": 1e-6 * 2**place, "loss": loss} for place, loss in enumerate(losses)]
    assert below_lowest(curve) == pytest.approx(rate)


@pytest.mark.parametrize("limit", [60, 160])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_rate_that_was_found_trains_about_as_well_as_the_best_of_a_grid(samples, tmp_path, optimizer, limit):
    def lowest(lr: float | str) -> float:
        options = {"backbone": QUICK["backbone"], "resize": 72, "crop": 64, "train": "head", "augment": "none"}
        found = job.finetune(
            samples / "hymenoptera", cache=tmp_path, out=tmp_path / "m", overwrite=True, optimizer=optimizer, lr=lr,
            epochs=3, limit=limit, **options,
        )  # fmt: skip
        return min(row["dev_loss"] for row in found.model.facts["history"])

    assert lowest("auto") < 1.25 * min(map(lowest, (1e-4, 1e-3, 1e-2)))


def test_models_are_read_back_as_they_were_saved(runs):
    run = runs(**WAVERING)
    model = load_model(run.result.out)
    assert (model.kind, model.classes) == ("finetuned", ("ants", "bees"))
    assert model.scores == json.loads(json.dumps(run.result.model.scores))


def test_a_head_that_finetune_trained_is_a_start_and_one_that_has_seen_validation_is_none(few, tmp_path):
    options = {**QUICK, "train": "head", "augment": "none", "cache": tmp_path, "select_on": "dev", "epochs": 3}
    first = job.finetune(few, out=tmp_path / "first", **options)
    assert first.model.facts["best_epoch"] > 0
    again = job.finetune(few, out=tmp_path / "again", init_head=str(first.out), **options)
    loss = first.model.facts["history"][first.model.facts["best_epoch"]]["dev_loss"]
    assert first.model.temperature == 1.0  # too few dev images for another
    assert again.model.facts["history"][0]["dev_loss"] == pytest.approx(loss, rel=1e-4)
    classes = few / "train"  # without a validation split: a share is held out
    seen = job.finetune(classes, out=tmp_path / "seen", val_fraction=0.1, **options)
    with pytest.raises(ModelError, match=r"fitted with --val-fraction 0.1, on images that are for validation now"):
        job.finetune(classes, out=tmp_path / "no", init_head=str(seen.out), val_fraction=0.4, **options)

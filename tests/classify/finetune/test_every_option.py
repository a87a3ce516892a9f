"""Each option of `finetune` changes what is trained, or is refused where it means nothing."""

import shutil

import numpy as np
import pytest
from finetuned import QUICK, Runs, Trained
from networks import random

from headstart.classify.finetune.assembly import assemble
from headstart.classify.finetune.options import TrainOptions
from headstart.cli_finetune import finetune as command
from headstart.errors import UsageError

DEV = {**QUICK, "select_on": "dev"}
SGD = {**QUICK, "optimizer": "sgd", "lr": 0.01}
MLP = {**QUICK, "head": "mlp"}
MAP = {**QUICK, "layer": "_conv_head"}

# Each row: the option, a run without it, and its value.
EFFECTS = [
    ("train", QUICK, "_blocks.14"),
    ("train", QUICK, "head"),
    ("epochs", QUICK, 1),
    ("lr", QUICK, 3e-3),
    ("lr", QUICK, "auto"),
    ("batch_size", QUICK, 4),
    *[("augment", QUICK, preset) for preset in ("flip", "tutorial", "crop", "strong", "randaugment", "trivial")],
    ("init_head", QUICK, "imagenet:ants=310,bees=309"),
    ("weights", QUICK, "none"),
    ("reinit", QUICK, "_conv_head"),
    ("layer", QUICK, "_conv_head"),
    ("head", QUICK, "mlp"),
    ("hidden", MLP, (8,)),
    ("hidden", MLP, (8, 4)),
    ("dropout", QUICK, 0.5),
    ("dropout", MLP, 0.5),
    ("freeze_norms", QUICK, True),
    ("optimizer", QUICK, "adam"),
    ("optimizer", QUICK, "sgd"),
    ("head_lr_mult", QUICK, 0),
    ("layer_decay", {**QUICK, "train": "_blocks.14"}, 0.5),
    ("momentum", SGD, 0.5),
    ("weight_decay", QUICK, 1.0),
    ("weight_decay", SGD, 0.1),
    ("schedule", QUICK, "constant"),
    ("schedule", {**QUICK, "epochs": 3}, "step"),
    ("warmup", QUICK, 1.0),
    ("label_smoothing", QUICK, 0.1),
    ("clip", QUICK, 0.1),
    ("precision", QUICK, "bfloat16"),
    ("select_on", QUICK, "dev"),
    ("select_on", QUICK, "val"),
    ("dev_fraction", DEV, 0.5),
    ("val_fraction", QUICK, 0.5),
    ("patience", {**SGD, "select_on": "dev", "lr": 100.0, "epochs": 3}, 1),
    ("pool", MAP, "max"),
    ("resize", QUICK, 48),
    ("resize", QUICK, "none"),
    ("crop", QUICK, 24),
    ("interpolation", QUICK, "nearest"),
    ("mean", QUICK, (0.4, 0.4, 0.4)),
    ("std", QUICK, (0.2, 0.2, 0.2)),
    ("limit", QUICK, 16),
    ("dedupe", QUICK, True),
    ("seed", QUICK, 1),
    ("max_pixels", QUICK, 200_000),
]
WITHOUT = {"device", "workers", "cache", "keep_frozen"}  # say how, and not what, is computed: see below
# Tested elsewhere: on the command line, or where what they change is looked at more closely.
ELSEWHERE = {
    "data",
    "backbone",
    "resume",
    "out",
    "overwrite",
    "select_by",
    "layout",
    "strict",
    "as_json",
    "quiet",
    "debug",
}


@pytest.fixture(scope="module")
def runs(samples, tmp_path_factory) -> Runs:
    """Runs on photographs without a validation split, two of them copies."""
    folder = tmp_path_factory.mktemp("options")
    for name in ("ants", "bees"):
        (folder / "data" / name).mkdir(parents=True)
        paths = sorted((samples / "hymenoptera" / "train" / name).glob("*.jpg"))[:12]
        for path in paths:
            shutil.copy(path, folder / "data" / name)
        shutil.copy(paths[2], folder / "data" / name / "copy.jpg")
    return Runs(folder / "data", folder)


def test_every_option_of_the_command_is_tested_here_or_said_to_be_tested_elsewhere():
    assert {name for name, _, _ in EFFECTS} | WITHOUT | ELSEWHERE == {option.name for option in command.params}


@pytest.mark.parametrize(("name", "without", "value"), EFFECTS, ids=[f"{name}-{value}" for name, _, value in EFFECTS])
def test_an_option_has_an_effect(runs, name, without, value):
    assert not runs(**without).same_as(runs(**{**without, name: value}))


def test_two_runs_with_the_same_options_are_the_same_bit_for_bit(runs):
    first, second = runs(**QUICK), runs(**QUICK, workers=2)  # an option that changes no number
    assert first.result.out != second.result.out
    assert first.same_as(second)


@pytest.mark.parametrize("option", [{"workers": 1}, {"device": "cpu"}])
def test_how_it_is_computed_changes_no_number(runs, option):
    assert runs(**QUICK).same_as(runs(**QUICK, **option))


@pytest.mark.parametrize("train", ["_blocks.15", "head"])
def test_frozen_layers_that_run_once_give_what_they_give_in_every_epoch(runs, train):
    kept, live = (runs(**{**QUICK, "train": train}, **extra) for extra in ({}, {"keep_frozen": False}))
    for name, value in live.saved.items():
        if name.startswith(("_", "weight", "bias")) and value.size:  # and not what was measured with them
            assert np.abs(kept.saved[name] - value).max() <= 1e-4 * max(np.abs(value).max(), 1e-3), name
    for one, two in zip(kept.history[1:], live.history[1:], strict=True):
        assert one["train_loss"] == pytest.approx(two["train_loss"], rel=1e-4)


def test_augmentations_differ_from_each_other(runs):
    losses = {
        row[2]: runs(**{**QUICK, "augment": row[2]}).history[1]["train_loss"] for row in EFFECTS if row[0] == "augment"
    }
    assert len(set(losses.values())) == len(losses), losses


def test_weights_of_a_file_are_those_that_training_starts_from(runs):
    model = runs(**QUICK).result.out
    (file,) = model.glob("backbone-*.safetensors")
    again = runs(**QUICK, weights=str(file))
    assert not again.same_as(runs(**QUICK))
    assert again.history[1]["train_loss"] < runs(**QUICK).history[1]["train_loss"]  # it has seen these pictures


def head_of(run: Trained) -> list[np.ndarray]:
    return [value for name, value in sorted(run.saved.items()) if name.startswith("weight")]


def test_a_head_with_a_rate_of_0_stays_as_it_began(runs):
    frozen, moved = runs(**QUICK, head_lr_mult=0), runs(**QUICK)
    body = [name for name in frozen.saved if name.startswith("_blocks.15") and name.endswith("conv.weight")]
    untrained = runs(**{**QUICK, "lr": 1e-30})
    assert all(np.array_equal(one, two) for one, two in zip(head_of(frozen), head_of(untrained), strict=True))
    assert not any(np.array_equal(one, two) for one, two in zip(head_of(moved), head_of(untrained), strict=True))
    assert body and not any(np.array_equal(frozen.saved[name], untrained.saved[name]) for name in body)


def test_hidden_layers_are_as_wide_as_asked(runs):
    assert [value.shape for value in head_of(runs(**MLP, hidden=(8, 4)))] == [(8, 1280), (4, 8), (2, 4)]


def test_without_a_choice_the_last_epoch_is_saved_and_named(runs):
    facts = runs(**QUICK).result.model.facts
    assert (facts["best_epoch"], facts["epochs"], facts["selected_on"]) == (2, 2, "last")


def test_patience_ends_a_run_that_gains_nothing(runs):
    run = runs(**{**SGD, "select_on": "dev", "lr": 100.0, "epochs": 3}, patience=1)
    assert run.result.model.facts["best_epoch"] == 0
    assert len(run.history) == 2


def test_copies_are_left_out_where_that_is_asked(runs):
    counts = [len(run.result.pictures.data.y) for run in (runs(**QUICK), runs(**QUICK, dedupe=True))]
    assert counts == [26, 24]


def test_larger_pictures_than_allowed_are_failures(runs):
    failures = runs(**QUICK, max_pixels=200_000).result.pictures.failures
    assert failures
    assert all("pixels" in reason for _, reason in failures)


REFUSED = [
    ({"hidden": (8,)}, "--hidden means nothing to --head linear"),
    ({"momentum": 0.5}, "--momentum means nothing to --optimizer adamw"),
    ({"train": "head", "layer_decay": 0.5}, "--layer-decay means nothing to --train head"),
    ({"train": "head", "freeze_norms": True}, "--freeze-norms means nothing to --train head"),
    ({"train": "head", "reinit": "layer4"}, "--reinit"),
    ({"select_on": "last", "patience": 1}, "--patience"),
    ({"select_on": "last", "select_by": "accuracy"}, "--select-by means nothing to --select-on last"),
    ({"select_on": "last", "dev_fraction": 0.1}, "--dev-fraction means nothing to --select-on last"),
    ({"select_on": "val", "dev_fraction": 0.1}, "--dev-fraction means nothing to --select-on val"),
    ({"dev_fraction": 0.0}, "--dev-fraction 0 leaves no dev images"),
    ({"dropout": 1.0}, "--dropout"),
    ({"epochs": 0}, "--epochs"),
    ({"hidden": (0,), "head": "mlp"}, "--hidden"),
    ({"lr": float("nan")}, "--lr"),
    ({"weight_decay": float("inf")}, "--weight-decay"),
]


@pytest.mark.parametrize(("options", "said"), REFUSED, ids=lambda value: str(value)[:40])
def test_an_option_that_means_nothing_or_nonsense_is_refused(options, said):
    with pytest.raises(UsageError, match=said):
        TrainOptions(**options)


def test_freezing_norms_of_a_network_without_any_is_refused():
    plain = random("vgg11", crop=32)
    with pytest.raises(UsageError, match="--freeze-norms means nothing to vgg11: it has no batch norms"):
        assemble(plain, ["ants", "bees"], TrainOptions(freeze_norms=True), "none", plain.device)

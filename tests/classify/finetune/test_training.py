"""What a run of training does to numbers: what is frozen stays, the seed decides, and short memory changes nothing."""

import random as python_random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import random
from torch import nn
from trainings import OPTIONS, losses, result, train, weights_of

from headstart.classify.finetune import stepper as stepper_module
from headstart.classify.finetune.assembly import assemble
from headstart.classify.finetune.groups import parameter_groups
from headstart.classify.finetune.modules import BATCH_NORMS, TrainableNetwork
from headstart.classify.finetune.options import TrainOptions
from headstart.classify.finetune.ranks import Ranks
from headstart.classify.finetune.stepper import Stepper, saved_bytes
from headstart.errors import DeviceError
from headstart.extract.device import choose_device
from headstart.extract.memory import bytes_an_image

CPU = torch.device("cpu")


def before_training(name: str, classes: int = 2, **options) -> tuple[TrainableNetwork, dict[str, torch.Tensor]]:
    """Return a network as a run begins with it, and copies of all its numbers."""
    begun = assemble(random(name, crop=32, resize=32), ["a"] * classes, TrainOptions(**options), "none", CPU)
    network = begun.network
    return network, {key: value.clone() for key, value in network.body.state_dict().items()}


FROZEN = {
    "a layer": {"train": "features.9"},
    "a layer, kept": {"train": "features.9", "augment": "none"},
    "the head": {"train": "head"},
    "norms": {"freeze_norms": True},
}


@pytest.mark.parametrize("frozen", FROZEN)
def test_what_is_frozen_is_the_same_bit_for_bit_and_what_is_trained_is_not(pictures, tmp_path, monkeypatch, frozen):
    options = {**FROZEN[frozen], "optimizer": "sgd", "lr": 0.1, "select_on": "last"}
    seen = []
    real = TrainableNetwork.__init__
    monkeypatch.setattr(TrainableNetwork, "__init__", lambda self, *a, **k: (seen.append(self), real(self, *a, **k))[1])
    train(pictures, tmp_path / "model", **options)
    after = seen[0].body.state_dict()
    network, before = before_training("mobilenet_v3_small", **FROZEN[frozen])
    trained = {key.removeprefix("body.") for key in network.changing() if key.startswith("body.")}
    same = {key for key, value in before.items() if torch.equal(value, after[key])}
    assert same == before.keys() - trained
    norms = {name for name, module in network.body.named_modules() if isinstance(module, BATCH_NORMS)}
    behind = {key for key in before if key.startswith(("features.9.", "features.10.", "features.11.", "features.12."))}
    classifier = {key for key in before if key.startswith("classifier.")}
    expected = {
        "a layer": behind,
        "a layer, kept": behind,
        "the head": set(),
        "norms": {key for key in before.keys() - classifier if key.rpartition(".")[0] not in norms},
    }[frozen]
    assert trained == expected


def test_frozen_layers_drop_nothing_and_their_norms_keep_their_statistics():
    network, _ = before_training("efficientnet_b0", train="features.6")
    network.train()
    stages = {name: module for name, module in network.body.named_modules() if name}
    drops = {name for name, module in stages.items() if type(module).__name__ in ("Dropout", "StochasticDepth")}
    assert {name.split(".")[1] for name in drops if stages[name].training} == {"6"} and len(drops) > 10
    norms = {name for name, module in stages.items() if isinstance(module, BATCH_NORMS)}
    assert {name.split(".")[1] for name in norms if stages[name].training} == {"6", "7", "8"}
    images = torch.zeros(4, 32, 32, 3, dtype=torch.uint8)
    torch.manual_seed(1)
    one = network.body.features[:6](network.backbone.normalise(images))
    torch.manual_seed(2)
    assert torch.equal(one, network.body.features[:6](network.backbone.normalise(images)))


@pytest.fixture(scope="module")
def photographs(samples, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("few") / "photographs"
    for split, count in (("train", 8), ("val", 2)):
        for name in ("hotdog", "not_hotdog"):
            (folder / split / name).mkdir(parents=True)
            for path in sorted((samples / "hotdog" / split / name).iterdir())[:count]:
                shutil.copy(path, folder / split / name)
    return folder


@pytest.mark.parametrize("part", ["_blocks.12", "head"])
def test_what_is_kept_of_frozen_layers_gives_what_running_them_gives(photographs, tmp_path, monkeypatch, part):
    options = {**OPTIONS, "backbone": "efficientnet_lite0", "weights": "default", "crop": 64, "resize": 64}
    options |= {"train": part, "augment": "none", "lr": 0.001, "optimizer": "sgd"}
    passes = []
    real = TrainableNetwork.frozen
    monkeypatch.setattr(
        TrainableNetwork, "frozen", lambda self, batch: (passes.append(len(batch)), real(self, batch))[1]
    )
    runs = [train(photographs, tmp_path / str(keep), **options, keep_frozen=keep) for keep in (True, False)]
    history = [np.array([row[:3] for row in losses(run.model.facts["history"])[1:]]) for run in runs]
    assert sum(passes) == 16, "each picture of train and dev once"
    np.testing.assert_allclose(*history, atol=1e-4)
    assert (np.diff(history[0][:, 0]) != 0).all()
    for name, value in weights_of(runs[0].model).items():
        np.testing.assert_allclose(value, weights_of(runs[1].model)[name], atol=1e-4, err_msg=name)


def test_the_seed_alone_decides_whatever_the_workers(pictures, tmp_path):
    options = {"dropout": 0.3, "augment": "strong", "optimizer": "sgd", "lr": 0.01}
    first = [train(pictures, tmp_path / f"{count}", workers=count, **options) and result(tmp_path / f"{count}")
             for count in (1, 2, 5)]  # fmt: skip
    assert first[0] == first[1] == first[2]
    train(pictures, tmp_path / "again", **options)
    train(pictures, tmp_path / "other", seed=1, **options)
    assert result(tmp_path / "again") == first[0]
    assert result(tmp_path / "other")[0][1:] != first[0][0][1:] and result(tmp_path / "other")[3:] != first[0][3:]


def test_what_the_caller_draws_is_left_as_it_was_and_decides_nothing(pictures, tmp_path):
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        python_random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].tobytes(), python_random.getstate()
        train(pictures, tmp_path / str(seed), dropout=0.3, lr="auto")
        after = torch.get_rng_state(), np.random.get_state()[1].tobytes(), python_random.getstate()
        assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
        drawn.append(result(tmp_path / str(seed)))
    assert drawn[0] == drawn[1]


def limited(monkeypatch, most: int) -> list[int]:
    """Let the network have memory for so many images; return the sizes of the passes that it was asked for."""
    asked: list[int] = []
    real = TrainableNetwork.embed

    def embed(self, batch, kept=False):
        asked.append(len(batch))
        if len(batch) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, batch, kept=kept)

    monkeypatch.setattr(TrainableNetwork, "embed", embed)
    return asked


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_that_does_not_fit_is_taken_in_pieces_and_is_the_same_step(
    pictures, tmp_path, monkeypatch, said, optimizer
):
    options = {"freeze_norms": True, "batch_size": 8, "optimizer": optimizer, "lr": 0.001, "label_smoothing": 0.1}
    whole = train(pictures, tmp_path / "whole", **options)
    asked = limited(monkeypatch, 3)
    pieces = train(pictures, tmp_path / "pieces", **options)
    assert [line for line in said() if "memory" in line] == [
        "out of memory on this machine: going on with 3 images at a time, whose gradients add up to the same step"
    ]
    assert [size for size in asked if size > 3] == [6], "once, in the first step"
    for ours, theirs in zip(*(losses(run.model.facts["history"]) for run in (whole, pieces)), strict=True):
        assert theirs == pytest.approx(ours, abs=1e-5)


def test_one_image_that_does_not_fit_ends_the_run(pictures, tmp_path, monkeypatch):
    limited(monkeypatch, 0)
    monkeypatch.setattr(stepper_module, "available_memory", lambda: None)
    with pytest.raises(DeviceError, match="has too little memory for one image; pass a smaller --crop"):
        train(pictures, tmp_path / "model")
    with pytest.raises(DeviceError, match="train on one image at a time; pass a smaller --crop, or --train a later"):
        train(pictures, tmp_path / "model", select_on="last", overwrite=True)
    assert not (tmp_path / "model").exists()


def small_stepper(name: str = "resnet18", batch_size: int = 32, **options) -> tuple[Stepper, TrainableNetwork]:
    asked = TrainOptions(batch_size=batch_size, **options)
    begun = assemble(random(name, crop=32, resize=32), ("a", "b"), asked, "none", CPU)
    network, groups = begun.network, parameter_groups(begun.network, begun.depth, asked)
    return Stepper(network, groups, asked, choose_device("cpu"), Ranks(), "float32"), network


def test_pieces_are_even_so_that_none_is_a_rest_of_one(monkeypatch):
    stepper, network = small_stepper()
    sizes = []
    real = network.forward
    monkeypatch.setattr(network, "forward", lambda batch, kept=False: (sizes.append(len(batch)), real(batch, kept))[1])
    stepper.piece = 4
    network.train()
    stepper.step(torch.zeros(13, 32, 32, 3, dtype=torch.uint8), torch.zeros(13, dtype=torch.int64), total=13, rate=0.1)
    assert sizes == [4, 3, 3, 3]


def test_on_a_cpu_the_memory_bounds_a_pass_beforehand(monkeypatch, said):
    _, network = small_stepper(batch_size=1)
    an_image = 2 * saved_bytes(network)
    lasting = 4 * sum(value.nbytes for value in network.parameters() if value.requires_grad)
    monkeypatch.setattr(stepper_module, "available_memory", lambda: 2 * 10 * an_image + lasting)
    stepper, _ = small_stepper()
    assert stepper.piece == 10
    assert said()[-1].startswith("10 images at a time instead of 32, whose gradients add up to the same step")
    monkeypatch.setattr(stepper_module, "available_memory", lambda: 0)
    assert small_stepper()[0].piece == 1
    monkeypatch.setattr(stepper_module, "available_memory", lambda: None)
    assert small_stepper()[0].piece == 32


def test_frozen_layers_are_bounded_by_their_own_pass(monkeypatch):
    _, network = small_stepper(batch_size=1, train="head")
    forward = bytes_an_image(network.backbone)
    assert saved_bytes(network) < forward / 10
    lasting = 4 * sum(value.nbytes for value in network.parameters() if value.requires_grad)
    monkeypatch.setattr(stepper_module, "available_memory", lambda: 2 * 10 * forward + lasting)
    assert small_stepper(train="head")[0].piece == 10


def test_weights_are_no_activations():
    _, network = small_stepper("convnext_tiny", batch_size=1)
    linear = [layer.weight.nbytes for layer in network.body.modules() if isinstance(layer, nn.Linear)]
    assert saved_bytes(network) < sum(linear) / 10

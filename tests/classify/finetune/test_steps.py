"""One step of training after another, against a loop of plain torch and against formulas written out."""

import math

import numpy as np
import pytest
import torch
from finetuned import LITE, QUICK, SMALL, Runs
from networks import random
from torch import nn
from torch.nn.functional import cross_entropy

from headstart.classify.finetune.assembly import assemble
from headstart.classify.finetune.groups import parameter_groups
from headstart.classify.finetune.options import TrainOptions
from headstart.classify.finetune.stepper import Stepper
from headstart.extract.backbone import BackboneRequest, load_backbone
from headstart.extract.decode import decode
from headstart.extract.files import read_regular
from headstart.extract.preprocess import to_input

CPU = torch.device("cpu")
RATE, MOMENTUM, DECAY = 0.01, 0.9, 1e-3
LATER = ("_blocks.15.", "_conv_head.", "_bn1.")


@pytest.fixture(scope="module")
def runs(few, tmp_path_factory) -> Runs:
    return Runs(few, tmp_path_factory.mktemp("steps"))


def pixels_of(run, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pictures as the network gets them, (n, 3, S, S), and their labels."""
    subset = run.result.pictures.part(split)
    backbone = load_backbone(BackboneRequest(LITE), resize=SMALL["resize"], crop=SMALL["crop"])
    images = [to_input(decode(read_regular(name)).pixels, backbone.preprocess)[0] for name in subset.names]
    return backbone.normalise(torch.from_numpy(np.stack(images))), torch.from_numpy(subset.y)


def plain(images: torch.Tensor, y: torch.Tensor, trained: str, size: int) -> dict[str, torch.Tensor]:
    """Train for one epoch as a tutorial would, and return all weights."""
    backbone = load_backbone(BackboneRequest(LITE), resize=SMALL["resize"], crop=SMALL["crop"])
    body = backbone.module
    torch.manual_seed(0)
    head = nn.Linear(1280, 2)
    for name, value in body.named_parameters():
        value.requires_grad_(trained == "all" or name.startswith(LATER))
    body.eval()
    for name, module in body.named_modules():
        module.training = trained == "all" or f"{name}.".startswith(LATER)
    groups = [
        {"params": [p for p in body.parameters() if p.requires_grad and p.ndim > 1], "lr": RATE, "weight_decay": DECAY},
        {"params": [p for p in body.parameters() if p.requires_grad and p.ndim == 1], "lr": RATE, "weight_decay": 0},
        {"params": [head.weight], "lr": 10 * RATE, "weight_decay": DECAY},
        {"params": [head.bias], "lr": 10 * RATE, "weight_decay": 0},
    ]
    optimizer = torch.optim.SGD(groups, lr=RATE, momentum=MOMENTUM)
    order = np.random.default_rng([0, 1]).permutation(len(y))
    steps = math.ceil(len(y) / size)
    for rows in np.split(order, [len(y) * step // steps for step in range(1, steps)]):
        optimizer.zero_grad()
        cross_entropy(head(backbone.tap(images[rows])), y[rows]).backward()
        optimizer.step()
    return {name: value for name, value in body.state_dict().items() if not name.startswith("fc.")} | {
        "weight_0": head.weight.detach(), "bias_0": head.bias.detach()
    }  # fmt: skip


@pytest.mark.parametrize("train", ["all", "_blocks.15"])
def test_an_epoch_equals_a_loop_of_plain_torch(runs, train):
    run = runs(
        **{**QUICK, "train": train, "epochs": 1}, optimizer="sgd", lr=RATE, momentum=MOMENTUM, weight_decay=DECAY,
        schedule="constant",
    )  # fmt: skip
    expected = plain(*pixels_of(run, "train"), train, QUICK["batch_size"])
    start = load_backbone(BackboneRequest(LITE)).module.state_dict()
    assert run.saved.keys() >= expected.keys()
    for name, value in expected.items():
        assert np.abs(run.saved[name] - value.numpy()).max() <= 1e-6 * value.abs().max().item(), name
    for name in expected.keys() & start.keys():
        trained = train == "all" or name.startswith(LATER)
        if not trained or name.endswith("conv.weight"):  # a bias before another batch norm has no say, and stays
            assert torch.equal(start[name], expected[name]) != trained, name


def rates(runs, monkeypatch, **options) -> list[float]:
    """Return the learning rate that each step of a run was taken with."""
    seen: list[float] = []
    step = Stepper.step
    monkeypatch.setattr(
        Stepper, "step", lambda self, *args, **given: seen.append(given["rate"]) or step(self, *args, **given)
    )
    runs(**{**QUICK, "train": "head", "lr": 0.5, "epochs": 6, **options}, keep_frozen=True)
    return seen


STEPS = 3  # of an epoch: 24 pictures, 8 at a time


def expected_rate(schedule: str, warmup: float, step: int) -> float:
    done = step / STEPS  # epochs
    factor = {
        "constant": 1.0,
        "cosine": (1 + math.cos(math.pi * done / 6)) / 2,
        "step": 0.1 ** (int(done) // 2),  # a tenth after each third of 6 epochs
    }[schedule]
    return 0.5 * factor * (min(1.0, (step + 1) / (STEPS * warmup)) if warmup else 1.0)


@pytest.mark.parametrize("warmup", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_each_step_has_the_rate_of_the_formula(runs, monkeypatch, schedule, warmup):
    found = rates(runs, monkeypatch, schedule=schedule, warmup=warmup)
    assert found == pytest.approx([expected_rate(schedule, warmup, step) for step in range(6 * STEPS)], rel=1e-12)


def groups_of(name: str, **options) -> dict[str, tuple[float, float]]:
    """Return the multiple of the rate and the weight decay of each parameter that is trained."""
    options = TrainOptions(**options)
    begun = assemble(random(name, crop=64), ["ants", "bees"], options, "none", CPU)
    network, depth = begun.network, begun.depth
    names = {id(value): name for name, value in network.named_parameters()}
    return {
        names[id(value)]: (group["multiple"], group["weight_decay"])
        for group in parameter_groups(network, depth, options)
        for value in group["params"]
    }


def test_norms_and_biases_have_no_weight_decay():
    found = groups_of("resnet18", weight_decay=0.3)
    decayed = {name for name, (_, decay) in found.items() if decay}
    assert {decay for _, decay in found.values()} == {0.0, 0.3}
    assert decayed == {name for name in found if "bn" not in name and "downsample.1" not in name and "bias" not in name}
    assert len(decayed) == 21  # 20 convolutions and the head


def test_the_rate_decays_from_block_to_block_and_the_head_has_its_own():
    found = {name: multiple for name, (multiple, _) in groups_of("resnet18", layer_decay=0.5, head_lr_mult=7.0).items()}
    assert found["head.0.weight"] == found["head.0.bias"] == 7.0
    blocks = [f"layer{stage}.{block}" for stage in (4, 3, 2, 1) for block in (1, 0)]
    for behind, block in enumerate(blocks):
        inside = {multiple for name, multiple in found.items() if name.startswith(f"body.{block}.")}
        assert inside == {0.5**behind}, block
    assert found["body.conv1.weight"] == 0.5 ** len(blocks)


def test_a_layer_and_all_behind_it_are_trained_and_nothing_before_it():
    found = groups_of("resnet18", train="layer4.1")
    assert {name.rpartition(".")[0] for name in found} == {
        "head.0", *(f"body.layer4.1.{name}" for name in ("conv1", "bn1", "conv2", "bn2"))
    }  # fmt: skip


def test_a_head_may_begin_at_the_last_layer_of_a_classifier():
    options = TrainOptions(train="classifier.0")
    backbone = random("vgg16", layer="classifier.3", crop=32)
    network = assemble(backbone, ["ants", "bees"], options, "none", CPU).network
    trained = {name for name, value in network.named_parameters() if value.requires_grad}
    assert trained == {
        f"body.classifier.{place}.{kind}" for place in (0, 3) for kind in ("weight", "bias")
    } | {"head.0.weight", "head.0.bias"}  # fmt: skip
    assert network.head_widths == (4096, 2)
    assert network(torch.zeros(1, 32, 32, 3, dtype=torch.uint8)).shape == (1, 2)

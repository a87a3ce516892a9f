"""The part of a network behind one layer, run on kept activations, against whole passes."""

import copy

import pytest
import torch
from networks import hooks, random
from torch import distributed, nn

from headstart.errors import BackboneError
from headstart.extract.backbone import Backbone
from headstart.extract.depth import depth_of
from headstart.extract.replay import Replay
from headstart.extract.taps import drift

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"crop": 64, "resize": "none"}
# Backbone, where its tap is, the layers whose input decides all behind it, and those whose input does not.
NETWORKS = [
    (
        "resnet18",
        None,
        ["conv1", "layer2", "layer3", "layer4.1", "avgpool", "fc"],
        ["layer4.1.conv2", "layer4.0.downsample", "layer2.0.bn2"],
    ),
    ("resnet18", "layer3", ["layer2", "layer3"], ["layer3.1.relu"]),
    ("mobilenet_v3_small", None, ["features.8", "features.12", "avgpool"], ["features.8.block.1"]),
    ("efficientnet_lite0", None, ["_blocks", "_blocks.5", "_blocks.15", "_conv_head"], ["_blocks.12._bn1"]),
    (
        "vit_b_32",
        None,
        ["encoder", "encoder.layers.encoder_layer_9", "encoder.ln"],
        ["encoder.layers.encoder_layer_9.mlp", "encoder.layers.encoder_layer_9.self_attention.out_proj"],
    ),
    ("swin_t", None, ["features.5", "features.5.3", "norm"], ["features.5.1.attn"]),
    ("convnext_tiny", None, ["features.5", "features.7"], ["features.5.4.block.3"]),
    ("densenet121", None, ["features.denseblock4", "features.norm5"], ["features.denseblock4.denselayer5"]),
    ("vgg16", "classifier.5", ["features.24", "avgpool", "classifier.0", "classifier.3", "classifier.5"], []),
    ("timm/convnext_atto", None, ["stages.2", "stages.3"], ["stages.2.blocks.1.mlp"]),
]
EXACT = [(name, end, layer) for name, end, exact, _ in NETWORKS for layer in exact]
INEXACT = [(name, end, layer) for name, end, _, inexact in NETWORKS for layer in inexact]
TRAINED = [
    ("resnet18", None, "layer4"),
    ("efficientnet_lite0", None, "_blocks.11"),
    ("vit_b_32", None, "encoder.layers.encoder_layer_10"),
    ("swin_t", None, "features.6"),
    ("convnext_tiny", None, "features.6"),
    ("densenet121", None, "features.denseblock4"),
]
_made: dict[tuple[str, str | None], Backbone] = {}


def backbone_of(name: str, end: str | None) -> Backbone:
    """Return a network with random weights, made once for the tests that follow each other."""
    if (name, end) not in _made:
        _made.clear()
        _made[name, end] = random(name, layer=end, **({} if name == "vit_b_32" else SMALL))
    return _made[name, end]


def pictures(backbone: Backbone, count: int = 3, seed: int = 0) -> torch.Tensor:
    side = backbone.preprocess.crop
    images = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))
    return images.to(memory_format=torch.channels_last)


def moved(before: torch.Tensor, after: torch.Tensor) -> float:
    return drift(before.flatten(1), after.flatten(1), [before[0].numel()])


def train_behind(backbone: Backbone, layer: str) -> list[str]:
    """Let the part from `layer` on be trained, in train mode; return its parameters."""
    depth = depth_of(backbone)
    network = backbone.module.eval().requires_grad_(False)
    for name in depth.modules_from(layer):
        network.get_submodule(name).training = True
    trained = depth.parameters_from(layer)
    values = dict(network.named_parameters())
    for name in trained:
        values[name].requires_grad_(True)
    return sorted(trained)


@pytest.mark.parametrize(("name", "end", "layer"), EXACT)
def test_a_replay_gives_the_rows_of_the_whole_pass(name, end, layer):
    backbone = backbone_of(name, end)
    replay = Replay(backbone, layer)
    images = pictures(backbone)
    assert replay.exact(images)
    with torch.no_grad():
        kept, plain = replay.activations(images), backbone.tap(images)
        assert moved(plain, replay.from_activations(kept)) <= 1e-5
        # Rows may be kept one by one and come back in any order and number.
        order = [2, 0, 1, 1]
        assert moved(plain[order], replay.from_activations(torch.stack([kept[place] for place in order]))) <= 1e-5


@pytest.mark.parametrize(("name", "end", "layer"), INEXACT)
def test_what_goes_around_a_layer_is_found(name, end, layer):
    backbone = backbone_of(name, end)
    images = pictures(backbone)
    with torch.no_grad():
        plain = backbone.tap(images)
        assert not Replay(backbone, layer).exact(images)
        assert torch.equal(backbone.tap(images), plain)


def test_a_way_around_that_adds_zero_for_now_is_found():
    backbone = _gated(random("resnet18", **SMALL))
    replay, images = Replay(backbone, "layer4"), pictures(backbone)
    with torch.no_grad():
        assert moved(backbone.tap(images), replay.from_activations(replay.activations(images))) == 0
    assert not replay.exact(images)


def _gated(backbone: Backbone) -> Backbone:
    """Lead a way around the last stage of a ResNet that a gate holds shut, until training opens it."""
    network = backbone.module
    network.gate = nn.Parameter(torch.zeros(()))

    def forward(images: torch.Tensor) -> torch.Tensor:
        early = network.maxpool(network.relu(network.bn1(network.conv1(images))))
        middle = network.layer2(network.layer1(early))
        late = network.layer4(network.layer3(middle))
        return network.fc((late + network.gate * middle.mean()).mean((2, 3)))

    network.forward = forward
    return backbone


@pytest.mark.parametrize(("name", "end", "layer"), TRAINED)
def test_gradients_behind_the_layer_are_those_of_the_whole_pass(name, end, layer):
    backbone = random(name, layer=end, **({} if name == "vit_b_32" else SMALL))
    trained, images = train_behind(backbone, layer), pictures(backbone, 4)
    network = backbone.module
    replay = Replay(backbone, layer)
    kept, weights = replay.activations(images), torch.randn(backbone.dim, generator=torch.Generator().manual_seed(1))
    state = copy.deepcopy(network.state_dict())

    def step(rows) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        network.load_state_dict(state)
        network.zero_grad()
        torch.manual_seed(3)  # dropped paths are drawn alike
        found = rows()
        (found @ weights).square().mean().backward()
        grads = {name: value.grad.clone() for name, value in network.named_parameters() if value.grad is not None}
        return found.detach(), grads, copy.deepcopy(network.state_dict())

    plain = step(lambda: backbone.tap(images))
    again = step(lambda: replay.from_activations(kept))
    assert moved(plain[0], again[0]) <= 1e-5
    assert sorted(plain[1]) == sorted(again[1]) == trained
    for parameter, wanted in plain[1].items():
        torch.testing.assert_close(again[1][parameter], wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
    for key, wanted in plain[2].items():  # what batch norms have counted, too
        torch.testing.assert_close(again[2][key], wanted, rtol=1e-5, atol=1e-6)


def test_dropout_behind_the_layer_is_drawn_as_in_the_whole_pass():
    backbone = random("vgg16", layer="classifier.5", **SMALL)
    train_behind(backbone, "classifier.0")
    replay, images = Replay(backbone, "classifier.0"), pictures(backbone)
    with torch.no_grad():
        kept = replay.activations(images)
        torch.manual_seed(5)
        plain = backbone.tap(images)
        torch.manual_seed(5)
        assert moved(plain, replay.from_activations(kept)) <= 1e-5
        assert not torch.equal(plain, backbone.tap(images))
    assert replay.exact(images)  # which does without


def test_the_network_and_what_was_kept_are_left_as_they_were():
    backbone = random("vgg16", layer="classifier.5", **SMALL)
    train_behind(backbone, "classifier.0")
    network, images = backbone.module, pictures(backbone)
    modes = [module.training for module in network.modules()]
    wanted = [value.requires_grad for value in network.parameters()]
    state = copy.deepcopy(network.state_dict())
    before = hooks(network)
    replay = Replay(backbone, "classifier.4")  # a ReLU that works in the memory of what it receives
    assert replay.exact(images)
    kept = replay.activations(images)
    copied = kept.clone()
    replay.from_activations(kept)
    assert torch.equal(kept, copied) and bool((kept < 0).any())
    assert [module.training for module in network.modules()] == modes
    assert [value.requires_grad for value in network.parameters()] == wanted
    assert hooks(network) == before
    assert not any("forward" in vars(module) for module in network.modules())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_a_replay_that_fails_leaves_the_network_as_it_was():
    backbone = random("resnet18", **SMALL)
    network, images = backbone.module, pictures(backbone)
    with torch.no_grad():
        plain = backbone.tap(images)
        before = hooks(network)
        replay = Replay(backbone, "layer4")
        with pytest.raises(RuntimeError):
            replay.from_activations(torch.zeros(2, 7, 4, 4))
        assert hooks(network) == before
        assert not any("forward" in vars(module) for module in network.modules())
        assert torch.equal(backbone.tap(images), plain)


def test_what_lies_before_the_layer_does_not_compute():
    backbone = random("resnet18", **SMALL)
    replay, images = Replay(backbone, "layer4"), pictures(backbone)
    called: list[str] = []
    for name, module in backbone.module.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: called.append(name))
    kept = replay.activations(images)
    assert called[-1] == "layer3.1.relu"
    called.clear()
    replay.from_activations(kept)
    # The outermost ones are called and answer at once; nothing inside of them is.
    assert called[:9] == ["", "conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"]
    assert called[9] == "layer4.0"


def test_activations_can_be_trained_on_even_from_within_inference_mode():
    backbone = random("resnet18", **SMALL)
    train_behind(backbone, "layer4")
    replay, images = Replay(backbone, "layer4"), pictures(backbone)
    with torch.inference_mode():
        kept = replay.activations(images.clone())
        assert replay.exact(images.clone())
    assert not kept.requires_grad and kept.shape == (3, 256, 4, 4)
    replay.from_activations(kept).sum().backward()
    assert backbone.module.layer4[0].conv1.weight.grad is not None


def test_the_input_of_the_taps_own_layer_is_the_embedding():
    backbone = random("resnet18", **SMALL)
    replay, images = Replay(backbone, "fc.input"), pictures(backbone)
    with torch.no_grad():
        kept = replay.activations(images)
        assert torch.equal(kept, backbone.tap(images))
        assert torch.equal(replay.from_activations(kept), kept)


def test_a_layer_that_nothing_calls_is_not_exact_and_says_why():
    backbone = random("resnet18", layer="layer2", **SMALL)
    replay = Replay(backbone, "layer4")
    assert not replay.exact(pictures(backbone))
    with pytest.raises(BackboneError, match=r"^layer4 of resnet18 is not called by itself before .*; choose another"):
        replay.activations(pictures(backbone))
    with pytest.raises(BackboneError, match=r"^no layer 'layer5' in resnet18; nearest: layer4"):
        Replay(backbone, "layer5")


def test_a_list_of_modules_is_cut_before_the_first_of_them():
    assert Replay(random("efficientnet_lite0", **SMALL), "_blocks").layer == "_blocks.0"


class _Wrapped(nn.Module):
    """What is trained in parallel: a module that holds the network and takes kept activations."""

    def __init__(self, backbone: Backbone, replay: Replay) -> None:
        super().__init__()
        self.network, self.head = backbone.module, nn.Linear(backbone.dim, 2)
        self._replay = replay

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        return self.head(self._replay.from_activations(activations))


def test_it_runs_within_distributed_data_parallel(tmp_path):
    backbone = random("resnet18", **SMALL)
    trained, images = train_behind(backbone, "layer4"), pictures(backbone)
    replay = Replay(backbone, "layer4")
    kept = replay.activations(images)
    wrapped = _Wrapped(backbone, replay)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(wrapped)
        for _ in range(2):  # a second pass is refused where a parameter had no part in the first
            parallel(kept).square().sum().backward()
    finally:
        distributed.destroy_process_group()
    reached = {name for name, value in backbone.module.named_parameters() if value.grad is not None}
    assert reached == set(trained)

"""In what order networks come to their modules and parameters, against what their code and a backward pass say."""

import itertools

import pytest
import torch
from networks import hooks, random
from torch import nn

from headstart.errors import BackboneError
from headstart.extract.backbone import Backbone
from headstart.extract.depth import Depth, depth_of

pytestmark = pytest.mark.usefixtures("one_thread")

# Name, layer, whether it takes small images, how many blocks, the first parameters of some of them.
NETWORKS = [
    ("resnet18", None, True, 9, {0: "conv1.weight", 1: "layer1.0.conv1.weight", 8: "layer4.1.conv1.weight"}),
    ("vgg16", None, True, 13, {0: "features.0.weight", 12: "features.28.weight"}),
    ("vgg16", "classifier.3", False, 15, {13: "classifier.0.weight", 14: "classifier.3.weight"}),
    ("mobilenet_v3_small", None, True, 13, {0: "features.0.0.weight", 12: "features.12.0.weight"}),
    ("efficientnet_lite0", None, True, 18, {0: "_conv_stem.weight", 16: "_blocks.15._expand_conv.weight"}),
    ("vit_b_16", None, False, 13, {0: "conv_proj.weight", 1: "encoder.layers.encoder_layer_0.ln_1.weight"}),
    ("swin_t", None, True, 16, {1: "features.1.0.norm1.weight", 3: "features.2.norm.weight"}),
    ("convnext_tiny", None, True, 22, {1: "features.1.0.block.0.weight", 4: "features.2.1.weight"}),
    ("densenet121", None, True, 8, {2: "features.transition1.norm.weight"}),
    ("timm/convnext_atto", None, True, 16, {1: "stages.0.blocks.0.conv_dw.weight"}),
]


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda case: f"{case[0]}-{case[1]}")
def case(request):
    name, layer, small, blocks, firsts = request.param
    backbone = random(name, layer=layer, **({"crop": 64, "resize": "none"} if small else {}))
    return backbone, depth_of(backbone), blocks, firsts


@pytest.fixture
def resnet() -> Backbone:
    return random("resnet18", crop=64, resize="none")


def gradients(backbone: Backbone) -> set[str]:
    """Return the parameters that a backward pass from the embedding reaches."""
    backbone.module.requires_grad_(True)
    side = backbone.preprocess.crop
    backbone.tap(torch.ones(1, 3, side, side)).sum().backward()
    reached = {name for name, value in backbone.module.named_parameters() if value.grad is not None}
    backbone.module.requires_grad_(False).zero_grad()
    return reached


def test_parameters_are_those_that_a_gradient_reaches(case):
    backbone, depth, _, _ = case
    assert set(depth.parameters) == gradients(backbone)
    assert len(set(depth.parameters)) == len(depth.parameters)


def test_blocks_hold_every_parameter_once_and_in_order(case):
    _, depth, count, firsts = case
    blocks = depth.blocks()
    assert len(blocks) == count
    assert sorted(name for block in blocks for name in block) == sorted(depth.parameters)
    starts = [depth.parameters.index(block[0]) for block in blocks]
    assert starts == sorted(starts)
    assert {place: blocks[place][0] for place in firsts} == firsts


def test_what_comes_from_each_block_on_is_less_and_less(case):
    _, depth, _, _ = case
    layers = list(dict.fromkeys(block[0].rsplit(".", 1)[0] for block in depth.blocks()))
    sets = [depth.parameters_from(layer) for layer in layers]
    assert all(shallow > deep for shallow, deep in itertools.pairwise(sets))
    assert sets[0] == set(depth.parameters)


def test_the_stem_and_the_last_norm_of_a_vision_transformer_have_no_blocks_of_their_own():
    blocks = depth_of(random("vit_b_16")).blocks()
    assert blocks[0] == ("conv_proj.weight", "conv_proj.bias", "class_token", "encoder.pos_embedding")
    assert blocks[-1][-2:] == ("encoder.ln.weight", "encoder.ln.bias")
    assert "encoder.layers.encoder_layer_11.self_attention.out_proj.weight" in blocks[-1]


def test_parameters_and_modules_from_a_layer_are_its_own_and_all_behind(resnet):
    depth = depth_of(resnet)
    network = resnet.module
    for layer, behind in (("layer3", ("layer3", "layer4")), ("layer4.1", ("layer4.1",)), ("layer4", ("layer4",))):
        inside = {name for name, _ in network.named_parameters() if name.startswith(tuple(f"{b}." for b in behind))}
        assert depth.parameters_from(layer) == depth.parameters_from(f"{layer}.input") == inside
        called = {n for n, _ in network.named_modules() if n in behind or n.startswith(tuple(f"{b}." for b in behind))}
        assert depth.modules_from(layer) == called | {"avgpool"}
    # The second convolution of a block comes before the way around it.
    assert "layer4.0.downsample.0.weight" in depth.parameters_from("layer4.0.conv2")
    assert "layer4.0.conv1.weight" not in depth.parameters_from("layer4.0.conv2")
    assert depth.parameters_from("avgpool") == frozenset()


def test_what_a_module_owns_itself_counts_when_it_is_used():
    depth = depth_of(random("vit_b_16"))
    assert "class_token" in depth.parameters_from("conv_proj")
    assert "class_token" not in depth.parameters_from("encoder")
    assert "encoder.pos_embedding" in depth.parameters_from("encoder")
    assert "encoder.pos_embedding" not in depth.parameters_from("encoder.layers.encoder_layer_0")
    attention = "encoder.layers.encoder_layer_11.self_attention"
    assert f"{attention}.out_proj.weight" in depth.parameters_from(attention)
    assert f"{attention}.in_proj_weight" not in depth.parameters_from(f"{attention}.out_proj")
    assert f"{attention}.out_proj" not in depth.modules


def test_the_network_is_left_as_it_was(resnet):
    network = resnet.module
    network.layer3.train()
    network.layer4.requires_grad_(True)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    wanted = [value.requires_grad for value in network.parameters()]
    before = hooks(network)
    with torch.inference_mode():
        depth_of(resnet)
    assert [module.training for module in network.modules()] == modes
    assert [value.requires_grad for value in network.parameters()] == wanted
    assert hooks(network) == before
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert all(value.grad is None for value in network.parameters())


def test_modules_called_again_count_the_first_time(resnet):
    depth = depth_of(resnet)
    # A block's only ReLU comes between the first and the second convolution, and once more at the end.
    assert depth.modules.index("layer1.0.relu") < depth.modules.index("layer1.0.conv2")
    assert depth.modules.count("layer1.0.relu") == 1


def test_a_weight_that_two_modules_share_counts_once_where_it_is_first_used(resnet):
    network = resnet.module
    network.layer4[1].conv2.weight = network.layer4[1].conv1.weight
    network.layer1[1].conv2.weight = network.layer1[0].conv2.weight
    depth = depth_of(resnet)
    assert "layer4.1.conv2.weight" not in depth.parameters
    assert depth.parameters.count("layer1.0.conv2.weight") == 1
    assert "layer1.0.conv2.weight" not in depth.parameters_from("layer1.1")
    assert "layer4.1.conv1.weight" not in depth.parameters_from("layer4.1.conv2")


def test_a_list_of_modules_begins_with_the_first_of_them_that_is_called():
    backbone = random("efficientnet_lite0", crop=64, resize="none")
    depth = depth_of(backbone)
    assert isinstance(backbone.module._blocks, nn.ModuleList)
    assert depth.first_called("_blocks") == "_blocks.0"
    assert depth.parameters_from("_blocks") == depth.parameters_from("_blocks.0")
    assert depth.modules_from("_blocks") == depth.modules_from("_blocks.0")


def test_a_layer_that_does_not_exist_gives_the_nearest(resnet):
    depth = depth_of(resnet)
    wanted = r"^no layer 'layer33' in resnet18; nearest: layer3, .*; layers of resnet18: conv1, bn1, .*\(add \.0"
    for asked in (depth.parameters_from, depth.modules_from, depth.first_called):
        with pytest.raises(BackboneError, match=wanted):
            asked("layer33")


@pytest.mark.parametrize(("end", "layer"), [(None, "fc"), ("layer2", "layer3"), ("layer2", "layer4.0.conv1")])
def test_a_layer_behind_the_point_where_the_head_begins_is_refused(end, layer):
    depth: Depth = depth_of(random("resnet18", layer=end, crop=64, resize="none"))
    with pytest.raises(BackboneError, match=rf"^{layer} of resnet18 comes after {end or 'fc.input'}, where the head"):
        depth.parameters_from(layer)

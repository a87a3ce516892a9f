"""Folded networks give the embeddings of plain ones, family by family."""

import pytest
import torch
from networks import picture, random
from torch import nn

from headstart.extract.backbone import Backbone, BackboneRequest, load_backbone
from headstart.extract.fold import fold_batch_norms

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES = {
    "resnet18": 20,
    "vgg11_bn": 8,
    "mobilenet_v3_small": 34,
    "convnext_tiny": 0,
    "vit_b_32": 0,
    "swin_t": 0,
    "densenet121": None,
}


def lively(backbone: Backbone) -> None:
    """Give batch norms the moments of what goes through them: those of a fresh one change nothing."""
    norms = [module for module in backbone.module.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
        norm.bias.data.uniform_(-0.3, 0.3, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        backbone.tap(backbone.normalise(picture(backbone.preprocess.crop, 4)))
    for norm in norms:
        norm.eval()


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / one.abs().max())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folded_network_gives_the_same_embeddings(name):
    backbone = random(name)
    lively(backbone)
    batch = picture(224, 2)
    plain = backbone.embed(batch)
    folded = fold_batch_norms(backbone)
    assert folded == FAMILIES[name] or (FAMILIES[name] is None and folded > 50)
    assert difference(plain, backbone.embed(batch)) < 2e-5
    assert difference(plain[:1], plain[1:]) > 1e-3, "pictures differ, or nothing was shown"


@pytest.mark.parametrize(("name", "weights"), [("efficientnet_lite0", "default"), ("efficientnet_b0", "none")])
def test_efficientnets_give_the_same_embeddings(name, weights):
    """With real weights where there are some: moments made up for random ones let rounding grow from layer to layer."""
    backbone = load_backbone(BackboneRequest(name, weights))
    plain = backbone.embed(picture(224, 4))
    assert fold_batch_norms(backbone) == 49
    assert difference(plain, backbone.embed(picture(224, 4))) < 1e-5


@pytest.mark.parametrize("layer", ["conv1", "bn1", "bn1.input", "layer2", "layer3.0.conv2"])
def test_any_layer_can_be_the_end(layer):
    backbone = random("resnet18", layer=layer, pool="avg")
    lively(backbone)
    plain = backbone.embed(picture(224))
    fold_batch_norms(backbone)
    assert difference(plain, backbone.embed(picture(224))) < 1e-5


def test_norms_with_their_activation_inside():
    pytest.importorskip("timm")
    backbone = random("timm/mobilenetv3_small_050")
    lively(backbone)
    plain = backbone.embed(picture(224))
    assert fold_batch_norms(backbone) > 20
    assert difference(plain, backbone.embed(picture(224))) < 1e-5


class Twice(nn.Module):
    """A convolution whose output goes two ways: folding it would change the other one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mapped = self.conv(images)
        return self.bn(mapped) + mapped


def test_what_would_not_be_the_same_is_put_back():
    backbone = random("resnet18")
    backbone.module.maxpool = nn.Sequential(nn.Conv2d(64, 3, 1), Twice(), nn.Conv2d(3, 64, 1)).eval()
    lively(backbone)
    before = {name: value.clone() for name, value in backbone.module.state_dict().items()}
    plain = backbone.embed(picture(224))
    assert fold_batch_norms(backbone) == 0
    after = backbone.module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    torch.testing.assert_close(backbone.embed(picture(224)), plain, rtol=0, atol=0)

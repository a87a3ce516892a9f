"""Where embeddings are taken and how maps and tokens are pooled, against the same by hand."""

import pytest
import torch
from networks import hooks, random
from torch import nn

from headstart.errors import BackboneError
from headstart.extract.preprocess import Preprocess
from headstart.extract.registry import find
from headstart.extract.taps import Tap, find_point

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return random("resnet18").release()


def tap(network: nn.Module, layer: str | None, pool: str | None = None, size: int = 64, name: str = "resnet18") -> Tap:
    return Tap(network, name, [find_point(network, name, "fc", layer)], pool, size)


def test_the_default_is_what_the_classifier_receives(resnet):
    images = torch.randn(2, 3, 64, 64)
    found = tap(resnet, None)
    rows = found(images)
    assert [(taken.point.layer, taken.pool, taken.dim) for taken in found.outputs] == [("fc.input", "none", 512)]
    torch.testing.assert_close(nn.functional.linear(rows, resnet.fc.weight, resnet.fc.bias), found.release()(images))


def test_pooling_of_a_map_by_hand(resnet):
    images = torch.randn(2, 3, 64, 64)
    whole = resnet.layer3(resnet.layer2(resnet.layer1(resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(images)))))))
    assert whole.shape == (2, 256, 4, 4)
    by_hand = {
        None: whole.mean((2, 3)),
        "avg": whole.mean((2, 3)),
        "max": whole.flatten(2).max(2).values,
        "gem": whole.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3),
        "none": whole.flatten(1),
    }
    for pool, wanted in by_hand.items():
        for layer in ("layer3", "layer4.input"):
            found = tap(resnet, layer, pool)
            torch.testing.assert_close(found(images), wanted)
            assert (found.outputs[0].pool, found.dim) == (pool or "avg", wanted.shape[1])
            found.release()


def test_later_layers_cost_nothing_and_release_leaves_no_hook(resnet):
    images = torch.randn(1, 3, 64, 64)
    wanted = resnet(images)
    called = []
    counter = resnet.layer4.register_forward_pre_hook(lambda *_: called.append(1))
    found = tap(resnet, "layer3")
    found(images)
    assert called == []
    torch.testing.assert_close(found.release()(images), wanted)
    assert called == [1]
    counter.remove()
    assert hooks(resnet) == 0


def test_the_tap_compiles_into_one_graph(resnet):
    torch._dynamo.reset()  # what other tests have compiled in this process counts towards a limit
    images = torch.randn(2, 3, 64, 64)
    found = tap(resnet, "layer2")
    with torch.inference_mode():
        wanted = found(images)
        torch.testing.assert_close(torch.compile(found, backend="eager", fullgraph=True)(images), wanted)
    found.release()


@pytest.mark.parametrize(
    ("name", "layer", "dim", "pool"),
    [
        ("vgg16", "classifier.3", 4096, "none"),
        ("vgg16", "features", 512, "avg"),
        ("swin_t", "features.3", 192, "avg"),
        ("vit_b_16", "encoder", 768, "token"),
        ("vit_b_16", "conv_proj", 768, "avg"),
        ("squeezenet1_0", "classifier.1", 1000, "avg"),
        ("inception_v3", "Mixed_7c", 2048, "avg"),
    ],
)
def test_widths_of_other_layers(name, layer, dim, pool):
    source = find(name)
    network = source.empty().eval().to("meta")
    point = find_point(network, name, source.classifier(network), layer)
    found = Tap(network, name, [point], None, source.preprocess().crop)
    assert (found.dim, found.outputs[0].pool) == (dim, pool)
    assert point.in_classifier == layer.startswith("classifier")


def test_swin_maps_have_their_channels_last():
    backbone = random("swin_t", layer="features.1")
    network, images = backbone.release(), torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        whole = network.features[1](network.features[0](images))
        assert whole.shape == (1, 56, 56, 96)
        found = Tap(network, "swin_t", [find_point(network, "swin_t", "head", "features.1")], "max", 224)
        torch.testing.assert_close(found(images), whole.amax((1, 2)))


def test_tokens_of_a_vision_transformer(vision):
    images, found = torch.randn(1, 3, 224, 224), {}
    with torch.inference_mode():
        for layer, pool in ((None, None), ("encoder", None), ("encoder", "none"), ("encoder", "avg")):
            end = Tap(vision, "vit_b_32", [find_point(vision, "vit_b_32", "heads", layer)], pool, 224)
            found[layer, pool] = end(images)
            end.release()
    assert found[None, None].shape == (1, 768)
    torch.testing.assert_close(found["encoder", None], found[None, None])
    every = found["encoder", "none"].reshape(1, 50, 768)
    torch.testing.assert_close(found["encoder", "avg"], every.mean(1))


def test_an_unknown_layer_gives_the_nearest_and_the_outermost(resnet):
    with pytest.raises(BackboneError) as caught:
        tap(resnet, "layer33.input")
    assert str(caught.value) == (
        "no layer 'layer33.input' in resnet18; nearest: layer3, layer3.1, layer3.0; layers of resnet18: conv1, bn1,"
        " relu, maxpool, layer1, layer2, layer3, layer4, avgpool, fc (add .0, .1 or a name to go inside, .input for"
        " what a layer receives)"
    )


@pytest.mark.parametrize(
    ("layer", "pool", "message"),
    [
        (
            "layer3",
            "token",
            "pool token does not go with layer3 of resnet18, which is 256 x 4 x 4 an image; choose from",
        ),
        ("fc.input", "avg", "pool avg does not go with fc.input of resnet18, which is 512 an image; choose from none"),
        ("layer3", "median", "pool median does not go with layer3 of resnet18"),
    ],
)
def test_a_pool_that_does_not_go_with_the_layer(resnet, layer, pool, message):
    with pytest.raises(BackboneError, match=message):
        tap(resnet, layer, pool)
    assert hooks(resnet) == 0


ATTENTION = "encoder.layers.encoder_layer_0.self_attention"


@pytest.mark.parametrize(
    ("name", "layer", "message"),
    [
        ("vit_b_16", ATTENTION, f"{ATTENTION} of vit_b_16 is 2 values, wanted one tensor; choose another layer"),
        ("vit_b_16", f"{ATTENTION}.out_proj", f"vit_b_16 never calls {ATTENTION}.out_proj by itself; choose the layer"),
    ],
)
def test_layers_that_give_no_tensor(name, layer, message):
    network = find(name).empty().eval().to("meta")
    with pytest.raises(BackboneError, match=message):
        Tap(network, name, [find_point(network, name, "heads", layer)], None, 224)


def test_a_size_that_the_network_refuses():
    network = find("vit_b_32").empty().eval().to("meta")
    with pytest.raises(BackboneError, match=r"^vit_b_32 does not take images of 192 x 192 pixels: .*leave --crop out"):
        Tap(network, "vit_b_32", [find_point(network, "vit_b_32", "heads", None)], None, 192)
    assert hooks(network) == 0


def test_overrides_reach_preprocessing_and_width():
    backbone = random("resnet18", layer="layer4", pool="none", crop=96, resize="none", mean=[0.5] * 3, std=[0.5] * 3)
    assert backbone.dim == 512 * 3 * 3
    assert backbone.preprocess == Preprocess(resize=None, crop=96, mean=(0.5,) * 3, std=(0.5,) * 3)
    white = torch.full((1, 96, 96, 3), 255, dtype=torch.uint8)
    assert torch.unique(backbone.normalise(white)).tolist() == [1.0]

"""What finetuning starts from: saved heads as plain layers, rows of ImageNet's classifier, weights made anew."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import from_file, picture, random, save, without

import headstart
from headstart.classify.finetune.start import (
    check_init_head,
    imagenet_start,
    layers_of,
    parse_imagenet,
    reinitialise,
)
from headstart.classify.heads import make_head
from headstart.classify.model import SavedModel, load_model
from headstart.classify.network import forward
from headstart.errors import BackboneError, ModelError, UsageError
from headstart.extract.backbone import Backbone, BackboneRequest, load_backbone
from headstart.extract.imagenet import imagenet_index, imagenet_names, imagenet_rows, last_linear

LITE = "efficientnet_lite0"
CLASSES = ("hotdog", "not_hotdog")
KINDS = {"logistic": {}, "linear": {"epochs": 5}, "mlp": {"epochs": 5, "hidden": (32, 16)}, "ncm": {}}


@pytest.fixture(scope="module")
def photos(samples, tmp_path_factory) -> Path:
    """A few real photographs in folders by class."""
    folder = tmp_path_factory.mktemp("few") / "photos"
    for split, count in (("train", 10), ("val", 4)):
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
            for path in sorted((samples / "hotdog" / split / name).iterdir())[:count]:
                shutil.copy(path, folder / split / name)
    return folder


@pytest.fixture(scope="module")
def lite() -> Backbone:
    return load_backbone(BackboneRequest(LITE))


@pytest.fixture(scope="module")
def features(photos, tmp_path_factory):
    return headstart.extract(photos, backbone=LITE, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def saved(photos, features, tmp_path_factory) -> tuple[SavedModel, Path]:
    """A head as `headstart fit-head` leaves it."""
    path = tmp_path_factory.mktemp("models") / "head"
    headstart.fit_head(photos, cache=features.store.root, out=path)
    return load_model(path), path


def as_model(network, temperature=1.0, **changes) -> SavedModel:
    fields = {"kind": "logistic", "classes": CLASSES, "spaces": [], "network": network, "temperature": temperature}
    return SavedModel(**{**fields, **changes})


def close(found: np.ndarray, wanted: np.ndarray) -> bool:
    return np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("pca", [None, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_folded_layers_give_the_logits_of_the_saved_head(features, kind, pca):
    X, y = features.X, features.y.astype(np.int64)
    network = make_head(kind, cv=3, pca=pca, **KINDS[kind]).fit(X, y).network_
    model = as_model(network, temperature=1.7)
    weights, biases = layers_of(model)
    assert close(forward(X, weights, biases), network.logits(X) / 1.7)
    assert [weight.shape for weight in weights[1:]] == [weight.shape for weight in network.weights[1:]]
    assert weights[0].shape == (len(biases[0]), X.shape[1])
    assert {array.dtype for array in (*weights, *biases)} == {np.dtype(np.float32)}
    # Each step has its share: without it the numbers are others.
    assert not close(forward(X, *layers_of(replace(model, temperature=1.0))), network.logits(X) / 1.7)
    if network.preparation.projection is None:
        assert not close(forward(X, network.weights, network.biases), network.logits(X))


def test_folding_leaves_the_saved_head_as_it_is(saved):
    model = saved[0]
    before = {name: array.copy() for name, array in model.network.arrays().items()}
    weights, biases = layers_of(model)
    weights[0][:], biases[0][:] = 0, 0
    for name, array in model.network.arrays().items():
        np.testing.assert_array_equal(array, before[name])


def test_heads_that_are_no_linear_layers_are_refused(features, saved, lite):
    X, y = features.X, features.y.astype(np.int64)
    knn = as_model(make_head("knn", cv=3).fit(X, y).network_, kind="knn", spaces=saved[0].spaces)
    long = as_model(make_head("ncm", cv=3, l2_norm=True).fit(X, y).network_, kind="ncm", spaces=saved[0].spaces)
    with pytest.raises(ModelError, match="is a knn head, which keeps its training rows and has no layers"):
        layers_of(knn)
    with pytest.raises(ModelError, match="models/k is a knn head"):
        check_init_head(knn, Path("models/k"), CLASSES, lite)
    with pytest.raises(ModelError, match="was fitted with --l2-norm"):
        layers_of(long)
    with pytest.raises(ModelError, match=r"models/n was fitted with --l2-norm, .*leave --init-head out"):
        check_init_head(long, Path("models/n"), CLASSES, lite)


def test_a_head_of_this_network_starts_where_it_ended(saved, features, lite, caplog):
    model, path = saved
    with caplog.at_level(logging.WARNING):
        checked = check_init_head(model, path, CLASSES, lite)
    assert not caplog.records
    found = forward(features.X, *layers_of(checked))
    assert close(found, model.network.logits(features.X) / model.temperature)
    np.testing.assert_array_equal(found.argmax(axis=1), model.predict_proba(features.X).argmax(axis=1))


def test_classes_in_another_order_are_put_in_that_of_the_dataset(saved, features, lite):
    model, path = saved
    checked = check_init_head(model, path, CLASSES[::-1], lite)
    assert checked.classes == CLASSES[::-1]
    np.testing.assert_array_equal(checked.network.logits(features.X), model.network.logits(features.X)[:, ::-1])


def test_three_classes_in_another_order_keep_their_rows(features, saved, lite):
    y = np.arange(len(features.y)) % 3
    network = make_head("ncm", cv=3).fit(features.X, y).network_
    model = as_model(network, kind="ncm", classes=("a", "b", "c"), spaces=saved[0].spaces)
    checked = check_init_head(model, Path("m"), ("c", "a", "b"), lite)
    np.testing.assert_array_equal(checked.network.logits(features.X), network.logits(features.X)[:, [2, 0, 1]])


def space_with(saved, **changes) -> SavedModel:
    model = saved[0]
    return replace(model, spaces=[{**model.spaces[0], **changes}])


REFUSED = {
    "backbone": (
        {"backbone": "resnet50"},
        r"embeddings of resnet50, .* is efficientnet_lite0; pass --backbone resnet50",
    ),
    "layer": ({"layer": "_blocks.3"}, r"of _blocks\.3 of efficientnet_lite0, .* is fc\.input; pass --layer _blocks\.3"),
    "pool": ({"pool": "max"}, "fc.input pooled by max, .* is pooled by none; pass --pool max"),
    "width": ({"dim": 640}, "fc.input with 640 numbers, .* is of 1280 numbers; pass --crop 224"),
    "weights": ({"weights": "ab" * 32}, "with the weights abababababab, .* is 7871097f4447; pass --weights default"),
}


@pytest.mark.parametrize("field", REFUSED)
def test_a_head_of_another_network_is_refused_and_both_sides_are_named(saved, lite, field):
    changes, message = REFUSED[field]
    with pytest.raises(ModelError, match=message) as caught:
        check_init_head(space_with(saved, **changes), saved[1], CLASSES, lite)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(saved[1]))
    assert "`headstart extract --backbone efficientnet_lite0 --layer fc.input --pool none`" in text


def test_random_weights_of_another_seed_are_named_with_their_seed(saved):
    trained = random("resnet18", seed=2)
    other = random("resnet18", seed=1)
    fields = {"backbone": "resnet18", "weights": other.weights, "dim": 512, "library": "torchvision"}
    model = space_with(saved, **fields)
    model = replace(model, training={"requests": [{"weights": "none", "seed": 1}]})
    with pytest.raises(ModelError, match="pass --weights none --seed 1 and no --reinit"):
        check_init_head(model, saved[1], CLASSES, trained)
    with pytest.raises(ModelError, match="pass the --weights that it was fitted with"):
        check_init_head(replace(model, training={}), saved[1], CLASSES, trained)


def test_heads_of_other_classes_labels_or_spaces_are_refused(saved, lite):
    model, path = saved
    with pytest.raises(
        ModelError, match="other classes than the 2 of this dataset: it lacks ant and also tells hotdog;"
    ):
        check_init_head(model, path, ("ant", "not_hotdog"), lite)
    with pytest.raises(ModelError, match="it lacks c0, c1, c2 and 5 more;"):
        check_init_head(model, path, (*CLASSES, *(f"c{number}" for number in range(8))), lite)
    with pytest.raises(ModelError, match="gives each image several labels"):
        check_init_head(replace(model, multi_label=True), path, CLASSES, lite)
    joined = [*model.spaces, {**model.spaces[0], "layer": "_blocks.3"}]
    with pytest.raises(ModelError, match=r"joined embeddings of efficientnet_lite0's fc.input and .*'s _blocks.3,"):
        check_init_head(replace(model, spaces=joined), path, CLASSES, lite)


def test_other_preprocessing_is_warned_of_by_field(saved, caplog):
    other = load_backbone(BackboneRequest(LITE), crop=192, mean=(0.5, 0.5, 0.5))
    with caplog.at_level(logging.WARNING):
        check_init_head(*saved, CLASSES, other)
    (record,) = caplog.records
    assert (
        "prepared with crop 224, mean 0.498,0.498,0.498, and here it is crop 192, mean 0.5,0.5,0.5;" in record.message
    )


def test_names_of_imagenet_classes_are_found():
    assert [imagenet_index(name) for name in ("hotdog", "ant", "bee", "hen", "0", "999")] == [934, 310, 309, 8, 0, 999]
    assert imagenet_index(" Mobile_Home ") == imagenet_index("mobile home") == 660
    assert not [name for name in imagenet_names() if set(name) & set(",=_")], "the grammar relies on it"


def test_every_name_that_is_one_classs_leads_to_it():
    names = imagenet_names()
    folded = [name.casefold() for name in names]
    for place, name in enumerate(names):
        if folded.count(name.casefold()) == 1:
            assert imagenet_index(name.replace(" ", "_").upper()) == place


def test_a_name_of_two_classes_is_refused_with_their_indices():
    with pytest.raises(
        UsageError, match=r"several classes called 'cardigan'; .* 264 \(Cardigan\) and 474 \(cardigan\)"
    ):
        imagenet_index("cardigan")


@pytest.mark.parametrize("text", ["1000", "-1", "9" * 5000])
def test_an_index_out_of_range_is_refused(text):
    with pytest.raises(UsageError, match=r"no ImageNet class .*: this classifier's go from 0 to 999") as caught:
        imagenet_index(text)
    assert len(str(caught.value)) < 200


def test_unknown_names_come_with_the_nearest():
    with pytest.raises(UsageError, match="no class 'hotdgo'; nearest: hotdog"):
        imagenet_index("hotdgo")
    with pytest.raises(UsageError, match=r"no class 'corgi'.*nearest:"):
        imagenet_index("corgi")
    with pytest.raises(UsageError, match="no class ''; give a name"):
        imagenet_index("")
    with pytest.raises(UsageError, match="this classifier has 21841; give an index from 0 to 21840"):
        imagenet_index("hotdog", outputs=21841)
    assert imagenet_index("21840", outputs=21841) == 21840


def test_pairs_of_label_and_class():
    assert parse_imagenet("imagenet:hotdog=934,not_hotdog=hen", CLASSES) == {0: 934, 1: 8}
    assert parse_imagenet("not_hotdog = hen", CLASSES) == {1: 8}
    assert parse_imagenet("not_hotdog=934, hotdog=934", CLASSES) == {1: 934, 0: 934}


def test_labels_may_hold_commas_and_signs():
    classes = ("salt, pepper", "a=b", "plain")
    assert parse_imagenet("plain=1,salt, pepper=2,a=b=3", classes) == {2: 1, 0: 2, 1: 3}


BAD = {
    "hotdog=934,hotdog=1": "names the label 'hotdog' twice",
    "cat=281": "names the label 'cat'; those of this dataset are hotdog, not_hotdog",
    "=281": "names the label ''",
    "hotdog": "says no class of ImageNet for 'hotdog'",
    "hotdog=934,not_hotdog": "says no class of ImageNet for 'not_hotdog'",
    "hotdog=hotdog, hot dog, red hot": "says no class of ImageNet for ' hot dog, red hot'",
    "": "says no class of ImageNet for ''",
    "hotdog=934,": "says no class of ImageNet for ''",
    "hotdog=": "ImageNet has no class ''",
    "hotdog=1000": "there is no ImageNet class 1000",
    "ho\ntdog=1": r"names the label 'ho\\\\ntdog'",
}


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_pair_is_refused_in_one_line(text):
    with pytest.raises(UsageError, match=BAD[text]) as caught:
        parse_imagenet(f"imagenet:{text}", CLASSES)
    assert "\n" not in str(caught.value)


def test_rows_give_the_logits_of_the_networks_own_classifier(features, lite):
    network = load_backbone(BackboneRequest(LITE)).release()
    classes = ("a", "hotdog", "b")
    start = imagenet_start("hotdog=934,a=hen", classes, lite, "default")
    np.testing.assert_array_equal(start.places, [0, 1])
    assert start.weight.shape == (2, 1280)
    assert start.weight.dtype == start.bias.dtype == np.float32
    images = picture(224, 2)
    with torch.inference_mode():
        wanted = network(lite.normalise(images))[:, [8, 934]].numpy()
    found = lite.embed(images).numpy() @ start.weight.T + start.bias
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_imagenets_hotdog_row_tells_hotdogs_before_any_training(features, lite):
    weight, bias = imagenet_rows(lite, "default", [934])
    logit = (features.X @ weight.T + bias)[:, 0]
    hotdog = features.y == features.classes.index("hotdog")
    assert logit[hotdog].mean() > logit[~hotdog].mean() + 2


def test_rows_are_copies(lite):
    before = last_linear(lite)[1].weight[934].clone()
    weight, _ = imagenet_rows(lite, "default", [934])
    weight[:] = 0
    assert torch.equal(last_linear(lite)[1].weight[934], before)


@pytest.mark.parametrize(
    ("name", "layer", "message"),
    [
        (
            "mobilenet_v3_small",
            None,
            r"the 1024 numbers that go into classifier\.3, .* takes 576; pass --layer classif",
        ),
        ("resnet18", "layer3", r"the 512 numbers that go into fc, .* layer3 takes 256; pass --layer fc\.input"),
        (
            "convnext_tiny",
            None,
            r"classifier\.2, .* takes other numbers, though as many; pass --layer classifier\.2\.i",
        ),
    ],
)
def test_rows_that_do_not_fit_the_layer_name_the_one_that_they_fit(name, layer, message):
    with pytest.raises(UsageError, match=message):
        imagenet_rows(random(name, layer), "weights.pth", [1])


@pytest.mark.slow
def test_rows_of_vgg_fit_its_last_layer_and_no_other_of_its_width():
    with pytest.raises(UsageError, match=r"though as many; pass --layer classifier\.6\.input"):
        imagenet_rows(random("vgg11", "classifier.3.input"), "weights.pth", [1])
    assert imagenet_rows(random("vgg11", "classifier.6.input"), "weights.pth", [1])[0].shape == (1, 4096)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", None),
        ("mobilenet_v2", None),
        ("vit_b_32", None),
        ("mobilenet_v3_small", "classifier.3.input"),
        ("convnext_tiny", "classifier.2.input"),
        ("timm/resnet18", None),
        ("timm/mobilenetv3_small_100", None),
    ],
)
def test_rows_that_fit_give_the_networks_logits(name, layer):
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    backbone = random(name, layer)
    torch.nn.init.normal_(last_linear(backbone)[1].weight)  # a vision transformer's are zeros at first
    images = picture(backbone.preprocess.crop, 2)
    weight, bias = imagenet_rows(backbone, "weights.pth", [3, 934])
    found = backbone.embed(images).numpy() @ weight.T + bias
    normalised = backbone.normalise(images)
    with torch.inference_mode():
        wanted = backbone.release()(normalised)[:, [3, 934]].numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def test_a_classifier_without_linear_layer_has_no_rows():
    with pytest.raises(BackboneError, match=r"squeezenet1_1 ends in classifier\.1, a Conv2d and no linear layer"):
        imagenet_rows(random("squeezenet1_1"), "weights.pth", [1])


def test_weights_without_trained_rows_are_refused(tmp_path):
    whole = random("resnet18")
    with pytest.raises(UsageError, match="with --weights none nothing is trained"):
        imagenet_rows(whole, "none", [1])
    path = save(without(whole.module.state_dict(), "fc."), tmp_path / "body.safetensors")
    with pytest.raises(BackboneError, match=r"body\.safetensors of resnet18 came without its classifier \(fc\)"):
        imagenet_rows(from_file(path), str(path), [1])
    path = save(whole.module.state_dict(), tmp_path / "whole.safetensors")
    weight, _ = imagenet_rows(from_file(path), str(path), [7])
    np.testing.assert_array_equal(weight[0], whole.module.fc.weight[7].numpy())
    with pytest.raises(UsageError, match="there is no ImageNet class 1000"):
        imagenet_rows(whole, str(path), [1000])


def test_named_parameters_and_their_statistics_are_made_anew_and_the_rest_stays():
    backbone, wanted = random("resnet18", seed=1), random("resnet18", seed=5).module.state_dict()
    with torch.no_grad():  # as if it had been trained: no statistic and no parameter is the initial one
        for value in backbone.module.state_dict().values():
            value.add_(1)
    before = {name: value.clone() for name, value in backbone.module.state_dict().items()}
    names = [name for name, _ in backbone.module.named_parameters() if name.startswith(("layer4.", "fc."))]
    pointers = {name: value.data_ptr() for name, value in backbone.module.named_parameters()}
    reinitialise(backbone, names, seed=5)
    after = backbone.module.state_dict()
    for name, value in after.items():
        source = wanted if name.startswith(("layer4.", "fc.")) else before
        assert torch.equal(value, source[name]), name
    assert not torch.equal(after["layer4.0.bn1.running_mean"], before["layer4.0.bn1.running_mean"])
    assert pointers == {name: value.data_ptr() for name, value in backbone.module.named_parameters()}
    assert not any(value.requires_grad for value in backbone.module.parameters())


def test_all_parameters_made_anew_are_random_weights_of_the_seed_and_have_their_digest(lite):
    backbone, wanted = load_backbone(BackboneRequest(LITE)), random(LITE, seed=3)
    reinitialise(backbone, [name for name, _ in backbone.module.named_parameters()], seed=3)
    assert backbone.digests == wanted.digests != lite.digests
    assert torch.equal(backbone.embed(picture(224)), wanted.embed(picture(224)))


def test_weights_made_anew_leave_the_callers_random_numbers_alone():
    backbone = random("resnet18")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    reinitialise(backbone, ["layer4.1.conv2.weight"], seed=0)
    assert torch.equal(torch.rand(3), expected)
    with pytest.raises(KeyError):
        reinitialise(backbone, ["layer9.weight"], seed=0)


def test_a_head_of_the_whole_weights_is_refused_by_a_network_that_was_made_anew(saved):
    backbone = load_backbone(BackboneRequest(LITE))
    reinitialise(backbone, ["_conv_head.weight"], seed=0)
    with pytest.raises(ModelError, match="pass --weights default and no --reinit"):
        check_init_head(*saved, CLASSES, backbone)

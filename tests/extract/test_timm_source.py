"""Backbones of timm: against its own features, from local files, and without a network."""

import os
import subprocess
import sys
import time

import pytest
import torch
from networks import from_file, random, save

from headstart.errors import BackboneError
from headstart.extract import timm_source
from headstart.extract.backbone import BackboneRequest, load_backbone
from headstart.extract.preprocess import Preprocess
from headstart.extract.registry import find

pytest.importorskip("timm")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto", "mobilenetv3_small_050"])
def test_timm_rows_are_its_own_pre_logits(name):
    backbone = random(f"timm/{name}")
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        rows = backbone.tap(images)
        network = backbone.release()
        torch.testing.assert_close(rows, network.forward_head(network.forward_features(images), pre_logits=True))
    assert backbone.library == "timm"


def test_timm_squashes_where_its_weights_were_made_so():
    assert find("timm/coatnet_rmlp_2_rw_384.sw_in12k_ft_in1k").preprocess() == Preprocess(
        resize=(384, 384), crop=384, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3
    )
    assert find("timm/resnet18").preprocess().resize == 235


def test_timm_default_weights_from_a_local_file(tmp_path, monkeypatch):
    wanted = random("timm/resnet18", seed=3)
    path = save(wanted.module.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr(timm_source.TimmSource, "download", lambda self: path)
    assert load_backbone(BackboneRequest("timm/resnet18")).weights == wanted.weights
    assert from_file(path, "timm/resnet18").weights == wanted.weights
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BackboneError, match=r"^the weights .*do not load into timm/resnet18"):
        load_backbone(BackboneRequest("timm/resnet18"))


def test_timm_without_a_network_fails_within_seconds(tmp_path):
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
    with pytest.raises(BackboneError, match=r"^timm/gcvit_base\.in1k has no weights as safetensors"):
        find("timm/gcvit_base.in1k").download()

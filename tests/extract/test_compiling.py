"""When a network is compiled, that it gives the same rows, and what happens where it cannot be."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import BACKBONE, headstart, headstart_json, photos
from networks import picture

from headstart.cache.memo import check
from headstart.errors import DeviceError, UsageError
from headstart.extract.compiling import TOLERANCE, Compiler
from headstart.extract.embedder import Embedder
from headstart.extract.options import RunOptions, SpaceOptions
from headstart.extract.pace import Pace
from headstart.extract.resolve import resolve

__all__ = ["headstart", "headstart_json", "photos"]  # fixtures

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for CPUs with a C++ compiler")


def embedder(tmp_path: Path, backbone: str = BACKBONE, compile: str = "auto", **options) -> Embedder:
    weights = "default" if backbone == BACKBONE else "none"
    asked = SpaceOptions(backbone=backbone, weights=weights, **options)
    found = resolve([asked], RunOptions(device="cpu", batch_size=4, compile=compile), tmp_path)
    found.load()
    return found


@pytest.mark.parametrize(
    "backbone",
    [
        BACKBONE,
        pytest.param("resnet18", marks=pytest.mark.slow),
        pytest.param("vgg11_bn", marks=pytest.mark.slow),
        pytest.param("mobilenet_v3_small", marks=pytest.mark.slow),
        pytest.param("efficientnet_b0", marks=pytest.mark.slow),
        pytest.param("convnext_tiny", marks=pytest.mark.slow),
        pytest.param("vit_b_32", marks=pytest.mark.slow),
        pytest.param("swin_t", marks=pytest.mark.slow),
    ],
)
@needs_compiler
def test_a_compiled_network_gives_the_same_rows(tmp_path, backbone):
    found = embedder(tmp_path, backbone, "always")
    pixels = picture(224, 4).numpy()
    plain = found.embed(pixels)
    Compiler(found, tmp_path).compile()
    assert found.faster is not None and found.faster[0] == 4
    rows = found.embed(pixels)
    assert np.abs(rows - plain).max() <= TOLERANCE["float32"] * np.abs(plain).max()
    assert np.abs(plain[0] - plain[1]).max() > 1e-3 * np.abs(plain).max(), "pictures differ, or nothing was shown"


@needs_compiler
def test_several_layers_compile_together(tmp_path):
    asked = [SpaceOptions(backbone=BACKBONE, layer=layer, resize=64, crop=64) for layer in ("_blocks.2", None)]
    found = resolve(asked, RunOptions(device="cpu", batch_size=4), tmp_path)
    pixels = picture(64, 4).numpy()
    plain = found.embed(pixels)
    Compiler(found, tmp_path).compile()
    assert found.faster is not None
    np.testing.assert_allclose(found.embed(pixels), plain, rtol=0, atol=1e-4 * np.abs(plain).max())
    assert [rows.shape[1] for rows in found.columns(plain)] == [24, 1280]


@needs_compiler
def test_always_compiles_from_the_command_line(headstart_json, photos):
    words = ("extract", photos, "--backbone", BACKBONE, "--resize", 64, "--crop", 64, "--batch-size", 16)
    plain = headstart_json(*words, "--compile", "never", "--cache", "plain")
    fast = headstart_json(*words, "--compile", "always", "--cache", "fast")
    assert fast["space"] == plain["space"] and fast["embedded"] == 36
    assert headstart_json("cache", "verify", "--cache", "fast", "--sample", 10)["max_difference"] <= 1e-4


@needs_compiler
def test_a_compiled_network_is_compiled_once_whatever_pictures_come(tmp_path):
    """Torch compiles again for another number of threads, so the network keeps those that it was compiled with."""
    found = embedder(tmp_path, "squeezenet1_1", resize=64, crop=64)
    object.__setattr__(found, "run", RunOptions(device="cpu"))
    found.resize_batch(4)
    work = [0.0, 0]
    pace = Pace(found, 100, lambda: (work[0], work[1]), tmp_path)
    pace.begin()
    pixels = picture(64, 4).numpy()
    found.threads = torch.get_num_threads()
    Compiler(found, tmp_path).compile()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    pace._forward = 1e-3
    for cost in (1e-4, 1e-1, 1e-4):
        for _ in range(40):
            work[0], work[1] = work[0] + 4 * cost, work[1] + 4
            found.embed(pixels)
            pace.took(4, 4e-3)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before
    assert found.threads == torch.get_num_threads()


def test_an_embedder_that_is_used_again_stays_as_it_was_settled(tmp_path, small):
    small.faster, small.threads = (4, torch.nn.Identity()), 1
    pace = Pace(small, 10_000, lambda: (0.0, 0), tmp_path)
    pace.begin()
    assert pace.settled
    for _ in range(50):
        pace.took(4, 0.1)
    assert small.faster is not None and small.threads == 1
    assert not [path for path in tmp_path.glob("backbones/*.json") if "compiled" in check(path)["request"]]


def test_words_that_mean_nothing_are_refused():
    with pytest.raises(UsageError, match="compile must be one of auto, always, never; got 'alway'"):
        RunOptions(compile="alway")


# The decision


@pytest.fixture
def small(tmp_path) -> Embedder:
    return embedder(tmp_path, resize=64, crop=64)


def test_a_guess_decides_until_it_was_measured(tmp_path, small, caplog):
    caplog.set_level(logging.INFO, "headstart")
    assert not Compiler(small, tmp_path).repays(1000, 100.0)
    assert not caplog.records, "what is not done is not told"
    assert Compiler(small, tmp_path).repays(100_000, 100.0)
    assert caplog.records[-1].getMessage() == (
        f"compiling {BACKBONE}: 100000 images left at 100/s, compiling takes 15 s and makes it 1.10 times as fast "
        "(a guess)"
    )


def test_what_was_measured_is_remembered(tmp_path, small, caplog):
    caplog.set_level(logging.INFO, "headstart")
    compiler = Compiler(small, tmp_path)
    compiler._seconds, small.faster = 8.0, (4, torch.nn.Identity())
    compiler.judge(100.0, 130.0)
    assert small.faster is not None
    assert caplog.records[-1].getMessage() == "compiled in 8.0 s: 130 images/s in the network, 100 before"
    kept = [check(path) for path in tmp_path.glob("backbones/*.json")]
    assert [entry["resolved"] for entry in kept if "compiled" in entry["request"]] == [{"seconds": 8.0, "gain": 1.3}]
    # 1 - 1 / 1.3 is 0.23 of the time that the images take.
    assert not Compiler(small, tmp_path).repays(3400, 100.0)
    assert Compiler(small, tmp_path).repays(3600, 100.0)
    assert caplog.records[-1].getMessage().endswith("(as measured before)")


def test_what_gains_nothing_is_dropped_and_not_tried_again(tmp_path, small, caplog):
    caplog.set_level(logging.INFO, "headstart")
    compiler = Compiler(small, tmp_path)
    compiler._seconds, small.faster = 8.0, (4, torch.nn.Identity())
    compiler.judge(100.0, 99.0)
    assert small.faster is None
    assert caplog.records[-1].getMessage().endswith("; going on as before")
    assert not Compiler(small, tmp_path).repays(10_000_000, 100.0)


def test_where_nothing_can_be_compiled_a_run_goes_on(tmp_path, small, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "headstart")

    def broken(*_arguments, **_options):
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable.")

    monkeypatch.setattr(torch, "compile", broken)
    Compiler(small, tmp_path).compile()
    assert small.faster is None
    assert caplog.records[-1].getMessage() == (
        f"{BACKBONE} is not compiled: RuntimeError: Failed to find C compiler. Please specify via CC environment "
        "variable."
    )
    assert Compiler(small, tmp_path).repays(10_000_000, 100.0), "a compiler may be installed tomorrow"
    with pytest.raises(DeviceError, match=rf"^{BACKBONE} cannot be compiled \(.*\); pass --compile never$"):
        Compiler(embedder(tmp_path, compile="always", resize=64, crop=64), tmp_path).compile()


def test_rows_that_would_move_are_not_computed_so(tmp_path, small, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "headstart")
    monkeypatch.setattr(torch, "compile", lambda tap, **_: lambda images: tap(images) * 1.001)
    Compiler(small, tmp_path).compile()
    assert small.faster is None
    assert "is not compiled: it moves embeddings by 1.0e-03" in caplog.records[-1].getMessage()
    assert not Compiler(small, tmp_path).repays(10_000_000, 100.0), "it is remembered"


def test_a_batch_of_another_size_goes_the_plain_way(small, monkeypatch):
    small.faster = (3, lambda batch: torch.full((len(batch), 1280), 7.0))
    pixels = picture(64, 4).numpy()
    assert not (small.embed(pixels) == 7).any()
    small.faster = (4, small.faster[1])
    assert (small.embed(pixels) == 7).all()
    assert (small.embed(pixels[:2]) == 7).all(), "a batch size that was given is padded to"


def test_figures_survive_as_json_and_verify_reads_them(headstart_json, tmp_path, small):
    compiler = Compiler(small, tmp_path)
    compiler._seconds, small.faster = 8.0, (4, torch.nn.Identity())
    compiler.judge(100.0, 130.0)
    assert headstart_json("cache", "verify", "--cache", tmp_path)["bad"] == []
    assert all(json.loads(path.read_text()) for path in tmp_path.glob("backbones/*.json"))

"""Batches that do not fit: halved where the device says so, bounded beforehand where it would kill instead."""

import contextlib
import dataclasses
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import BACKBONE, SHAPES, draw, headstart, photos
from networks import hooks, picture

from headstart.errors import DeviceError
from headstart.extract import embedder as module
from headstart.extract.device import is_out_of_memory
from headstart.extract.embedder import Embedder
from headstart.extract.memory import FACTOR, available_memory, bytes_an_image, fitting_batch
from headstart.extract.options import RunOptions, SpaceOptions
from support import make_space

__all__ = ["headstart", "photos"]  # fixtures
pytestmark = pytest.mark.usefixtures("one_thread")


class Small:
    """A forward pass on a device that holds `most` images; it takes no sums over images, so rows are exactly the same."""

    def __init__(self, most: int, error: Exception | None = None) -> None:
        self.most = most
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.tried: list[int] = []

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.tried.append(len(images))
        if len(images) > self.most:
            raise self.error
        return images[:, :, 3, 5].float()


def small(lite, tap, batch_size: int | None = None) -> Embedder:
    space = make_space(dim=3, preprocess=lite.preprocess.as_dict())
    run = RunOptions(device="cpu", batch_size=batch_size)
    return Embedder([space], [SpaceOptions()], run, dataclasses.replace(lite, tap=tap))


@pytest.fixture
def unbounded(monkeypatch) -> None:
    """Leave it to the device to say what fits."""
    monkeypatch.setattr(module, "available_memory", lambda: None)


def pictures(count: int) -> np.ndarray:
    rng = np.random.default_rng(count)
    return rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


# A device that says so


@pytest.mark.parametrize(("most", "tried"), [(16, [16]), (15, [16, 8, 8]), (5, [16, 8, *[4] * 4]), (1, [16, 8, 4, 2])])
def test_f45_a_batch_that_does_not_fit_is_halved_until_it_does(lite, caplog, most, tried):
    pixels, tap = pictures(16), Small(most)
    embedder = small(lite, tap)
    whole = small(lite, Small(99)).embed(pixels)
    np.testing.assert_array_equal(embedder.embed(pixels), whole)
    assert tap.tried[: len(tried)] == tried
    assert tap.tried.count(tried[-1]) >= (16 // tried[-1] if most > 1 else 1)
    assert embedder.batch_size == (16 if most == 16 else tried[-1] if most > 1 else 1)
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == len({count for count in tap.tried if count > most}), "one line a halving"


@pytest.mark.parametrize("count", [1, 2, 3, 7, 11])
@pytest.mark.parametrize("most", [1, 2, 3, 6])
def test_f45_rows_keep_their_order_whatever_fits(lite, most, count):
    pixels = pictures(count)
    rows = small(lite, Small(most)).embed(pixels)
    np.testing.assert_array_equal(rows, small(lite, Small(99)).embed(pixels))


def test_f45_a_batch_of_a_size_that_was_given_is_padded_to_what_fits(lite, unbounded):
    pixels, tap = pictures(11), Small(5)
    embedder = small(lite, tap, batch_size=16)
    rows = embedder.embed(pixels)
    np.testing.assert_array_equal(rows, small(lite, Small(99)).embed(pixels))
    assert tap.tried == [16, 8, 4, 4, 4]
    embedder.embed(pixels[:2])
    assert tap.tried[5:] == [4]


@pytest.mark.parametrize("batch_size", [None, 1, 4])
def test_f45_one_image_too_many_is_an_error_that_says_what_to_do(lite, batch_size):
    with pytest.raises(DeviceError, match=r"^this machine has too little memory for one image; pass a smaller --crop$"):
        small(lite, Small(0), batch_size).embed(pictures(3))


def test_f45_another_error_is_not_taken_for_a_full_memory(lite):
    tap = Small(0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        small(lite, tap).embed(pictures(3))
    assert tap.tried == [3]


def test_f45_memory_that_the_cpu_refuses_is_halved_too(lite):
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 57, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    pixels, tap = pictures(4), Small(2, caught.value)
    np.testing.assert_array_equal(small(lite, tap).embed(pixels), small(lite, Small(99)).embed(pixels))


def test_f45_a_real_network_gives_the_same_rows_in_halves(lite):
    side, real = lite.preprocess.crop, lite.tap

    def tap(images):
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(images)

    pixels = picture(side, 5).numpy()
    space = make_space(dim=1280, preprocess=lite.preprocess.as_dict())
    halves = Embedder([space], [SpaceOptions()], RunOptions(device="cpu"), dataclasses.replace(lite, tap=tap)).embed(
        pixels
    )
    np.testing.assert_allclose(halves, lite.embed(torch.from_numpy(pixels)).numpy(), rtol=1e-4, atol=1e-5)


# A CPU, which would not say


def test_f45_what_an_image_takes_is_seen_on_one_image_and_leaves_no_hooks(lite):
    before = hooks(lite.module)
    # The widest place: 96 channels of 112 x 112 floats into a normalisation, and out of it.
    assert bytes_an_image(lite) == FACTOR * 2 * 96 * 112 * 112 * 4
    assert hooks(lite.module) == before


@pytest.mark.parametrize(
    ("wanted", "an_image", "available", "size"),
    [(16, 10, 1000, 16), (16, 10, 320, 16), (16, 10, 319, 15), (16, 10, 5, 1), (16, 10, 0, 1), (16, 10, None, 16)],
)
def test_f45_the_batch_takes_half_of_what_there_is(wanted, an_image, available, size):
    assert fitting_batch(wanted, an_image, available) == size


@pytest.mark.parametrize(("words", "wanted"), [((), 16), (("--batch-size", "12"), 12)])
def test_f45_on_a_cpu_the_batch_is_bounded_beforehand(headstart, photos, monkeypatch, words, wanted):
    sizes = []
    forward = Embedder._forward
    monkeypatch.setattr(Embedder, "_forward", lambda self, pixels: sizes.append(len(pixels)) or forward(self, pixels))
    monkeypatch.setattr(module, "available_memory", lambda: 2 * 5 * FACTOR * 2 * 96 * 112 * 112 * 4)
    status, _, err = headstart("extract", photos, "--backbone", BACKBONE, *words)
    assert status == 0 and "36 embedded, 0 reused, 0 failed" in err
    assert sizes == [5] * 7 + [1]
    said = f"batches of 5 images instead of {wanted}: one may take 48 MB, and 481 MB of memory are free"
    assert err.count(said) == 1
    _, _, err = headstart("extract", photos, "--backbone", BACKBONE, *words, "--quiet", "--cache", "other")
    assert err.count(said) == bool(words), "a size that was asked for is not lowered in silence"


def test_f45_with_room_enough_nothing_is_lowered_or_said(headstart, photos, monkeypatch):
    monkeypatch.setattr(module, "available_memory", lambda: 1 << 40)
    status, _, err = headstart("extract", photos, "--backbone", BACKBONE)
    assert status == 0 and "batches of" not in err


@contextlib.contextmanager
def limited_group(limit: int) -> Iterator[Path]:
    """Make a control group of at most `limit` bytes; skip where this is not for us to do."""
    own = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    first = "memory" in own
    root = Path("/sys/fs/cgroup/memory" if first else "/sys/fs/cgroup")
    group = root / own.get("memory" if first else "", "/").lstrip("/") / f"headstart-test-{os.getpid()}"
    made = False
    try:
        try:
            group.mkdir()
            made = True
            (group / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(limit))
        except OSError as error:
            pytest.skip(f"no control group can be made here: {error}")
        yield group
    finally:
        if made:
            group.rmdir()


def test_f45_a_batch_that_a_container_would_be_killed_for_is_lowered(tmp_path):
    """The same words under the same limit: killed without the bound, complete with it."""
    if "SwapTotal:             0 kB" not in Path("/proc/meminfo").read_text():
        pytest.skip("with swap space nobody is killed")
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(96):
        draw(SHAPES[number % 3], number, 96).save(folder / f"{number}.jpg")
    program = "import os, sys, headstart.extract.embedder as e; open(sys.argv.pop(1), 'w').write(str(os.getpid())); {}"
    program += "from headstart.cli import main; sys.exit(main())"
    words = ["extract", folder, "--backbone", BACKBONE, "--batch-size", "96", "--json"]

    def run(group: Path, change: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", program.format(change), group / "cgroup.procs", *words]
        command += ["--cache", tmp_path / ("free" if change else "bounded")]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)

    with limited_group(900_000_000) as group:
        free = run(group, "e.available_memory = lambda: None; ")
        assert free.returncode == -9, free.stderr
        bounded = run(group, "")
        assert bounded.returncode == 0, bounded.stderr
        assert json.loads(bounded.stdout)["embedded"] == 96
        assert "images instead of 96" in bounded.stderr


# What the system says


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.fixture
def system(tmp_path):
    """A made-up /proc and /sys/fs/cgroup: 8,000 kB are available, and there are no limits yet."""
    write(tmp_path / "proc", meminfo="MemTotal:  9000 kB\nMemFree:  100 kB\nMemAvailable:  8000 kB\n")
    return tmp_path / "proc", tmp_path / "cgroup"


def test_f45_this_machine_says_what_is_available():
    available = available_memory()
    if not Path("/proc/meminfo").exists():
        assert available is None
    else:
        assert 0 < available < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_f45_without_control_groups_the_machine_decides(system):
    assert available_memory(*system) == 8_192_000


def test_f45_a_system_that_says_nothing_sets_no_bound(tmp_path):
    assert available_memory(tmp_path / "proc", tmp_path / "cgroup") is None


def test_f45_a_limit_of_version_2_counts_without_cached_files(system):
    processes, groups = system
    write(processes / "self", cgroup="0::/user/job\n")
    write(groups / "user" / "job", memory__max="5000000\n", memory__current="2000000\n")
    write(groups / "user" / "job", memory__stat="anon 1200000\ninactive_file 700000\nactive_file 100000\n")
    assert available_memory(*system) == 3_700_000
    write(groups / "user", memory__max="max\n", memory__current="2500000\n")
    assert available_memory(*system) == 3_700_000
    write(groups / "user", memory__max="3000000\n")
    assert available_memory(*system) == 500_000, "the group above has less left"
    write(groups / "user", memory__current="3000001\n")
    assert available_memory(*system) == 0


def test_f45_a_limit_of_version_1_counts_also_where_a_container_hides_its_path(system):
    processes, groups = system
    write(processes / "self", cgroup="5:cpu,cpuacct:/docker/ab\n4:memory:/docker/ab\n1:name=systemd:/\n0::/\n")
    write(groups / "memory", memory__limit_in_bytes="9223372036854771712\n", memory__usage_in_bytes="400\n")
    assert available_memory(*system) == 8_192_000
    write(groups / "memory", memory__limit_in_bytes="4000000\n", memory__usage_in_bytes="1500000\n")
    write(groups / "memory", memory__stat="inactive_file 5\ntotal_inactive_file 300000\n")
    assert available_memory(*system) == 2_800_000

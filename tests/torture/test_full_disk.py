"""F5, F6: a disk that is really full and a file that may really not grow, met by the real command line."""

import json
import os
import re
import resource
import subprocess
import sys

import pytest
from command_line import BACKBONE, draw

from headstart.cache.info import info

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="tmpfs and RLIMIT_FSIZE as Linux has them")
IMAGES = 30  # at a whole map of the last convolution each, 250 kB: 7.5 MB


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(IMAGES):
        draw("circle", seed).save(folder / f"{seed:02d}.jpg")
    return folder


def mount(*words):
    """Call mount; skip where this machine lets nobody mount, and only then."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True)
    if done.returncode and re.search("permission denied|not permitted|must be superuser", done.stderr):
        pytest.skip(f"mount is refused here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", folder)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def extract(photos, cache, *words, part_seconds, before=None):
    command = [sys.executable, "-c", "import sys; from headstart.cli import main; sys.exit(main())", "extract", photos]
    options = ["--backbone", BACKBONE, "--layer", "_conv_head", "--pool", "none", "--batch-size", 2, "--cache", cache]
    return subprocess.run(
        [*map(str, command + options), *words],
        env={**os.environ, "HEADSTART_PART_SECONDS": str(part_seconds)},
        preexec_fn=before, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def rows(cache):
    """Return how many rows the cache has, which must hold nothing unfinished and nothing damaged."""
    state = info(cache)
    assert (state.temporary, state.quarantined, state.problems) == (0, 0, ())
    return sum(space.rows for space in state.spaces)


def check_rerun(done, safe):
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert (counts["embedded"], counts["reused"], counts["failed"]) == (IMAGES - safe, safe, 0)


def test_f05_a_full_disk_says_how_many_images_are_safe_and_the_rerun_embeds_the_rest(small_disk, photos):
    cache = small_disk / "cache"
    done = extract(photos, cache, part_seconds=1e-6)  # a part for every batch
    assert done.returncode == 1, f"{done.returncode}: {done.stderr}"
    last = done.stderr.rstrip("\n").split("\n")[-1]
    said = re.search(r"disk full writing (.+): (\d+) images are safe, free ~(\d+) MB and run again", last)
    assert said, done.stderr
    assert said[1].startswith(str(cache))
    assert int(said[3]) >= 1
    safe = int(said[2])
    assert 0 < safe < IMAGES
    assert rows(cache) == safe

    again = extract(photos, cache, part_seconds=1e-6)
    assert again.returncode == 1, "the disk is still full"
    assert "disk full writing" in again.stderr
    more = rows(cache)
    assert more >= safe

    mount("-o", "remount,size=64m", small_disk)
    check_rerun(extract(photos, cache, "--json", part_seconds=1e-6), more)
    assert rows(cache) == IMAGES
    print(
        f"\nF5 full disk: {safe} of {IMAGES} images safe on 4 MB, the other {IMAGES - more} embedded once it was larger"
    )


def test_f06_a_limit_on_file_size_is_named_and_the_rerun_goes_on(tmp_path, photos):
    cache, limit = tmp_path / "cache", 1 << 20
    done = extract(
        photos, cache, part_seconds=60, before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    assert done.returncode == 1, f"{done.returncode}: {done.stderr}"
    last = done.stderr.rstrip("\n").split("\n")[-1]
    assert "EFBIG" in last, done.stderr
    assert str(cache) in last
    assert "0 images are safe" in last
    assert rows(cache) == 0
    check_rerun(extract(photos, cache, "--json", part_seconds=60), 0)

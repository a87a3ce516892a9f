"""Small datasets and the command line, called in this process or in one of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart.cache.info import info
from headstart.cli import main

BACKBONE = "efficientnet_lite0"
SHAPES = ("circle", "cross", "stripes")


def draw(shape: str, seed: int, side: int = 96) -> Image.Image:
    """Draw a shape at a random place in random colours, so that no two pictures have the same bytes."""
    rng = np.random.default_rng([SHAPES.index(shape), seed])
    ground, colour = rng.integers(0, 100, 3), rng.integers(150, 256, 3)
    y, x = np.mgrid[:side, :side]
    cy, cx, r = [*rng.integers(30, 66, 2).tolist(), int(rng.integers(14, 26))]
    mask = {
        "circle": (y - cy) ** 2 + (x - cx) ** 2 < r**2,
        "cross": (abs(y - cy) < r // 3) & (abs(x - cx) < r) | (abs(x - cx) < r // 3) & (abs(y - cy) < r),
        "stripes": (y + x) // (r // 2) % 2 == 0,
    }[shape]
    return Image.fromarray(np.where(mask[..., None], colour, ground).astype(np.uint8))


@pytest.fixture
def photos(tmp_path) -> Path:
    """Three classes of twelve pictures each."""
    folder = tmp_path / "photos"
    for shape in SHAPES:
        (folder / shape).mkdir(parents=True)
        for seed in range(12):
            draw(shape, seed).save(folder / shape / f"{seed:02d}.jpg", quality=92, comment=b"drawn once")
    return folder


@pytest.fixture
def headstart(tmp_path, monkeypatch, capsys):
    """Run a command in this process, in a folder of its own; return status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        capsys.readouterr()
        status = main([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def headstart_json(headstart):
    """Run a command with `--json`; return the object, after checking that nothing else was on standard output."""

    def run(*words, expect=0):
        status, out, err = headstart(*words, "--json")
        assert status == expect, err + out
        return json.loads(out)

    return run


def in_own_process(
    *words, cwd, environment=None, code: str = "from headstart.cli import main; status = main(sys.argv[1:])"
):
    """Run a command in a fresh Python; its last line on standard error names the modules that it loaded."""
    program = f"import sys\n{code}\nprint(*{{m.split('.')[0] for m in sys.modules}}, file=sys.stderr)\nsys.exit(status)"
    command = [sys.executable, "-c", program, *map(str, words)]
    environment = {**os.environ, **(environment or {})}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    return done, set(done.stderr.rstrip("\n").split("\n")[-1].split())


def add_pictures(photos: Path, count: int) -> None:
    """Draw more circles into a folder of `photos`."""
    for seed in range(100, 100 + count):
        draw("circle", seed).save(photos / "circle" / f"{seed}.jpg")


def parts(folder: Path) -> list[Path]:
    """Return the parts in the cache of a working directory."""
    return sorted((folder / ".headstart").glob("spaces/*/*.h5"))


def safe_rows(folder: Path) -> int:
    """Count the rows in the cache of a working directory."""
    return sum(space.rows for space in info(folder / ".headstart").spaces)

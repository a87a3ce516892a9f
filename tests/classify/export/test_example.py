"""The example of the documentation runs where there is no torch and no headstart, and says what `predict` says."""

import importlib.util
import os
import shutil
import subprocess
import sys
from importlib.metadata import distribution, requires
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

import headstart

EXAMPLE = Path(headstart.__file__).parent / "docs" / "examples" / "run_onnx.py"
ALLOWED = ("numpy", "pillow", "onnxruntime")


def needed(name: str, found: set[str]) -> set[str]:
    """Return a distribution and all that it needs, without extras."""
    if name not in found:
        found.add(name)
        for line in requires(name) or ():
            wanted = Requirement(line)
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                needed(wanted.name, found)
    return found


@pytest.fixture(scope="module")
def bare_site(tmp_path_factory) -> Path:
    """A folder of links to what numpy, Pillow and onnxruntime have installed, and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    for name in sorted(set().union(*(needed(name, set()) for name in ALLOWED))):
        installed = distribution(name)
        for top in {file.parts[0] for file in installed.files or () if not file.parts[0].startswith("..")}:
            if not (folder / top).exists():
                (folder / top).symlink_to(installed.locate_file(top))
    return folder


def run_bare(site: Path, program: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a program in a Python without site-packages of its own (-S) or of the environment's (-I), but for a folder."""
    code = f"import sys, runpy; sys.path.append({str(site)!r}); {program}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [sys.executable, "-I", "-S", "-c", code, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd=site)


EXAMPLE_RUN = f"sys.argv[0] = {str(EXAMPLE)!r}; runpy.run_path(sys.argv[0], run_name='__main__')"


def told(site: Path, model: Path, paths: list[Path]) -> dict[str, tuple[str, float]]:
    done = run_bare(site, EXAMPLE_RUN, model, *paths)
    assert done.returncode == 0, done.stderr
    rows = [line.rsplit(" ", 2) for line in done.stdout.splitlines()]
    return {path: (label, float(probability)) for path, label, probability in rows}


def test_there_is_neither_torch_nor_headstart(bare_site):
    for name in ("torch", "headstart", "onnx", "torchvision", "h5py"):
        done = run_bare(bare_site, f"import {name}")
        assert done.returncode == 1
        assert f"No module named '{name}'" in done.stderr
    assert importlib.util.find_spec("torch") is not None  # which is there for everyone else


@pytest.fixture
def pictures(few, tmp_path) -> list[Path]:
    """Photographs, one that a camera has turned, one with transparency, one smaller than the crop."""
    folder = tmp_path / "new"
    folder.mkdir()
    for path in sorted((few / "val").rglob("*.jpg"))[::3]:
        shutil.copy(path, folder)
    photograph = Image.open(sorted(few.rglob("*.jpg"))[0]).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph.save(folder / "turned.jpg", exif=exif)
    alpha = np.linspace(0, 255, photograph.width).astype(np.uint8)[None].repeat(photograph.height, 0)
    photograph.putalpha(Image.fromarray(alpha))
    photograph.save(folder / "clear.png")
    photograph.convert("RGB").resize((21, 15)).save(folder / "small.png")
    return sorted(folder.iterdir())


@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize(("input", "apart"), [("picture", 2e-4), ("crop", 0.02)])
def test_the_example_says_what_predict_says(models, logistic, bare_site, pictures, tmp_path, input, apart):
    made = models.exported(logistic) if input == "picture" else models.exported(logistic, input=input)
    found = told(bare_site, made.out, pictures)
    expected = headstart.load(logistic, cache=tmp_path / "cache").predict(pictures)
    assert len(found) == len(expected) == len(pictures) >= 7
    for row in expected:
        label, probability = found[row.path]
        assert label == row.label
        assert abs(probability - row.probability) < apart, row.path


def test_the_example_is_short():
    lines = [line for line in EXAMPLE.read_text().splitlines() if line and not line.startswith(("import", "from", '"'))]
    assert len(lines) <= 20

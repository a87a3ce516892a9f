"""T6: pictures with a flipped bit through the whole of `extract`: it completes, and what it lists adds up."""

import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from command_line import draw

HEADSTART = [sys.executable, "-c", "import sys; from headstart.cli import main; sys.exit(main())"]
SMALL = ["--backbone", "efficientnet_lite0", "--resize", "32", "--crop", "32", "--batch-size", "64", "--json", "-q"]
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")


def write_flipped(folder: Path, kind: str, count: int) -> None:
    """Write `count` files of one picture, each with another bit flipped."""
    folder.mkdir()
    buffer = io.BytesIO()
    draw("cross", 1, side=64).save(buffer, kind)
    data = bytearray(buffer.getvalue())
    bits = np.random.default_rng(FORMATS.index(kind)).choice(8 * len(data), min(count, 8 * len(data)), replace=False)
    for number, bit in enumerate(bits.tolist()):
        data[bit // 8] ^= 1 << bit % 8
        (folder / f"{number:04}.{'jpg' if kind == 'JPEG' else kind.lower()}").write_bytes(data)
        data[bit // 8] ^= 1 << bit % 8


def extract(folder: Path, kind: str, count: int) -> Counter[str]:
    write_flipped(folder / kind, kind, count)
    done = subprocess.run([*HEADSTART, "extract", kind, *SMALL], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{kind}: exit status {done.returncode}\n{done.stderr[-2000:]}"
    result = json.loads(done.stdout)
    assert result["images"] == sum(1 for _ in (folder / kind).iterdir())
    assert result["embedded"] + result["reused"] + result["failed"] == result["images"]
    assert len(result["failures"]) == result["failed"]
    assert all(row["error"] and "\n" not in row["error"] for row in result["failures"])
    return Counter(listed=result["images"], read=result["embedded"] + result["reused"], refused=result["failed"])


def test_t6_pictures_with_a_flipped_bit_never_stop_a_run(tmp_path):
    total = Counter()
    for kind in ("JPEG", "PNG", "TIFF"):
        total += extract(tmp_path, kind, 40)
    assert total["refused"] > 0, "some flips must be seen, or nothing was tried"


@pytest.mark.torture
def test_t6_a_thousand_flips_of_each_format_never_stop_a_run(tmp_path):
    for kind in FORMATS:
        counts = extract(tmp_path, kind, 1000)
        print(f"T6 {kind}: {counts['listed']} listed = {counts['read']} read + {counts['refused']} refused, 0 crashes")
        assert kind in ("BMP",) or counts["refused"] > 0

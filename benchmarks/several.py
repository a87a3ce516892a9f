"""Several layers in one pass, several backbones on one decoding, several processes: each against one by one.

Whole `extract` processes, timed from outside, on hymenoptera, with random weights where real ones are not packaged.

Run: HEADSTART_SAMPLES=... python benchmarks/several.py
"""

import os
import subprocess
import sys
import tempfile
import time
from itertools import chain
from pathlib import Path

TIMES = 2
PROGRAM = "import sys; from headstart.cli import run; run()"


def seconds(*runs: list[str]) -> float:
    """Return the time that the runs take one after the other, in one cache; the best of a few."""
    found = []
    for _ in range(TIMES):
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            for words in runs:
                subprocess.run([sys.executable, "-c", PROGRAM, *words, "-q"], cwd=folder, check=True)
            found.append(time.perf_counter() - begin)
    return min(found)


def main() -> None:
    samples = os.environ.get("HEADSTART_SAMPLES")
    if not samples:
        sys.exit("HEADSTART_SAMPLES names no folder of sample photographs")
    data = str(Path(samples) / "hymenoptera")
    plain = ["extract", data, "--weights", "none"]
    layers = [["--layer", name] for name in ("layer2", "layer3", "layer4")]
    together, last = seconds([*plain, *chain.from_iterable(layers)]), seconds([*plain, *layers[-1]])
    each = seconds(*([*plain, *layer] for layer in layers))
    print(
        f"resnet18, 3 layers in one pass {together:.1f} s; the last of them alone {last:.1f} s, ratio "
        f"{together / last:.2f}; one after the other {each:.1f} s, {each / together:.2f} times as long"
    )
    names = [["--backbone", name] for name in ("efficientnet_lite0", "mobilenet_v3_small")]
    together, each = seconds([*plain, *chain.from_iterable(names)]), seconds(*([*plain, *name] for name in names))
    print(
        f"two backbones in one run {together:.1f} s; one after the other {each:.1f} s, {each / together:.2f} times as "
        "long"
    )
    one, two = (seconds([*plain, "--processes", count]) for count in ("1", "2"))
    print(f"resnet18 in 2 processes {two:.1f} s, in one {one:.1f} s, ratio {one / two:.2f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()

"""The main job on the sample photographs, timed from outside as whole processes.

Run: HEADSTART_SAMPLES=... python benchmarks/main_job.py
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BACKBONE = "efficientnet_lite0"
HEADSTART = [sys.executable, "-c", "import sys; from headstart.cli import run; run()"]


def timed(*words: str, cwd: str) -> tuple[float, str]:
    begin = time.perf_counter()
    done = subprocess.run([*HEADSTART, *words], cwd=cwd, capture_output=True, text=True, check=True)
    return time.perf_counter() - begin, done.stdout


def job(data: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        first, text = timed("extract", str(data), "--backbone", BACKBONE, "--json", cwd=folder)
        extraction = json.loads(text)
        second, text = timed("extract", str(data), "--backbone", BACKBONE, "--json", cwd=folder)
        again = json.loads(text)
        fitting, text = timed("fit-head", "--json", cwd=folder)
        fit = json.loads(text)
        evaluating, _ = timed("evaluate", fit["out"], "--json", cwd=folder)
    val = fit["val"]
    print(f"{data.name}, {BACKBONE}")
    print(
        f"  extract: {extraction['images']} images, {extraction['embedded']} embedded, {extraction['failed']} failed, "
        f"{first:.1f} s, {extraction['images_per_second']} images/s inside, bound by {extraction['bound_by']}, "
        f"stages {extraction['stages']}"
    )
    print(f"  extract again: {again['embedded']} embedded, {again['reused']} reused, {second:.2f} s")
    print(f"  fit-head: {fitting:.2f} s, C {fit['C']:.4g}, cross-validated accuracy {fit['cv']['accuracy']:.4f}")
    print(
        f"  validation: {val['accuracy']:.4f} of {val['n']}, 95 % interval {val['low']:.4f} to {val['high']:.4f}; "
        f"majority {fit['baseline']['majority']:.4f}, nearest mean {fit['baseline']['nearest_mean']:.4f}"
    )
    print(f"  evaluate: {evaluating:.2f} s")


def main() -> None:
    samples = os.environ.get("HEADSTART_SAMPLES")
    if not samples:
        sys.exit("HEADSTART_SAMPLES names no folder of sample photographs")
    print(f"--help: {min(timed('--help', cwd='.')[0] for _ in range(5)):.3f} s, the best of 5")
    for name in ("hymenoptera", "hotdog"):
        job(Path(samples) / name)


if __name__ == "__main__":
    main()

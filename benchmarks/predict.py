"""`headstart predict --jsonl` on new pictures against `extract` on the same ones, whole processes, in one run.

Each of the two embeds all pictures into a cache of its own that holds none of them. Then predict does it again with all
of them in its cache, where reading and hashing the files is what is left. Time counts from the start of the process, so
importing and loading are in it, in both; the first line is timed too. Beside it stand the seconds that the processors
worked, which other programs on the machine disturb less.

Run: HEADSTART_SAMPLES=... python benchmarks/predict.py [--images N] [--runs N]
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline import photographs

BACKBONE = "efficientnet_lite0"
PICTURES = 2000
RUNS = 2  # of each, one after the other in turn; the faster one counts


@dataclass(frozen=True, slots=True)
class Timed:
    """What a command took: seconds in all, of the processors, and up to its first line, and the number of its lines."""

    seconds: float
    work: float
    first_line: float
    lines: int


def timed(folder: Path, *words: str) -> Timed:
    """Run a command; return its seconds, those up to its first line on standard output, and how many lines came."""
    begin, before, first, lines = time.perf_counter(), worked(), 0.0, 0
    command = [sys.executable, "-m", "headstart.cli", *words, "--quiet"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in process.stdout:
            lines += 1
            first = first or time.perf_counter() - begin
    if process.returncode:
        sys.exit(f"{words[0]} failed")
    return Timed(time.perf_counter() - begin, worked() - before, first, lines)


def worked() -> float:
    """Return the processor seconds of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def trained(folder: Path, samples: Path) -> str:
    """Fit a head on real photographs and return its folder."""
    timed(folder, "extract", str(samples / "hymenoptera"), "--backbone", BACKBONE, "--cache", "trained")
    timed(folder, "fit-head", str(samples / "hymenoptera"), "--cache", "trained", "--out", "model")
    return "model"


def parts(cache: Path) -> Iterator[Path]:
    return cache.glob("spaces/*/*.h5")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=PICTURES)
    parser.add_argument("--runs", type=int, default=RUNS)
    given = parser.parse_args()
    count, runs = given.images, given.runs
    samples = os.environ.get("HEADSTART_SAMPLES")
    if not samples:
        sys.exit("HEADSTART_SAMPLES names no folder of sample photographs")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photographs(folder / "photos", Path(samples), count)
        model = trained(folder, Path(samples))
        extracts, predicts, warm = [], [], []
        for run in range(runs):
            mine, theirs = f"predict-{run}", f"extract-{run}"
            extracts.append(timed(folder, "extract", "photos", "--backbone", BACKBONE, "--cache", theirs))
            predicts.append(timed(folder, "predict", model, "photos", "--jsonl", "--cache", mine))
            warm.append(timed(folder, "predict", model, "photos", "--jsonl", "--cache", mine))
        if {done.lines for done in (*predicts, *warm)} != {count}:
            sys.exit("a picture got no line")
        extract, cold, again = (min(them, key=lambda done: done.seconds) for them in (extracts, predicts, warm))
        files = [len(list(parts(folder / cache))) for cache in ("extract-0", "predict-0")]
    print(f"{count} photographs, {BACKBONE}, whole processes, the faster of {runs}")
    print(f"extract          {count / extract.seconds:7.0f} images/s in {extract.seconds:5.1f} s, {files[0]} parts")
    print(f"predict --jsonl  {count / cold.seconds:7.0f} images/s in {cold.seconds:5.1f} s, {files[1]} parts, "
          f"first line after {cold.first_line:.1f} s")  # fmt: skip
    print(f"the same, cached {count / again.seconds:7.0f} images/s in {again.seconds:5.1f} s, "
          f"first line after {again.first_line:.1f} s")  # fmt: skip
    print(f"predict has {extract.seconds / cold.seconds:.2f} of the rate of extract, and takes "
          f"{cold.work / extract.work:.2f} of its processor seconds; target: at least 0.95")  # fmt: skip


if __name__ == "__main__":
    main()

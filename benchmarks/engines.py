"""The engines of `extract` side by side, with the same cores, and what becomes of a run when a process of it is killed.

    python benchmarks/engines.py [--images 2000] [--engines local dask ray]

Reads hymenoptera and hotdog from the folder that HEADSTART_SAMPLES names, and makes of them as many photographs with
bytes of their own, by encoding them anew at other qualities. Whole `extract` processes with efficientnet_lite0 are
timed from outside, each with a fresh cache: one process with two cores, two processes of this machine, two Dask workers
of a thread, two Ray tasks of a core. Workers of a cluster are there before, without torch; the second run of a Dask
cluster finds them with it. Efficiency is against the one process. Then processes are killed when a quarter of the rows
are safe.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from clusters import DaskCluster, dask_cluster, ray_cluster, wait_for

from headstart.cache.info import info
from headstart.cache.running import announced

PROGRAM = "import sys; from headstart.cli import run; run()"
CORES = 2
QUALITIES = (95, 90, 85, 80, 75, 70, 92, 87)


def main() -> None:
    samples = os.environ.get("HEADSTART_SAMPLES")
    if not samples:
        sys.exit("HEADSTART_SAMPLES names no folder of sample photographs")
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--engines", nargs="+", default=["local", "dask", "ray"], choices=["local", "dask", "ray"])
    asked = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    os.environ["HEADSTART_PART_SECONDS"] = "1"
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        bench = Bench(Path(folder), replicas(Path(samples), Path(folder) / "photographs", asked.images), asked.images)
        print(f"{asked.images} photographs, {CORES} cores, load {os.getloadavg()[0]:.1f} before the first run")
        print(f"{'':38} {'rows':>6} {'seconds':>8} {'images/s':>9} {'efficiency':>10}")
        bench.timed("one process, 2 cores", [])
        for engine in asked.engines:
            ENGINES[engine](bench)


def replicas(samples: Path, folder: Path, count: int) -> Path:
    """Make `count` photographs with bytes of their own."""
    folder.mkdir()
    paths = sorted(p for name in ("hymenoptera", "hotdog") for p in (samples / name).rglob("*.jpg"))
    made = 0
    for turn, quality in enumerate(QUALITIES):
        for path in paths:
            if made == count:
                return folder
            with Image.open(path) as image:
                image.convert("RGB").save(folder / f"{made:05d}.jpg", quality=quality, comment=str(turn).encode())
            made += 1
    raise SystemExit(f"no more than {made} photographs can be made")


@dataclass
class Bench:
    """Runs commands on the photographs, each with a cache of its own, and prints a line for each."""

    folder: Path
    photographs: Path
    images: int
    alone: float = 0.0
    runs: int = 0

    def start(self, words: list[str]) -> tuple[subprocess.Popen[str], Path]:
        """Start a command with a fresh cache."""
        self.runs += 1
        cache = self.folder / f"cache-{self.runs}"
        return self.again(words, cache), cache

    def again(self, words: list[str], cache: Path) -> subprocess.Popen[str]:
        """Start a command with a cache that is there."""
        command = [sys.executable, "-c", PROGRAM, "extract", str(self.photographs), "--backbone", "efficientnet_lite0"]
        return subprocess.Popen(
            [*command, "--json", "--quiet", "--cache", str(cache), *words],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def timed(self, name: str, words: list[str]) -> None:
        """Time a run."""
        begin = time.perf_counter()
        process, cache = self.start(words)
        done = result(process)
        seconds = time.perf_counter() - begin
        self.alone = self.alone or seconds
        assert (done["embedded"], rows(cache)) == (self.images, self.images), done
        rate, efficiency = self.images / seconds, self.alone / seconds
        print(f"{name:38} {rows(cache):6} {seconds:8.1f} {rate:9.1f} {efficiency:10.2f}", flush=True)

    def killed(self, name: str, words: list[str], victim: Callable[[int], int]) -> None:
        """Kill a process of a run that somebody survives."""
        begin = time.perf_counter()
        process, cache = self.start(words)
        wait_for(lambda: rows(cache) > self.images / 4, 600)
        os.kill(victim(process.pid), signal.SIGKILL)
        safe, done = rows(cache), result(process)
        seconds, twice = time.perf_counter() - begin, rows(cache) - self.images
        print(
            f"{name:38} {self.images:6} {seconds:8.1f}   killed at {safe} rows: exit {process.returncode}, "
            f"{done['embedded']} embedded, {done['retried']} begun again, {twice} rows twice",
            flush=True,
        )

    def interrupted(self, name: str, words: list[str], number: signal.Signals) -> None:
        """End a run, and go on with it."""
        process, cache = self.start(words)
        wait_for(lambda: rows(cache) > self.images / 4, 600)
        process.send_signal(number)
        process.communicate()
        status = process.returncode
        wait_for(lambda: not any(alive for _, alive in announced(cache)))
        safe = rows(cache)
        done = result(self.again(words, cache))
        print(
            f"{name:38} {rows(cache):6}            exit {status}, {safe} rows safe; again: {done['embedded']} embedded"
            f", {done['reused']} reused",
            flush=True,
        )


def rows(cache: Path) -> int:
    return sum(space.rows for space in info(cache).spaces)


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate()
    if process.returncode:
        sys.exit(f"exit status {process.returncode}: {err}")
    found: dict[str, Any] = json.loads(out)
    return found


def at_work(mark: bytes, parent: int | None = None) -> list[int]:
    """Return the processes whose command line has a mark, of one parent or of anybody."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            if mark in (folder / "cmdline").read_bytes() and (
                parent is None or f"PPid:\t{parent}\n" in (folder / "status").read_text()
            ):
                found.append(int(folder.name))
    return found


def local(bench: Bench) -> None:
    words = ["--processes", str(CORES)]
    bench.timed("local, 2 processes of 1 core", words)
    bench.killed("  a process killed", words, lambda run: at_work(b"headstart.extract.engines.member", run)[0])
    bench.interrupted("  Ctrl-C", words, signal.SIGINT)


def dask(bench: Bench) -> None:
    folder = bench.folder / "dask"
    folder.mkdir()
    with dask_cluster(folder) as cluster:
        cluster.add(CORES, HEADSTART_PART_SECONDS="1")
        words = ["--engine", "dask", "--address", str(cluster.file)]
        bench.timed("dask, 2 workers of 1 thread", words)
        bench.timed("  again, workers that have torch", words)
        bench.killed("  a worker killed", words, lambda _: cluster.workers[0].pid)
        with replaced(cluster):
            bench.interrupted("  Ctrl-C", words, signal.SIGINT)
            bench.interrupted("  the run killed", words, signal.SIGKILL)


@contextlib.contextmanager
def replaced(cluster: DaskCluster) -> Iterator[None]:
    cluster.workers[0].wait()
    cluster.keep(CORES)
    yield


def ray(bench: Bench) -> None:
    folder = bench.folder / "ray"
    folder.mkdir()
    with ray_cluster(folder, CORES, HEADSTART_PART_SECONDS="1") as address:
        words = ["--engine", "ray", "--address", address, "--workers", "1"]
        bench.timed("ray, 2 tasks of 1 core", words)
        bench.killed("  a process killed", words, lambda _: at_work(b"ray::embed_as_task")[0])
        bench.interrupted("  Ctrl-C", words, signal.SIGINT)
        bench.interrupted("  the run killed", words, signal.SIGKILL)


ENGINES = {"local": local, "dask": dask, "ray": ray}


if __name__ == "__main__":
    main()

"""A Dask cluster on loopback: a scheduler and workers, each a process of its own, which tests may kill."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 60


@dataclass
class Cluster:
    """What is needed to reach it, and to do it harm."""

    address: str
    workers: list[subprocess.Popen]


@contextlib.contextmanager
def dask_cluster(folder: Path, count: int) -> Iterator[Cluster]:
    """Start a scheduler and so many workers of one thread, and end them all."""
    from distributed import Client

    processes: list[subprocess.Popen] = []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(module: str, *words: str) -> subprocess.Popen:
        command = [sys.executable, "-m", f"distributed.cli.{module}", *words, "--host", "127.0.0.1", "--no-dashboard"]
        with (folder / f"{len(processes)}.log").open("w") as log:
            processes.append(subprocess.Popen(command, stderr=log, stdout=log, cwd=folder, env=environment))
        return processes[-1]

    file = folder / "scheduler.json"
    try:
        start("dask_scheduler", "--port", "0", "--scheduler-file", str(file))
        deadline = time.monotonic() + START_SECONDS
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        address = json.loads(file.read_text())["address"]
        workers = [start("dask_worker", address, "--nthreads", "1", "--no-nanny") for _ in range(count)]
        with Client(address, set_as_default=False) as client:
            client.wait_for_workers(count, timeout=START_SECONDS)
        yield Cluster(address, workers)
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()

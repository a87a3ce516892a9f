"""Real clusters on loopback, each process of them one that a test may kill, and folders that some of them do not see."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PATIENCE = 60.0

# Put into a worker by Python itself: paths below a folder are not there, whatever asks for them.
HIDING = """
import errno, os, sys

_stat = os.stat

def _hidden(path):
    return isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).startswith({folder!r})

def _refuse(path):
    if _hidden(path):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

def stat(path, *arguments, **options):
    _refuse(path)
    return _stat(path, *arguments, **options)

os.stat = stat
sys.addaudithook(lambda event, arguments: _refuse(arguments[0]) if event == "open" else None)
"""
OLDER = "import headstart\nheadstart.__version__ = '0.0.9'\n"


def site(folder: Path, code: str) -> dict[str, str]:
    """Return the environment in which Python runs `code` before anything else."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))}


def wait_for(what: Callable[[], object], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


class DaskCluster:
    """A scheduler, and workers without a nanny: one that is killed stays dead.

    Parameters
    ----------
    folder : Path
        For the scheduler's file, logs, and what workers spill.
    environment : str
        Variables of the scheduler.
    """

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.file = folder / "scheduler.json"
        self.scheduler = self._start(
            "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", self.file,
            **environment,
        )  # fmt: skip
        wait_for(self.file.exists)
        self.workers: list[subprocess.Popen] = []

    @property
    def address(self) -> str:
        return json.loads(self.file.read_text())["address"]

    def add(self, count: int = 1, threads: int = 1, resources: str = "", **environment: str) -> list[subprocess.Popen]:
        """Start workers, and wait until the scheduler knows them."""
        before = self._connected()
        started = [
            self._start(
                "worker", "--scheduler-file", self.file, "--nthreads", threads, "--no-nanny", "--no-dashboard",
                "--memory-limit", "0", "--local-directory", self.folder / "spill",
                *(("--resources", resources) if resources else ()),
                **{"HEADSTART_PART_SECONDS": "0.05", **environment},
            )
            for _ in range(count)
        ]  # fmt: skip
        wait_for(lambda: self._connected() >= before + count)
        self.workers += started
        return started

    def keep(self, count: int) -> None:
        """Have so many workers that live, as a test that follows expects them."""
        self.workers = [worker for worker in self.workers if worker.poll() is None]
        if len(self.workers) < count:
            self.add(count - len(self.workers))

    def remove(self, workers: list[subprocess.Popen]) -> None:
        left = self._connected() - len(workers)
        for worker in workers:
            worker.kill()
            worker.wait()
            self.workers.remove(worker)
        wait_for(lambda: self._connected() <= left)

    def stop(self) -> None:
        for process in [*self.workers, self.scheduler]:
            with contextlib.suppress(OSError):
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()

    def _connected(self) -> int:
        import distributed

        with distributed.Client(scheduler_file=str(self.file), set_as_default=False) as client:
            return len(client.nthreads())

    def _start(self, kind: str, *words: object, **environment: str) -> subprocess.Popen:
        log = (self.folder / f"{kind}-{time.time_ns()}.log").open("w")
        with log:
            return subprocess.Popen(
                [sys.executable, "-m", "dask", kind, *map(str, words)],
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, stdout=log, stderr=log, cwd=self.folder,
            )  # fmt: skip


@contextlib.contextmanager
def dask_cluster(folder: Path, **environment: str) -> Iterator[DaskCluster]:
    cluster = DaskCluster(folder, **environment)
    try:
        yield cluster
    finally:
        cluster.stop()


@contextlib.contextmanager
def ray_cluster(folder: Path, cores: int = 2, **environment: str) -> Iterator[str]:
    """Run a Ray cluster of one node; yield its address.

    All its processes are of one group, by which they are ended. Others that run Ray on the machine are left alone.
    """
    port = free_port()
    log = folder / "ray.log"
    with log.open("w") as file:
        head = subprocess.Popen(
            [
                Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--node-ip-address", "127.0.0.1",
                "--port", str(port), "--num-cpus", str(cores),
                "--include-dashboard=false", "--disable-usage-stats", "--object-store-memory", "80000000",
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1", "HEADSTART_PART_SECONDS": "0.05", **environment},
            stdout=file, stderr=file, cwd=folder, start_new_session=True,
        )  # fmt: skip
    try:
        wait_for(lambda: "Ray runtime started" in log.read_text() or head.poll() is not None)
        if head.poll() is not None:
            pytest.skip(f"Ray cannot run here: {log.read_text().strip().splitlines()[-1]}")
        yield f"127.0.0.1:{port}"
    finally:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            os.killpg(head.pid, signal.SIGTERM)
            head.wait(5)
        with contextlib.suppress(OSError):
            os.killpg(head.pid, signal.SIGKILL)
        head.wait()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]

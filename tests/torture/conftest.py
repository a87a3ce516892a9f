"""What the hard tests share: a fast folder, and a way to run a helper program."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent
MEMORY = Path("/dev/shm")


@pytest.fixture
def arena() -> Iterator[Path]:
    """An empty folder, in memory where there is such a place: process deaths and modelled power losses need no disk."""
    place = MEMORY if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place, prefix="headstart-test-") as name:
        yield Path(name)


@pytest.fixture
def run_program():
    """Run one of the programs beside the tests; return the JSON that it printed. Any other end fails, also a signal."""

    def run(program: str, *words, timeout: int = 3600):
        # One thread for matrix products: a fork takes no other thread along, and nothing here multiplies.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(TESTS / program), *map(str, words)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0, f"exit status {done.returncode}\n{done.stderr[-4000:]}"
        return json.loads(done.stdout)

    return run

"""Requests a second of `headstart serve`, with 50 clients at once: pictures in batches against one by one.

Both servers run in turn on the same machine, several times, and the clients, in a process of their own, take their
share of its cores; the median is told.

Run: HEADSTART_SAMPLES=... python benchmarks/serve.py [EXTRA OPTIONS OF serve]
"""

import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from callers import Calls, call

BACKBONE = "efficientnet_lite0"
CLIENTS = 50
SECONDS = 10
ROUNDS = 3
HEADSTART = [sys.executable, "-c", "import sys; from headstart.cli import run; run()"]


@contextlib.contextmanager
def server(model: Path, *words: str) -> Iterator[int]:
    """Start a server; yield its port."""
    process = subprocess.Popen(
        [*HEADSTART, "serve", str(model), "--port", "0", *words], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                yield int(found[1])
                break
        else:
            sys.exit("the server did not start")
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate()


def measured(model: Path, folder: Path, *words: str) -> Calls:
    with server(model, *words) as port:
        call("127.0.0.1", port, CLIENTS, 1, folder)  # warms up
        return call("127.0.0.1", port, CLIENTS, SECONDS, folder)


def told(name: str, rounds: list[Calls]) -> float:
    rate = statistics.median(each.rate for each in rounds)
    late = ", ".join(
        f"p{round(100 * share)} {statistics.median(each.percentile(share) for each in rounds):.0f} ms"
        for share in (0.5, 0.95, 0.99)
    )
    requests, errors = sum(len(each.seconds) for each in rounds), sum(len(each.errors) for each in rounds)
    print(f"{name}: {rate:.0f} requests/s, {late}; {requests} requests, {errors} errors")
    return rate


def main() -> None:
    samples = os.environ.get("HEADSTART_SAMPLES")
    if not samples:
        sys.exit("HEADSTART_SAMPLES names no folder of sample photographs")
    data, words = Path(samples) / "hymenoptera", sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        for command in (["extract", str(data), "--backbone", BACKBONE], ["fit-head", "--out", "model"]):
            subprocess.run([*HEADSTART, *command, "-q"], cwd=folder, check=True)
        model = Path(folder) / "model"
        batched, single = [], []
        for _ in range(ROUNDS):
            batched.append(measured(model, data / "val", *words))
            single.append(measured(model, data / "val", "--batch-size", "1", *words))
    print(f"{BACKBONE}, {CLIENTS} clients, {len(os.sched_getaffinity(0))} cores shared by server and clients")
    ratio = told("batched", batched) / told("one by one", single)
    print(f"batching answers {ratio:.2f} times as many")


if __name__ == "__main__":
    main()

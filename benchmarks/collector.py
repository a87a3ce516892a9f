"""What it is worth to keep the garbage collector from a million objects that stay.

Both sides are whole processes that import torch and torchvision and exit: Python's way, and that of the command line.

Run: python benchmarks/collector.py
"""

import statistics
import subprocess
import sys
import time

TIMES = 7
PLAIN = "import sys, torch, torchvision; sys.exit(0)"
OURS = """
import sys
from headstart import cli

def main():
    import torch, torchvision
    return 0

cli.main = main
cli.run()
"""


def timed(program: str) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return time.perf_counter() - begin


def main() -> None:
    pairs = [(timed(PLAIN), timed(OURS)) for _ in range(TIMES)]
    plain, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"import torch and torchvision, and exit: {plain:.2f} s; by the command line's way {ours:.2f} s")
    print(f"median ratio {statistics.median(first / second for first, second in pairs):.2f}")


if __name__ == "__main__":
    main()

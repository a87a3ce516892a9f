"""A run of training that is killed several times and goes on each time; run as a program, it tells what came of it.

`python survivors.py PLAN` imports torch once, computes nothing with it, and forks a child for every attempt: a new
Python would need two seconds to import. PLAN is an object of JSON: `cases`, each with the `words` of the command, the
folder `out` of its model, and how many `kills`. A child that is to be killed has written a checkpoint of a step that
no child before it had done.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch  # noqa: F401  (imported before the fork, not in each child)
import torchvision  # noqa: F401
from trainings import position

from headstart.classify.finetune import job, modules  # noqa: F401
from headstart.cli import main


def start(words: list[str], log: Path) -> int:
    """Run a command in a forked child; what it says goes to `log`."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 2)
        status = main(words)
    finally:
        os._exit(status)


def kill_after_a_step(child: int, out: Path, wait: float) -> tuple[int, int] | None:
    """Kill a child some time after it has taken a step further; return where it was, None where it was done before."""
    before, deadline = position(out), time.monotonic() + 60
    while position(out) <= max(before, (1, 0)):
        if os.waitpid(child, os.WNOHANG) != (0, 0):
            return None
        assert time.monotonic() < deadline, "no step in a minute"
        time.sleep(0.001)
    time.sleep(wait)
    if os.waitpid(child, os.WNOHANG) != (0, 0):  # it lived until here, or it is no victim
        return None
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"not killed, status {status}"
    return position(out)


def survive(words: list[str], out: Path, kills: int, seed: int) -> dict:
    """Kill a run so many times, go on each time, and let it end."""
    rng = random.Random(seed)
    where, log = [], out.with_suffix(".log")
    for attempt in range(kills):
        child = start([*words, *(["--resume"] if attempt else [])], log)
        found = kill_after_a_step(child, out, rng.uniform(0, 0.06))
        assert not (out / "model.json").exists() or found is None, "a model before the end"
        if found is None:
            return {"where": where, "status": 0}
        where.append(found)
    _, status = os.waitpid(start([*words, "--resume"], log), 0)
    return {"where": where, "status": os.waitstatus_to_exitcode(status)}


if __name__ == "__main__":
    plan = json.loads(sys.argv[1])
    found = []
    for case in plan["cases"]:
        whole = start([*case["words"], "--out", case["out"] + "-whole"], Path(case["out"] + "-whole.log"))
        assert os.waitpid(whole, 0)[1] == 0, Path(case["out"] + "-whole.log").read_text()
        found.append(survive([*case["words"], "--out", case["out"]], Path(case["out"]), case["kills"], case["seed"]))
    print(json.dumps(found))

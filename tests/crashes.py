"""A process that kills itself at its k-th operation on files, for each k; run as a program, it tells what came of it.

`python crashes.py WORKLOAD FOLDER EVERY [CALLS]` imports headstart once and forks a child for every crash, which costs
milliseconds where a new Python costs a tenth of a second. The child says through a pipe that it is alive and what it
has acknowledged, and dies of a real SIGKILL: before the k-th call, after it, or with half of its bytes written.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py  # noqa: F401  (imported before the fork, not in each child)
from watched import Call, watched
from workloads import LIAR, WORKLOADS, Workload, finish, look


@dataclass(frozen=True, slots=True)
class Kill:
    """Die at the `number`-th call, counted from 1: "before" it, "after" it, or "torn", half a write later."""

    number: int
    when: str


@dataclass(frozen=True, slots=True)
class Fate:
    """What the parent knows of a child: the calls it made (where it lived to tell), and what it acknowledged."""

    killed: bool
    calls: list[str]
    acknowledged: set[str]


class _Killer:
    def __init__(self, kill: Kill | None) -> None:
        self._kill = kill
        self.calls: list[str] = []

    def __call__(self, call: Call) -> Any:
        self.calls.append(call.name)
        if self._kill is None or len(self.calls) != self._kill.number:
            return call.go()
        if self._kill.when == "torn":
            descriptor, data = call.arguments
            call.real(descriptor, bytes(data)[: len(data) // 2])
        elif self._kill.when == "after":
            with contextlib.suppress(OSError):  # a call may fail, as mkdir does where the folder is there
                call.go()
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("alive after SIGKILL")


def _child(workload: Workload, root: Path, kill: Kill | None, pipe: int) -> None:
    """Work until the kill; never returns."""
    say = os.write  # the real one: messages are no operation on files

    def tell(**message: Any) -> None:
        say(pipe, json.dumps(message).encode() + b"\n")

    status = 1
    try:
        tell(alive=True)
        killer = _Killer(kill)
        with watched(root.parent, killer):
            workload.work(root, lambda done: tell(acknowledged=done))
        tell(calls=killer.calls)
        status = 0
    except BaseException as error:  # noqa: BLE001  (a fork must not return into the parent's code)
        tell(error=repr(error))
    finally:
        os._exit(status)


def run_and_kill(workload: Workload, root: Path, kill: Kill | None) -> Fate:
    """Run the work in a forked child; assert that it lived, and that it died as planned or finished."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(workload, root, kill, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        messages = [json.loads(line) for line in pipe.read().splitlines()]
    _, status = os.waitpid(child, 0)
    errors = [message["error"] for message in messages if "error" in message]
    assert not errors, f"{kill}: {errors[0]}"
    assert messages and messages[0] == {"alive": True}, f"{kill}: the child was dead from the start"
    acknowledged = {word for message in messages for word in message.get("acknowledged", ())}
    calls = next((message["calls"] for message in messages if "calls" in message), [])
    if kill is None:
        assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0, f"exit status {status}"
        return Fate(False, calls, acknowledged)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"{kill}: not killed, status {status}"
    return Fate(True, calls, acknowledged)


def plan(calls: list[str], every: int, only: set[str]) -> list[Kill]:
    """Return all kills for a run of these calls, or each `every`-th of each way to die."""
    chosen = [number for number, name in enumerate(calls, start=1) if not only or name in only]
    torn = [number for number in chosen if calls[number - 1] == "write"]
    ways = {"before": chosen, "after": chosen, "torn": torn}
    return [Kill(number, when) for when, numbers in ways.items() for number in numbers[::every]]


def enumerate_crashes(workload: Workload, folder: Path, every: int, only: set[str]) -> dict[str, int]:
    """Crash the work everywhere; after each crash nothing that was acknowledged is lost, and a second run completes."""
    template, arena = folder / "template", folder / "arena"
    template.mkdir()
    workload.arrange(template / "cache")
    counts = dict.fromkeys(("kills", "torn", "sigkill", "acknowledged", "lost", "finished"), 0)

    def run(kill: Kill | None) -> Fate:
        shutil.copytree(template, arena)
        fate = run_and_kill(workload, arena / "cache", kill)
        found = look(arena / "cache")
        counts["lost"] += len((workload.safe | fate.acknowledged) - found)
        counts["acknowledged"] += len(fate.acknowledged - {"listing", "memo"})
        finish(workload, arena / "cache")
        shutil.rmtree(arena)
        return fate

    whole = run(None)
    counts["finished"] += not whole.killed
    for kill in plan(whole.calls, every, only):
        fate = run(kill)
        counts["kills"] += 1
        counts["torn"] += kill.when == "torn"
        counts["sigkill"] += fate.killed
    return {**counts, "calls": len(whole.calls)}


if __name__ == "__main__":
    name, where, step, *names = sys.argv[1:]
    print(json.dumps(enumerate_crashes({**WORKLOADS, "liar": LIAR}[name], Path(where), int(step), set(names))))

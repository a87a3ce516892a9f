"""A checkpoint that is written while the process dies, at each of its operations on files; tells what came of it.

`python checkpoint_crashes.py FOLDER` forks a child for every crash, as `crashes.py` does. What is there afterwards must
be the checkpoint before, or the new one, and a second attempt must leave the new one and nothing else.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from crashes import Kill, plan, run_and_kill
from workloads import Workload

from headstart.classify.finetune.checkpoint import Checkpoint, State

RUN = {"epochs": 3}


def numbers(value: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((64,), value), "optimizer.0.step": torch.tensor(value)}


def write(folder: Path, epoch: int, best: int) -> None:
    state = State(epoch=epoch, best_epoch=best, best={"weight": torch.full((64,), float(best))})
    Checkpoint(folder, RUN).write(state, numbers(epoch))


def look(folder: Path) -> int:
    """Return the epoch of the checkpoint that is there; all numbers must be its own."""
    state, now = Checkpoint(folder, RUN).read()
    for name, value in numbers(state.epoch).items():
        assert torch.equal(now[name], value), name
    assert torch.equal(state.best["weight"], torch.full((64,), float(state.best_epoch)))
    assert state.best_epoch == {1: 0, 2: 2}[state.epoch]
    return state.epoch


WORK = Workload(lambda folder: write(folder, 1, 0), lambda folder, _: write(folder, 2, 2), frozenset())


def crash(root: Path, kill: Kill | None) -> tuple[list[str], int]:
    """Die there; return the calls of a child that lived, and the epoch that is there afterwards."""
    folder = root / "arena" / "checkpoint"
    shutil.copytree(root / "template", folder.parent)
    fate = run_and_kill(WORK, folder, kill)
    assert fate.killed == (kill is not None)
    epoch = look(folder)
    WORK.work(folder, lambda _: None)
    assert look(folder) == 2 and len(list(folder.iterdir())) == 3
    shutil.rmtree(folder.parent)
    return fate.calls, epoch


if __name__ == "__main__":
    where = Path(sys.argv[1])
    WORK.arrange(where / "template" / "checkpoint")
    calls, last = crash(where, None)
    assert last == 2
    epochs = [crash(where, kill)[1] for kill in plan(calls, 1, set())]
    print(json.dumps({"old": epochs.count(1), "new": epochs.count(2), "kills": len(epochs)}))

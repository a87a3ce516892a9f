"""The loop of training: epochs and steps, the choice of the best epoch, checkpoints, and when to stop."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import TrainingError
from ..optimizers import rate_factor
from .checkpoint import Checkpoint, State
from .inputs import Inputs
from .loader import shuffled
from .options import TrainOptions
from .scoring import Scored, score
from .stepper import Stepper

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("headstart.finetune")

CHECKPOINT_SECONDS = 60.0  # between two checkpoints within an epoch; HEADSTART_CHECKPOINT_SECONDS changes it, for tests
_LOOK_EVERY = 20  # steps between two looks at a GPU's losses, each of which waits for it


@dataclass(frozen=True, slots=True)
class Hooks:
    """How a run is told to stop, and tells how it goes.

    Attributes
    ----------
    stopped : callable
        Asked after each step.
    progress : callable
        Told the number of pictures that went through since the last call.
    """

    stopped: Callable[[], bool] = lambda: False
    progress: Callable[[int], None] = lambda _: None


class Loop:
    """Trains a network by its stepper.

    Parameters
    ----------
    stepper : Stepper
    train : Inputs
    chosen_by : Inputs or None
        What every epoch is scored on; None where the last one is taken.
    options : TrainOptions
    rate : float
        Learning rate, before schedule and groups.
    checkpoint : Checkpoint
    hooks : Hooks

    Attributes
    ----------
    seconds : dict of str to float
        Wall time that steps, scoring and checkpoints took: "train", "evaluate", "checkpoint"; and "wait", how much of
        the first went by waiting for pictures.
    """

    def __init__(
        self,
        stepper: Stepper,
        train: Inputs,
        chosen_by: Inputs | None,
        options: TrainOptions,
        rate: float,
        checkpoint: Checkpoint,
        hooks: Hooks,
    ) -> None:
        self.stepper, self.train_inputs, self.chosen_by = stepper, train, chosen_by
        self.options, self.rate, self.checkpoint, self.hooks = options, rate, checkpoint, hooks
        self.seconds = {"wait": 0.0, "train": 0.0, "evaluate": 0.0, "checkpoint": 0.0}
        self._ranks = stepper.ranks
        self._losses: list[Tensor] = []  # of steps that were not looked at yet
        self._steps = len(self._plan(1))
        self._kept_at = time.monotonic()
        self._interval = float(os.environ.get("HEADSTART_CHECKPOINT_SECONDS", CHECKPOINT_SECONDS))

    def run(self, state: State) -> State:
        """Train from `state` to the end, and leave the network as it was after the best epoch.

        Returns
        -------
        State
            The same object.

        Raises
        ------
        TrainingError
            The loss, or a weight, is not a number any more; the run as it was after its best epoch is kept.
        KeyboardInterrupt
            `hooks.stopped` said True; a checkpoint was written.
        """
        if not state.history:
            self._score_start(state)
        while state.epoch <= self.options.epochs and not self._in_vain(state):
            self._epoch(state)
        self.stepper.network.restore({name: value.to(self.stepper.at) for name, value in state.best.items()})
        return state

    def _score_start(self, state: State) -> None:
        """Take the network as it is for the first candidate: no run ends below where it began."""
        state.history.append(self._row(0, None, None, 0.0))
        state.best = self._snapshot()
        if self.chosen_by is not None:
            logger.info("start: %s", self._scores(state.history[0]))
        self._keep(state)  # whatever comes, there is something to go on from, with another rate for one

    def _in_vain(self, state: State) -> bool:
        patience = self.options.patience
        return patience is not None and state.epoch - 1 - state.best_epoch >= patience

    def _plan(self, epoch: int) -> list[np.ndarray]:
        size = self.options.batch_size * self._ranks.world
        return shuffled(len(self.train_inputs), size, self.options.seed, epoch)

    def _epoch(self, state: State) -> None:
        begun = time.perf_counter() - state.epoch_seconds
        for total, rows, batch in self._batches(state):
            self._step(state, total, rows, batch)
            state.epoch_seconds = time.perf_counter() - begun
            self._perhaps_stop(state)
        self._check(state)
        loss = state.loss_sum / len(self.train_inputs)
        state.epoch_seconds = time.perf_counter() - begun
        row = self._row(state.epoch, loss, self._rate(state.epoch, self._steps - 1), state.epoch_seconds)
        if self.chosen_by is not None and row["dev_loss"] is None:  # by the last step: no training loss has shown it
            raise self._diverged(state, f"the {self.options.select_on} loss")
        self._choose(state, row)
        state.seconds += time.perf_counter() - begun
        state.epoch, state.step, state.loss_sum, state.epoch_seconds = state.epoch + 1, 0, 0.0, 0.0
        self._keep(state)

    def _batches(self, state: State) -> Iterator[tuple[int, np.ndarray, Tensor]]:
        """Yield the pictures of each step that is left of the epoch: how many, and this process's share of them."""
        plan = self._plan(state.epoch)[state.step :]
        # A share may be empty where the last processes are one too many: they then fill it with a picture of weight 0.
        shares = [self._ranks.share(rows) if len(rows) > self._ranks.rank else rows[:1] for rows in plan]
        batches = iter(self.train_inputs.batches(shares, state.epoch))
        for rows in plan:
            begin = time.perf_counter()
            mine, batch = next(batches)
            self.seconds["wait"] += time.perf_counter() - begin
            yield len(rows), mine, batch

    def _step(self, state: State, total: int, rows: np.ndarray, batch: Tensor) -> None:
        import torch

        begin = time.perf_counter()
        # Every step's dropout is drawn anew, so that nothing need be known of the steps before.
        torch.manual_seed(step_seed(self.options.seed, state.epoch, state.step, self._ranks.rank))
        if not self.stepper.network.training:
            self.stepper.network.train()
        loss = self.stepper.step(
            batch,
            torch.from_numpy(self.train_inputs.subset.y[rows]),
            total=total,
            rate=self._rate(state.epoch, state.step),
            kept=self.train_inputs.frozen,
            weight=1.0 if total > self._ranks.rank else 0.0,
        )
        state.step += 1
        self._losses.append(loss)
        if self.stepper.device.kind == "cpu" or state.step % _LOOK_EVERY == 0:
            self._loss(state)
        self.seconds["train"] += time.perf_counter() - begin
        self.hooks.progress(total)

    def _loss(self, state: State) -> None:
        """Add what the last steps lost to the epoch's sum, and look whether it is a number."""
        if self._losses:
            sums = self._ranks.total(self._losses)
            self._losses.clear()
            # One by one and in order, so that an epoch that was interrupted adds up as one that was not.
            for value in sums:
                state.loss_sum += value
        if not math.isfinite(state.loss_sum):
            raise self._diverged(state, "the loss")

    def _check(self, state: State) -> None:
        """Raise where the network has diverged: its loss of the last step was still a number, its weights are none."""
        self._loss(state)
        numbers = all(bool(value.isfinite().all()) for value in self.stepper.network.changing().values())
        if self._anywhere(not numbers)[0]:
            raise self._diverged(state, "a weight")

    def _diverged(self, state: State, what: str) -> TrainingError:
        """Keep the run as it was after its best epoch: what came later may be ruined, though it is still numbers."""
        where = f"in epoch {state.epoch} at step {state.step} of {self._steps}"
        self._rewind(state)
        was = f"after epoch {state.best_epoch}" if state.best_epoch else "at its start"
        advice = [f"--lr {self.rate / 10:.2g}"]
        advice += ["--clip 1"] if self.options.clip is None else []
        advice += ["--precision float32"] if self.stepper.precision != "float32" else []
        return TrainingError(
            f"{what} is not a number any more, {where}; the run as it was {was} is kept in {self.checkpoint.folder}: "
            f"try {' or '.join(advice)} with --resume"
        )

    def _rewind(self, state: State) -> None:
        """Keep the network of the best epoch, with an optimizer that has no memory of what came later."""
        state.history = state.history[: state.best_epoch + 1]
        state.epoch, state.step, state.loss_sum, state.epoch_seconds = state.best_epoch + 1, 0, 0.0, 0.0
        if self._ranks.first:
            self.checkpoint.write(state, state.best)
        self._ranks.wait()

    def _rate(self, epoch: int, step: int) -> float:
        """Return the learning rate of a step, after schedule and warm-up."""
        done = epoch - 1 + step / self._steps
        factor = rate_factor(self.options.schedule, 1 + done, self.options.epochs)
        warmup = self.options.warmup
        rising = min(1.0, (done + 1 / self._steps) / warmup) if warmup else 1.0
        return self.rate * factor * rising

    def _row(self, epoch: int, loss: float | None, rate: float | None, seconds: float) -> dict[str, Any]:
        begin = time.perf_counter()
        scored: Scored | None = None if self.chosen_by is None else score(self.stepper, self.chosen_by)
        self.seconds["evaluate"] += time.perf_counter() - begin
        finite = scored is not None and math.isfinite(scored.loss)
        return {
            "epoch": epoch,
            "train_loss": loss,
            "dev_loss": scored.loss if scored and finite else None,
            "dev_accuracy": scored.accuracy if scored and finite else None,
            "lr": rate,
            "seconds": round(seconds + (time.perf_counter() - begin), 3),
        }

    def _choose(self, state: State, row: dict[str, Any]) -> None:
        better = self.chosen_by is None or self._value(row) > self._value(state.history[state.best_epoch])
        state.history.append(row)
        if better:
            state.best_epoch, state.best = state.epoch, self._snapshot()
        scores = f", {self._scores(row)}" if self.chosen_by is not None else ""
        logger.info(
            "epoch %d of %d: train loss %.4f%s, %.1f s%s",
            state.epoch, self.options.epochs, row["train_loss"], scores, row["seconds"],
            ", the best so far" if better and self.chosen_by is not None else "",
        )  # fmt: skip

    def _value(self, row: dict[str, Any]) -> tuple[float, float]:
        """Return what an epoch is chosen by, larger for better; of equal accuracies the lower loss is taken."""
        if row["dev_loss"] is None:
            return -math.inf, -math.inf
        by_accuracy = self.options.select_by == "accuracy"
        return (row["dev_accuracy"] if by_accuracy else 0.0), -row["dev_loss"]

    def _scores(self, row: dict[str, Any]) -> str:
        split = self.options.select_on
        if row["dev_loss"] is None:
            return f"{split} loss not a number"
        return f"{split} loss {row['dev_loss']:.4f}, {split} accuracy {100 * row['dev_accuracy']:.1f} %"

    def _snapshot(self) -> dict[str, Tensor]:
        return {name: value.to("cpu", copy=True) for name, value in self.stepper.network.changing().items()}

    def _perhaps_stop(self, state: State) -> None:
        """Write a checkpoint now and then within an epoch, and stop where that is asked for."""
        due = self._ranks.first and time.monotonic() - self._kept_at >= self._interval
        stopped, due = self._anywhere(self.hooks.stopped(), due)
        if stopped or due:
            self._check(state)  # no checkpoint of a network that has diverged
            self._keep(state)
        if stopped:
            raise KeyboardInterrupt(f"interrupted; the run is kept in {self.checkpoint.folder}: --resume goes on")

    def _anywhere(self, *here: bool) -> list[bool]:
        """Tell whether any process says so, where there are several."""
        if self._ranks.world == 1:
            return list(here)
        import torch

        told = [torch.tensor(float(one), device=self.stepper.at) for one in here]
        return [count > 0 for count in self._ranks.total(told)]

    def _keep(self, state: State) -> None:
        begin = time.perf_counter()
        state.piece = self.stepper.piece
        if self._ranks.first:
            self.checkpoint.write(state, self.stepper.network.changing() | self.stepper.state())
        self._ranks.wait()
        self._kept_at = time.monotonic()
        self.seconds["checkpoint"] += time.perf_counter() - begin


def step_seed(*parts: int) -> int:
    """Return a seed of 63 bits for the numbers of a seed, an epoch, a step and a process."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)

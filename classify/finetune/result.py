"""A network that was trained and saved, and how that is told to people and programs."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..fitted import validation_lines
from ..model import SavedModel
from .pictures import Pictures

_WORTH_A_WORD = 2.0  # seconds of training, from which it is told what bounds it
_WAITS = 0.2  # the share of training that went by waiting, from which pictures bound the run


@dataclass(frozen=True, slots=True)
class Finetuned:
    """A trained and saved network.

    Attributes
    ----------
    model : SavedModel
    out : Path
        Where it was saved.
    pictures : Pictures
        What it was trained and scored on.
    device : str
    stages : dict of str to float
        Seconds: "list"; "read", "decode" and "augment", summed over threads; of wall time "train", "evaluate",
        "checkpoint", and "wait", for pictures.
    workers : int
        Threads that read, decoded and augmented.
    seconds : float
        Wall time of the run, since it went on last.
    shown : bool, default True
        Whether this process tells of it.
    """

    model: SavedModel
    out: Path
    pictures: Pictures
    device: str
    stages: dict[str, float]
    workers: int
    seconds: float
    shown: bool = True

    @property
    def bound_by(self) -> str:
        """What the run waited for: "train", "decode" or "augment"."""
        if self.stages["wait"] <= _WAITS * (self.stages["wait"] + self.stages["train"]):
            return "train"
        return "augment" if self.stages["augment"] > self.stages["read"] + self.stages["decode"] else "decode"

    def summary(self) -> dict[str, Any]:
        """Return the fields of ``finetune --json``."""
        facts, scores = self.model.facts, self.model.scores
        return {
            "mode": facts["mode"],
            "backbone": self.model.spaces[0]["backbone"],
            "layer": self.model.spaces[0]["layer"],
            "dim": self.model.spaces[0]["dim"],
            "classes": list(self.model.classes),
            "epochs": facts["epochs"],
            "best_epoch": facts["best_epoch"],
            "selected_on": facts["selected_on"],
            "history": facts["history"],
            "lr": facts["lr"],
            "lr_search": facts["lr_search"],
            "settings": facts["settings"],
            "widths": facts["widths"],
            "train": scores["train"],
            "val": scores["val"],
            "baseline": scores["baseline"],
            "conformal": scores["conformal"],
            "temperature": self.model.temperature,
            "failures": [{"path": path, "error": reason} for path, reason in self.pictures.failures],
            "device": self.device,
            "stages": {name: round(seconds, 3) for name, seconds in self.stages.items()},
            "bound_by": self.bound_by,
            "seconds": round(self.seconds, 3),
            "out": str(self.out),
        }

    def lines(self) -> list[str]:
        """Return what a person needs: which epoch was taken, the score with interval and baseline, the next command."""
        facts, scores = self.model.facts, self.model.scores
        lines = [self._choice(facts)]
        validation, *calibration = validation_lines(scores, multi_label=False)
        lines.append(validation)
        if facts["selected_on"] == "val" and scores["val"] is not None:
            lines.append("note: the epoch was selected on val, so this score is better than that of new images will be")
        lines += calibration
        if self.stages["wait"] + self.stages["train"] >= _WORTH_A_WORD:
            lines.append(self._bound())
        command = f"headstart predict {shlex.quote(str(self.out))} PICTURE..."
        lines.append(f"saved {self.out} in {self.seconds:.1f} s; next: {command}")
        return lines

    def _choice(self, facts: dict[str, Any]) -> str:
        best, chosen_on = facts["best_epoch"], facts["selected_on"]
        train = f"train accuracy {100 * self.model.scores['train']['accuracy']:.1f} %"
        if chosen_on == "last":
            return f"took epoch {best}, the last; {train}"
        row = facts["history"][best]
        which = f"epoch {best} of {facts['epochs']}" if best else "the start, which no epoch improved on"
        loss, accuracy = row["dev_loss"], row["dev_accuracy"]
        scored = "" if loss is None else f": {chosen_on} loss {loss:.4f}, accuracy {100 * accuracy:.1f} %"
        return f"took {which}{scored}; {train}"

    def _bound(self) -> str:
        stages, bound = self.stages, self.bound_by
        waited = 100 * stages["wait"] / max(stages["wait"] + stages["train"], 1e-9)
        told = f"waited {waited:.0f} % of the time for pictures, {self.workers} workers"
        return f"bound by {'training' if bound == 'train' else bound}: {told}; scoring took {stages['evaluate']:.1f} s"

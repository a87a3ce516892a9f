"""Networks trained on a few small photographs, and what became of them, in numbers that two runs can be compared by."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from headstart.classify.finetune.job import finetune
from headstart.classify.finetune.result import Finetuned

LITE = "efficientnet_lite0"
SMALL = {"backbone": LITE, "resize": 36, "crop": 32}
# Half a second each: the last blocks alone, twice over the pictures, and no choice among epochs.
QUICK = {**SMALL, "train": "_blocks.15", "epochs": 2, "augment": "none", "select_on": "last", "batch_size": 8}


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run and the numbers it saved."""

    result: Finetuned

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows of the epochs without what differs from run to run."""
        return [{name: row[name] for name in row if name != "seconds"} for row in self.result.model.facts["history"]]

    @functools.cached_property
    def saved(self) -> dict[str, np.ndarray]:
        """All saved numbers by name."""
        content = json.loads((self.result.out / "model.json").read_bytes())
        files = [content["tensors"], *filter(None, [content.get("backbone")])]
        return {name: value for file in files for name, value in load_file(self.result.out / file).items()}

    def same_as(self, other: "Trained") -> bool:
        """Tell whether two runs went the same way, bit for bit."""
        mine, theirs = self.saved, other.saved
        return (
            self.history == other.history
            and self.result.model.spaces == other.result.model.spaces
            and mine.keys() == theirs.keys()
            and all(np.array_equal(mine[name], theirs[name]) for name in mine)
        )


class Runs:
    """Runs on one dataset, each made once."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.data, self.folder = data, folder
        self._done: dict[str, Trained] = {}

    def __call__(self, **options: Any) -> Trained:
        """Return the run with these options."""
        key = repr(sorted(options.items()))
        if key not in self._done:
            out = self.folder / str(len(self._done))
            self._done[key] = Trained(finetune(self.data, cache=self.folder / "cache", out=out, **options))
        return self._done[key]

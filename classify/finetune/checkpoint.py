"""A run on its way, kept so that it can go on after a kill: beside the model's folder, in a folder of the same kind.

Nothing random needs to be kept: the order of an epoch's pictures, each picture's augmentation and each step's dropout
are drawn anew from the seed, the epoch, the step and the picture's content. So a run that goes on takes the steps that
it would have taken.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...cache.publish import make_folder
from ...errors import CacheError, ModelError
from ..folder import read_numbers, read_object, remove_numbers, write_numbers, write_object

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
FILE = "checkpoint.json"
_NOW, _BEST = "now", "best"
_ADVICE = "remove the folder and begin anew"
# What may be another when a run goes on. Then it goes on differently than it would have.
MAY_CHANGE = ("lr", "clip", "precision", "patience")


@dataclass(slots=True)
class State:
    """Where a run is, and what it has found.

    Attributes
    ----------
    epoch : int
        From 1 on; the one that goes on.
    step : int
        Steps of it that are done.
    loss_sum : float
        Of the pictures that those steps saw.
    epoch_seconds, seconds : float
        Spent on this epoch, and on all.
    history : list of dict
        A row an epoch, that of the start (epoch 0) first.
    best_epoch : int
    best : dict of str to Tensor
        What training had changed by then, as `TrainableNetwork.changing` has it, on the CPU.
    piece : int
        Pictures of a forward pass.
    rate : float
        Learning rate of the run, before schedule and groups.
    lr_search : list of dict
        The curve that it was read off.
    """

    epoch: int = 1
    step: int = 0
    loss_sum: float = 0.0
    epoch_seconds: float = 0.0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    piece: int = 0
    rate: float = 0.0
    lr_search: list[dict[str, Any]] = field(default_factory=list)

    def in_json(self) -> dict[str, Any]:
        """Return all but the numbers of the network."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "best"}


def checkpoint_folder(out: Path) -> Path:
    """Return where a run that makes the model `out` is kept."""
    return out.with_name(out.name + ".checkpoint")


class Checkpoint:
    """The folder in which a run is kept.

    Parameters
    ----------
    folder : Path
    run : dict
        What the run is: its settings, the digests of pictures, labels and weights. A run goes on only where it is the
        same.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any]) -> None:
        self.folder = folder
        self.run = dict(run)
        self._best: tuple[int, str] | None = None

    @property
    def there(self) -> bool:
        """Whether a run is kept."""
        return (self.folder / FILE).is_file()

    def write(self, state: State, now: Mapping[str, Tensor]) -> None:
        """Keep a run, whole or not at all.

        Parameters
        ----------
        state : State
        now : dict of str to Tensor
            What training has changed in the network, and the optimizer's numbers.

        Raises
        ------
        ModelError
            The disk cannot be written. What was kept before still is.
        """
        try:
            make_folder(self.folder)
            if self._best is None or self._best[0] != state.best_epoch:
                self._best = state.best_epoch, write_numbers(self.folder, _BEST, _arrays(state.best))
            files = {_NOW: write_numbers(self.folder, _NOW, _arrays(now)), _BEST: self._best[1]}
            write_object(self.folder / FILE, {"format": FORMAT, "run": self.run, **state.in_json(), **files})
            remove_numbers(self.folder, tuple(files.values()))
        except CacheError as error:
            text = str(error).replace("--cache", "--out")
            raise ModelError(f"the run could not be kept to go on later: {text}") from error

    def read(self) -> tuple[State, dict[str, Tensor]]:
        """Return the run that is kept.

        Raises
        ------
        ModelError
            There is none, it is another run, or it is damaged.
        """
        import torch

        maker = "headstart finetune"
        content = read_object(self.folder / FILE, what="checkpoint", maker=maker, advice=_ADVICE)
        found = content.get("format")
        if isinstance(found, int) and found > FORMAT:
            raise ModelError(
                f"{self.folder} was written by format {found}, this reads up to {FORMAT}; upgrade headstart"
            )
        numbers = {
            prefix: {
                name: torch.from_numpy(array)
                for name, array in read_numbers(self.folder / FILE, prefix, content.get(prefix), advice=_ADVICE).items()
            }
            for prefix in (_NOW, _BEST)
        }
        try:
            self._check_same(content["run"])
            values = {name: content[name] for name in State().in_json()}
            wrong = [name for name, value in State().in_json().items() if type(values[name]) is not type(value)]
            if wrong:
                raise TypeError(f"{wrong[0]} is {values[wrong[0]]!r}")
            state = State(**values, best=numbers[_BEST])
        except (KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{self.folder / FILE} is damaged: {error!r}; {_ADVICE}") from error
        self._best = state.best_epoch, content[_BEST]
        return state, numbers[_NOW]

    def remove(self) -> None:
        """Remove the folder, when the model has been written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _check_same(self, kept: Mapping[str, Any]) -> None:
        for name, value in self.run.items():
            if name in MAY_CHANGE or kept[name] == value:
                continue
            raise ModelError(
                f"{self.folder} holds a run with {_words(name, kept[name])}, and this one has {_words(name, value)}: "
                "pass the same to go on, or --overwrite to begin anew"
            )


def _words(name: str, value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{name.replace('_', ' ')} {text if len(text) <= 40 else text[:12] + '...'}"


def _arrays(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: value.cpu().numpy() for name, value in state.items()}

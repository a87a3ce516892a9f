"""What a user may ask of a training run, as one frozen record that travels through all its stages."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from ...errors import UsageError
from ...extract.augment import PRESETS
from ..optimizers import OPTIMIZERS, SCHEDULES

HEADS = ("linear", "mlp")
SELECT_ON = ("dev", "val", "last")
SELECT_BY = ("loss", "accuracy")
ALL, HEAD = "all", "head"
# Where no rate is given. Adaptive steps are of the size of the rate, those of sgd of the rate times the gradient.
RATES = {"sgd": 1e-3, "adam": 3e-4, "adamw": 3e-4}
HEAD_RATES = {"sgd": 1e-3, "adam": 1e-3, "adamw": 1e-3}  # where the head is all that is trained
FRESH_HEAD_MULTIPLE = 10.0  # of a head without a start, above a body that has one


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """How a network is trained.

    Attributes
    ----------
    train : str, default "all"
        "all", "head", or the name of a module: it and everything behind it is trained.
    head : {"linear", "mlp"}, default "linear"
    hidden : tuple of int, default (1024,)
        Widths of the hidden layers of "mlp".
    dropout : float, default 0.0
        Share of what each linear layer but the first receives that is dropped in training; of "linear", of the
        embedding.
    init_head : str, optional
        Folder of a saved head to start from, or ``imagenet:LABEL=CLASS,...`` for rows of the backbone's own classifier.
    reinit : str, optional
        A module: it and everything behind it starts from random weights.
    epochs : int, default 10
    batch_size : int, default 32
        Images a step, of each process.
    optimizer : {"adamw", "adam", "sgd"}, default "adamw"
    lr : float, "auto" or None, default None
        Learning rate; found by a range test where it is "auto"; by the optimizer where it is None.
    head_lr_mult : float, optional
        The head's learning rate over that of the last block; 10 for a fresh head above trained layers, else 1.
    layer_decay : float, default 1.0
        The learning rate of each block over that of the block behind it.
    momentum : float, default 0.9
        Of "sgd".
    weight_decay : float, default 0.01
        Not applied to norms and biases.
    schedule : {"cosine", "constant", "step"}, default "cosine"
    warmup : float, default 0.0
        Epochs over which the learning rate rises from zero.
    label_smoothing : float, default 0.0
    clip : float, optional
        Largest norm of all gradients together.
    precision : {"auto", "float32", "bfloat16", "float16"}, default "auto"
        "auto" is mixed precision on an NVIDIA GPU and float32 elsewhere.
    freeze_norms : bool, default False
        Batch norms keep their statistics, weights and biases.
    augment : str, default "tutorial"
        One of `headstart.extract.augment.PRESETS`.
    select_on : {"dev", "val", "last"}, default "dev"
        What chooses the epoch: a stable part of the training images, the validation images, or nothing.
    select_by : {"loss", "accuracy"}, default "loss"
    dev_fraction : float, default 0.2
        Share of the training images that is held out as "dev".
    patience : int, optional
        Epochs without gain that end the run.
    keep_frozen : bool, default True
        Compute what frozen layers make of an image once and keep it in memory, where that is possible.
    seed : int, default 0
    """

    train: str = ALL
    head: str = "linear"
    hidden: tuple[int, ...] = (1024,)
    dropout: float = 0.0
    init_head: str | None = None
    reinit: str | None = None
    epochs: int = 10
    batch_size: int = 32
    optimizer: str = "adamw"
    lr: float | str | None = None
    head_lr_mult: float | None = None
    layer_decay: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 0.01
    schedule: str = "cosine"
    warmup: float = 0.0
    label_smoothing: float = 0.0
    clip: float | None = None
    precision: str = "auto"
    freeze_norms: bool = False
    augment: str = "tutorial"
    select_on: str = "dev"
    select_by: str = "loss"
    dev_fraction: float = 0.2
    patience: int | None = None
    keep_frozen: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        words = {"head": HEADS, "optimizer": OPTIMIZERS, "schedule": SCHEDULES, "augment": PRESETS}
        words |= {"select_on": SELECT_ON, "select_by": SELECT_BY}
        words |= {"precision": ("auto", "float32", "bfloat16", "float16")}
        for name, allowed in words.items():
            if getattr(self, name) not in allowed:
                raise UsageError(f"{_option(name)} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}")
        for name, (low, high) in _RANGES.items():
            _check_range(name, getattr(self, name), low, high)
        for name in ("epochs", "batch_size", "patience"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise UsageError(f"{_option(name)} must be a whole number, 1 or more; got {value!r}")
        self._check_together()

    def _check_together(self) -> None:
        if self.lr not in (None, "auto"):
            _check_range("lr", self.lr, 0, math.inf)
        if any(width < 1 for width in self.hidden) or not self.hidden:
            raise UsageError(f"--hidden must be widths of 1 or more; got {self.hidden!r}")
        if self.head == "linear" and self.hidden != (1024,):
            raise UsageError("--hidden means nothing to --head linear; leave it out or pass --head mlp")
        if self.optimizer != "sgd" and self.momentum != 0.9:
            raise UsageError(f"--momentum means nothing to --optimizer {self.optimizer}; leave it out or pass sgd")
        if self.train == HEAD and self.reinit is not None:
            raise UsageError("--reinit gives random weights to layers that --train head would leave so; train them too")
        if self.select_on == "last" and self.patience is not None:
            raise UsageError("--patience needs epochs to be scored: leave it out, or --select-on last")
        for name, choice, without in _MEANINGLESS:
            chosen = getattr(self, choice)
            if chosen in without and getattr(self, name) != _default(name):
                raise UsageError(f"{_option(name)} means nothing to {_option(choice)} {chosen}; leave it out")
        if self.select_on == "dev" and self.dev_fraction == 0:
            raise UsageError("--dev-fraction 0 leaves no dev images to choose by; pass --select-on last instead")

    @property
    def rate(self) -> float:
        """The learning rate, where it is not to be found out."""
        if isinstance(self.lr, int | float):
            return float(self.lr)
        return (HEAD_RATES if self.train == HEAD else RATES)[self.optimizer]

    @property
    def head_multiple(self) -> float:
        """The head's learning rate over that of the last block."""
        if self.head_lr_mult is not None:
            return self.head_lr_mult
        return 1.0 if self.train == HEAD or self.init_head is not None else FRESH_HEAD_MULTIPLE

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them."""
        return {**dataclasses.asdict(self), "hidden": list(self.hidden)}


_RANGES: dict[str, tuple[float, float]] = {
    "dropout": (0, 1),
    "head_lr_mult": (0, math.inf),
    "layer_decay": (0, 1.000001),
    "momentum": (0, 1),
    "weight_decay": (0, math.inf),
    "warmup": (0, math.inf),
    "label_smoothing": (0, 1),
    "clip": (0, math.inf),
    "dev_fraction": (0, 1),
}


# What is given beside a choice that leaves it without any effect is a mistake.
_MEANINGLESS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("layer_decay", "train", (HEAD,)),
    ("freeze_norms", "train", (HEAD,)),
    ("select_by", "select_on", ("last",)),
    ("dev_fraction", "select_on", ("val", "last")),
)


def _default(name: str) -> Any:
    return next(field.default for field in dataclasses.fields(TrainOptions) if field.name == name)


def _check_range(name: str, value: Any, low: float, high: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and (not number or not low <= value < high):
        raise UsageError(f"{_option(name)} must be a number from {low:g} to below {high:g}; got {value!r}")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"

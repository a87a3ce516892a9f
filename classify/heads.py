"""Linear and MLP heads, trained by mini-batches in torch; and any head by its name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from ..errors import TrainingError, UsageError
from ..extract.progress import progress_bar
from .block_linear import SIDE_BY_SIDE, Descent
from .block_linear import cross_validate as cross_validate_over
from .grid import Trial, cross_validate, grid
from .head import Head, check_options
from .knn import KNNHead, NCMHead
from .logistic import LogisticHead
from .mini_batches import Dealing
from .network import Network
from .optimizers import OPTIMIZERS, SCHEDULES
from .preparation import Preparation, principal_axes
from .share import Problem
from .task import Task
from .team import Elsewhere, Team, total
from .training import Recipe, Rows, Setting, class_weights, torch_device, train
from .views import as_rows, plain_of

PATIENCE = 10
_TURN_UP_TO = 2000  # rows; the axes cost the third power of their number
_NARROWER = 6  # times; where all views' rows are so many fewer than features, their axes are worth more than that
_OUTSIDE = 1e-6  # share of the rows' square that is rounding
_CLASS_WEIGHTS = ("none", "balanced")
_DEVICES = ("auto", "cpu", "cuda")


class LinearHead(Head):
    """Softmax regression by mini-batches.

    Every combination of `lr` and `weight_decay` is cross-validated, and the one with the lowest log loss on held-out
    rows is trained again on all rows, for as many epochs as were best on those of all folds. A fold's own rows have no
    part in the epoch at which it is scored: the other folds choose it.

    Parameters
    ----------
    optimizer : {"adamw", "adam", "sgd"}, default "adamw"
    momentum : float, default 0.9
        Of "sgd", which has no Nesterov correction.
    lr : float or sequence of float, optional
        Learning rate, or several to choose from; `lr_tried` where it is None.
    weight_decay : float or sequence of float, default 1e-2
        Decoupled from the gradient in "adamw", an L2 penalty in the others. One value: early stopping leaves it little
        to do; at the best rate 0.01 and 1 gave the same log loss within 0.003.
    schedule : {"constant", "cosine", "step"}, default "constant"
        "cosine" takes the rate to zero over `epochs`, "step" to a tenth after each third of them. The last fit follows
        the same schedule up to the epoch at which it ends.
    epochs : int, default 100
        At most.
    patience : int, optional
        A setting is given up after so many epochs without a lower held-out loss: 10, or with another schedule than
        "constant" none, as its best epochs are the last ones.
    batch_size : int, optional
        At most so many images a step, each with all its views; 64 where it is None, or so many that an epoch has 64
        steps.
    label_smoothing : float, default 0.0
        From 0 to below 1.
    class_weight : {"none", "balanced"}, default "none"
        "balanced" lets each class count the same.
    device : {"auto", "cpu", "cuda"}, default "auto"
        "auto" is an NVIDIA GPU where there is one.
    l2_norm, pca, cv
        As in `Head`.
    random_state : int, default 0
        For the folds, the initial weights, the batches and dropout.

    Attributes
    ----------
    setting_ : dict
        What was chosen: ``lr``, ``weight_decay``, and for an MLP ``hidden``, ``dropout``.
    epochs_ : int
        Epochs of the last fit.
    history_ : list of dict
        ``epoch``, ``train_loss``, ``dev_loss``, ``dev_accuracy`` of each epoch of the chosen setting in
        cross-validation; "dev" is the held-out rows of all folds.
    cv_ : dict
        Also ``grid``: a dict for each setting with ``epochs``, ``log_loss`` and ``accuracy``; ``fits``, their number
        in all folds.
    """

    kind: ClassVar[str] = "linear"
    lr_tried: ClassVar[tuple[float, ...]] = (3e-4, 1e-3, 3e-3)

    def __init__(
        self,
        *,
        optimizer: str = "adamw",
        momentum: float = 0.9,
        lr: float | Sequence[float] | None = None,
        weight_decay: float | Sequence[float] = 1e-2,
        schedule: str = "constant",
        epochs: int = 100,
        patience: int | None = None,
        batch_size: int | None = None,
        label_smoothing: float = 0.0,
        class_weight: str = "none",
        device: str = "auto",
        l2_norm: bool = False,
        pca: float | None = None,
        cv: int = 5,
        random_state: int = 0,
    ) -> None:
        self.optimizer = optimizer
        self.momentum = momentum
        self.lr = lr
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.epochs = epochs
        self.patience = patience
        self.batch_size = batch_size
        self.label_smoothing = label_smoothing
        self.class_weight = class_weight
        self.device = device
        self.l2_norm = l2_norm
        self.pca = pca
        self.cv = cv
        self.random_state = random_state

    def _fit(self, Z: np.ndarray, y: np.ndarray, folds: np.ndarray) -> None:
        settings, recipe = self._grid(), self._recipe()
        axes = self._axes(self.preparation_, Z)
        rows = self._rows(recipe, Z, y, axes)
        with progress_bar(len(settings) * self.epochs, "trying", "epoch") as tick:
            trials = cross_validate(rows, folds, settings, recipe, tick)
        best = self._best(trials)
        self._score_folds(y, folds, best.logits)
        self._set_chosen(best, trials)
        self.network_ = self._trained(self.preparation_, rows, axes)

    def check_blocks(self) -> None:
        """Raise UsageError where there are hidden layers."""
        if self.kind != LinearHead.kind:
            self._refuse_blocks()

    def fit_over(self, team: Team, y: np.ndarray, folds: np.ndarray) -> None:
        """Fit rows that shards have put aside, by mini-batches; see `block_linear`."""
        n_classes, n_fits = len(self.classes_), max(1, self.cv)
        whole = Elsewhere((len(y) * team.n_views, self.preparation_.n_outputs))
        recipe = self._recipe("cpu")  # where the steps are taken; what a shard computes on is its own affair
        team.every("begin", Problem.of(Task(whole, y, folds, "softmax", n_classes, np.ones((n_fits, n_classes)))))
        weight = class_weights(y, n_classes, self.class_weight) / team.n_views
        team.every("deal", Dealing(weight, self.label_smoothing, self.random_state))
        if self.cv > 1:
            self._choose_over(team, np.bincount(folds), recipe)
        else:
            self._settle()
        descent = Descent(team, [self._best_setting], (1, n_classes, whole.shape[1]), len(y), recipe, folds=False)
        for epoch in range(1, self.epochs_ + 1):
            descent.epoch(epoch)
        W = descent.W[0, 0]
        if not np.isfinite(W).all():
            raise TrainingError(f"the last fit diverged: try a smaller --lr than {self._best_setting.lr:g}")
        weight = W[:, :-1] if self._turn is None else W[:, :-1] @ self._turn.T
        self.network_ = Network(self.preparation_, (np.array(weight, np.float32),), (W[:, -1].copy(),))

    def _choose_over(self, team: Team, counts: np.ndarray, recipe: Recipe) -> None:
        """Cross-validate all settings, and set what `_fit` sets of the best."""
        settings = self._grid()
        shape = (len(counts), len(self.classes_), self.preparation_.n_outputs)
        trials: list[Trial] = []
        lowest, chosen = float("inf"), np.zeros(0)
        with progress_bar(len(settings) * self.epochs, "trying", "epoch") as tick:
            for start in range(0, len(settings), SIDE_BY_SIDE):
                some = settings[start : start + SIDE_BY_SIDE]
                descent = Descent(team, some, shape, int(counts.sum() - counts.min()), recipe, folds=True)
                found, fits = cross_validate_over(
                    descent, counts, some, recipe, lambda W: total(team, "judge", W), tick
                )
                for trial, fit in zip(found, fits, strict=True):
                    if trial.log_loss < lowest:
                        lowest, chosen = trial.log_loss, fit
                trials += found
        best = self._best(trials)
        self._score_over(team, chosen)
        self._set_chosen(best, trials)

    def _again(self, preparation: Preparation, Z: np.ndarray, y: np.ndarray) -> Network:
        axes = self._axes(preparation, Z)
        return self._trained(preparation, self._rows(self._recipe(), Z, y, axes), axes)

    def _set_chosen(self, best: Trial, trials: list[Trial]) -> None:
        self.cv_ |= {"fits": len(trials) * self.cv, "grid": [trial.as_dict() for trial in trials]}
        self.setting_, self.epochs_, self.history_ = best.setting.as_dict(), best.epochs, best.history
        self._best_setting = best.setting

    def _rows(self, recipe: Recipe, Z: np.ndarray, y: np.ndarray, axes: np.ndarray | None) -> Rows:
        """Return prepared embeddings (n, V, r) on their device, along the axes if there are any."""
        rows = as_rows(Z)
        return Rows.on(recipe.device, rows if axes is None else rows @ axes, y, len(self.classes_), self.class_weight)

    def _searches(self) -> bool:
        return True  # among epochs at least

    def _check_settled(self) -> None:
        tried = len(self._grid())
        if tried > 1:
            raise UsageError(
                f"--cv 1 makes no folds by which one of {tried} settings could be chosen: name one value each, --lr too"
            )

    def _settle(self) -> None:
        settings = self._grid()
        self._best_setting, self.epochs_ = settings[len(settings) // 2], self.epochs
        self.setting_, self.history_ = self._best_setting.as_dict(), []

    def _trained(self, preparation: Preparation, rows: Rows, axes: np.ndarray | None) -> Network:
        """Return a network trained on all rows with the setting and the number of epochs that were chosen."""
        weights, biases = train(rows, self._best_setting, self.epochs_, self._recipe())
        if not all(np.isfinite(array).all() for array in (*weights, *biases)):
            raise TrainingError(f"the last fit diverged: try a smaller --lr than {self._best_setting.lr:g}")
        return _network(preparation, weights, biases, axes)

    def _grid(self) -> list[Setting]:
        lr, decay = self._several("lr", _positive), self._several("weight_decay", _not_negative)
        return grid(lr, decay, (), (0.0,))

    def _several(self, name: str, allowed: Callable[[float], bool]) -> tuple[float, ...]:
        """Return the values to try of an option, without repetition, in the order given."""
        given = getattr(self, name)
        given = self.lr_tried if given is None else given
        values = tuple(dict.fromkeys(map(float, given if isinstance(given, Sequence) else (given,))))
        if not values:
            raise UsageError(f"--{name.replace('_', '-')} needs a value to try")
        wrong = [value for value in values if not allowed(value)]
        if wrong:
            raise UsageError(f"--{name.replace('_', '-')} cannot be {wrong[0]:g} in --head {self.kind}")
        return values

    def _recipe(self, device: str | None = None) -> Recipe:
        _check_choice("optimizer", self.optimizer, OPTIMIZERS)
        _check_choice("schedule", self.schedule, SCHEDULES)
        _check_choice("class-weight", self.class_weight, _CLASS_WEIGHTS)
        _check_choice("device", self.device, _DEVICES)
        for name in ("label_smoothing", "momentum"):
            if not _share(getattr(self, name)):
                raise UsageError(
                    f"--{name.replace('_', '-')} must be from 0 to below 1, and is {getattr(self, name):g}"
                )
        for name in ("epochs", "patience", "batch_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be 1 or more, and is {getattr(self, name)}")
        return Recipe(
            optimizer=self.optimizer,
            momentum=self.momentum,
            schedule=self.schedule,
            label_smoothing=self.label_smoothing,
            batch_size=self.batch_size,
            epochs=self.epochs,
            patience=self.patience or (PATIENCE if self.schedule == "constant" else self.epochs),
            random_state=self.random_state,
            device=device or torch_device(self.device),
        )

    def _axes(self, preparation: Preparation, Z: np.ndarray) -> np.ndarray | None:
        """Return axes (D, r) on which rows (n, V, D) are trained, or None where they are trained as they are.

        Fewer rows than features span a space of as many dimensions at most; what lies outside says nothing about the
        labels, and networks inside are smaller. SGD goes the same way in any orthonormal axes. Adam treats each
        coordinate alike, so it must not get the principal axes, where a few hold the picture and the rest its noise:
        it gets those axes turned at random, each with an equal share of everything as features have, and as long that a
        step of a given rate changes the output as much as it does on the features.
        """
        projected = preparation.projection is not None
        axes = np.eye(Z.shape[2], dtype=np.float32) if projected else _spanned(Z)
        if axes is None or self.optimizer == "sgd":
            return None if projected else axes
        turn = self._turned(axes.shape[1], _power(plain_of(Z)) / len(Z) / axes.shape[1])
        assert turn is not None
        return np.asarray(axes @ turn, np.float32)

    def _turned(self, width: int, power: float) -> np.ndarray | None:
        if self.optimizer == "sgd":
            return None
        normal = np.random.default_rng(self.random_state).standard_normal((width, width))
        return np.asarray(np.linalg.qr(normal)[0] * np.sqrt(power))

    def _best(self, trials: list[Trial]) -> Trial:
        best = min(trials, key=lambda trial: trial.log_loss)
        if best.diverged:
            smallest = min(trial.setting.lr for trial in trials)
            raise TrainingError(f"the loss stopped being a number: try a smaller --lr than {smallest:g}")
        lost = sorted({trial.setting.lr for trial in trials if trial.diverged})
        if lost:
            rates = ", ".join(f"{lr:g}" for lr in lost)
            self.notes_.append(f"training diverged with a learning rate of {rates}: left out of the choice")
        if best.epochs == self.epochs and self.schedule == "constant":
            self.notes_.append(f"the best epoch was the last of {self.epochs}: more --epochs may do better")
        return best

    def choice(self) -> str:
        """Return in a few words what was chosen by cross-validation."""
        words = [f"{name.replace('_', ' ')} {_in_words(value)}" for name, value in self.setting_.items()]
        tried = len(self.cv_.get("grid", ()))
        best = f", the best of {tried} settings in {self.cv_['fits']} fits" if tried > 1 else ""
        return f"{', '.join(words)}, {self.epochs_} epoch{'' if self.epochs_ == 1 else 's'}{best}"

    def facts(self) -> dict[str, Any]:
        """Return what is known of the fit."""
        return {**super().facts(), "setting": self.setting_, "epochs": self.epochs_, "history": self.history_}


class MLPHead(LinearHead):
    """Hidden layers with ReLU and dropout, then softmax; chosen and trained as `LinearHead`.

    Parameters
    ----------
    hidden : sequence of (int or sequence of int), default (256,)
        Widths of the hidden layers; several widths in the place of one are tried.
    dropout : float or sequence of float, default 0.5
        Share of hidden units that are dropped in training, or several to choose from. One value: 0.2 and 0.5 gave the
        same log loss within 0.003.
    optimizer, momentum, lr, weight_decay, schedule, epochs, patience, batch_size, label_smoothing, class_weight, device
        As in `LinearHead`.
    l2_norm, pca, cv, random_state
        As in `LinearHead`.
    """

    kind: ClassVar[str] = "mlp"
    lr_tried: ClassVar[tuple[float, ...]] = (3e-4, 1e-3)

    def __init__(
        self,
        *,
        hidden: Sequence[int | Sequence[int]] = (256,),
        dropout: float | Sequence[float] = 0.5,
        optimizer: str = "adamw",
        momentum: float = 0.9,
        lr: float | Sequence[float] | None = None,
        weight_decay: float | Sequence[float] = 1e-2,
        schedule: str = "constant",
        epochs: int = 100,
        patience: int | None = None,
        batch_size: int | None = None,
        label_smoothing: float = 0.0,
        class_weight: str = "none",
        device: str = "auto",
        l2_norm: bool = False,
        pca: float | None = None,
        cv: int = 5,
        random_state: int = 0,
    ) -> None:
        super().__init__(
            optimizer=optimizer,
            momentum=momentum,
            lr=lr,
            weight_decay=weight_decay,
            schedule=schedule,
            epochs=epochs,
            patience=patience,
            batch_size=batch_size,
            label_smoothing=label_smoothing,
            class_weight=class_weight,
            device=device,
            l2_norm=l2_norm,
            pca=pca,
            cv=cv,
            random_state=random_state,
        )
        self.hidden = hidden
        self.dropout = dropout

    def _grid(self) -> list[Setting]:
        lr, decay = self._several("lr", _positive), self._several("weight_decay", _not_negative)
        layers = [(layer,) if isinstance(layer, int) else tuple(dict.fromkeys(layer)) for layer in self.hidden]
        if not layers or any(not layer or min(layer) < 1 for layer in layers):
            raise UsageError(f"--hidden takes widths of 1 or more for each layer, and is {self.hidden}")
        return grid(lr, decay, layers, self._several("dropout", _share))


def _spanned(Z: np.ndarray) -> np.ndarray | None:
    """Return orthonormal axes (D, r) of the space that rows (n, V, D) span; None where that is not small.

    Where other views hardly leave what view 0 spans, its axes are taken: those of all rows would be the same but for
    signs and order, upon which Adam's way depends.
    """
    rows, plain = as_rows(Z), plain_of(Z)
    if plain.shape[1] <= len(plain) or len(plain) > _TURN_UP_TO:
        return None
    axes = principal_axes(plain, len(plain))
    if len(rows) == len(plain) or _power(rows @ axes) >= (1 - _OUTSIDE) * _power(rows):
        return axes
    # With very wide embeddings more rows are worth it: without axes an epoch takes as much longer as they are narrower.
    most = min(rows.shape[1], max(_TURN_UP_TO, rows.shape[1] // _NARROWER))
    return principal_axes(rows, len(rows)) if len(rows) < most else None


def _power(rows: np.ndarray) -> float:
    """Return the sum of all squares."""
    return float(np.einsum("ij,ij->", rows, rows, dtype=np.float64))


def _network(
    preparation: Preparation, weights: tuple[np.ndarray, ...], biases: tuple[np.ndarray, ...], axes: np.ndarray | None
) -> Network:
    """Return the network on embeddings; the axes go where they take less room, into its weights or before them."""
    if axes is None:
        return Network(preparation, weights, biases)
    if preparation.projection is not None or len(weights[0]) <= axes.shape[1]:
        return Network(preparation, (weights[0] @ axes.T, *weights[1:]), biases)
    return Network(dataclasses.replace(preparation, projection=axes), weights, biases)


def _in_words(value: float | list[int]) -> str:
    return "-".join(map(str, value)) if isinstance(value, list) else f"{value:g}"


def _positive(value: float) -> bool:
    return 0 < value < float("inf")


def _not_negative(value: float) -> bool:
    return 0 <= value < float("inf")


def _share(value: float) -> bool:
    return 0 <= value < 1


def _check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UsageError(f"--{option} must be one of {', '.join(choices)}, and is {value!r}")


HEADS: dict[str, type[Head]] = {head.kind: head for head in (LogisticHead, LinearHead, MLPHead, KNNHead, NCMHead)}


def make_head(kind: str, **options: Any) -> Head:
    """Return an unfitted head.

    Parameters
    ----------
    kind : {"logistic", "linear", "mlp", "knn", "ncm"}
    **options
        Arguments of its class.

    Raises
    ------
    UsageError
        There is no such head, or an option means nothing to it.
    """
    if kind not in HEADS:
        raise UsageError(f"there is no head {kind!r}: take one of {', '.join(HEADS)}")
    check_options(HEADS[kind], options)
    return HEADS[kind](**options)

"""Linear and MLP heads, trained by mini-batches in torch with early stopping; and any head by its name."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..errors import TrainingError, UsageError
from .head import Head
from .logistic import LogisticHead
from .network import Network, forward
from .splits import stratified_folds

if TYPE_CHECKING:
    import torch

_DEV_FOLDS = 5  # one in five training rows watches for overfitting


@dataclass(frozen=True, slots=True)
class _Trained:
    weights: tuple[np.ndarray, ...]
    biases: tuple[np.ndarray, ...]
    history: list[dict[str, float]]


def _watching(y: np.ndarray, random_state: int) -> np.ndarray:
    """Choose the rows that watch for overfitting, (n,) bool: never a class's only one."""
    rows = stratified_folds(y, _DEV_FOLDS, random_state=random_state) == 0
    return np.asarray(rows & (np.bincount(y)[y] > 1))


class LinearHead(Head):
    """Softmax regression by AdamW.

    Parameters
    ----------
    lr : float, default 3e-3
        Learning rate.
    weight_decay : float, default 1e-2
    epochs : int, default 200
        At most.
    patience : int, default 20
        Epochs without a lower loss on the watching rows after which training ends; the best epoch is kept.
    batch_size : int, default 64
    l2_norm, pca, cv
        As in `Head`.
    random_state : int, default 0
        For the folds, the initial weights, the batches and dropout.

    Attributes
    ----------
    history_ : list of dict
        ``epoch``, ``train_loss``, ``dev_loss``, ``dev_accuracy`` of each epoch.
    """

    kind: ClassVar[str] = "linear"
    hidden: tuple[int, ...] = ()
    dropout: float = 0.0

    def __init__(
        self,
        *,
        lr: float = 3e-3,
        weight_decay: float = 1e-2,
        epochs: int = 200,
        patience: int = 20,
        batch_size: int = 64,
        l2_norm: bool = False,
        pca: float | None = None,
        cv: int = 5,
        random_state: int = 0,
    ) -> None:
        self.lr = lr
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.patience = patience
        self.batch_size = batch_size
        self.l2_norm = l2_norm
        self.pca = pca
        self.cv = cv
        self.random_state = random_state

    def _fit(self, Z: np.ndarray, y: np.ndarray, folds: np.ndarray) -> None:
        logits = np.empty((len(y), len(self.classes_)))
        for fold in range(self.cv):
            inside = folds != fold
            trained = self._train(Z[inside], y[inside])
            logits[~inside] = forward(Z[~inside], trained.weights, trained.biases)
        self._score_folds(y, folds, logits)
        trained = self._train(Z, y)
        self.network_ = Network(self.preparation_, trained.weights, trained.biases)
        self.history_ = trained.history

    def _train(self, Z: np.ndarray, y: np.ndarray) -> _Trained:
        """Train on four fifths of the rows, and keep the epoch that the last fifth likes best."""
        import torch

        watching = _watching(y, self.random_state)
        # The caller's random numbers are left as they were; dropout draws from torch's own generator.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.random_state)
            inputs, labels = torch.from_numpy(Z), torch.from_numpy(y)
            seen, dev = torch.from_numpy(~watching), torch.from_numpy(watching if watching.any() else ~watching)
            module, history = self._epochs(inputs[seen], labels[seen], inputs[dev], labels[dev])
        linear = [layer for layer in module if isinstance(layer, torch.nn.Linear)]
        weights = tuple(layer.weight.detach().numpy() for layer in linear)
        return _Trained(weights, tuple(layer.bias.detach().numpy() for layer in linear), history)

    def _module(self, n_features: int, n_classes: int) -> torch.nn.Sequential:
        from torch import nn

        layers: list[nn.Module] = []
        width = n_features
        for hidden in self.hidden:
            layers += [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(self.dropout)]
            width = hidden
        return nn.Sequential(*layers, nn.Linear(width, n_classes))

    def _epochs(
        self, X: torch.Tensor, y: torch.Tensor, dev_X: torch.Tensor, dev_y: torch.Tensor
    ) -> tuple[torch.nn.Sequential, list[dict[str, float]]]:
        import torch
        from torch.nn.functional import cross_entropy

        module = self._module(X.shape[1], len(self.classes_))
        optimizer = torch.optim.AdamW(module.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        best, best_loss, history = copy.deepcopy(module.state_dict()), float("inf"), []
        since = 0
        for epoch in range(1, self.epochs + 1):
            module.train()
            total = 0.0
            for rows in torch.split(torch.randperm(len(X)), self.batch_size):
                optimizer.zero_grad()
                loss = cross_entropy(module(X[rows]), y[rows])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                total += float(loss.detach()) * len(rows)
            module.eval()
            with torch.no_grad():
                logits = module(dev_X)
                dev_loss = float(cross_entropy(logits, dev_y))
            self._check_finite(total + dev_loss, epoch)
            right = float((logits.argmax(1) == dev_y).float().mean())
            history.append({"epoch": epoch, "train_loss": total / len(X), "dev_loss": dev_loss, "dev_accuracy": right})
            since += 1
            if dev_loss < best_loss:
                best, best_loss, since = copy.deepcopy(module.state_dict()), dev_loss, 0
            if since >= self.patience:
                break
        module.load_state_dict(best)
        return module, history

    def _check_finite(self, loss: float, epoch: int) -> None:
        if not np.isfinite(loss):
            raise TrainingError(f"the loss became {loss} in epoch {epoch}: try a smaller --lr than {self.lr:g}")

    def facts(self) -> dict[str, Any]:
        """Return what is known of the fit."""
        return {**super().facts(), "history": self.history_}


class MLPHead(LinearHead):
    """Hidden layers with ReLU and dropout, then softmax; trained as `LinearHead`.

    Parameters
    ----------
    hidden : tuple of int, default (256,)
        Widths of the hidden layers.
    dropout : float, default 0.5
        Share of hidden units that are dropped in training.
    lr, weight_decay, epochs, patience, batch_size, l2_norm, pca, cv, random_state
        As in `LinearHead`.
    """

    kind: ClassVar[str] = "mlp"

    def __init__(
        self,
        *,
        hidden: tuple[int, ...] = (256,),
        dropout: float = 0.5,
        lr: float = 3e-3,
        weight_decay: float = 1e-2,
        epochs: int = 200,
        patience: int = 20,
        batch_size: int = 64,
        l2_norm: bool = False,
        pca: float | None = None,
        cv: int = 5,
        random_state: int = 0,
    ) -> None:
        super().__init__(
            lr=lr,
            weight_decay=weight_decay,
            epochs=epochs,
            patience=patience,
            batch_size=batch_size,
            l2_norm=l2_norm,
            pca=pca,
            cv=cv,
            random_state=random_state,
        )
        self.hidden = hidden
        self.dropout = dropout


def make_head(kind: str, **options: Any) -> Head:
    """Return an unfitted head.

    Parameters
    ----------
    kind : {"logistic", "linear", "mlp"}
    **options
        Arguments of its class.

    Raises
    ------
    UsageError
        There is no such head, or an option means nothing to it.
    """
    known: dict[str, type[Head]] = {head.kind: head for head in (LogisticHead, LinearHead, MLPHead)}
    if kind not in known:
        raise UsageError(f"there is no head {kind!r}: take one of {', '.join(known)}")
    meant = inspect.signature(known[kind]).parameters
    for name in options:
        if name not in meant:
            raise UsageError(f"--{name.replace('_', '-')} means nothing to --head {kind}; leave it out")
    return known[kind](**options)

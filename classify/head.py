"""What all heads share: settings, checks, preparation, cross-validation, prediction."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self

import numpy as np

from ..errors import TrainingError, UsageError
from .calibration import fit_temperature, temperature_of
from .held_out import Heat, HeldOut, ece_of
from .metrics import expected_calibration_error, log_loss
from .network import Network, softmax
from .preparation import Preparation, axes_of_gram, check_pca, fit_preparation, standardisation_of
from .splits import check_trainable, stratified_folds
from .team import Team, total
from .views import as_rows, plain_of, with_views

if TYPE_CHECKING:
    from .share import Survey
    from .voters import Neighbours


def check_rows(X: np.ndarray, y: np.ndarray) -> None:
    """Raise where embeddings do not go with their labels, or cannot be computed with.

    Raises
    ------
    TrainingError
    """
    if X.ndim not in (2, 3) or len(X) != len(y) or not X.shape[-2]:
        raise TrainingError(
            "a head is trained on embeddings (n, D), or (n, V, D) of V views of each image, with n labels, and got "
            f"{X.shape} and {y.shape}"
        )
    if not np.isfinite(X).all():
        raise TrainingError("the embeddings hold NaN or infinity; run `headstart extract` with --store-dtype float32")


def check_options(head: type[Head], options: Mapping[str, Any]) -> None:
    """Raise where an option means nothing to a head.

    Raises
    ------
    UsageError
    """
    meant = inspect.signature(head).parameters
    for name in options:
        if name not in meant:
            raise UsageError(f"--{name.replace('_', '-')} means nothing to --head {head.kind}; leave it out")


class Head:
    """A classifier on embeddings; the base of all heads.

    A constructor stores its arguments and nothing else; `fit` sets what ends in an underscore. Every head takes

    l2_norm : bool, default False
        Divide each embedding (each block of it, where several are joined) by its length first.
    pca : int or float, optional
        Keep so many principal components, or as many as explain this share of the variance.
    cv : int, default 5
        Folds. With 1 there are none: settings are those that were given, nothing is cross-validated, and probabilities
        are taken as they come.
    random_state : int, default 0

    Attributes
    ----------
    preparation_ : Preparation
        What was learnt of the training embeddings without their labels.
    network_ : Network
        What was fitted.
    classes_ : tuple of str
    cv_ : dict
        ``folds``, ``accuracy`` (of all held-out rows), ``accuracy_std`` (over folds), ``log_loss`` and ``ece``; the
        last two also after temperature scaling, as ``log_loss_calibrated`` and ``ece_calibrated``. Empty without folds.
    temperature_ : float
        What logits are divided by, fitted on those of held-out rows.
    oof_logits_, oof_proba_ : ndarray of shape (n, K), dtype float64
        Of each training row by the fit that did not see it; the probabilities after temperature scaling. Of no row
        where there are no folds, or where rows are fitted in blocks.
    notes_ : list of str
        What a person should know of the fit.
    """

    kind: ClassVar[str]
    l2_norm: bool
    pca: float | None
    cv: int
    random_state: int
    preparation_: Preparation
    _blocks: tuple[int, ...]
    network_: Network
    classes_: tuple[str, ...]
    cv_: dict[str, Any]
    temperature_: float
    oof_logits_: np.ndarray
    oof_proba_: np.ndarray
    notes_: list[str]

    def fit(
        self,
        X: np.ndarray,
        y: np.ndarray,
        class_names: Sequence[str] | None = None,
        groups: np.ndarray | None = None,
        blocks: Sequence[int] = (),
    ) -> Self:
        """Fit the head.

        Parameters
        ----------
        X : ndarray of shape (n, D), or (n, V, D), dtype float32
            Embeddings; in the second form of V views of each image, view 0 its plain crop. The head trains on all of
            them, which count as one image together; preparation, folds, settings, temperature and scores are those of
            view 0. Time and memory grow with V as with n.
        y : ndarray of shape (n,), dtype int
            Labels, 0 to K - 1.
        class_names : sequence of str, optional
            K names; numbers where it is None.
        groups : ndarray of shape (n,), dtype int, optional
            Rows of one group share a fold.
        blocks : sequence of int, optional
            Widths of the embeddings that were joined, D together.

        Raises
        ------
        TrainingError
            As `check_trainable` says, or the embeddings hold NaN or infinity.
        """
        check_rows(X, y)
        y, folds = self.begin(y, class_names, groups, blocks)
        X = np.asarray(X, np.float32)
        self.preparation_ = fit_preparation(plain_of(X), l2_norm=self.l2_norm, blocks=blocks, pca=self.pca)
        Z = _prepared(self.preparation_, X)
        if self.cv > 1:
            self._fit(Z, y, folds)
        else:
            self._settle()
            self.network_ = self._again(self.preparation_, Z, y)  # type: ignore[assignment]
        return self

    def begin(
        self,
        y: np.ndarray,
        class_names: Sequence[str] | None = None,
        groups: np.ndarray | None = None,
        blocks: Sequence[int] = (),
    ) -> tuple[np.ndarray, np.ndarray]:
        """Check labels and settings before any embedding is touched, and forget an earlier fit.

        Parameters
        ----------
        y, class_names, groups, blocks
            As in `fit`.

        Returns
        -------
        y : ndarray of shape (n,), dtype int64, or (n, K), dtype bool
            Labels as the fit takes them.
        folds : ndarray of shape (n,), dtype int64
            The fold of each image; -1 without folds.

        Raises
        ------
        TrainingError, UsageError
            As `fit`; also where there are several settings to choose from and no folds.
        """
        y = self._labels(y)
        self.classes_ = tuple(map(str, range(self._n_classes(y)))) if class_names is None else tuple(class_names)
        self.notes_, self._blocks = [], tuple(blocks)
        self.cv_, self.temperature_ = {}, 1.0
        self.oof_logits_ = self.oof_proba_ = np.zeros((0, len(self.classes_)))
        self._check_labels(y, groups)
        if self.cv > 1:
            return y, stratified_folds(self._strata(y), self.cv, random_state=self.random_state, groups=groups)
        self._check_settled()
        return y, np.full(len(y), -1)

    def _check_settled(self) -> None:
        """Raise UsageError where there is something to choose, which takes folds."""

    def prepare_over(self, team: Team, survey: Survey) -> None:
        """Learn from what shards have found how rows are prepared, and have the shards put them aside like that.

        Parameters
        ----------
        team : Team
        survey : Survey
            Of all rows.
        """
        if self.pca is not None:
            check_pca(self.pca)
        mean, scale = standardisation_of(*survey.prepared.unbiased(), self._blocks)
        widths = np.array(self._blocks or (len(mean),), np.int64) if self.l2_norm else np.zeros(0, np.int64)
        team.every("hold", mean, scale, self.l2_norm, max(1, self.cv), len(self.classes_))
        axes = self._turn = None
        if self.pca is not None:
            gram = total(team, "gram")
            axes = axes_of_gram(gram, survey.prepared.count, self.pca)
            power = float(np.einsum("ij,ij->", axes, gram @ axes)) / survey.prepared.count / axes.shape[1]
            self._turn = self._turned(axes.shape[1], power)
            team.every("project", axes if self._turn is None else (axes @ self._turn).astype(np.float32))
        self.preparation_ = Preparation(mean, scale, widths, axes)

    def _turned(self, width: int, power: float) -> np.ndarray | None:
        """Return by what (r, r) coordinates along principal axes are multiplied before they are trained on.

        Parameters
        ----------
        width : int
        power : float
            Mean square of a coordinate.
        """
        return None

    def fit_over(self, team: Team, y: np.ndarray, folds: np.ndarray) -> None:
        """Fit rows that shards have put aside.

        Parameters
        ----------
        team : Team
        y, folds
            As `begin` returned them.

        Raises
        ------
        UsageError
            This head needs all rows in memory.
        """
        self.check_blocks()
        raise NotImplementedError

    def check_blocks(self) -> None:
        """Raise UsageError where this head cannot be fitted to rows that do not fit into memory."""
        self._refuse_blocks()

    def _refuse_blocks(self) -> NoReturn:
        raise UsageError(
            f"--head {self.kind} needs all rows in memory: give it more with --memory, or take --head logistic, which "
            "is fitted block by block"
        )

    def _score_over(self, team: Team, W: np.ndarray) -> None:
        """Set `cv_` and `temperature_` from fits (P, K, r + 1), each of all rows but one fold's."""
        team.every("keep", W)
        self.temperature_ = temperature_of(lambda inverse: total(team, "reduce", Heat(inverse))["sums"])
        found = total(team, "reduce", HeldOut(self.temperature_, self.cv))
        self.cv_ = self._scores_of_folds(team, found)

    def _scores_of_folds(self, team: Team, found: dict[str, np.ndarray]) -> dict[str, Any]:
        """Return `cv_` by what `HeldOut` found."""
        n = float(found["n"].sum())
        by_fold = found["right"] / found["n"]
        return {
            "folds": self.cv,
            "accuracy": float(found["right"].sum() / n),
            "accuracy_std": float(np.std(by_fold)),
            "log_loss": float(found["loss_plain"] / n),
            "ece": ece_of(found["gap_plain"], n),
            "log_loss_calibrated": float(found["loss_calibrated"] / n),
            "ece_calibrated": ece_of(found["gap_calibrated"], n),
        }

    def _labels(self, y: np.ndarray) -> np.ndarray:
        """Return labels as the fit takes them."""
        return np.asarray(y, np.int64)

    def _n_classes(self, y: np.ndarray) -> int:
        return int(y.max()) + 1

    def _check_labels(self, y: np.ndarray, groups: np.ndarray | None) -> None:
        """Raise TrainingError where labels cannot be learnt or cross-validated."""
        check_trainable(y, self.classes_, self.cv, groups)

    def _strata(self, y: np.ndarray) -> np.ndarray:
        """Return what folds have about the same share of, (n,) int."""
        return y

    def _fit(self, Z: np.ndarray, y: np.ndarray, folds: np.ndarray) -> None:
        """Set `network_`, and `cv_` by `_score_folds`, from prepared embeddings (n, V, r) float32."""
        raise NotImplementedError

    def again(self, X: np.ndarray, y: np.ndarray) -> Network | Neighbours:
        """Fit other rows with the settings that were chosen, preparation and all; this head stays as it is.

        Parameters
        ----------
        X : ndarray of shape (m, D), or (m, V, D), dtype float32
            As `fit` takes it.
        y : ndarray of shape (m,), dtype int
            Labels of `classes_`; each class has a row.
        """
        preparation = fit_preparation(plain_of(X), l2_norm=self.l2_norm, blocks=self._blocks, pca=self.pca)
        return self._again(preparation, _prepared(preparation, X), self._labels(y))

    def _again(self, preparation: Preparation, Z: np.ndarray, y: np.ndarray) -> Network | Neighbours:
        """Return what `_fit` would set as `network_` for other rows (m, V, r), at the settings that it chose."""
        raise NotImplementedError

    def anew(self, X: np.ndarray, y: np.ndarray, cv: int) -> Network | Neighbours:
        """Choose settings by cross-validation among other rows alone, and fit those; this head stays as it is.

        Parameters
        ----------
        X : ndarray of shape (m, D), or (m, V, D), dtype float32
        y : ndarray of shape (m,), dtype int
            Labels of `classes_`; each class has `cv` rows or more.
        cv : int
            Folds. With one, as where a class has one row, nothing is chosen: the settings are those that were given,
            or else ordinary ones.
        """
        fresh = type(self)(**{**self.settings(), "cv": cv})
        if cv > 1 and fresh._searches():
            return fresh.fit(X, y, self.classes_, blocks=self._blocks).network_
        fresh.classes_, fresh._blocks = self.classes_, self._blocks
        fresh._settle()
        return fresh.again(X, y)

    def _searches(self) -> bool:
        """Tell whether `_fit` has settings to choose among."""
        return False

    def _settle(self) -> None:
        """Set what `_fit` chooses without a row to choose by: to what was given, or else to an ordinary value."""

    def _score_folds(self, y: np.ndarray, folds: np.ndarray, logits: np.ndarray) -> None:
        """Set `cv_`, `temperature_`, `oof_logits_` and `oof_proba_` from the logits of held-out rows, (n, K)."""
        self.oof_logits_ = logits
        self.temperature_ = fit_temperature(logits, y)
        self.oof_proba_ = softmax(logits / self.temperature_)
        plain = softmax(logits)
        right = self.oof_proba_.argmax(axis=1) == y
        by_fold = [float(right[folds == fold].mean()) for fold in range(self.cv)]
        self.cv_ = {
            "folds": self.cv,
            "accuracy": float(right.mean()),
            "accuracy_std": float(np.std(by_fold)),
            "log_loss": log_loss(y, plain),
            "ece": expected_calibration_error(y, plain),
            "log_loss_calibrated": log_loss(y, self.oof_proba_),
            "ece_calibrated": expected_calibration_error(y, self.oof_proba_),
        }

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        """Return logits (n, K) float64 of embeddings (n, D) float32."""
        return self.network_.logits(X)

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Return probabilities (n, K) float64 of embeddings (n, D) float32, after temperature scaling."""
        return self.network_.predict_proba(X, self.temperature_)

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Return labels (n,) int64 of embeddings (n, D) float32."""
        return np.asarray(self.network_.logits(X).argmax(axis=1))

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments, to be saved beside the model."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def choice(self) -> str:
        """Return in a few words what was chosen by cross-validation, for a person to read."""
        return "nothing to choose"

    def facts(self) -> dict[str, Any]:
        """Return what is known of the fit, to be saved beside the model."""
        return {"settings": self.settings(), "cv": self.cv_, "notes": self.notes_}


def _prepared(preparation: Preparation, X: np.ndarray) -> np.ndarray:
    """Return what a head is fitted on, (n, V, r) float32, of embeddings (n, D) or (n, V, D)."""
    n_images, n_views, _ = with_views(X).shape
    return preparation.apply(as_rows(X)).reshape(n_images, n_views, preparation.n_outputs)

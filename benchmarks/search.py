"""The search over C: 11 values, 5 folds and the final fit, against a plain loop of scikit-learn's fits.

    python benchmarks/search.py [--rows 8000 --dim 512 --classes 37] [--exact] [--device auto|cpu|cuda]

Rows are made: classes with means of their own in a space whose variance falls off as in real embeddings, turned, cut
off below as by a ReLU, standardised. Both sides have the same folds, values of C and cores. Both final fits' objectives
are computed in float64; at its own tolerance scikit-learn stops far from the minimum where C is large, so
`--exact` also has the loop at tol=1e-6.
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np

CLASSES_APART = 0.25  # so that nine in ten are told right and the best C is none of the extremes


def rows(n: int, dim: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return X (n, dim) float32 and y (n,)."""
    rng = np.random.default_rng(0)
    falls = (1 + np.arange(dim)) ** -0.5
    turn, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
    y = rng.integers(0, classes, n)
    X = (
        CLASSES_APART * (rng.standard_normal((classes, dim)) * falls)[y] + rng.standard_normal((n, dim)) * falls
    ) @ turn
    X = np.maximum(X + 0.2 * X.std(), 0)
    return ((X - X.mean(axis=0)) / X.std(axis=0)).astype(np.float32), y


def objective(coef: np.ndarray, intercept: np.ndarray, X: np.ndarray, y: np.ndarray, C: float) -> float:
    """Return scikit-learn's objective in float64."""
    logits = X.astype(np.float64) @ coef.astype(np.float64).T + intercept
    losses = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(y)), y]
    return float(C * losses.sum() + 0.5 * (coef.astype(np.float64) ** 2).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--classes", type=int, default=37)
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()

    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.model_selection import StratifiedKFold

    from headstart import LogisticRegressionPath

    X, y = rows(options.rows, options.dim, options.classes)
    folds = list(StratifiedKFold(5, shuffle=True, random_state=0).split(X, y))
    LogisticRegressionPath(2, cv=2, device=options.device).fit(X[:200], y[:200] % 2)  # libraries are loaded

    begin = time.perf_counter()
    ours = LogisticRegressionPath(11, cv=folds, device=options.device).fit(X, y)
    seconds = time.perf_counter() - begin
    print(f"headstart: {seconds:.2f} s, C = {ours.C_:.3g}, log loss {-ours.scores_.mean(axis=0).max():.4f}", flush=True)

    warnings.simplefilter("ignore")
    for tol in (1e-4, 1e-6) if options.exact else (1e-4,):
        begin = time.perf_counter()
        scores = np.empty((5, 11))
        for number, C in enumerate(ours.Cs_):
            for fold, (train, test) in enumerate(folds):
                model = LogisticRegression(C=C, tol=tol, max_iter=10_000).fit(X[train], y[train])
                scores[fold, number] = -log_loss(y[test], model.predict_proba(X[test]))
        best = float(ours.Cs_[scores.mean(axis=0).argmax()])
        theirs = LogisticRegression(C=best, tol=tol, max_iter=10_000).fit(X, y)
        plain = time.perf_counter() - begin
        print(f"scikit-learn's loop at tol={tol:g}: {plain:.2f} s, C = {best:.3g}, {plain / seconds:.1f} times as long")
        print(
            "  log loss over folds, theirs less ours:", " ".join(f"{d:+.5f}" for d in (ours.scores_ - scores).mean(0))
        )
        for C in sorted({1e-4, best, 100.0}):
            exact = theirs if best == C else LogisticRegression(C=C, tol=tol, max_iter=10_000).fit(X, y)
            mine = ours if ours.C_ == C else LogisticRegressionPath([C], cv=folds, device=options.device).fit(X, y)
            least = objective(exact.coef_, exact.intercept_, X, y, C)
            gap = objective(mine.coef_, mine.intercept_, X, y, C) / least - 1
            same = float((mine.predict(X) == exact.predict(X)).mean())
            print(f"  C {C:8.2g}: our objective {gap:+.1e} relative, {100 * same:.2f} % same predictions", flush=True)


if __name__ == "__main__":
    main()

"""The search over C: 11 values, 5 folds and the final fit, against a plain loop of scikit-learn's fits.

    python benchmarks/search.py [--rows 8000 --dim 512 --classes 37] [--exact] [--device auto|cpu|cuda]

Rows are made: classes with means of their own in a space whose variance falls off as in real embeddings, turned, cut
off below as by a ReLU, standardised. Both sides have the same folds, values of C and cores. Both final fits' objectives
are computed in float64; `--exact` also fits with scikit-learn at tol=1e-6, above which ours is to be by no more than
1e-5.
"""

from __future__ import annotations

import argparse
import time
import warnings

import numpy as np


def rows(n: int, dim: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return X (n, dim) float32 and y (n,)."""
    rng = np.random.default_rng(0)
    falls = (1 + np.arange(dim)) ** -0.5
    turn, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
    y = rng.integers(0, classes, n)
    X = ((rng.standard_normal((classes, dim)) * falls)[y] + rng.standard_normal((n, dim)) * falls) @ turn
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
    print(f"headstart: {seconds:.2f} s, C = {ours.C_:.3g}")

    begin = time.perf_counter()
    warnings.simplefilter("ignore")
    scores = np.empty((5, 11))
    for number, C in enumerate(ours.Cs_):
        for fold, (train, test) in enumerate(folds):
            model = LogisticRegression(C=C, max_iter=1000).fit(X[train], y[train])
            scores[fold, number] = -log_loss(y[test], model.predict_proba(X[test]))
        print(f"  C {C:8.2g}: log loss {-ours.scores_[:, number].mean():.5f}, "
              f"scikit-learn's {-scores[:, number].mean():.5f}", flush=True)  # fmt: skip
    best = float(ours.Cs_[scores.mean(axis=0).argmax()])
    theirs = LogisticRegression(C=best, max_iter=1000).fit(X, y)
    plain = time.perf_counter() - begin
    print(f"scikit-learn's loop: {plain:.2f} s, C = {best:.3g}")
    print(f"ratio: {plain / seconds:.1f} times faster")
    ours_at = objective(ours.coef_, ours.intercept_, X, y, ours.C_)
    theirs_at = objective(theirs.coef_, theirs.intercept_, X, y, best)
    if best == ours.C_:
        print(f"objective of the final fit: {ours_at:.6f}, scikit-learn's {theirs_at:.6f}, "
              f"{ours_at / theirs_at - 1:+.1e} relative")  # fmt: skip
    if options.exact:
        for C in (ours.C_, 1e-4, 100.0):
            exact = LogisticRegression(C=C, tol=1e-6, max_iter=10_000).fit(X, y)
            mine = LogisticRegressionPath([C], cv=folds, device=options.device).fit(X, y)
            gap = (
                objective(mine.coef_, mine.intercept_, X, y, C) / objective(exact.coef_, exact.intercept_, X, y, C) - 1
            )
            same = float((mine.predict(X) == exact.predict(X)).mean())
            print(f"C {C:8.2g} against tol=1e-6: objective {gap:+.1e} relative, {100 * same:.2f} % same predictions")


if __name__ == "__main__":
    main()

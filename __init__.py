"""Embed every image once with a frozen pretrained backbone, cache the embeddings, train classifiers in seconds.

Examples
--------
>>> import headstart
>>> features = headstart.extract("photos", backbone="resnet18")  # doctest: +SKIP
>>> features.X.shape, features.y.shape  # doctest: +SKIP
((400, 512), (400,))
>>> fit = headstart.fit_head("photos")  # doctest: +SKIP
>>> headstart.load(fit.out).predict(["new.jpg"])  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from .classify.compare import compare
    from .classify.estimator import LogisticRegressionPath
    from .classify.evaluate import evaluate
    from .classify.export.job import export
    from .classify.finetune.job import finetune
    from .classify.fit import fit_head
    from .classify.pages.report import report
    from .classify.predict import load
    from .classify.serve.server import serve
    from .classify.show import show
    from .extract.job import extract
    from .extract.transformer import FrozenBackbone

__all__ = [
    "FrozenBackbone",
    "HeadstartError",
    "LogisticRegressionPath",
    "__version__",
    "compare",
    "evaluate",
    "export",
    "extract",
    "finetune",
    "fit_head",
    "load",
    "report",
    "serve",
    "show",
]

# Where each public name lives. Importing headstart imports none of them: numpy alone costs a tenth of a second.
_HOMES = {
    "FrozenBackbone": "extract.transformer",
    "HeadstartError": "errors",
    "LogisticRegressionPath": "classify.estimator",
    "compare": "classify.compare",
    "evaluate": "classify.evaluate",
    "export": "classify.export.job",
    "finetune": "classify.finetune.job",
    "extract": "extract.job",
    "fit_head": "classify.fit",
    "load": "classify.predict",
    "report": "classify.pages.report",
    "serve": "classify.serve.server",
    "show": "classify.show",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    # The folder extract/ is a module of the same name as the function: it is callable, and stays what it is.
    return globals().get(name, value)


def __dir__() -> list[str]:
    return sorted(__all__)

"""Heads that see small crops of a few photographs, and what they were exported to."""

from pathlib import Path
from typing import Any

import pytest

import headstart
from headstart.classify.export import job
from headstart.classify.export.job import Exported
from headstart.classify.model import load_model

SMALL = {"backbone": "efficientnet_lite0", "resize": 40, "crop": 32}


class Models:
    """Models in one folder, and files of them, each made once."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.data, self.folder, self.cache = data, folder, folder / "cache"
        self._exported: dict[str, Exported] = {}

    def fitted(self, name: str, **options: object) -> Path:
        """Return the folder of a model that is fitted with these options."""
        out = self.folder / "models" / name
        if not out.exists():
            headstart.fit_head(self.data, cache=self.cache, out=out, **options)
        return out

    def exported(self, model: Path, **options: object) -> Exported:
        """Return what `headstart.export` made of a model."""
        key = f"{model.name}-{'-'.join(map(str, options.values()))}"
        if key not in self._exported:
            out = self.folder / f"{key}{'.pt2' if options.get('format') == 'torch' else '.onnx'}"
            self._exported[key] = headstart.export(model, cache=self.cache, out=out, pictures=6, **options)
        return self._exported[key]


@pytest.fixture(scope="session")
def models(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    made = Models(few, tmp_path_factory.mktemp("export"))
    headstart.extract(few, cache=made.cache, **SMALL)
    return made


@pytest.fixture(scope="session")
def logistic(models: Models) -> Path:
    return models.fitted("logistic")


@pytest.fixture(scope="session")
def _traced(logistic: Path) -> tuple[Any, Any]:
    whole = job.whole_network(load_model(logistic))
    return whole, job.network_graph(whole)


@pytest.fixture
def traced_once(_traced: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what is done with the graph of `logistic`: it is traced once for all of them."""
    monkeypatch.setattr(job, "whole_network", lambda _: _traced[0])
    monkeypatch.setattr(job, "network_graph", lambda _: _traced[1])

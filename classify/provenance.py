"""Where a model comes from: what is kept of its training beside its numbers, and what its folder is called."""

from __future__ import annotations

import contextlib
import platform
import re
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .. import __version__
from ..cache.source import Source
from ..errors import printable
from ..extract.views import Views
from .dataset import LabelledSet

_DEPENDS_ON = ("numpy", "torch", "torchvision", "timm", "pillow", "simplejpeg", "h5py")
# The input of the module that classifies, by its usual names; `classifier.3.input` is a layer within one.
_DEFAULT_LAYER = re.compile(r"([a-z_]+\.)*(fc|classifier|heads?)\.input")


def model_folder(source: Source, layers: Sequence[tuple[str, str | None]], kind: str) -> Path:
    """Return ``models/<dataset>-<backbone>-<kind>``, with nothing in it that a file system might refuse.

    A layer is named behind its backbone, unless it is what the backbone's own classifier receives. Several are joined
    by ``+``: ``photos-resnet18+layer3+mobilenet_v3_small-logistic``.

    Parameters
    ----------
    source : Path or Url
        The dataset's folder, CSV file or tars.
    layers : sequence of (str, str or None)
        Backbone and layer of each feature space; None for the default layer.
    kind : str
        Of the head, or "finetuned".
    """
    dataset = source.stem if source.suffix.lower() == ".csv" else source.name
    name = f"{dataset or 'data'}-{_short_name(layers)}-{kind}"
    return Path("models") / re.sub(r"[^\w.+-]+", "-", printable(name))


def is_default_layer(layer: str) -> bool:
    """Tell whether a layer is what the backbone's own classifier receives, by its usual names."""
    return _DEFAULT_LAYER.fullmatch(layer) is not None


def _short_name(layers: Sequence[tuple[str, str | None]]) -> str:
    pieces: list[str] = []
    named: set[str] = set()
    for backbone, layer in layers:
        first = backbone not in named
        usual = layer is None or (is_default_layer(layer) and first)
        pieces.append("-".join(([backbone] if first else []) + ([] if usual else [str(layer)])))
        named.add(backbone)
    return "+".join(pieces)


def versions() -> dict[str, str]:
    """Return the versions of what a model's numbers depend on, where it is installed, without loading it."""
    found = {"headstart": __version__, "python": platform.python_version()}
    for name in _DEPENDS_ON:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def training_facts(
    data: LabelledSet, requests: Sequence[dict[str, Any]], *, seed: int, val_fraction: float, near_copies: str
) -> dict[str, Any]:
    """Return what `SavedModel.training` holds: where the data lay and how it was divided, by which it is found again.

    Parameters
    ----------
    data : LabelledSet
    requests : sequence of dict
        What was kept with each feature space to embed more pictures in it.
    seed : int
    val_fraction : float
        Share that is held out where the dataset has no validation split.
    near_copies : str
        How near copies were looked for.
    """
    listing = data.features.listing
    return {
        "root": listing.root,
        "source": listing.source,
        "layout": listing.layout,
        "requests": list(requests),
        **_facts_of(data.features.views),
        "held_out": val_fraction if data.held_out else None,
        "dedupe": None if data.dedupe is None else asdict(data.dedupe),
        "near_copies": near_copies,
        "seed": seed,
        "headstart": __version__,
        "versions": versions(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _facts_of(views: Views) -> dict[str, Any]:
    """Return what is kept of the views that a head was trained on; nothing of plain crops."""
    return {**views.request(), "recipes": views.recipes()} if views.count > 1 else {}

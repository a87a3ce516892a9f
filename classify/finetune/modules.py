"""The network that is trained: a backbone up to a layer, and a head on it."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ...extract.backbone import Backbone
from ...extract.replay import Replay
from ..network import Network
from ..preparation import Preparation

BATCH_NORMS = nn.modules.batchnorm._BatchNorm


def make_head(widths: Sequence[int], dropout: float, seed: int) -> nn.Sequential:
    """Return linear layers with ReLU between them, initialised as torch does by itself.

    Parameters
    ----------
    widths : sequence of int
        Of the embedding, the hidden layers and the classes.
    dropout : float
        Share that is dropped of what each layer but the first receives, or the only one.
    seed : int
    """
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for place, (before, width) in enumerate(itertools.pairwise(widths)):
            layers += [nn.ReLU()] if place else []
            layers += [nn.Dropout(dropout)] if dropout and (place or len(widths) == 2) else []
            layers.append(nn.Linear(before, width))
    return nn.Sequential(*layers)


def linear_layers(head: nn.Module) -> list[nn.Linear]:
    """Return the linear layers of a head, the first one first."""
    return [module for module in head.modules() if isinstance(module, nn.Linear)]


def as_network(head: nn.Module) -> Network:
    """Return a head as it is saved: plain arrays, with nothing done to embeddings first."""
    layers = linear_layers(head)
    dim = layers[0].in_features
    arrays = [
        [getattr(layer, name).detach().cpu().numpy().astype(np.float32, copy=True) for layer in layers]
        for name in ("weight", "bias")
    ]
    nothing = Preparation(np.zeros(dim, np.float32), np.ones(dim, np.float32), np.zeros(0, np.int64))
    return Network(nothing, tuple(arrays[0]), tuple(arrays[1]))


class TrainableNetwork(nn.Module):
    """A backbone and a head: (N, S, S, 3) uint8 images in, (N, K) logits out.

    Parameters
    ----------
    backbone : Backbone
        Its batch norms not folded.
    head : Module
    trained : collection of str
        Names of the modules of the backbone that are in train mode while the network is; the others stay in eval mode:
        frozen batch norms keep their statistics, and frozen layers drop nothing.
    freeze_norms : bool, default False
        All batch norms stay in eval mode.

    Attributes
    ----------
    replay : Replay or None
        Runs what lies behind the frozen layers alone; None until it is set.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        trained: Collection[str],
        *,
        freeze_norms: bool = False,
    ) -> None:
        super().__init__()
        self.body, self.head = backbone.module, head
        self.backbone = backbone
        self.replay: Replay | None = None
        self._trained, self._freeze_norms = frozenset(trained), freeze_norms

    def forward(self, batch: Tensor, kept: bool = False) -> Tensor:
        """Return logits of images, or, with `kept`, of what `frozen` made of them, (N, K) float32."""
        logits: Tensor = self.head(self.embed(batch, kept=kept))
        return logits.float()

    def embed(self, batch: Tensor, kept: bool = False) -> Tensor:
        """Return embeddings (N, D) float32 of images, or, with `kept`, of what `frozen` made of them."""
        if not kept:
            return self.backbone.tap(self.backbone.normalise(batch))
        return batch if self.replay is None else self.replay.from_activations(batch)

    @property
    def head_widths(self) -> tuple[int, ...]:
        """Widths of the embedding, the hidden layers and the classes."""
        layers = linear_layers(self.head)
        return (layers[0].in_features, *(layer.out_features for layer in layers))

    def frozen(self, batch: Tensor) -> Tensor:
        """Return what the frozen layers make of images: the embedding, where all layers are frozen."""
        images = self.backbone.normalise(batch)
        return self.backbone.tap(images) if self.replay is None else self.replay.activations(images)

    def train(self, mode: bool = True) -> TrainableNetwork:
        """Put what is trained into train mode, and everything else into eval mode."""
        super().train(False)
        self.training = mode
        self.head.train(mode)
        for name, module in self.body.named_modules():
            if name in self._trained and not (self._freeze_norms and isinstance(module, BATCH_NORMS)):
                module.training = mode
        return self

    def changing(self) -> dict[str, Tensor]:
        """Return what training changes, by name: trained parameters, and buffers of modules in train mode."""
        found = {name: value for name, value in self.named_parameters() if value.requires_grad}
        norms = not self._freeze_norms
        for name, module in self.body.named_modules():
            if name in self._trained and (norms or not isinstance(module, BATCH_NORMS)):
                prefix = f"body.{name}." if name else "body."
                found |= {prefix + key: value for key, value in module.named_buffers(recurse=False)}
        return {name: value.detach() for name, value in found.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put back what `changing` returned, copies of it."""
        with torch.no_grad():
            for name, value in self.changing().items():
                value.copy_(state[name])

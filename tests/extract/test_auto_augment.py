"""RandAugment and TrivialAugment against torchvision's: each operation, each magnitude, and how often they come."""

from collections import Counter

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from headstart.extract import auto_augment
from headstart.extract.auto_augment import OPERATIONS
from headstart.extract.decode import decode
from headstart.extract.draws import Draws


class Fixed(Draws):
    """Draws as a seed has it, but for the chances, which are these."""

    def __init__(self, *, chance: bool) -> None:
        super().__init__(0)
        self._chance = chance

    def chance(self, probability: float) -> bool:
        return self._chance


THEIRS = dict(
    zip(
        OPERATIONS,
        [
            *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"),
            *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
        ],
        strict=True,
    )
)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("paper", ["rand", "trivial"])
def test_each_operation_at_each_magnitude_is_torchvisions(name, paper, samples):
    path = sorted((samples / "hymenoptera").rglob("*.jpg"))[0]
    pixels = np.ascontiguousarray(decode(path.read_bytes()).pixels[50:178, 60:260].transpose(2, 0, 1))
    fill = (124, 116, 104)
    bending = auto_augment.Bending(smooth=True, fill=fill)
    kind, ranges = {
        "rand": (v2.RandAugment, auto_augment._RAND),
        "trivial": (v2.TrivialAugmentWide, auto_augment._TRIVIAL),
    }[paper]
    magnitudes, signed = kind._AUGMENTATION_SPACE[THEIRS[name]]
    transform = kind(interpolation=v2.InterpolationMode.BILINEAR, fill=list(fill))
    for step in (0, 1, 9, 14, 22, 30):  # at 15, float32 makes 15.99 of a shift of 16
        several = magnitudes(31, *pixels.shape[1:])
        much = 0.0 if several is None else float(several[step])
        for sign in (1, -1) if signed else (1,):
            theirs = transform._apply_image_or_video_transform(
                torch.from_numpy(pixels), THEIRS[name], sign * much, transform.interpolation, transform._fill
            ).numpy()
            ours = auto_augment._changed(pixels, Fixed(chance=sign < 0), name, step, bending, ranges)
            away = np.abs(ours.astype(int) - theirs)
            # Where a place is between pixel and fill, torchvision weighs the pixel twice: tests of affine.
            assert np.quantile(away, 0.98) <= 2
            assert away.mean() < 1.2


def test_operations_and_magnitudes_are_drawn_evenly(monkeypatch):
    drawn = []
    monkeypatch.setattr(auto_augment, "_changed", lambda image, draws, name, step, *_: drawn.append((name, step)))
    bending = auto_augment.Bending(smooth=True, fill=(0, 0, 0))
    draws = Draws(5)
    for _ in range(2800):
        auto_augment.rand_augment(np.zeros((3, 2, 2), np.uint8), draws, bending)
    names = Counter(name for name, _ in drawn)
    assert sum((names[name] - 400) ** 2 / 400 for name in OPERATIONS) < 34.5  # 13 degrees of freedom, 0.001
    assert {step for _, step in drawn} == {9}
    drawn.clear()
    for _ in range(6200):
        auto_augment.trivial_augment(np.zeros((3, 2, 2), np.uint8), draws, bending)
    steps = Counter(step for _, step in drawn)
    assert set(steps) == set(range(31))
    assert sum((count - 200) ** 2 / 200 for count in steps.values()) < 59.7  # 30 degrees of freedom, 0.001
    assert {name for name, _ in drawn} == set(OPERATIONS)

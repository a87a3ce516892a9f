"""The whole job against the loop of the tutorials, both as whole processes timed from outside, on the ants and bees.

The loop is that of PyTorch's transfer-learning tutorial with a frozen network: ImageFolder, DataLoader in batches of
16, Pillow, every picture through an eager ResNet-18 in each of 15 epochs, the last layer trained by SGD. Both sides
have random weights, for the time does not depend on them. The loop reads pictures in the process that trains, as where
`num_workers` is left alone, and once more with as many workers as cores.

Run: HEADSTART_SAMPLES=... python benchmarks/tutorial_loop.py [epochs]
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TIMES = 3
HEADSTART = [sys.executable, "-c", "import sys; from headstart.cli import run; run()"]
LOOP = """
import sys
import torch
from torch import nn, optim
from torchvision import datasets, models, transforms

folder, epochs, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
normalise = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
views = {
    "train": [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()],
    "val": [transforms.Resize(256), transforms.CenterCrop(224)],
}
sets = {
    split: datasets.ImageFolder(f"{folder}/{split}", transforms.Compose([*view, transforms.ToTensor(), normalise]))
    for split, view in views.items()
}
loaders = {
    split: torch.utils.data.DataLoader(sets[split], batch_size=16, shuffle=split == "train", num_workers=workers)
    for split in sets
}
model = models.resnet18(weights=None)
for parameter in model.parameters():
    parameter.requires_grad = False
model.fc = nn.Linear(model.fc.in_features, 2)
criterion, optimizer = nn.CrossEntropyLoss(), optim.SGD(model.fc.parameters(), lr=0.001, momentum=0.9)
for epoch in range(epochs):
    for split, loader in loaders.items():
        model.train(split == "train")
        for images, labels in loader:
            optimizer.zero_grad()
            with torch.set_grad_enabled(split == "train"):
                loss = criterion(model(images), labels)
                if split == "train":
                    loss.backward()
                    optimizer.step()
"""


def timed(command: list[str], folder: str) -> float:
    begin = time.perf_counter()
    subprocess.run(command, cwd=folder, capture_output=True, check=True)
    return time.perf_counter() - begin


def our_job(data: Path) -> tuple[float, float, float]:
    """Return the seconds of `extract`, of the first `fit-head`, and of one more head."""
    with tempfile.TemporaryDirectory() as folder:
        extract = timed([*HEADSTART, "extract", str(data), "--backbone", "resnet18", "--weights", "none"], folder)
        fit = timed([*HEADSTART, "fit-head"], folder)
        again = timed([*HEADSTART, "fit-head", "--class-weight", "balanced", "--out", "second"], folder)
    return extract, fit, again


def main() -> None:
    samples = os.environ.get("HEADSTART_SAMPLES")
    if not samples:
        sys.exit("HEADSTART_SAMPLES names no folder of sample photographs")
    data, epochs = Path(samples) / "hymenoptera", int(sys.argv[1]) if len(sys.argv) > 1 else 15
    jobs = [our_job(data) for _ in range(TIMES)]
    extract, fit, again = (statistics.median(column) for column in zip(*jobs, strict=True))
    print(
        f"headstart: extract {extract:.2f} s + fit-head {fit:.2f} s, one more head {again:.2f} s (medians of {TIMES})"
    )
    for workers in (0, os.cpu_count() or 1):
        with tempfile.TemporaryDirectory() as folder:
            loop = timed([sys.executable, "-c", LOOP, str(data), str(epochs), str(workers)], folder)
        ratios = (
            f"the whole job is {loop / (extract + fit):.1f} times faster, every further head {loop / again:.0f} times"
        )
        print(f"the loop, {epochs} epochs, {workers} workers: {loop:.1f} s; {ratios}")
    print("targets on 2 cores: 15 times for the whole job, 20 the aim; 150 times for every further head")


if __name__ == "__main__":
    main()

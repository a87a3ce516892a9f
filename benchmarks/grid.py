"""What it is worth to train a grid in all folds side by side.

Both sides train the same networks on the same batches from the same weights with AdamW: one by one, each with torch's
own layers and optimizer, and as one stack. Both end with the same losses.

Run: python benchmarks/grid.py
"""

import statistics
import time

import numpy as np
import torch
from torch import nn

from headstart.classify.grid import grid
from headstart.classify.splits import stratified_folds
from headstart.classify.training import Batches, Recipe, Rows, Setting, Stack, initial_parameters

N, WIDTH, FOLDS, EPOCHS, TIMES = 400, 512, 5, 15, 5
RECIPE = Recipe("adamw", 0.9, "constant", 0.0, 64, EPOCHS, EPOCHS, 0, "cpu")
GRIDS = {
    "linear, 3 rates": grid((3e-4, 1e-3, 3e-3), (1e-2,), (), (0.0,)),
    "linear, 5 rates x 3 weight decays": grid((1e-4, 3e-4, 1e-3, 3e-3, 1e-2), (0.0, 1e-2, 1.0), (), (0.0,)),
    "mlp 64, 3 rates x 2 weight decays": grid((1e-4, 3e-4, 1e-3), (0.0, 1e-2), [(64,)], (0.0,)),
    "mlp 256, 3 rates x 2 weight decays": grid((1e-4, 3e-4, 1e-3), (0.0, 1e-2), [(256,)], (0.0,)),
}


def data() -> tuple[Rows, list[np.ndarray]]:
    rng = np.random.default_rng(0)
    y = np.arange(N) % 2
    Z = rng.standard_normal((N, WIDTH)).astype(np.float32)
    Z[:, :20] += 0.5 * y[:, None]
    folds = stratified_folds(y, FOLDS)
    return Rows.on("cpu", Z, y, 2, "none"), [np.flatnonzero(folds != fold) for fold in range(FOLDS)]


def side_by_side(rows: Rows, members: list[np.ndarray], settings: list[Setting]) -> np.ndarray:
    """Return the last epoch's mean loss, (settings, folds)."""
    stack, batches = Stack(settings, FOLDS, rows, RECIPE), Batches(members, RECIPE.batch_size, 0)
    for epoch in range(1, EPOCHS + 1):
        loss = stack.train_epoch(rows, batches, epoch)
    return loss.numpy()


def one_by_one(rows: Rows, members: list[np.ndarray], settings: list[Setting]) -> np.ndarray:
    return np.array([[alone(rows, members, fold, setting) for fold in range(FOLDS)] for setting in settings])


def alone(rows: Rows, members: list[np.ndarray], fold: int, setting: Setting) -> float:
    module = module_of(rows, setting)
    optimizer = torch.optim.AdamW(module.parameters(), lr=setting.lr, weight_decay=setting.weight_decay)
    batches = Batches(members, RECIPE.batch_size, 0)
    real = batches.real.reshape(FOLDS, batches.steps, -1)[fold]
    for _ in range(EPOCHS):
        total = 0.0
        for numbers, keep in zip(batches.epoch()[fold], real, strict=True):
            inside = torch.from_numpy(numbers[keep])
            loss = nn.functional.cross_entropy(module(rows.Z[inside]), rows.y[inside])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach())
    return total / batches.steps


def module_of(rows: Rows, setting: Setting) -> nn.Sequential:
    power = float(rows.Z.square().sum(1).mean())
    first = initial_parameters((WIDTH, *setting.hidden, 2), power, RECIPE.random_state)
    parts: list[nn.Module] = []
    for weight, bias in zip(first[::2], first[1::2], strict=True):
        layer = nn.Linear(*weight.shape)
        layer.weight.data, layer.bias.data = weight.T.clone(), bias[0].clone()
        parts += [layer, nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def main() -> None:
    torch.set_num_threads(1)  # as the search itself has it for networks of this size
    rows, members = data()
    for name, settings in GRIDS.items():
        ratios, sides = [], []
        for _ in range(TIMES):
            begin = time.perf_counter()
            plain = one_by_one(rows, members, settings)
            middle = time.perf_counter()
            ours = side_by_side(rows, members, settings)
            end = time.perf_counter()
            sides.append((middle - begin, end - middle))
            ratios.append((middle - begin) / (end - middle))
            np.testing.assert_allclose(ours, plain, rtol=1e-3, atol=1e-4)
        one, stack = (statistics.median(column) for column in zip(*sides, strict=True))
        fits = len(settings) * FOLDS
        print(f"{name}: {fits} fits one by one {one:.2f} s, side by side {stack:.2f} s;", end=" ")
        print(f"median ratio {statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})")
    print(f"the same losses after {EPOCHS} epochs, to 1e-3; {N} rows, {WIDTH} wide, batches of 64, one thread")


if __name__ == "__main__":
    main()

"""Training networks of one shape side by side: every setting of a grid in every fold, in one pass of tensors.

A head is so small that a step of one costs mostly torch's overhead; a stack of them costs little more than one.
Networks of one fold see the same batches, and all networks begin with the same weights and drop the same units, so a
setting comes out the same in whatever company it is trained.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .optimizers import Optimizer, rate_factor

if TYPE_CHECKING:
    import torch

_STEPS_AT_MOST = 64  # an epoch's, where the size of batches is left open
_BATCH = 64
_ONE_THREAD_UP_TO = 2e9  # operations a step, which one core does in a few hundredths of a second
_HELD_OUT_BYTES = 64 << 20  # of activations, when held-out rows are scored


@dataclass(frozen=True, slots=True)
class Setting:
    """One point of a grid.

    Attributes
    ----------
    lr, weight_decay : float
    hidden : tuple of int
        Widths of the hidden layers.
    dropout : float
        Share of the hidden units that are dropped in training.
    """

    lr: float
    weight_decay: float
    hidden: tuple[int, ...] = ()
    dropout: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it; what a head without hidden layers has not is left out."""
        layers = {"hidden": list(self.hidden), "dropout": self.dropout} if self.hidden else {}
        return {"lr": self.lr, "weight_decay": self.weight_decay, **layers}


@dataclass(frozen=True, slots=True)
class Recipe:
    """What all settings of a grid have in common; see `headstart.classify.heads.LinearHead`."""

    optimizer: str
    momentum: float
    schedule: str
    label_smoothing: float
    batch_size: int | None
    epochs: int
    patience: int
    random_state: int
    device: str


@contextlib.contextmanager
def threads_for(networks: int, parameters: int, batch: int, most: int | None = None) -> Iterator[None]:
    """Compute with one thread where the steps inside are small, at most with so many, and as before afterwards.

    Threads that share a small step mostly wait for each other, and where other programs use the cores, ten times as
    long as the step takes.
    """
    import torch

    before = torch.get_num_threads()
    if 6 * networks * parameters * batch <= _ONE_THREAD_UP_TO:  # two for each product, forward and twice backward
        torch.set_num_threads(1)
    elif most is not None:
        torch.set_num_threads(most)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def torch_device(wanted: str) -> str:
    """Return "cuda" or "cpu" for "auto", "cuda" or "cpu".

    Raises
    ------
    DeviceError
        It is not there.
    """
    import torch

    from ..extract.device import choose_device

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return choose_device(wanted).kind


def parameter_count(widths: Sequence[int]) -> int:
    """Return how many weights lie between layers of these widths."""
    return sum(before * width for before, width in itertools.pairwise(widths))


@dataclass(frozen=True, slots=True)
class Rows:
    """Training rows on their device.

    Attributes
    ----------
    Z : Tensor of shape (n * V, r), float32
        Prepared embeddings, the V views of an image one after the other.
    y : Tensor of shape (n,), int64
    weight : Tensor of shape (n,), float32
        What each image counts in the loss, all its views together.
    n_classes : int
    """

    Z: torch.Tensor
    y: torch.Tensor
    weight: torch.Tensor
    n_classes: int

    @property
    def n_views(self) -> int:
        """V."""
        return len(self.Z) // len(self.y)

    def views_of(self, images: torch.Tensor) -> torch.Tensor:
        """Return all views (F, m * V, r) of images with these numbers (F, m)."""
        return self._by_image()[images].flatten(1, 2)

    def plain_of(self, images: torch.Tensor) -> torch.Tensor:
        """Return view 0 (F, m, r) of images with these numbers (F, m)."""
        return self._by_image()[:, 0][images]

    def power(self) -> float:
        """Return the mean squared length of view 0."""
        return float(self._by_image()[:, 0].square().sum(1).mean())

    def _by_image(self) -> torch.Tensor:
        return self.Z.view(len(self.y), self.n_views, -1)

    def parameters(self, setting: Setting) -> int:
        """Return how many weights a network on these rows has."""
        return parameter_count((self.Z.shape[1], *setting.hidden, self.n_classes))

    @classmethod
    def on(cls, device: str, Z: np.ndarray, y: np.ndarray, n_classes: int, class_weight: str) -> Rows:
        """Take arrays, rows (n * V, r), to a device; "balanced" classes count the same, and images 1 on average."""
        import torch

        weight = class_weights(y, n_classes, class_weight)[y]
        embeddings, labels, counted = (
            torch.from_numpy(array).to(device) for array in (Z, y, weight.astype(np.float32))
        )
        return cls(embeddings, labels, counted, n_classes)


def class_weights(y: np.ndarray, n_classes: int, class_weight: str) -> np.ndarray:
    """Return what an image of each class counts, (K,) float64: "balanced" classes alike, and images 1 on average."""
    if class_weight == "none":
        return np.ones(n_classes)
    return np.asarray(len(y) / (n_classes * np.maximum(np.bincount(y, minlength=n_classes), 1)))


def images_a_batch(n_images: int, size: int | None) -> int:
    """Return how many images a batch has at most: so many, or where it is None 64, or so many that 64 steps do."""
    return size or max(_BATCH, math.ceil(n_images / _STEPS_AT_MOST))


class Batches:
    """The batches of each fold's training, anew for each epoch.

    An epoch has as many steps in every fold, and a fold's images are dealt evenly to them, so no batch is a rest of a
    few, and none is larger than `size`. A batch has all views of its images, so their number changes neither the steps
    nor what is in them.

    Parameters
    ----------
    members : sequence of ndarray of int
        The images that each fold trains on.
    size : int or None
        At most so many images a batch; 64 where it is None, or so many that an epoch has 64 steps.
    random_state : int or sequence of int
    """

    def __init__(self, members: Sequence[np.ndarray], size: int | None, random_state: int | Sequence[int]) -> None:
        most = max(map(len, members))
        self.steps = math.ceil(most / images_a_batch(most, size))
        self._members = members
        self._rng = np.random.default_rng(random_state)
        ends = [np.arange(self.steps + 1) * len(rows) // self.steps for rows in members]
        self._places, self.real = padded(
            [np.arange(start, stop) for edge in ends for start, stop in itertools.pairwise(edge)]
        )

    @property
    def size(self) -> int:
        """Images of the largest batch."""
        return int(self.real.shape[1])

    def epoch(self) -> np.ndarray:
        """Return numbers of images (folds, steps, size); where `real` is False they only fill the array."""
        shuffled = [self._rng.permutation(rows) for rows in self._members]
        places = self._places.reshape(len(shuffled), self.steps, -1)
        return np.stack([rows[place] for rows, place in zip(shuffled, places, strict=True)])


def padded(lists: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return lists of numbers as rows of one array (lists, longest) int64, and which of its places are not filling."""
    lengths = np.array([len(numbers) for numbers in lists])
    real = np.arange(max(1, lengths.max())) < lengths[:, None]
    filled = np.zeros(real.shape, np.int64)
    filled[real] = np.concatenate(lists)
    return filled, real


class Stack:
    """Networks of one shape, S settings in F folds, and their optimizer.

    Parameters
    ----------
    settings : sequence of Setting, S
        With `hidden` of one length and the same widths.
    n_folds : int
    rows : Rows
    recipe : Recipe

    Attributes
    ----------
    parameters : list of Tensor
        Weights (S, F, width before, width) and biases (S, F, 1, width), in turns.
    """

    def __init__(self, settings: Sequence[Setting], n_folds: int, rows: Rows, recipe: Recipe) -> None:
        import torch

        widths = (rows.Z.shape[1], *settings[0].hidden, rows.n_classes)
        shape = (len(settings), n_folds)
        first = initial_parameters(widths, rows.power(), recipe.random_state)
        self.parameters = [one.to(rows.Z.device).expand(*shape, *one.shape).clone().requires_grad_() for one in first]
        column = {name: [getattr(setting, name) for setting in settings] for name in ("lr", "weight_decay", "dropout")}
        self._settings = {
            name: torch.tensor(values, device=rows.Z.device)[:, None, None, None] for name, values in column.items()
        }
        self._optimizer = Optimizer(
            recipe.optimizer,
            self.parameters,
            lr=self._settings["lr"],
            weight_decay=self._settings["weight_decay"],
            momentum=recipe.momentum,
        )
        self._noise = torch.Generator(rows.Z.device).manual_seed(recipe.random_state)
        self._recipe = recipe

    def train_epoch(self, rows: Rows, batches: Batches, epoch: int) -> torch.Tensor:
        """Train for one epoch; return the mean loss of the batches, (S, F)."""
        import torch

        numbers = torch.from_numpy(batches.epoch()).to(rows.Z.device)
        real = torch.from_numpy(batches.real).to(rows.Z.device).view(numbers.shape)
        # Each view has the weight of its image in a weighted mean: together they count as one row of it would.
        y, weight = (
            each.repeat_interleave(rows.n_views, dim=2) for each in (rows.y[numbers], rows.weight[numbers] * real)
        )
        factor = rate_factor(self._recipe.schedule, epoch, self._recipe.epochs)
        total = torch.zeros(self.parameters[0].shape[:2], device=rows.Z.device)
        for step in range(batches.steps):
            logits = self.logits(rows.views_of(numbers[:, step]), n_views=rows.n_views, drop=True)
            loss = batch_loss(logits, y[:, step], weight[:, step], self._recipe.label_smoothing)
            # Networks have nothing in common, so the gradient of the sum is that of each.
            gradients = torch.autograd.grad(loss.sum(), self.parameters)
            with torch.no_grad():
                self._optimizer.step(self.parameters, gradients, factor)
            total += loss.detach()
        return total / batches.steps

    def logits(self, Z: torch.Tensor, *, n_views: int = 1, drop: bool = False) -> torch.Tensor:
        """Return logits (S, F, m, K) of rows (F, m, r); where units are dropped, views of an image lose the same."""
        import torch

        layers = list(zip(self.parameters[::2], self.parameters[1::2], strict=True))
        first, bias = layers[0]
        # Networks of one fold share the rows. Of rows and weights the smaller are copied to bring them together.
        few = first.shape[-1] < Z.shape[1]
        result = (torch.einsum("fmr,sfrw->sfmw", Z, first) if few else Z @ first) + bias
        for weight, bias in layers[1:]:
            units = result.relu()
            result = (self._dropped(units, n_views) if drop else units) @ weight + bias
        return result

    def _dropped(self, units: torch.Tensor, n_views: int) -> torch.Tensor:
        import torch

        share = self._settings["dropout"]
        if not share.any():
            return units
        settings, folds, rows, width = units.shape
        noise = torch.rand((rows // n_views, width), generator=self._noise, device=units.device)
        kept = ((noise >= share) / (1 - share))[:, :, :, None]
        # The same of all views of an image: equal views train as one of them does.
        return (units.reshape(settings, folds, -1, n_views, width) * kept).reshape(units.shape)

    def held_out_logits(self, rows: Rows, numbers: torch.Tensor) -> torch.Tensor:
        """Return logits (S, F, m, K) of view 0 of images with these numbers (F, m), with bounded memory beside them."""
        import torch

        networks = self.parameters[0].shape[0] * self.parameters[0].shape[1]
        widest = max(rows.Z.shape[1], *(bias.shape[-1] for bias in self.parameters[1::2]))
        block = max(1, _HELD_OUT_BYTES // (4 * networks * widest))
        with torch.no_grad():
            return torch.cat([self.logits(rows.plain_of(part)) for part in torch.split(numbers, block, dim=1)], dim=2)

    def keep(self, settings: torch.Tensor) -> None:
        """Go on with some of the settings only, (S,) bool."""
        self.parameters = [parameter.detach()[settings].requires_grad_() for parameter in self.parameters]
        self._settings = {name: column[settings] for name, column in self._settings.items()}
        self._optimizer.keep(settings)

    def layers(self) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
        """Return weights (width, width before) and biases (width,) of the first network, float32."""
        arrays = [parameter.detach()[0, 0].cpu().numpy() for parameter in self.parameters]
        return tuple(np.ascontiguousarray(weight.T) for weight in arrays[::2]), tuple(bias[0] for bias in arrays[1::2])


def initial_parameters(widths: Sequence[int], power: float, random_state: int) -> list[torch.Tensor]:
    """Return weights (width before, width) and biases (1, width), in turns, of a network that was not trained.

    Numbers are uniform between plus and minus ``1 / sqrt(power)``, as torch.nn.Linear has them with the number of its
    inputs for `power`. Without a hidden layer all are 0: the loss is convex, so chance would only add noise.

    Parameters
    ----------
    widths : sequence of int
        Of the input, the hidden layers and the output.
    power : float
        Mean squared length of an input; for standardised features their number, however they are turned.
    random_state : int
    """
    import torch

    if len(widths) == 2:
        return [torch.zeros(widths[0], widths[1]), torch.zeros(1, widths[1])]
    generator = torch.Generator().manual_seed(random_state)
    result: list[torch.Tensor] = []
    for before, width in itertools.pairwise(widths):
        bound = (power if not result else before) ** -0.5
        for shape in ((before, width), (1, width)):
            result.append((2 * torch.rand(shape, generator=generator) - 1) * bound)
    return result


def batch_loss(logits: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Return the weighted mean cross-entropy (S, F) of logits (S, F, m, K), labels (F, m) and weights (F, m).

    With smoothing e the target is ``1 - e`` for the label and ``e / K`` for each class (Szegedy et al. 2016).
    """
    log_p = logits.log_softmax(dim=-1)
    labels = y.expand(log_p.shape[:-1]).unsqueeze(-1)
    loss = -log_p.gather(-1, labels).squeeze(-1)
    if smoothing:
        loss = (1 - smoothing) * loss - smoothing * log_p.mean(dim=-1)
    return (loss * weight).sum(dim=-1) / weight.sum(dim=-1).clamp(min=1e-12)


def train(
    rows: Rows, setting: Setting, epochs: int, recipe: Recipe
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """Train one network on all rows for so many epochs of the recipe's schedule.

    Returns
    -------
    weights, biases : tuple of ndarray, dtype float32
        As `headstart.classify.network.Network` has them.
    """
    stack = Stack([setting], 1, rows, recipe)
    batches = Batches([np.arange(len(rows.y))], recipe.batch_size, recipe.random_state)
    with threads_for(1, rows.parameters(setting), batches.size * rows.n_views):
        for epoch in range(1, epochs + 1):
            stack.train_epoch(rows, batches, epoch)
    return stack.layers()

"""Rows of a shard dealt to mini-batches, and what one of them says of linear networks: sums of losses and gradients.

An epoch deals all rows in an order of its own. Rows in memory are shuffled; those in a scratch file are read in chunks
of neighbours, as many at a time as a buffer holds, and shuffled there: a full shuffle would read each row from another
place. What a batch says is a sum over its rows, so that several shards deal a part of each batch, and their sums are
what one shard would say of the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .scratch import ahead
from .training import threads_for, torch_device

if TYPE_CHECKING:
    import torch

    from .share import HeldRows, Share

CHUNK_ROWS = 256  # neighbours that stay together: half a megabyte of 512 numbers each, which a disk reads in one go
_PIECE_ROWS = 8192  # that are multiplied at a time
_SHARE = 4  # of the memory: two buffers, one of which is being read, and what a piece takes
_COPIES = 4  # of the logits of a piece, while its gradient is made
Some = tuple[np.ndarray, np.ndarray]  # numbers (m,) int64, ``i * V + v``, and the rows (m, r) float32


@dataclass(frozen=True, slots=True)
class Dealing:
    """What all shards have to know to deal their rows.

    Attributes
    ----------
    class_weight : ndarray of shape (K,), dtype float64
        What a row of each class counts.
    label_smoothing : float
    random_state : int
    """

    class_weight: np.ndarray
    label_smoothing: float
    random_state: int


@dataclass(slots=True)
class Dealer:
    """Deals the rows of a shard.

    Parameters
    ----------
    share : Share
        Of which images.
    rows : HeldRows
    dealing : Dealing
    """

    share: Share
    rows: HeldRows
    dealing: Dealing
    _at: tuple[int, int] | None = None
    _stream: _Stream = field(default_factory=lambda: _Stream(iter(())))

    def step(self, epoch: int, step: int, steps: int, W: np.ndarray, folds: bool) -> dict[str, np.ndarray]:
        """Return what the rows of one batch say.

        Parameters
        ----------
        epoch : int
        step, steps : int
            Which batch of how many, from 0. The one after the last one that was asked for is at hand; for any other the
            epoch is dealt anew up to there.
        W : ndarray of shape (S, P, K, r + 1), dtype float32
            Weights and biases.
        folds : bool
            Whether fit p leaves out the rows of fold p, or each has all rows.

        Returns
        -------
        dict
            ``gradient`` as `W` and ``loss`` (S, P), summed over the rows by weight, and ``weight`` (P,), their sum.
        """
        import torch

        n, (n_settings, n_fits, n_classes, width) = len(self.rows.table), W.shape
        # Shards whose cuts lay side by side would all have a row in one batch, and none in the next.
        ahead_of_it = steps * self.share.place[0] // self.share.place[1]
        start, stop = ((number * n + ahead_of_it) // steps for number in (step, step + 1))
        if self._at != (epoch, step):
            self._stream = _Stream(self._pieces(epoch, n_settings * n_fits * n_classes))
            self._stream.skip(start)
        device = torch_device(self.share.device)
        fits = torch.from_numpy(W).to(device)
        total = [torch.zeros(shape, device=device) for shape in (W.shape, W.shape[:2], W.shape[1:2])]
        rows_at_a_time = min(stop - start, _PIECE_ROWS)
        with threads_for(n_settings * n_fits, n_classes * width, rows_at_a_time, self.share.threads):
            for numbers, Z in self._stream.take(stop - start):
                y, weight = self._labels(numbers, n_fits, folds)
                on_device = (torch.from_numpy(each).to(device) for each in (Z, y, weight))
                found = linear_sums(fits, *on_device, smoothing=self.dealing.label_smoothing)
                for sums, more in zip(total, found, strict=True):
                    sums += more
        self._at = epoch, step + 1
        if step + 1 == steps:
            self._stream = _Stream(iter(()))  # with the buffer that it holds
        gradient, loss, counted = (sums.cpu().numpy() for sums in total)
        return {"gradient": gradient, "loss": loss, "weight": counted}

    def _labels(self, numbers: np.ndarray, n_fits: int, folds: bool) -> Some:
        """Return the class of rows, (m,) int64, and what they count in each fit, (P, m) float32."""
        images = numbers // self.share.views.count
        y = self.share.target[images]
        counted = np.broadcast_to(self.dealing.class_weight[y], (n_fits, len(y)))
        if folds:
            counted = counted * (self.share.fold[images] != np.arange(n_fits)[:, None])
        return y, np.ascontiguousarray(counted, np.float32)

    def _pieces(self, epoch: int, n_columns: int) -> Iterator[Some]:
        """Yield all rows in the order of an epoch, some at a time."""
        rng, table = np.random.default_rng([self.dealing.random_state, epoch]), self.rows.table
        row_bytes = 4 * (table.shape[1] + _COPIES * n_columns)
        room = (self.share.memory - table.nbytes) // 2 if table.in_memory else self.share.memory // _SHARE
        size = int(max(1, min(_PIECE_ROWS, room // row_bytes)))
        whole = table.read(0, len(table)) if table.in_memory else None
        buffers = ahead(self._buffers(rng)) if whole is None else iter([(self.rows.numbers, whole)])
        for numbers, Z in buffers:
            order = rng.permutation(len(Z))
            for start in range(0, len(Z), size):
                some = order[start : start + size]
                yield numbers[some], Z[some]

    def _buffers(self, rng: np.random.Generator) -> Iterator[Some]:
        """Yield chunks of neighbours from all over the scratch file, as many at a time as a buffer holds."""
        table, numbers = self.rows.table, self.rows.numbers
        n, width = table.shape
        starts = CHUNK_ROWS * rng.permutation(-(-n // CHUNK_ROWS))
        size = int(max(1, self.share.memory // (_SHARE * 4 * width * CHUNK_ROWS)))
        for first in range(0, len(starts), size):
            some = starts[first : first + size].tolist()
            Z, done = np.empty((min(n, CHUNK_ROWS * len(some)), width), np.float32), 0
            numbers_of_Z = np.empty(len(Z), np.int64)
            for start in some:
                stop = min(start + CHUNK_ROWS, n)
                Z[done : done + stop - start] = table.read(start, stop)
                numbers_of_Z[done : done + stop - start] = numbers[start:stop]
                done += stop - start
            yield numbers_of_Z[:done], Z[:done]


class _Stream:
    """Rows that come in pieces of any size, taken in pieces of any other."""

    def __init__(self, pieces: Iterator[Some]) -> None:
        self._pieces = pieces
        self._rest: Some | None = None

    def take(self, count: int) -> Iterator[Some]:
        """Yield so many rows."""
        while count:
            numbers, Z = next(self._pieces) if self._rest is None else self._rest
            yield numbers[:count], Z[:count]
            self._rest = (numbers[count:], Z[count:]) if len(Z) > count else None
            count -= min(count, len(Z))

    def skip(self, count: int) -> None:
        """Leave so many rows out."""
        for _ in self.take(count):
            pass


def linear_sums(
    W: torch.Tensor, Z: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, *, smoothing: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return weighted sums of gradients and losses, as `headstart.classify.training.batch_loss` has the loss.

    Parameters
    ----------
    W : Tensor of shape (S, P, K, r + 1), float32
        Weights and biases.
    Z : Tensor of shape (m, r), float32
    y : Tensor of shape (m,), int64
    weight : Tensor of shape (P, m), float32
    smoothing : float
        Of the labels.

    Returns
    -------
    gradient : Tensor of shape (S, P, K, r + 1)
    loss : Tensor of shape (S, P)
    counted : Tensor of shape (P,)
        Sums of `weight`.
    """
    import torch

    n_classes = W.shape[2]
    flat = W.flatten(0, 2)
    # All networks share the rows: two products for all of them.
    log_p = torch.addmm(flat[:, -1], Z, flat[:, :-1].T).view(len(Z), *W.shape[:3]).log_softmax(dim=-1)
    target = torch.full((len(Z), n_classes), smoothing / n_classes, device=Z.device)
    target.scatter_add_(1, y[:, None], torch.full((len(Z), 1), 1 - smoothing, device=Z.device))
    target = target[:, None, None]
    counted = weight.T[:, None]  # (m, 1, P)
    loss = -((log_p * target).sum(dim=-1) * counted).sum(dim=0)
    residual = (log_p.exp() - target).mul_(counted.unsqueeze(-1)).flatten(1)
    gradient = torch.cat([residual.T @ Z, residual.sum(dim=0)[:, None]], dim=1).view_as(W)
    return gradient, loss, weight.sum(dim=1)

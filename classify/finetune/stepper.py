"""One step of training: forward, backward, update, in pieces where memory is short."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...errors import DeviceError, TrainingError
from ...extract.device import Device, is_out_of_memory
from ...extract.memory import SHARE, available_memory, bytes_an_image, fitting_batch
from .options import TrainOptions
from .ranks import Ranks

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from .modules import TrainableNetwork

logger = logging.getLogger("headstart.finetune")

# Peak memory of a step over what autograd keeps for the backward pass: gradients of activations come on top, and the
# holes that malloc leaves. Measured with batches of 8 and 32 at 224: resnet18 1.8 to 2.0, mobilenet_v3_small 1.3,
# vit_b_16 1.2 to 1.4.
_FACTOR = 2


class Stepper:
    """Takes steps with a network, and keeps the optimizer.

    Parameters
    ----------
    network : TrainableNetwork
    groups : list of dict
        As `parameter_groups` returns them.
    options : TrainOptions
    device : Device
    ranks : Ranks
    precision : str
        "float32", "bfloat16" or "float16".

    Attributes
    ----------
    piece : int
        Pictures of a forward pass. It is halved when memory is full; gradients of the pieces add up to those of the
        step. Batch norms in train mode then see pieces.
    """

    def __init__(
        self,
        network: TrainableNetwork,
        groups: list[dict[str, Any]],
        options: TrainOptions,
        device: Device,
        ranks: Ranks,
        precision: str,
    ) -> None:
        import torch

        self.network, self.options, self.ranks = network, options, ranks
        self.device, self.precision = device, precision
        self.at = next(network.parameters()).device
        self.wrapped: nn.Module = ranks.wrap(network, self.at)
        self.optimizer = make_optimizer(groups, options)
        self.scaler = torch.amp.GradScaler(device.kind, enabled=precision == "float16")
        self.piece = self._bounded(options.batch_size)

    def step(
        self, batch: Tensor, y: Tensor, *, total: int, rate: float, kept: bool = False, weight: float = 1
    ) -> Tensor:
        """Take one step.

        Parameters
        ----------
        batch : Tensor
            Images (n, S, S, 3) uint8, or, with `kept`, what the frozen layers made of them.
        y : Tensor of shape (n,), dtype int64
        total : int
            Pictures of the step in all processes.
        rate : float
            Learning rate of this step, before each group's multiple.
        kept : bool, default False
        weight : float, default 1
            0 where the batch only fills this process's share.

        Returns
        -------
        Tensor, () float32
            The sum of the losses of this process's pictures, before the step.

        Raises
        ------
        DeviceError
            Not even one image fits into memory.
        TrainingError
            One image is too little for batch norms.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["multiple"]
        while True:
            try:
                loss = self._accumulate(batch, y, total, kept, weight)
                break
            except Exception as error:
                if not is_out_of_memory(error):
                    self._explain(error)
                    raise
                self._halve(min(self.piece, len(batch)), error)
        self._update()
        return loss

    def _accumulate(self, batch: Tensor, y: Tensor, total: int, kept: bool, weight: float) -> Tensor:
        import torch
        from torch.nn.functional import cross_entropy

        count = -(-len(batch) // self.piece)  # as even as can be: a rest of one image is none for a batch norm
        pieces = list(zip(torch.tensor_split(batch, count), torch.tensor_split(y, count), strict=True))
        loss = torch.zeros((), device=self.at)
        for place, (part, labels) in enumerate(pieces):
            with self._in_sync(last=place == len(pieces) - 1):
                with self.device.autocast(self.precision):
                    logits = self.wrapped(part.to(self.at), kept=kept)
                    summed = weight * cross_entropy(
                        logits, labels.to(self.at), reduction="sum", label_smoothing=self.options.label_smoothing
                    )
                # Gradients are averaged over processes, and shares may differ by a picture.
                torch.autograd.backward(self.scaler.scale(summed * (self.ranks.world / total)))
            loss += summed.detach()
        return loss

    def _in_sync(self, *, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Let processes exchange gradients behind the last piece alone."""
        if last or self.ranks.world == 1:
            return contextlib.nullcontext()
        manager: contextlib.AbstractContextManager[Any] = self.wrapped.no_sync()  # type: ignore[operator]
        return manager

    def _update(self) -> None:
        import torch

        if self.options.clip is not None:
            self.scaler.unscale_(self.optimizer)
            values = [value for group in self.optimizer.param_groups for value in group["params"]]
            torch.nn.utils.clip_grad_norm_(values, self.options.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def _explain(self, error: Exception) -> None:
        """Raise what can be done about a batch norm that has nothing to take a variance of."""
        if "more than 1 value per channel" in str(error):  # torch has no class of its own for it
            raise TrainingError(
                "a batch norm sees one value of each channel, which has no variance: pass a larger --batch-size or "
                "--crop, or --freeze-norms"
            ) from error

    def _halve(self, tried: int, error: Exception) -> None:
        import torch

        self.optimizer.zero_grad(set_to_none=True)
        if self.device.kind == "cuda":
            torch.cuda.empty_cache()
        where = "this machine" if self.device.kind == "cpu" else self.device.name
        if tried == 1 or self.ranks.world > 1:
            size = f"{tried} images" if tried > 1 else "one image"
            advice = "a smaller --batch-size" if tried > 1 else "a smaller --crop, or --train a later layer"
            raise DeviceError(f"{where} has too little memory to train on {size} at a time; pass {advice}") from error
        self.piece = tried // 2
        logger.warning(
            "out of memory on %s: going on with %d images at a time, whose gradients add up to the same step",
            where, self.piece,
        )  # fmt: skip

    def _bounded(self, wanted: int) -> int:
        """Return how many pictures a pass may have; on a CPU, where a full memory ends the process, by estimate."""
        free = available_memory() if self.device.kind == "cpu" else None
        if free is None:
            return wanted
        # Where little is trained, the pass through frozen layers takes the most.
        an_image = max(_FACTOR * saved_bytes(self.network), bytes_an_image(self.network.backbone))
        free = max(0, free // self.ranks.world - self._lasting_bytes())
        size = fitting_batch(wanted, an_image, free)
        if size < wanted:
            logger.warning(
                "%d images at a time instead of %d, whose gradients add up to the same step: one takes about %d MB, "
                "and %d MB are free, of which %d %% are used",
                size, wanted, an_image // 1_000_000, free // 1_000_000, 100 * SHARE,
            )  # fmt: skip
        return size

    def _lasting_bytes(self) -> int:
        """Return what is allocated later whatever the batch: gradients, the optimizer's numbers, the best epoch's."""
        trained = sum(value.nbytes for value in self.network.parameters() if value.requires_grad)
        return trained * (3 if self.options.optimizer == "sgd" else 4)

    def state(self) -> dict[str, Tensor]:
        """Return the optimizer's and the scaler's numbers by name, to be saved."""
        import torch

        found = {
            f"optimizer.{index}.{name}": value
            for index, values in self.optimizer.state_dict()["state"].items()
            for name, value in values.items()
            if isinstance(value, torch.Tensor)
        }
        scale = {name: torch.tensor(float(value)) for name, value in self.scaler.state_dict().items()}
        return found | {f"scaler.{name}": value for name, value in scale.items()}

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Put back what `state` returned."""
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in saved.items():
            kind, _, name = key.partition(".")
            if kind == "optimizer":
                index, _, name = name.partition(".")
                states.setdefault(int(index), {})[name] = value
        whole = self.optimizer.state_dict()
        self.optimizer.load_state_dict({**whole, "state": states})
        scale = {key.removeprefix("scaler."): value for key, value in saved.items() if key.startswith("scaler.")}
        if scale and self.scaler.is_enabled():  # a run may go on in another precision
            current = self.scaler.state_dict()
            self.scaler.load_state_dict({name: type(current[name])(value.item()) for name, value in scale.items()})


def in_halves(run: Callable[[Tensor], Tensor], batch: Tensor, where: str) -> Tensor:
    """Let a batch through without gradients, in halves where it does not fit into memory.

    Parameters
    ----------
    run : callable
        From images, (n, ...), to a row an image.
    batch : Tensor
    where : str
        The device, for the message.

    Raises
    ------
    DeviceError
        One image does not fit.
    """
    import torch

    try:
        return run(batch)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if len(batch) == 1:
            raise DeviceError(f"{where} has too little memory for one image; pass a smaller --crop") from error
    halves = torch.split(batch, (len(batch) + 1) // 2)
    return torch.cat([in_halves(run, half, where) for half in halves])


def make_optimizer(groups: list[dict[str, Any]], options: TrainOptions) -> torch.optim.Optimizer:
    """Return an optimizer of torch for groups of parameters."""
    import torch

    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=options.momentum)
    return (torch.optim.AdamW if options.optimizer == "adamw" else torch.optim.Adam)(groups, lr=0.0)


def saved_bytes(network: TrainableNetwork) -> int:
    """Return how many bytes autograd keeps of one image for the backward pass, by a pass of blank ones.

    Weights are kept too, the transposed ones of linear layers as views, and are not counted.
    """
    import torch

    side, device = network.backbone.preprocess.crop, next(network.parameters()).device
    weights = {value.untyped_storage().data_ptr() for value in network.parameters()}
    seen: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return value

    network.eval()
    blank = torch.zeros(2, side, side, 3, dtype=torch.uint8, device=device)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value), torch.enable_grad():
        network(blank)
    return max(sum(seen.values()) // 2, 3 * 4 * side * side)

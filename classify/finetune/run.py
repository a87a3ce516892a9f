"""One run, from pictures to a saved model."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...cache.place import Place
from ...cache.source import Source
from ...errors import TrainingError
from ...extract.device import Device
from ...extract.options import RunOptions, SpaceOptions
from ...extract.progress import progress_bar
from ..model import SavedModel
from .assembly import Assembled, assemble, frozen_part, load_for_training
from .checkpoint import Checkpoint, State, checkpoint_folder
from .groups import parameter_groups
from .inputs import Inputs
from .loader import Loader, in_order
from .loop import Hooks, Loop
from .options import HEAD, TrainOptions
from .pictures import DEV, Pictures, load_pictures
from .probe import check_same_val, fitted_anew, has_seen_dev, put_into
from .ranks import Ranks
from .rates import MOST_IMAGES, STEPS, find_rate
from .result import Finetuned
from .saving import save_finetuned
from .scoring import SAVED, score
from .stepper import Stepper

if TYPE_CHECKING:
    import torch

    from ...extract.backbone import Backbone
    from .modules import TrainableNetwork

logger = logging.getLogger("headstart.finetune")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a run was asked for, of all its stages."""

    data: Source
    out: Path
    cache: Place
    space: SpaceOptions
    run: RunOptions
    train: TrainOptions
    val_fraction: float
    layout: str
    limit: int | None
    dedupe: bool
    strict: bool
    overwrite: bool
    resume: bool


class Run:
    """One run, from pictures to a saved model."""

    def __init__(self, asked: Asked, device: Device, ranks: Ranks, stopped: Callable[[], bool]) -> None:
        self.asked, self.device, self.ranks, self.stopped = asked, device, ranks, stopped
        self.begun = time.perf_counter()

    def run(self) -> Finetuned:
        """Do all of it; errors as from `headstart.finetune`."""
        asked = self.asked
        on_dev = asked.train.select_on == DEV
        pictures = load_pictures(
            asked.data, asked.cache, asked.run, self.ranks, layout=asked.layout, limit=asked.limit,
            val_fraction=asked.val_fraction, dev_fraction=asked.train.dev_fraction if on_dev else 0.0,
            dedupe=asked.dedupe, strict=asked.strict, stopped=self.stopped,
        )  # fmt: skip
        if len(pictures.part("train")) < self.ranks.world:
            raise TrainingError(f"there are {self.ranks.world} processes and fewer training images: start fewer")
        listed = time.perf_counter() - self.begun
        backbone = load_for_training(asked.space, self.device)
        loader = Loader(backbone.preprocess, asked.run)
        try:
            return self._trained(pictures, backbone, loader, listed)
        finally:
            loader.close()

    def _trained(self, pictures: Pictures, backbone: Backbone, loader: Loader, listed: float) -> Finetuned:
        options = self.asked.train
        at = _at(self.device)
        digest = backbone.weights
        begun = assemble(backbone, pictures.classes, options, self.asked.space.weights, at)
        network = begun.network
        groups = parameter_groups(network, begun.depth, options)
        stepper = Stepper(network, groups, options, self.device, self.ranks, self._precision())
        self._say(pictures, begun, stepper)
        train, chosen_by = self._inputs(pictures, loader, network, stepper)
        checkpoint = Checkpoint(checkpoint_folder(self.asked.out), self._identity(pictures, digest))
        given = self._given(begun, pictures)
        # A checkpoint brings the head, unless it is frozen.
        if given is not None and (not self.asked.resume or options.head_multiple == 0):
            self._without_dev(given, pictures, loader, stepper)
        state = self._beginning(checkpoint, stepper, train)
        left = options.epochs - state.epoch + 1
        with progress_bar(max(1, left * len(train)), "training") as progress:
            loop = Loop(stepper, train, chosen_by, options, state.rate, checkpoint, Hooks(self.stopped, progress))
            loop.run(state)
        kept = given if state.best_epoch == 0 else None
        if kept is not None:
            put_into(network, kept)
        known = {} if chosen_by is None else {options.select_on: chosen_by}
        known |= {"train": train} if options.augment == "none" else {}
        # What frozen layers made at another precision does not go with the network as it is saved.
        known = {name: one for name, one in known.items() if stepper.precision == SAVED or not one.frozen}
        inputs = {name: known.get(name) or Inputs(loader, pictures.part(name)) for name in ("train", DEV, "val")}
        return self._finished(pictures, inputs, state, loop, listed, kept)

    def _given(self, begun: Assembled, pictures: Pictures) -> SavedModel | None:
        """Return the head to start from, if it has seen the images that choose the epoch."""
        if begun.start is None:
            return None
        check_same_val(begun.start, pictures, self.asked.val_fraction)
        seen = has_seen_dev(begun.start, pictures, self.asked.train.dev_fraction)
        return begun.start if seen else None

    def _without_dev(self, given: SavedModel, pictures: Pictures, loader: Loader, stepper: Stepper) -> None:
        """Start from a head that has not seen the images which choose the epoch."""
        subset = pictures.part("train")
        with progress_bar(len(subset), "embedding") as progress:
            scored = score(stepper, Inputs(loader, subset), self._unless_stopped(progress), precision=SAVED)
        groups = pictures.data.group[pictures.data.split == "train"]
        put_into(stepper.network, fitted_anew(given, scored, pictures.classes, groups))

    def _unless_stopped(self, progress: Callable[[int], None]) -> Callable[[int], None]:
        """Return a way to tell of progress outside of training that ends there when a user wants to stop."""

        def told(count: int) -> None:
            progress(count)
            if self.ranks.world == 1 and self.stopped():  # several would have to stop at the same place
                raise KeyboardInterrupt

        return told

    def _settings(self, stepper: Stepper) -> dict[str, Any]:
        """Return the settings as they were used, what was left open filled in."""
        options = self.asked.train
        used = {"head_lr_mult": options.head_multiple, "precision": stepper.precision}
        space = {"weights": self.asked.space.weights, **stepper.network.backbone.preprocess.as_dict()}
        return options.as_dict() | used | space

    def _precision(self) -> str:
        """Return what is computed in: mixed precision where that is asked for, or left open on an NVIDIA GPU."""
        import torch

        wanted = self.asked.train.precision
        if wanted != "auto":
            return wanted
        if self.device.kind != "cuda":
            return "float32"
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"

    def _say(self, pictures: Pictures, begun: Assembled, stepper: Stepper) -> None:
        network, depth = begun.network, begun.depth
        split = pictures.data.split
        counts = {name: int((split == name).sum()) for name in ("train", DEV, "val")}
        held = " (held out: the dataset has no validation split)" if pictures.data.held_out else ""
        dev = f", {counts[DEV]} dev (a stable part of train, by which the epoch is chosen)" if counts[DEV] else ""
        logger.info(
            "%d training%s, %d validation images%s, %d classes",
            counts["train"], dev, counts["val"], held, len(pictures.classes),
        )  # fmt: skip
        values = dict(network.body.named_parameters())
        in_head = sum(value.numel() for value in network.head.parameters())
        trained = sum(value.numel() for value in network.parameters() if value.requires_grad)
        total = sum(values[name].numel() for name in depth.parameters) + in_head
        several = f", {self.ranks.world} processes" if self.ranks.world > 1 else ""
        logger.info(
            "training %s on %s (%s%s), %s: %s of %s parameters",
            network.backbone.name, self.device.kind, self.device.name, several, stepper.precision,
            f"{trained:,}", f"{total:,}",
        )  # fmt: skip

    def _inputs(
        self, pictures: Pictures, loader: Loader, network: TrainableNetwork, stepper: Stepper
    ) -> tuple[Inputs, Inputs | None]:
        """Return what the network is trained on and chosen by; what is the same in every epoch is kept in memory."""
        options = self.asked.train
        train = Inputs(loader, pictures.part("train"), options.augment, options.seed)
        chosen_by = self._chosen_by(pictures, loader)
        if not options.keep_frozen or self.ranks.world > 1:
            return train, chosen_by
        probe = next(loader.batches(train.subset, in_order(min(2, len(train)), 2)))[1]
        network.eval()
        frozen = frozen_part(network, options, probe.to(stepper.at))
        live = options.augment != "none"
        kept = [] if live else [train]
        kept += [] if chosen_by is None else [chosen_by]
        what = "running the frozen layers once" if frozen else "decoding once"
        with progress_bar(sum(map(len, kept)), what) as shown:
            progress = self._unless_stopped(shown)
            done = [one.kept(stepper, frozen=frozen, progress=progress) for one in kept]
        return train if live else done[0], None if chosen_by is None else done[-1]

    def _chosen_by(self, pictures: Pictures, loader: Loader) -> Inputs | None:
        options = self.asked.train
        if options.select_on == "last":
            return None
        subset = pictures.part(options.select_on)
        if len(subset):
            return Inputs(loader, subset)
        if options.select_on == "val":
            raise TrainingError("--select-on val needs a validation split, and there is none: name dev or last")
        if options.patience is not None:
            raise TrainingError("--patience needs dev images, and train is too small to spare one: leave it out")
        logger.warning("train is too small for a dev split: the last epoch is taken")
        return None

    def _identity(self, pictures: Pictures, digest: str) -> dict[str, Any]:
        """Return what must be the same for a run to go on."""
        space = {name: getattr(self.asked.space, name) for name in ("backbone", "layer", "pool")}
        return {
            **space,
            **self.asked.train.as_dict(),
            "weights": digest,
            "preprocessing": str(self.asked.space.overrides()),
            "classes": list(pictures.classes),
            "images": pictures.fingerprint,
            "processes": self.ranks.world,
        }

    def _beginning(self, checkpoint: Checkpoint, stepper: Stepper, train: Inputs) -> State:
        """Return the state to train from, with the learning rate and the curve that it was read off."""
        options = self.asked.train
        if self.asked.resume:
            state, now = checkpoint.read()
            stepper.network.restore({name: now[name].to(stepper.at) for name in stepper.network.changing()})
            stepper.restore(now)
            stepper.piece = min(stepper.piece, state.piece or stepper.piece)
            logger.info("going on in epoch %d, after step %d", state.epoch, state.step)
            if options.lr not in ("auto", None):
                state.rate = options.rate
            return state
        if self.ranks.first:
            checkpoint.remove()  # of the run that --overwrite ends, or a later --resume would go on with that
        if options.lr != "auto":
            return State(rate=options.rate)
        with progress_bar(STEPS * min(MOST_IMAGES, len(train)), "range test") as progress:
            rate, curve = find_rate(stepper, train, options.seed, self._unless_stopped(progress))
        logger.info("learning rate %.2g, found by %d steps at rising rates", rate, len(curve))
        return State(rate=rate, lr_search=curve)

    def _finished(
        self, pictures: Pictures, inputs: dict[str, Inputs], state: State, loop: Loop, listed: float,
        kept: SavedModel | None,
    ) -> Finetuned:  # fmt: skip
        """Score the network that was chosen, once, and save it."""
        begin, stepper, loader = time.perf_counter(), loop.stepper, inputs["train"].loader
        with progress_bar(sum(map(len, inputs.values())), "scoring") as shown:
            progress = self._unless_stopped(shown)
            scored = {name: score(stepper, one, progress, precision=SAVED) for name, one in inputs.items()}
        loop.seconds["evaluate"] += time.perf_counter() - begin
        facts = {
            "mode": self.asked.train.train,
            "settings": self._settings(stepper),
            "widths": list(stepper.network.head_widths),
            "lr": state.rate,
            "lr_search": state.lr_search,
            "epochs": len(state.history) - 1,
            "best_epoch": state.best_epoch,
            "selected_on": self.asked.train.select_on if loop.chosen_by is not None else "last",
            "history": state.history,
        }
        saved = save_finetuned(
            self.asked.out, stepper.network, pictures, scored, facts,
            space=self.asked.space, val_fraction=self.asked.val_fraction, trains_body=self.asked.train.train != HEAD,
            overwrite=self.asked.overwrite or self.asked.resume, write=self.ranks.first, kept=kept,
            seconds=time.perf_counter() - self.begun,
        )  # fmt: skip
        if self.ranks.first:
            loop.checkpoint.remove()
        self.ranks.wait()
        stages = {"list": listed, **loader.seconds, **loop.seconds}
        return Finetuned(
            saved, self.asked.out, pictures, self.device.kind, stages, loader.workers,
            time.perf_counter() - self.begun, shown=self.ranks.first,
        )  # fmt: skip


def _at(device: Device) -> torch.device:
    import torch

    return torch.device("cuda", torch.cuda.current_device()) if device.kind == "cuda" else torch.device(device.kind)

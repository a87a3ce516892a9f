"""Train a network end to end on a dataset: choose on train, score once on validation, save a model like any other."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from ...cache.source import source_of
from ...cache.store import cache_dir
from ...errors import DeviceError, ModelError, UsageError
from ...extract.device import Device, choose_device
from ...extract.options import RunOptions, SpaceOptions
from ..dataset import held_out_share
from ..model import check_target
from ..provenance import model_folder
from .checkpoint import Checkpoint, checkpoint_folder
from .options import TrainOptions
from .ranks import Ranks
from .result import Finetuned
from .run import Asked, Run

FINETUNED = "finetuned"
_OF_SPACE = ("weights", "pool", "resize", "crop", "interpolation", "mean", "std", "seed")
_OF_RUN = ("device", "workers", "max_pixels")


def finetune(
    data: str | os.PathLike[str] = "data",
    backbone: str = "resnet18",
    *,
    layer: str | None = None,
    cache: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    layout: str = "auto",
    limit: int | None = None,
    val_fraction: float | None = None,
    dedupe: bool = False,
    strict: bool = False,
    stopped: Callable[[], bool] = lambda: False,
    **options: Any,
) -> Finetuned:
    """Train a network end to end, score it once on the validation images, and save it.

    Parameters
    ----------
    data : path, default "data"
        A dataset as `extract` takes it.
    backbone : str, default "resnet18"
    layer : str, optional
        Where the backbone ends and the head begins; the classifier's input where it is None.
    cache : path, optional
        Where it is looked up what an `extract` found out about the files. Nothing is written there.
    out : path, optional
        Folder of the model; ``models/photos-resnet18-finetuned`` say where it is None.
    overwrite : bool, default False
        Replace a model, or an unfinished run, that is there.
    resume : bool, default False
        Go on with the unfinished run that makes this model.
    layout : {"auto", "splits", "classes"}, default "auto"
    limit : int, optional
        Take only so many pictures, evenly spread over the listing.
    val_fraction : float, optional
        Share held out where the dataset has no validation split; 0.2 where it is None.
    dedupe : bool, default False
        Use one of copies, none with two labels.
    strict : bool, default False
        Raise where a picture cannot be used.
    stopped : callable, optional
        Asked after each step; when it says True the run is kept and ends.
    **options
        Fields of `TrainOptions`, and ``weights``, ``pool``, ``resize``, ``crop``, ``interpolation``, ``mean``, ``std``,
        ``device``, ``workers``, ``max_pixels`` as `extract` takes them.

    Returns
    -------
    Finetuned

    Raises
    ------
    DataError, TrainingError
        The pictures cannot be trained on; the loss is not a number any more.
    BackboneError, ModelError, DeviceError, UsageError
        As their messages say.
    KeyboardInterrupt
        `stopped` said True. ``resume=True`` goes on.
    ToldElsewhereError
        Another of the processes that train together raised what this one would have raised.
    """
    ranks = Ranks.of_environment()
    with ranks.one_voice() as voice:
        share = held_out_share(val_fraction)
        space, run, train = _options(backbone, layer, options)
        source = source_of(data)
        folder = model_folder(source.resolve(), [(backbone, layer)], FINETUNED)
        target = Path(out) if out is not None else folder
        asked = Asked(
            source, target, cache_dir(cache), space, run, train, share, layout, limit, dedupe, strict, overwrite,
            resume,
        )  # fmt: skip
        checkpoint = checkpoint_folder(target)
        check_target(target, overwrite=overwrite or resume)
        _check_unfinished(checkpoint, overwrite=overwrite, resume=resume)
        device = _device(run, ranks)
        with ranks.joined(device.kind, voice), _own_randomness(device), _told_of_interruption(checkpoint):
            return Run(asked, device, ranks, stopped).run()


def _check_unfinished(folder: Path, *, overwrite: bool, resume: bool) -> None:
    there = Checkpoint(folder, {}).there
    if there and not overwrite and not resume:
        raise ModelError(f"{folder} holds an unfinished run: pass --resume to go on, or --overwrite to begin anew")
    if resume and not there:
        raise ModelError(f"there is no unfinished run in {folder} to go on with: leave --resume out to begin one")


@contextlib.contextmanager
def _told_of_interruption(checkpoint: Path) -> Iterator[None]:
    """Say what is left of a run that was interrupted, wherever that was."""
    try:
        yield
    except KeyboardInterrupt as error:
        if error.args:
            raise
        kept = f"the run is kept in {checkpoint}: --resume goes on"
        there = Checkpoint(checkpoint, {}).there
        raise KeyboardInterrupt(f"interrupted; {kept if there else 'nothing was written'}") from error


def _options(backbone: str, layer: str | None, given: dict[str, Any]) -> tuple[SpaceOptions, RunOptions, TrainOptions]:
    names = [field.name for field in fields(TrainOptions)]
    for name in given:
        if name not in (*names, *_OF_SPACE, *_OF_RUN):
            raise UsageError(f"finetune has no option {name!r}")
    space, run, train = (
        {name: given[name] for name in wanted if name in given} for wanted in (_OF_SPACE, _OF_RUN, names)
    )
    return SpaceOptions(backbone=backbone, layer=layer, **space), RunOptions(**run), TrainOptions(**train)


def _device(run: RunOptions, ranks: Ranks) -> Device:
    import torch

    device = choose_device(run.device)
    if device.kind == "cuda":
        if ranks.local >= torch.cuda.device_count():
            raise DeviceError(f"there are {torch.cuda.device_count()} GPUs here and more processes: start one a GPU")
        torch.cuda.set_device(ranks.local)
    return device


@contextlib.contextmanager
def _own_randomness(device: Device) -> Any:
    """Let the caller's random numbers go on afterwards as if nothing had been drawn."""
    import torch

    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device.kind == "cuda" else []):
        yield

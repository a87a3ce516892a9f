"""The commands that lead to a saved model again, as a person would type them."""

from __future__ import annotations

import dataclasses
import inspect
import shlex
from collections.abc import Mapping
from typing import Any

from ...cache.place import Place
from ...cache.space import FeatureSpace
from ...errors import printable
from ...extract.options import as_words
from ...extract.registry import find
from ...extract.resolve import fewest_options
from ..dataset import VAL_FRACTION
from ..finetune.options import TrainOptions
from ..heads import HEADS
from ..model import SavedModel
from ..provenance import is_default_layer
from ..several import LabelsHead

_RENAMED = {"random_state": "seed"}
# Of the settings of a finetuned network: those that are named apart.
_APART = ("train", "seed")
_OF_PIXELS = ("resize", "crop", "interpolation", "mean", "std")


def commands_of(model: SavedModel, cache: Place) -> list[str]:
    """Return the commands, with what differs from the defaults.

    What follows from the data, such as how its folders are read, is left out.

    Parameters
    ----------
    model : SavedModel
    cache : Path or RemotePath
        The cache's folder, which knows what the defaults of a backbone lead to.
    """
    root = shlex.quote(printable(model.training["root"]))
    if "mode" in model.facts:
        return [_finetune(model, root)]
    requests = model.training.get("requests") or [{}] * len(model.spaces)
    views = model.views.words()
    with_views = f" {as_words(views)}" if views else ""
    extracts = [
        f"headstart extract {root} {fewest_options(FeatureSpace.from_dict(space), request, cache).words()}{with_views}"
        for space, request in zip(model.spaces, requests, strict=True)
    ]
    return [*dict.fromkeys(extracts), _fit_head(model, root)]


def _fit_head(model: SavedModel, root: str) -> str:
    words = [f"headstart fit-head {root}"]
    if model.kind != "logistic":
        words.append(f"--head {model.kind}")
    if len(model.spaces) > 1:
        joined = [f"{space['backbone']}:{space['layer']}" for space in model.spaces]
        words += [f"--features {shlex.quote(name)}" for name in joined]
    head = LabelsHead if model.multi_label else HEADS[model.kind]
    defaults = {name: parameter.default for name, parameter in inspect.signature(head).parameters.items()}
    words += _options(model.facts.get("settings", {}), defaults)
    return " ".join(words + _of_data(model))


def _finetune(model: SavedModel, root: str) -> str:
    settings, space = model.facts["settings"], model.spaces[0]
    words = [f"headstart finetune {root} --backbone {shlex.quote(space['backbone'])}"]
    if settings["weights"] != "default":
        words.append(f"--weights {shlex.quote(settings['weights'])}")
    if not is_default_layer(space["layer"]):
        words.append(f"--layer {shlex.quote(space['layer'])}")
    own = find(space["backbone"]).preprocess().as_dict()
    words += _options({name: settings[name] for name in _OF_PIXELS if name in settings}, own)
    if settings.get("train", "all") != "all":
        words.append(f"--train {shlex.quote(settings['train'])}")
    defaults = {item.name: item.default for item in dataclasses.fields(TrainOptions) if item.name not in _APART}
    # What was left open was filled in: it follows from the rest, as does the precision from the device.
    given = {name: value for name, value in settings.items() if name in defaults}
    filled = [name for name in ("head_lr_mult", "precision") if name in given]
    words += _options({name: value for name, value in given.items() if name not in filled}, defaults)
    if model.training.get("seed"):
        words.append(f"--seed {model.training['seed']}")
    return " ".join(words + _of_data(model))


def _of_data(model: SavedModel) -> list[str]:
    """Return the options that say how the data was divided."""
    training, words = model.training, []
    if training.get("held_out") not in (None, VAL_FRACTION):
        words.append(f"--val-fraction {training['held_out']:g}")
    if training.get("dedupe") is not None:
        words.append("--dedupe")
    if training.get("near_copies", "auto") != "auto" and "mode" not in model.facts:
        words.append(f"--near-copies {training['near_copies']}")
    return words


def _options(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """Return those settings as options that differ from their defaults."""
    words = []
    for name, value in settings.items():
        if name not in defaults or _plain(value) == _plain(defaults[name]):
            continue
        option = f"--{_RENAMED.get(name, name).replace('_', '-')}"
        if isinstance(value, bool):
            words.append(option if value else f"--no-{option.removeprefix('--')}")
        else:
            # Each layer of a network has an option of its own; several values to try share one.
            values = value if name == "hidden" else ["none" if value is None else value]
            words += [f"{option} {shlex.quote(_word(item))}" for item in values]
    return words


def _plain(value: Any) -> Any:
    """Return a value as JSON has it, so that settings that were saved compare equal to those that were not."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _word(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

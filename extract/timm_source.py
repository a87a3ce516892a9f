"""Backbones of timm, with weights from the Hugging Face hub as safetensors only."""

from __future__ import annotations

import math
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BackboneError, WeightsNotFoundError
from .loading import parameters_on_meta
from .preprocess import Preprocess
from .taps import find_classifier
from .weights import one_line

if TYPE_CHECKING:
    from torch import Tensor, nn

PREFIX = "timm/"
_PROBE_TIMEOUT = 5.0
# The safetensors twin of each name under which the hub keeps weights.
_SAFE_NAMES = {
    None: "model.safetensors",
    "pytorch_model.bin": "model.safetensors",
    "open_clip_pytorch_model.bin": "open_clip_model.safetensors",
}


@dataclass(frozen=True, slots=True)
class TimmSource:
    """A model of timm, named ``timm/NAME`` or ``timm/NAME.TAG``, where the tag chooses among its weights."""

    name: str
    library: str = "timm"

    @property
    def model(self) -> str:
        """The name inside timm."""
        return self.name.removeprefix(PREFIX)

    def empty(self) -> nn.Module:
        """See `Source`."""
        with parameters_on_meta():
            return self.fresh()

    def fresh(self) -> nn.Module:
        """See `Source`."""
        import timm

        network: nn.Module = timm.create_model(self.model, pretrained=False)
        return network

    def pretrained(self) -> nn.Module:
        """See `Source`."""
        import timm
        from safetensors import SafetensorError

        # timm is handed a file that is no pickle, so that none of its ways to unpickle one is taken.
        path = self.download()
        try:
            network: nn.Module = timm.create_model(
                self.model, pretrained=True, pretrained_cfg_overlay={"file": str(path)}
            )
        except (SafetensorError, RuntimeError, KeyError, OSError) as error:
            raise BackboneError(
                f"the weights {path} do not load into {self.name}: {one_line(error)}; delete that file and fetch it"
                f" again with `headstart backbones --download {self.name}`"
            ) from error
        return network

    def adapt(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Source`."""
        return dict(state)

    def classifier(self, network: nn.Module) -> str:
        """See `Source`."""
        named = self._config().classifier
        named = named[0] if isinstance(named, tuple | list) else named
        if named and named in dict(network.named_modules()):
            return str(named)
        return find_classifier(network, self.name)

    def preprocess(self) -> Preprocess:
        """See `Source`."""
        from timm.data.config import resolve_data_config

        config: dict[str, Any] = resolve_data_config(pretrained_cfg=self._config().to_dict())  # type: ignore[no-untyped-call]
        channels, high, wide = config["input_size"]
        if (channels, high) != (3, wide) or config["crop_mode"] not in ("center", "squash"):
            raise BackboneError(
                f"{self.name} wants {channels} x {high} x {wide} input by {config['crop_mode']} crop, headstart makes"
                " square colour images by centre crop; choose another backbone"
            )
        side = math.floor(high / config["crop_pct"])
        return Preprocess(
            resize=(side, side) if config["crop_mode"] == "squash" else side,
            crop=high,
            interpolation=config["interpolation"],
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
        )

    def licence(self) -> str:
        """See `Source`."""
        return self._config().license or "see model card"

    def weights_here(self) -> bool:
        """See `Source`."""
        from huggingface_hub import try_to_load_from_cache

        if not self._config().hf_hub_id:
            return False
        repository, revision = self._repository()
        return isinstance(try_to_load_from_cache(repository, self._file_name(), revision=revision), str)

    def download(self) -> Path:
        """See `Source`.

        Raises
        ------
        WeightsNotFoundError
            Neither in the hub's local folder nor to be had.
        BackboneError
            The hub has no weights of this model, or only pickled ones.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        repository, revision = self._repository()
        name = self._file_name()
        try:
            return Path(hf_hub_download(repository, name, revision=revision, local_files_only=True))
        except LocalEntryNotFoundError:
            self._reach_hub(repository, name)
        try:
            return Path(hf_hub_download(repository, name, revision=revision))
        except LocalEntryNotFoundError as error:
            raise self._not_found(repository, name, one_line(error)) from error
        except EntryNotFoundError as error:
            raise self._pickled() from error
        except OSError as error:
            raise self._not_found(repository, name, one_line(error)) from error

    def _reach_hub(self, repository: str, name: str) -> None:
        # The hub's client tries for most of a minute before it reports that there is no network.
        from huggingface_hub import constants, hf_hub_url

        if constants.HF_HUB_OFFLINE:
            raise self._not_found(repository, name, "HF_HUB_OFFLINE is set")
        request = urllib.request.Request(hf_hub_url(repository, name), method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=_PROBE_TIMEOUT).close()
        except urllib.error.HTTPError as answer:
            # Whatever it says, the hub is there; its own client knows what to make of it.
            answer.close()
        except OSError as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise self._not_found(repository, name, one_line(reason)) from error

    def _not_found(self, repository: str, name: str, reason: str) -> WeightsNotFoundError:
        from huggingface_hub import constants

        return WeightsNotFoundError(
            f"the weights {name} of {repository} are not in {constants.HF_HUB_CACHE} and could not be downloaded:"
            f" {reason}; run `headstart backbones --download {self.name}` on a machine with a network and copy its"
            f" folder models--{repository.replace('/', '--')} there, or give a copy with --weights FILE"
        )

    def _pickled(self) -> BackboneError:
        return BackboneError(
            f"{self.name} has no weights as safetensors on the Hugging Face hub, and pickled ones are not fetched;"
            " convert them and give them with --weights FILE, or choose another backbone"
        )

    def _repository(self) -> tuple[str, str | None]:
        identity = self._config().hf_hub_id
        if not identity:
            raise self._pickled()
        repository, _, revision = identity.partition("@")
        return repository, revision or None

    def _file_name(self) -> str:
        name = self._config().hf_hub_filename
        if name in _SAFE_NAMES:
            return _SAFE_NAMES[name]
        return name if name.endswith(".safetensors") else str(Path(name).with_suffix(".safetensors"))

    def _config(self) -> Any:
        from timm.models import get_pretrained_cfg

        return get_pretrained_cfg(self.model)

"""What this machine can do: versions, devices, decoders, and where weights are found."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

from .. import __version__
from ..cache.store import cache_dir
from .decode import versions as decoder_versions
from .device import available_cores
from .resolve import library_versions


@dataclass(frozen=True, slots=True)
class Examination:
    """The findings, group by group."""

    groups: dict[str, dict[str, str]]
    on_stdout: ClassVar[bool] = True

    def summary(self) -> dict[str, Any]:
        """Return the fields of ``doctor --json``."""
        return dict(self.groups)

    def lines(self) -> list[str]:
        """Return the findings, one a line."""
        lines = []
        for title, facts in self.groups.items():
            lines += [title] + [f"  {name:<14} {value}" for name, value in facts.items()]
        return lines


def examine() -> Examination:
    """Look at this machine. Takes seconds, since torch has to be asked for its devices."""
    import torch

    system = {
        "headstart": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cores": str(available_cores()),
    }
    decoders = {"JPEG": "simplejpeg", "PNG, WebP, ...": "Pillow", "HEIC": 'no: pip install "headstart[heif]"'}
    if "pillow-heif" in decoder_versions():
        decoders["HEIC"] = "pillow-heif"
    devices = {
        "cpu": f"{available_cores()} cores, {torch.backends.cpu.get_cpu_capability()}",
        "cuda": "no",
        "mps": "no",
    }
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        devices["cuda"] = ", ".join(gpus)
    if torch.backends.mps.is_available():
        devices["mps"] = "yes"
    places = {"cache": str(cache_dir()), "torch hub": torch.hub.get_dir(), "packaged": "efficientnet_lite0"}
    versions = {**library_versions(), **decoder_versions()}
    return Examination(
        {"system": system, "versions": versions, "devices": devices, "decoders": decoders, "places": places}
    )

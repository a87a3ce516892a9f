"""The list of backbones that can be used, for people and programs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import BackboneError
from .registry import BackboneInfo, describe, download, names


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Backbones with width, parameters, input size, licence, and whether their weights are on this machine."""

    rows: tuple[BackboneInfo, ...]
    on_stdout: ClassVar[bool] = True

    def summary(self) -> dict[str, Any]:
        """Return the fields of ``backbones --json``."""
        return {"backbones": [dataclasses.asdict(row) for row in self.rows]}

    def lines(self) -> list[str]:
        """Return a table."""
        head = f"{'name':<32} {'width':>6} {'parameters':>11} {'input':>5}  {'weights':<8} licence"
        return [head] + [
            f"{row.name:<32} {row.dim:>6} {row.parameters / 1e6:>9.1f} M {row.input_size:>5}  "
            f"{'here' if row.weights_here else 'download':<8} {row.licence}"
            for row in self.rows
        ]


def catalogue(pattern: str = "") -> Catalogue:
    """Return the backbones whose name contains `pattern`.

    Raises
    ------
    BackboneError
        There is none.
    """
    found = [name for name in names(pattern) if pattern.lower() in name.lower()]
    if not found:
        raise BackboneError(f"no backbone's name contains {pattern!r}; `headstart backbones` lists all")
    return Catalogue(tuple(describe(name) for name in found))


@dataclass(frozen=True, slots=True)
class Download:
    """Weights that are on this machine now."""

    name: str
    path: str

    def summary(self) -> dict[str, Any]:
        """Return the fields of ``backbones --download --json``."""
        return {"name": self.name, "path": self.path}

    def lines(self) -> list[str]:
        """Return the same for people."""
        return [f"the weights of {self.name} are in {self.path}"]


def download_weights(name: str) -> Download:
    """Fetch the default weights of a backbone, where they are not on this machine yet.

    Raises
    ------
    WeightsNotFoundError
        They cannot be had.
    """
    return Download(name, str(download(name)))

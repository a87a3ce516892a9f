"""Weights from files: reading state dicts without running code, their digest, and the libraries' own downloads."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import os
import re
import secrets
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..errors import BackboneError, WeightsNotFoundError

if TYPE_CHECKING:
    from torch import Tensor

PICKLED_SUFFIXES = (".pt", ".pth")
# Before this, `torch.load(weights_only=True)` had holes through which a file could run code.
_SAFE_TORCH = (2, 10)
_NETWORK_TIMEOUT = 20.0
_BLOCK = 1 << 20


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a ``.safetensors``, ``.pt`` or ``.pth`` file onto the CPU, running none of its code.

    The only place where headstart lets torch unpickle, and only with ``weights_only=True``.

    Parameters
    ----------
    path : Path
        The file. A dict under "state_dict" or "model", as training scripts save, is unwrapped.

    Returns
    -------
    dict of str to Tensor
        With the file's dtypes.

    Raises
    ------
    WeightsNotFoundError
        No such file.
    BackboneError
        Another kind of file, a damaged one, one that holds code or anything but tensors; or torch before 2.10.
    """
    return read_with_stat(path)[0]


def read_with_stat(path: Path) -> tuple[dict[str, Tensor], os.stat_result]:
    """Read tensors as `read_state_dict` does, and say of what file.

    Returns
    -------
    state : dict of str to Tensor
    stat : os.stat_result
        Of the very file that was read, whatever its name led to before or leads to now.
    """
    if not path.is_file():
        found = "it is a folder" if path.is_dir() else "no such file"
        raise WeightsNotFoundError(f"cannot read weights from {path}: {found}; give the path of a .safetensors file")
    if path.suffix not in (".safetensors", *PICKLED_SUFFIXES):
        raise BackboneError(f"cannot read weights from {path}: the name must end in .safetensors, .pt or .pth")
    try:
        with path.open("rb") as file:
            stat, data = os.fstat(file.fileno()), file.read()
    except OSError as error:
        raise BackboneError(f"cannot read weights from {path}: {one_line(error)}") from error
    state = _read_safetensors(path, data) if path.suffix == ".safetensors" else _read_pickled(path, data)
    return _only_tensors(path, state), stat


def weights_digest(named: Iterable[tuple[str, Tensor]]) -> str:
    r"""Return the SHA-256 that identifies weights by their values, 64 hex digits.

    Hashed per tensor, in the order of the names: the JSON of ``[name, dtype, shape]`` and a newline, then the values
    in row-major order, little-endian. The JSON holds no newline and fixes how many bytes follow, so no two sets of
    tensors give the same stream. Memory format, device and gradients do not count.

    Parameters
    ----------
    named : iterable of (str, Tensor)
        In any order, as from ``state_dict().items()``.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(named, key=lambda item: item[0]):
        header = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        digest.update(json.dumps(header).encode("ascii") + b"\n")
        digest.update(_little_endian(tensor))
    return digest.hexdigest()


def checkpoint_path(url: str) -> Path:
    """Return where torch keeps the file that `url` names: TORCH_HOME or its default, under ``hub/checkpoints``."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urllib.parse.urlparse(url).path).name


def fetch(url: str, *, backbone: str) -> Path:
    """Return the checked local file of a library's weights, downloading it where it is not here yet.

    Parameters
    ----------
    url : str
        Where the library publishes it; a name such as ``resnet18-f37072fd.pth`` carries the start of its SHA-256.
    backbone : str
        Name of the backbone, for messages.

    Raises
    ------
    WeightsNotFoundError
        Not here and not to be had: no network, or what came has another hash.
    BackboneError
        Here, but its bytes do not match the hash in its name.
    """
    path = checkpoint_path(url)
    if not path.is_file():
        _download(url, path, backbone)
    else:
        check_hash(path, f"delete it and run `headstart backbones --download {backbone}`")
    return path


def check_hash(path: Path, advice: str) -> None:
    """Compare a file with the start of the SHA-256 that its name carries, if any.

    Raises
    ------
    BackboneError
        The bytes are others than the name says; `advice` ends the message.
    """
    wanted = hash_prefix(path.name)
    if wanted is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(wanted):
        raise BackboneError(
            f"the weights {path} are damaged or incomplete: SHA-256 {found[: len(wanted)]}, wanted {wanted}; {advice}"
        )


def hash_prefix(name: str) -> str | None:
    """Return the start of the SHA-256 in a file name such as ``resnet18-f37072fd.pth``, or None."""
    match = re.search(r"-([0-9a-f]{6,64})\.\w+$", name)
    return match.group(1) if match else None


def one_line(error: object) -> str:
    """Return what an error says, or else its type, on one line of at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def _read_safetensors(path: Path, data: bytes) -> Mapping[str, Any]:
    from safetensors.torch import load

    try:
        return {name: tensor.clone() for name, tensor in load(data).items()}  # copied: the bytes cannot be written
    except Exception as error:
        raise BackboneError(
            f"cannot read weights from {path}: {one_line(error)}; it is damaged or no safetensors file, fetch it again"
        ) from error


def _read_pickled(path: Path, data: bytes) -> Mapping[str, Any]:
    import torch

    _require_safe_torch(torch.__version__, path)
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file made to mislead or cut short sets off in the unpickler
        raise BackboneError(f"cannot read weights from {path}: {_pickle_reason(error)}") from error
    if not isinstance(content, Mapping):
        raise BackboneError(
            f"cannot read weights from {path}: it holds a {type(content).__name__}, wanted a dict of tensors;"
            " save the network's state_dict()"
        )
    for wrapper in ("state_dict", "model"):
        if isinstance(content.get(wrapper), Mapping):
            inner: Mapping[str, Any] = content[wrapper]
            return inner
    return content


def _require_safe_torch(version: str, path: Path) -> None:
    major, minor = (int(part) for part in re.findall(r"\d+", version)[:2])
    if (major, minor) < _SAFE_TORCH:
        wanted = ".".join(str(part) for part in _SAFE_TORCH)
        raise BackboneError(
            f"cannot read weights from {path}: pickled weights need torch {wanted} or newer, this is {version};"
            " upgrade torch or give a .safetensors file"
        )


def _pickle_reason(error: BaseException) -> str:
    refused = re.search(r"GLOBAL (\S+)|Unsupported (?:class|operand|global) (\S+)", str(error))
    if refused or "weights_only" in str(error) or "Weights only" in str(error):
        named = next((part for part in refused.groups() if part), "") if refused else ""
        what = f"it holds code or objects ({named})" if named else "it holds code or objects, or is no state dict"
        return f"{what}, which is never run; save only the state_dict(), as .safetensors"
    return f"{one_line(error)}; it is damaged or incomplete, fetch it again"


def _only_tensors(path: Path, state: Mapping[str, Any]) -> dict[str, Tensor]:
    import torch

    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            raise BackboneError(
                f"cannot read weights from {path}: {name!r} is a {type(value).__name__}, wanted a dense tensor;"
                " save only the state_dict()"
            )
    if not state:
        raise BackboneError(f"cannot read weights from {path}: it holds no tensors; save the network's state_dict()")
    return dict(state)


def _little_endian(tensor: Tensor) -> bytes | memoryview:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    values = flat.view(torch.uint8).numpy()
    if sys.byteorder == "big":
        return values.reshape(-1, tensor.element_size())[:, ::-1].tobytes()
    return values.data


def _download(url: str, path: Path, backbone: str) -> None:
    # Under another name until complete and checked, so that the final name never holds half a file. Not torch.hub's
    # own download, which has no time limit: a firewall that drops packets would hold it for minutes.
    partial = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        request = urllib.request.Request(url, headers={"User-Agent": "headstart"})
        with urllib.request.urlopen(request, timeout=_NETWORK_TIMEOUT) as answer, partial.open("xb") as file:
            found = _copy(answer, file, path.name)
        _check_download(found, path.name)
        partial.replace(path)
    except (OSError, http.client.HTTPException) as error:
        raise WeightsNotFoundError(_not_found(url, path, backbone, error)) from error
    finally:
        partial.unlink(missing_ok=True)


def _copy(answer: Any, file: IO[bytes], name: str) -> str:
    from tqdm import tqdm

    length = int(answer.headers.get("Content-Length") or 0)
    digest, received = hashlib.sha256(), 0
    with tqdm(total=length or None, desc=name, unit="B", unit_scale=True, disable=None, leave=False) as bar:
        while block := answer.read(_BLOCK):
            file.write(block)
            digest.update(block)
            received += len(block)
            bar.update(len(block))
    if received < length:
        raise http.client.HTTPException(f"the connection ended after {received} of {length} bytes")
    return digest.hexdigest()


def _check_download(found: str, name: str) -> None:
    wanted = hash_prefix(name)
    if wanted is not None and not found.startswith(wanted):
        raise http.client.HTTPException(f"what came has SHA-256 {found[: len(wanted)]}")


def _not_found(url: str, path: Path, backbone: str, error: BaseException) -> str:
    reason = one_line(error.reason if isinstance(error, urllib.error.URLError) else error)
    wanted = hash_prefix(path.name)
    hashed = f" (SHA-256 {wanted}...)" if wanted else ""
    return (
        f"the weights {path.name}{hashed} of {backbone} are not in {path.parent} and could not be downloaded from"
        f" {url}: {reason}; run `headstart backbones --download {backbone}` on a machine with a network and copy the"
        " file into that folder, or give a copy with --weights FILE"
    )

"""The calls by which a process changes files, each handed to a test before it happens.

Product code calls `os.write`, `os.fsync`, `os.replace` and so on by those names, so a test can stand in between: to
count them, to die at one of them, to make one fail, or to write down what each did. A way round the watched calls
(`open(path, "w")`, HDF5's own writes, `os.truncate`) would make such a test blind, so Python's audit events are
listened to as well: a change of the watched folder that did not come through a watched call raises.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# `open` counts only where it may create a file or write to one; `remove` is another name of `unlink`.
CALLS = {name: name for name in ("open", "write", "fsync", "replace", "rename", "link", "mkdir", "unlink", "rmdir")}
CALLS["remove"] = "unlink"
# What nobody here has taught the tests to follow. Product code that begins to use one must teach them first.
STRANGERS = ("truncate", "ftruncate", "symlink", "pwrite", "writev", "pwritev", "sendfile", "copy_file_range")
CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
READS = {"os.listdir", "os.scandir"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass(frozen=True, slots=True)
class Call:
    """One call that is about to happen: `go` lets it."""

    name: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    real: Callable[..., Any]

    def go(self) -> Any:
        return self.real(*self.arguments, **self.options)

    def __str__(self) -> str:
        shown = [str(Path(a).name) if isinstance(a, str | os.PathLike) else "…" for a in self.arguments[:2]]
        return f"{self.name}({', '.join(shown)})"


Handler = Callable[[Call], Any]


class _Guard(threading.local):
    """Whether this thread is inside a watched call."""

    inside = False


_guard = _Guard()
_one_at_a_time = threading.Lock()
_folder = ""  # what is watched; empty: nothing is
_listening = False
_on_read: Callable[[], None] | None = None


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    """Refuse changes that come by another way. An audit hook stays for good, so this one sleeps most of the time."""
    if not _folder or _guard.inside or event not in CHANGES | READS:
        return
    path, *rest = arguments
    if isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(_folder):
        mode, flags = rest[:2] if event == "open" else ("r" if event in READS else "w", 0)
        if _on_read:
            _on_read()
        elif set(mode or "") & set("wax+") or (mode is None and flags & WRITING):
            raise AssertionError(f"{event} changes {path!r} behind the back of the watched calls")


@contextlib.contextmanager
def watched(folder: Path, handler: Handler) -> Iterator[None]:
    """Hand each call that changes something below `folder` to `handler`, which returns what the caller shall get."""
    originals = {name: getattr(os, name) for name in (*CALLS, *STRANGERS) if hasattr(os, name)}
    for name, real in originals.items():
        setattr(os, name, _replacement(name, real, handler))
    try:
        with _heard(folder):
            yield
    finally:
        for name, real in originals.items():
            setattr(os, name, real)


@contextlib.contextmanager
def reads_heard(folder: Path, handler: Callable[[], None]) -> Iterator[None]:
    """Call `handler` before each file below `folder` is opened and each folder there listed, by whatever call."""
    global _on_read
    _on_read = handler
    try:
        with _heard(folder):
            yield
    finally:
        _on_read = None


@contextlib.contextmanager
def _heard(folder: Path) -> Iterator[None]:
    global _folder, _listening  # the audit hook has no other way to know
    if not _listening:
        sys.addaudithook(_hear)
        _listening = True
    _folder = str(folder)
    try:
        yield
    finally:
        _folder = ""


@contextlib.contextmanager
def unwatched() -> Iterator[None]:
    """Let calls of all threads through, within a handler: what is done then is another process's."""
    global _folder
    before, _folder = _folder, ""
    try:
        yield
    finally:
        _folder = before


def _concerns(subject: Any) -> bool:
    """Tell whether a path, or an open file, lies in the watched folder."""
    path = f"/proc/self/fd/{subject}" if isinstance(subject, int) else os.fsdecode(subject)
    return (str(Path(path).readlink()) if isinstance(subject, int) else path).startswith(_folder)


def _replacement(name: str, real: Callable[..., Any], handler: Handler) -> Callable[..., Any]:
    def stand_in(*arguments: Any, **options: Any) -> Any:
        if _guard.inside or not _folder:  # the handler's own calls
            return real(*arguments, **options)
        if name == "open" and not (arguments[1] if len(arguments) > 1 else options["flags"]) & WRITING:
            return real(*arguments, **options)
        if not _concerns(arguments[0] if arguments else next(iter(options.values()))):
            return real(*arguments, **options)
        assert name in CALLS, f"os.{name} is a call that the tests cannot follow"
        assert not {"dir_fd", "src_dir_fd", "dst_dir_fd"} & set(options), "folders by descriptor cannot be followed"
        with _one_at_a_time:
            _guard.inside = True
            try:
                return handler(Call(CALLS[name], arguments, options, real))
            finally:
                _guard.inside = False

    return stand_in

"""What a power loss may leave of a folder: a recorded log of changes, and a model of the disk to replay it on.

`record` writes down, while real work runs, each file and folder that is made, each write with its bytes, each rename,
removal and fsync. `Disk` replays the log up to a crash point and then says what could be found afterwards.

The model, which is harsher than the file systems that we know:

- An fsync of a file makes the bytes durable that it holds at that moment, and its length; nothing else does.
- An fsync of a folder makes the names in it durable as they are at that moment; nothing else does. In particular an
  fsync of a file does not make its name durable, nor that of a folder above it (ext4, XFS and btrfs are kinder).
- A change of a name (made, renamed, removed) that no fsync of its folder has followed may have happened or not, each
  independently of all others, whatever their order. A rename is two changes, so both names may be found, or neither;
  journalling file systems rule out "neither".
- Bytes that no fsync of their file has followed: each sector of 512 bytes may be new, old (zeros where there was
  nothing) or rubbish, each independently; the length may be any from the durable one to the present one.
- A file whose name is durable and whose bytes are not may therefore be empty, cut, zeros or rubbish.
- A folder whose own name is lost takes all that is below it along.

What it does not model: a disk that lies about fsync; durable bytes that rot; one sector half written; several writes to
one sector between two fsyncs, of which any may be the one that is found (only the last is tried; nothing in the cache
writes a byte twice). Times, modes and extended attributes are not followed. Work that is recorded runs in one process.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from watched import Call, watched

SECTOR = 512
# The extremes; any other name of a state is drawn at random.
EXTREMES = ("nothing pending", "names without bytes", "names with zeros", "bytes without names", "everything")


@dataclass(eq=False, slots=True)
class File:
    """Bytes as the running system sees them, and as the disk is bound to have them."""

    content: bytearray = field(default_factory=bytearray)
    durable: bytes = b""

    def sync(self) -> None:
        self.durable = bytes(self.content)


@dataclass(eq=False, slots=True)
class Folder:
    """Names that the disk is bound to have, and the changes since, each a name and what it stands for (None: gone).

    `live` is what the running system sees.
    """

    durable: dict[str, "File | Folder"] = field(default_factory=dict)
    live: dict[str, "File | Folder"] = field(default_factory=dict)
    pending: list[tuple[str, "File | Folder | None"]] = field(default_factory=list)

    def sync(self) -> None:
        self.durable, self.pending = dict(self.live), []

    def entries(self, happened: Callable[[], bool]) -> dict[str, "File | Folder"]:
        """Return the names that are found where `happened` decides on each pending change."""
        result = dict(self.durable)
        for name, node in self.pending:
            if happened():
                _set(result, name, node)
        return result

    def enter(self, name: str, node: "File | Folder | None") -> None:
        self.pending.append((name, node))
        _set(self.live, name, node)


def _set(entries: dict[str, "File | Folder"], name: str, node: "File | Folder | None") -> None:
    entries.pop(name, None)
    if node is not None:
        entries[name] = node


@dataclass(frozen=True, slots=True)
class Change:
    """One line of the log. Files and folders go by their inode number; a folder's name is (inode, name)."""

    kind: str
    inode: int = 0
    name: tuple[int, str] = (0, "")
    other: tuple[int, str] = (0, "")
    offset: int = 0
    data: bytes = b""
    words: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = self.other[1] or self.name[1]
        return f"{self.kind} {where or self.inode or ''}".strip()


class Recorder:
    """Writes down each watched call that succeeds, and what the work acknowledges."""

    def __init__(self) -> None:
        self.log: list[Change] = []

    def acknowledge(self, words: list[str]) -> None:
        self.log.append(Change("acknowledge", words=tuple(words)))

    def __call__(self, call: Call) -> Any:
        return getattr(self, call.name)(call, *call.arguments)

    def open(self, call: Call, path: str, flags: int, *_: Any) -> int:
        assert not flags & (os.O_APPEND | os.O_TRUNC), "appending and cutting cannot be followed"
        new = not os.path.lexists(path)
        descriptor: int = call.go()
        if new:
            self.log.append(Change("create", os.fstat(descriptor).st_ino, _name(path)))
        return descriptor

    def write(self, call: Call, descriptor: int, data: Any) -> int:
        offset = os.lseek(descriptor, 0, os.SEEK_CUR)
        count: int = call.go()
        written = bytes(memoryview(data).cast("B")[:count])
        self.log.append(Change("write", os.fstat(descriptor).st_ino, offset=offset, data=written))
        return count

    def fsync(self, call: Call, descriptor: int) -> None:
        call.go()
        self.log.append(Change("fsync", os.fstat(descriptor).st_ino))

    def mkdir(self, call: Call, path: str, *_: Any) -> None:
        call.go()
        self.log.append(Change("mkdir", Path(path).stat().st_ino, _name(path)))

    def replace(self, call: Call, source: str, target: str) -> None:
        call.go()
        self.log.append(Change("rename", name=_name(source), other=_name(target)))

    rename = replace

    def link(self, call: Call, source: str, target: str) -> None:
        call.go()
        self.log.append(Change("link", Path(source).stat().st_ino, _name(target)))

    def unlink(self, call: Call, path: str) -> None:
        call.go()
        self.log.append(Change("remove", name=_name(path)))

    rmdir = unlink


def _name(path: str | os.PathLike[str]) -> tuple[int, str]:
    folder, name = os.path.split(os.fspath(path))
    return Path(folder).stat().st_ino, name


def record(base: Path, work: Callable[[Callable[[list[str]], None]], None]) -> list[Change]:
    """Run `work`, which changes things below `base` and acknowledges what is safe; return the log."""
    recorder = Recorder()
    with watched(base, recorder):
        work(recorder.acknowledge)
    return recorder.log


class Disk:
    """The folder `base` as it is now, all of it durable, and then what a log does to it."""

    def __init__(self, base: Path) -> None:
        self._nodes: dict[int, File | Folder] = {}
        self.root = self._scan(base)

    def _scan(self, path: Path) -> File | Folder:
        inode = path.stat().st_ino
        if path.is_dir():
            entries = {entry.name: self._scan(entry) for entry in path.iterdir()}
            self._nodes[inode] = Folder(durable=dict(entries), live=entries)
        else:
            data = path.read_bytes()
            self._nodes[inode] = File(bytearray(data), data)
        return self._nodes[inode]

    def replay(self, change: Change) -> None:
        """Do what one line of the log says."""
        if change.kind in ("create", "mkdir"):
            self._nodes[change.inode] = File() if change.kind == "create" else Folder()
            self._enter(change.name, self._nodes[change.inode])
        elif change.kind == "link":
            self._enter(change.name, self._nodes[change.inode])
        elif change.kind == "rename":
            self._enter(change.other, self._folder(change.name).live[change.name[1]])
            self._enter(change.name, None)
        elif change.kind == "remove":
            self._enter(change.name, None)
        elif change.kind == "fsync":
            self._nodes[change.inode].sync()
        elif change.kind == "write":
            file = self._nodes[change.inode]
            assert isinstance(file, File)
            file.content.extend(bytes(max(0, change.offset - len(file.content))))
            file.content[change.offset : change.offset + len(change.data)] = change.data
        else:
            assert change.kind == "acknowledge", change.kind

    def _folder(self, name: tuple[int, str]) -> Folder:
        folder = self._nodes[name[0]]
        assert isinstance(folder, Folder)
        return folder

    def _enter(self, name: tuple[int, str], node: File | Folder | None) -> None:
        self._folder(name).enter(name[1], node)

    def move(self, base: Path) -> None:
        """Lay out what the running system sees as a new folder `base`; what was pending still is, there.

        So a second process can go on where a killed one stopped, without a power loss in between.
        """
        self._nodes = {}
        self._put(self.root, base)

    def _put(self, node: File | Folder, path: Path) -> None:
        if isinstance(node, File):
            path.write_bytes(node.content)
        else:
            path.mkdir()
            for name, child in node.live.items():
                self._put(child, path / name)
        self._nodes[path.stat().st_ino] = node

    def after_power_loss(self, state: str, seed: int) -> dict[str, bytes | None]:
        """Return what may be found: the bytes of each path, None for a folder."""
        return dict(_Aftermath(state, np.random.default_rng(seed)).walk(self.root, ""))


class _Aftermath:
    def __init__(self, state: str, rng: np.random.Generator) -> None:
        self._state = state
        self._rng = rng
        # Some random states lose nearly all that is pending, some nearly nothing: a fair coin seldom does either.
        self._luck = rng.choice([0.1, 0.5, 0.9])
        self._chosen: dict[int, bytes] = {}  # a file under two names has the same bytes under both

    def walk(self, node: File | Folder, path: str) -> Iterator[tuple[str, bytes | None]]:
        if isinstance(node, File):
            if id(node) not in self._chosen:
                self._chosen[id(node)] = self._bytes(node)
            yield path, self._chosen[id(node)]
            return
        yield path, None
        for name, child in sorted(node.entries(self._happened).items()):
            yield from self.walk(child, f"{path}/{name}" if path else name)

    def _happened(self) -> bool:
        if self._state in EXTREMES:
            return self._state.startswith(("names", "everything"))
        return bool(self._rng.random() < self._luck)

    def _bytes(self, file: File) -> bytes:
        new, old = bytes(file.content), file.durable
        if new == old or self._state in ("nothing pending", "names without bytes"):
            return old
        if self._state == "names with zeros":
            return old.ljust(len(new), b"\0")
        if self._state in EXTREMES:
            return new
        low, high = sorted((len(old), len(new)))
        length = int(self._rng.choice([low, high, self._rng.integers(low, high + 1)]))
        return b"".join(self._sector(old, new, start) for start in range(0, length, SECTOR))[:length]

    def _sector(self, old: bytes, new: bytes, start: int) -> bytes:
        before = old[start : start + SECTOR].ljust(SECTOR, b"\0")
        after = new[start : start + SECTOR].ljust(SECTOR, b"\0")
        if after == before:
            return before
        return (before, after, self._rng.bytes(SECTOR))[self._rng.integers(3)]


def crash_states(
    disk: Disk, log: list[Change], draws: int, seed: int
) -> Iterator[tuple[str, set[str], dict[str, bytes | None]]]:
    """Yield the distinct states that a power loss may leave, before the first change and after each.

    Each comes with the words that say when and how, and with what the work had acknowledged by then. States are the
    extremes and `draws` random ones for each point.
    """
    acknowledged: set[str] = set()
    seen: set[bytes] = set()
    for number, change in enumerate([None, *log]):
        if change is not None:
            disk.replay(change)
            acknowledged |= set(change.words)
        for draw, state in enumerate((*EXTREMES, *(f"draw {n}" for n in range(draws)))):
            found = disk.after_power_loss(state, seed * 1_000_003 + number * 1_009 + draw)
            print_of_it = hashlib.sha256(repr((sorted(acknowledged), sorted(found.items()))).encode()).digest()
            if print_of_it not in seen:
                seen.add(print_of_it)
                yield f"after change {number} ({change or 'none'}), {state}", set(acknowledged), found


def lay_out(found: dict[str, bytes | None], target: Path) -> None:
    """Make a folder `target` that holds what was found."""
    target.mkdir()
    for path, data in found.items():
        if data is None:
            (target / path).mkdir(exist_ok=True)
        else:
            (target / path).write_bytes(data)

"""Counts what a process holds, so that two moments of equal load can be compared.

Everything that the collector knows is counted by class, whatever it is called: what a later
change adds is counted too. What it does not know (bytes, numbers, texts) shows in the blocks and,
if it is longer than 512 bytes, in the heap.
"""

import collections
import contextlib
import ctypes
import gc
import os
import sqlite3
import sys
import threading
import types
import weakref
from dataclasses import dataclass
from pathlib import Path

import psutil
import trio

# Each ABC keeps weak references, with a callback, to all classes that it was asked about.
_CACHED = {weakref.ReferenceType, types.BuiltinFunctionType}


@dataclass(frozen=True)
class Held:
    """What a process holds at one moment.

    Attributes:
        objects: How many there are of each class.
        blocks: Small pieces of memory that Python has handed out.
        heap_bytes: What the C library has: long pieces, and all of its libraries.
        files: Open descriptors.
        children: Child processes with theirs, zombies too.
        threads: That Python knows, without trio's idle ones, which end after ten seconds.
        tasks: Of trio.
        paths: Files in the directories that were asked for.
    """

    objects: collections.Counter[type]
    blocks: int
    heap_bytes: int
    files: int
    children: int
    threads: int
    tasks: int
    paths: tuple[str, ...] = ()


class _Mallinfo(ctypes.Structure):
    """What glibc's ``mallinfo2`` returns; ``uordblks`` and ``hblkhd`` are bytes in use."""

    _fields_ = (
        ("pools", ctypes.c_size_t * 4),
        ("hblkhd", ctypes.c_size_t),
        ("limits", ctypes.c_size_t * 2),
        ("uordblks", ctypes.c_size_t),
        ("free", ctypes.c_size_t * 2),
    )


def _heap_bytes() -> int:
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Mallinfo
    info = mallinfo2()
    return info.uordblks + info.hblkhd


def held(*directories: Path) -> Held:
    """Count everything now."""
    gc.collect()
    for each in gc.get_objects():
        if isinstance(each, sqlite3.Connection):
            with contextlib.suppress(sqlite3.ProgrammingError):  # it is closed
                each.execute("PRAGMA shrink_memory")  # up to 2 MB of its file's pages are no leak
    blocks, heap_bytes = sys.getallocatedblocks(), _heap_bytes()
    return Held(
        objects=collections.Counter(type(each) for each in gc.get_objects()),
        blocks=blocks,
        heap_bytes=heap_bytes,
        files=len(os.listdir("/proc/self/fd")),
        children=len(psutil.Process().children(recursive=True)),
        threads=sum(not each.name.startswith("Trio thread") for each in threading.enumerate()),
        tasks=trio.lowlevel.current_statistics().tasks_living,
        paths=tuple(
            sorted(
                str(path.relative_to(directory))
                for directory in directories
                for path in directory.rglob("*")
            )
        ),
    )


@dataclass(frozen=True)
class Bounds:
    """By how much something may grow; what is not named here may not grow at all."""

    objects: int  # of any one class
    blocks: int
    heap_bytes: int


def growth(before: Held, after: Held, most: Bounds) -> dict[str, object]:
    """Return what there is more of at the later moment, beyond the bounds."""
    grown: dict[str, object] = {
        f"{kind.__module__}.{kind.__qualname__}": (before.objects[kind], count)
        for kind, count in after.objects.items()
        if count - before.objects[kind] > most.objects and kind not in _CACHED
    }
    for name in ("blocks", "heap_bytes", "files", "children", "threads", "tasks"):
        was, now = getattr(before, name), getattr(after, name)
        if now - was > getattr(most, name, 0):
            grown[name] = (was, now)
    if added := set(after.paths) - set(before.paths):
        grown["paths"] = sorted(added)
    return grown

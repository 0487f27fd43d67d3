"""What was decoded or computed once and is kept uncompressed, to be mapped into memory the next time.

A folder that only this user can read, with a quota; names in it say nothing. Whatever goes wrong with it (a full
disk, no permission, another process) costs time and nothing else: the original file is decoded again.
Off with ``OSLER_CACHE=0``.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osler.problem import Problem

GIB = 2**30
# Kept free on the disk, whatever the quota allows.
_RESERVE = 2 * GIB
# Copies being written may be this many; they hold their bytes in memory.
_WAITING = 2
_DAY = 86_400
_pending: dict[str, "Future[None]"] = {}


_bypassed = ContextVar("bypassed", default=False)


@dataclass(frozen=True)
class Contents:
    """How many files of how many bytes, of how many that are allowed."""

    folder: Path
    files: int
    bytes: int
    quota: int


def folder() -> Path:
    """``OSLER_HOME/cache``, else ``osler`` in ``XDG_CACHE_HOME`` or ``~/.cache``."""
    if "OSLER_HOME" in os.environ:
        return Path(os.environ["OSLER_HOME"]) / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "osler"


def quota() -> int:
    """Bytes: ``OSLER_CACHE`` in GiB, 20 where it is not set, 0 where it is off.

    Raises:
        Problem: it is not a number.
    """
    text = os.environ.get("OSLER_CACHE", "20")
    try:
        return int(max(0.0, float(text)) * GIB)
    except (ValueError, OverflowError) as error:
        raise Problem(f"OSLER_CACHE is {text!r}", fix="set it to a number of GiB, 0 for no cache") from error


def key(path: Path) -> str:
    """A name for a file as it is now, made of its place on the disk, size, time of change and first bytes."""
    with path.open("rb") as file:
        first, stat = file.read(4096), os.fstat(file.fileno())
    told = f"2|{stat.st_dev}|{stat.st_ino}|{stat.st_size}|{stat.st_mtime_ns}|".encode()
    return hashlib.sha256(told + first).hexdigest()[:40]


def content_key(what: str, array: NDArray[Any]) -> str:
    """A name for what is computed of an array: made of its numbers, and of how it is computed."""
    told = f"{what}|{array.shape}|{array.dtype.str}".encode()
    return hashlib.sha256(told + np.ascontiguousarray(array).tobytes()).hexdigest()[:40]


def find(name: str) -> Path | None:
    """The copy that was stored under a :func:`key`; waits for it where it is being written."""
    if _bypassed.get():
        return None
    waiting = _pending.get(name)
    if waiting is not None:
        waiting.result()
    path = folder() / name
    try:
        if not quota() or not _is_private(path.parent):
            return None
        os.utime(path)
    except OSError:
        return None
    return path


def store(name: str, content: memoryview) -> None:
    """Begins to write a copy beside the caller's work; it is there whole or not at all.

    Nothing happens where the cache is off, is too small for it, or already has enough to write.
    """
    if _bypassed.get() or len(content) > quota() or len(_pending) >= _WAITING or name in _pending:
        return
    _pending[name] = _writer().submit(_write, folder() / name, content)


def settle() -> None:
    """Waits until everything is written."""
    for waiting in list(_pending.values()):
        waiting.result()


@contextlib.contextmanager
def bypassed() -> Iterator[None]:
    """Within it, nothing is taken from the cache or put there: images of others are not kept."""
    token = _bypassed.set(True)
    try:
        yield
    finally:
        _bypassed.reset(token)


@cache
def _writer() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="osler-cache")


def _write(path: Path, content: memoryview) -> None:
    try:
        # A full disk, no permission, a file system without room for another name: it goes on without the copy.
        with contextlib.suppress(OSError):
            _written(path, content)
    finally:
        _pending.pop(path.name, None)


def _written(path: Path, content: memoryview) -> None:
    place = path.parent
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not _is_private(place) or shutil.disk_usage(place).free < len(content) + _RESERVE:
        return
    # Readable by this user only, under a name of its own: two processes may write the same copy.
    number, part = tempfile.mkstemp(suffix=".part", dir=place)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
            # The name must not be there before the bytes are, even if the power fails in between.
            file.flush()
            os.fsync(file.fileno())
        Path(part).replace(path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
    _shrink(quota())


def _is_private(place: Path) -> bool:
    """A folder of this user that nobody else can open: others could put images in."""
    stat = place.stat()
    return not hasattr(os, "getuid") or (stat.st_uid == os.getuid() and not stat.st_mode & 0o077)


def _files() -> Iterator[tuple[float, int, Path]]:
    """When each was last used, its bytes and its path; another process may take one away meanwhile."""
    with contextlib.suppress(OSError):
        for path in folder().iterdir():
            with contextlib.suppress(OSError):
                stat = path.stat()
                yield stat.st_mtime, stat.st_size, path


def _shrink(allowed: int) -> int:
    """Takes away what was not used for longest, and what a killed process left; how many bytes that was."""
    taken, files = 0, sorted(_files())
    total = sum(size for _, size, _ in files)
    for used, size, path in files:
        left = path.suffix == ".part"
        if total > allowed if not left else not allowed or time.time() - used > _DAY:
            with contextlib.suppress(OSError):
                path.unlink()
                total, taken = total - size, taken + size
    return taken


def contents() -> Contents:
    """What is there."""
    sizes = [size for _, size, _ in _files()]
    return Contents(folder(), len(sizes), sum(sizes), quota())


def purge() -> int:
    """Takes everything away; how many bytes that was."""
    settle()
    return _shrink(0)


def describe() -> str:
    """One line for ``osler cache`` and ``osler doctor``."""
    there = contents()
    if not there.quota:
        return f"cache: off (OSLER_CACHE=0); {there.files} files, {there.bytes / GIB:.1f} GiB are there"
    return f"cache: {there.files} files, {there.bytes / GIB:.1f} of at most {there.quota / GIB:g} GiB"

"""Hot loops, compiled by numba where it is installed (the extra ``speed``); one kind of work a file.

Whoever uses one has a slower way to the same numbers, for where numba is not, and says from how much work on the
second or so of compiling pays. Compiled code is not stored: numba's cache is pickle. Threads are Python's own, for
the loops let go of the interpreter's lock: they may be started from any thread and die with their work.
"""

import importlib
import os
from collections.abc import Callable
from itertools import pairwise
from threading import Thread
from types import ModuleType
from typing import TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., object])


def find(name: str) -> ModuleType | None:
    """The module ``osler.kernels.<name>``; none where numba is not installed, or not for this numpy or Python."""
    try:
        return importlib.import_module(f"osler.kernels.{name}")
    except ImportError:
        return None


def compiled(function: Function) -> Function:
    """A decorator: machine code for the types of the first call, without the interpreter's lock."""
    from numba import njit

    return cast(Function, njit(nogil=True, error_model="numpy", fastmath={"contract"})(function))


def cores() -> int:
    """How many threads may compute: ``OMP_NUM_THREADS``, or as many as this process has processors."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spread(work: Callable[[int, int], object], count: int, threads: int) -> None:
    """Calls ``work(first, last)`` on as many threads as asked, which share ``range(count)`` in equal pieces.

    Raises:
        Whatever ``work`` raises, when all threads have ended.
    """
    threads = max(1, min(threads, count))
    pieces = list(pairwise(count * n // threads for n in range(threads + 1)))
    errors: list[BaseException] = []

    def piece(first: int, last: int) -> None:
        try:
            work(first, last)
        except BaseException as error:
            errors.append(error)

    others = [Thread(target=piece, args=pair) for pair in pieces[1:]]
    for other in others:
        other.start()
    piece(*pieces[0])
    for other in others:
        other.join()
    if errors:
        raise errors[0]

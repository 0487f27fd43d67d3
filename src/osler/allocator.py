"""What glibc does with memory that is given back: here it keeps it, since every training step asks for it again."""

import ctypes
import os
import sys

# Parameters of mallopt(3), from <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_memory() -> bool:
    """Tells glibc to keep large blocks instead of returning them to the system; whether it did.

    A training step asks for the same hundreds of megabytes as the one before. By default glibc maps and unmaps
    them each time, and the system fills every page with zeros: a third to two thirds of the time of a step on a
    processor. The price is that the process keeps the most that it ever used.

    The commands call this first. Importing Osler never does, since the setting is of the whole process: a Python
    program calls it once, before it trains, and each worker process of it again. Nothing happens with
    ``OSLER_MALLOPT=0`` in the environment, nor on other C libraries.
    """
    if os.environ.get("OSLER_MALLOPT") == "0" or not sys.platform.startswith("linux"):
        return False
    try:
        library = ctypes.CDLL("libc.so.6")
        settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 256 * 2**20))
        # Each is set, also after one that is refused.
        done = [library.mallopt(parameter, value) == 1 for parameter, value in settings]
        return all(done)
    except (OSError, AttributeError):
        return False

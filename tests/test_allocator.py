"""The allocator is set where a command begins and where somebody asks for it, never by an import."""

import os
import subprocess
import sys

import pytest

import osler

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is what is set")

# Where large blocks are mapped, glibc counts them: `hblks` of mallinfo2(3). Kept ones lie on its heap.
MAPPED = """
import ctypes, sys
import osler
if sys.argv[1] == "keep":
    print(osler.keep_memory())
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
class Mallinfo2(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]
libc.mallinfo2.restype = Mallinfo2
before = libc.mallinfo2().hblks
libc.malloc(64 * 2**20)
print(libc.mallinfo2().hblks - before)
"""


def mapped(what: str, **environment: str) -> list[str]:
    words = [sys.executable, "-c", MAPPED, what]
    child = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    if "mallinfo2" in child.stderr or "libc.so.6" in child.stderr:
        pytest.skip("another C library, or an old one")
    assert child.returncode == 0, child.stderr
    return child.stdout.split()


@linux
def test_large_blocks_are_kept_once_asked_for() -> None:
    assert mapped("keep", OSLER_MALLOPT="") == ["True", "0"]


@linux
def test_importing_changes_nothing_and_it_can_be_switched_off() -> None:
    assert mapped("leave", OSLER_MALLOPT="") == ["1"]
    assert mapped("keep", OSLER_MALLOPT="0") == ["False", "1"]


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert osler.keep_memory() is False

"""Files that are there whole or not at all, and folders for them."""

import contextlib
import errno
from pathlib import Path

from osler.problem import Problem


def folder(out: Path) -> Path:
    """A folder for what is written; made, with those above it, where it is missing.

    Raises:
        Problem: it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Problem(f"the folder cannot be made ({error.strerror})", path=out, fix="give another --out") from error
    return out


def replaced(path: Path, content: bytes | str) -> None:
    """Writes beside a file and moves it to its place in one step; text as UTF-8.

    Raises:
        Problem: it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        part.replace(path)
    except OSError as error:
        # Where nothing can be written nothing may be removed either, and the first error is the one to tell.
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise unwritten(path, error) from error


def unwritten(path: Path, error: OSError, what: str = "cannot be written") -> Problem:
    """What to say of a file that could not be written, and what to do about it."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    fix = "free some space" if full else "check the rights, or give another place"
    return Problem(f"{what} ({error.strerror})", path=path, fix=fix)

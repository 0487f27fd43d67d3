"""Boxes and masks as tables and label files state them: within the image or refused, absence said."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

from osler.case import Box, Finding
from osler.problem import Problem

Corner = tuple[float, float, float]
Size = tuple[int, int, int]

# Farther beyond the edge than this a box is not a slip of rounding.
_SLIP = 1.0


def box(start: Corner, stop: Corner, size: Size, path: Path) -> Box:
    """A box in an image of ``size``; what reaches up to one pixel over the edge is cut there.

    Args:
        start, stop: edges ``(depth, height, width)`` in pixels.
        size: of the image, ``(depth, height, width)``.
        path: the file that states the box.

    Raises:
        Problem: the box is inverted, of size zero, or farther outside.
    """
    shown = f"{_numbers(start)} to {_numbers(stop)}"
    for a, b in zip(start, stop, strict=True):
        if not b >= a:
            what = f"the box {shown} (x, y) is inverted: it stops before it starts"
            raise Problem(what, path=path, fix="check whether it is given by its corners or by its size")
        if a == b:
            raise Problem(f"the box {shown} (x, y) has no size", path=path, fix="correct or delete it")
    over = max(max(-a, b - n) for a, b, n in zip(start, stop, size, strict=True))
    gone = any(b <= 0 or a >= n for a, b, n in zip(start, stop, size, strict=True))
    if over > _SLIP or gone:
        what = f"the box {shown} (x, y) reaches {over:g} pixels over the edge of an image of {size[2]} x {size[1]}"
        raise Problem(what, path=path, fix="check that both belong together")
    low = [max(0.0, float(a)) for a in start]
    high = [min(float(n), float(b)) for b, n in zip(stop, size, strict=True)]
    return Box((low[0], low[1], low[2]), (high[0], high[1], high[2]))


def _numbers(corner: Corner) -> str:
    return f"({corner[2]:g}, {corner[1]:g})"


@cache
def absent(task: str, name: str) -> Finding:
    """There is none of it anywhere: one object for all cases."""
    return Finding(task, name, probability=0.0)


def complete(
    task: str, classes: Sequence[str], found: Iterable[Finding], unsure: Iterable[str] = ()
) -> tuple[Finding, ...]:
    """The findings of a case that was wholly annotated, and that there is nothing of the other classes.

    Args:
        task, classes: the question.
        found: what was annotated.
        unsure: classes of which too little is known to say that there is none.
    """
    found = tuple(found)
    known = {finding.name for finding in found} | set(unsure)
    return found + tuple(absent(task, name) for name in classes if name not in known)


def by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """The files of a folder by their name without the last suffix; hidden ones are left out."""
    return dict(_by_stem(folder, suffixes))


def _by_stem(folder: Path, suffixes: Sequence[str]) -> Iterator[tuple[str, Path]]:
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if file.suffix.lower() in suffixes and not file.name.startswith("."):
            yield file.stem, file

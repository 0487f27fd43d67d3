"""Which files a case is read from, and so which of them a problem is about."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from osler.case import Entry, Source
from osler.problem import Problem


def looked_at(entry: Entry, names: Sequence[str] = ()) -> Mapping[str, Source]:
    """Of several images those of these names, in this order, where the case has any of them; all by default."""
    return {name: entry.images[name] for name in names if name in entry.images} or entry.images


@contextmanager
def named(entry: Entry, names: Sequence[str] = ()) -> Iterator[None]:
    """What is raised within about pixels, which no longer know their file, names that of the case.

    Where several images are looked at any of them may be meant, and the case is named.

    Raises:
        Problem: the one that was raised, with a name.
    """
    try:
        yield
    except Problem as problem:
        if problem.path is not None or problem.what.startswith((f"case {entry.id} ", f"case {entry.id}:")):
            raise
        first, *more = looked_at(entry, names).values()
        what = f"case {entry.id}: {problem.what}" if more else problem.what
        raise Problem(what, path=None if more else first.path, fix=problem.fix) from problem

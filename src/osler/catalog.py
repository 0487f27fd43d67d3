"""Names become modules here, once, at the edge: one name, one file in one closed folder."""

import importlib
import pkgutil
from functools import cache
from types import ModuleType

from osler.problem import Problem


@cache
def names(folder: str) -> tuple[str, ...]:
    """What exists in a folder of variants, e.g. ``names("backbones")``."""
    package = importlib.import_module(f"osler.{folder}")
    return tuple(sorted(entry.name for entry in pkgutil.iter_modules(package.__path__)))


def find(folder: str, name: str) -> ModuleType:
    """The module ``osler.<folder>.<name>``.

    Raises:
        Problem: there is no such variant; the message lists those that exist.
    """
    if name not in names(folder):
        raise Problem(f"there is no {name!r} among the {folder}", fix=f"choose one of {', '.join(names(folder))}")
    return importlib.import_module(f"osler.{folder}.{name}")

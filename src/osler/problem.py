"""The one error that a person is meant to read."""

from pathlib import Path


class Problem(Exception):
    """Bad input: says in one sentence which file, what is wrong and what to do.

    Args:
        what: what is wrong, without a full stop, e.g. ``"the file ends after 132 of 900 bytes"``.
        path: the file or folder it was found in; shown relative to ``root`` where that is given.
        fix: what the reader can do, e.g. ``"copy it again from the scanner"``.
        root: the cohort's folder, so that no more of a path than needed is shown (paths can be names).
    """

    def __init__(
        self,
        what: str,
        *,
        path: str | Path | None = None,
        fix: str = "",
        root: str | Path | None = None,
    ) -> None:
        self.what, self.path, self.fix = what, None if path is None else Path(path), fix
        shown = "" if self.path is None else f"{shown_path(self.path, root)}: "
        text = f"{shown}{what}{f'; {fix}' if fix else ''}"
        super().__init__(text if text.endswith("?") else f"{text}.")

    @property
    def clause(self) -> str:
        """The sentence without its full stop, to stand inside of another."""
        return str(self).removesuffix(".")


def shown_path(path: Path, root: str | Path | None = None) -> str:
    """The path as it may be shown: relative to ``root`` (or to here) where it lies below it, else its name."""
    for base in (root, Path.cwd()):
        if base is not None:
            try:
                return str(path.resolve().relative_to(Path(base).resolve()))
            except (ValueError, OSError):
                continue
    return path.name

"""Names that say nothing: what logs, pages, tables and the service show instead of a case's or patient's id."""

import csv
import hashlib
import hmac
import os
import secrets
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from osler.problem import Problem


def home() -> Path:
    """Osler's own folder: ``OSLER_HOME``, else ``~/.config/osler``; private to the user."""
    folder = Path(os.environ.get("OSLER_HOME", Path.home() / ".config" / "osler"))
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


@cache
def _key(path: Path) -> bytes:
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        key = path.read_bytes()
        if len(key) != 32:
            raise Problem(
                "the key of the pseudonyms is damaged", path=path, fix="delete it: pseudonyms will change"
            ) from None
        return key
    with os.fdopen(file, "wb") as stream:
        key = secrets.token_bytes(32)
        stream.write(key)
    return key


def pseudonym(name: str) -> str:
    """Twelve hexadecimal digits: HMAC-SHA-256 (RFC 2104) of a name under this user's own key.

    The same name gives the same pseudonym on this account, and nobody without the key can test a guess.
    """
    return hmac.new(
        _key(home() / "pseudonym.key"), name.encode("utf-8", "surrogateescape"), hashlib.sha256
    ).hexdigest()[:12]


def remember(folder: Path, ids: Sequence[str], name: str = "names.csv") -> None:
    """The table from pseudonyms back to case ids, readable by this user only."""
    path = folder / name
    rows = dict(zip(map(pseudonym, ids), ids, strict=True))
    if path.exists():
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = {row["pseudonym"]: row["case"] for row in csv.DictReader(file)} | rows
    part = path.with_name(name + ".part")
    number = os.open(part, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    # A file name need not be text.
    with os.fdopen(number, "w", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("pseudonym", "case"))
        writer.writerows(rows.items())
    part.replace(path)

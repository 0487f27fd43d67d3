"""Public data sets by name: what there is, under which licence, and how one is fetched.

``public_sets.toml`` is the catalogue. A download is checked against the checksum that the publishers state, goes on
where it was cut, and is there whole or not at all.
"""

import difflib
import hashlib
import http.client
import shutil
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from urllib.parse import urlsplit

from osler.problem import Problem

_ADDRESS = "https://zenodo.org/records/10519652/files/{name}.npz?download=1"
_SOURCE = "MedMNIST v2, doi 10.5281/zenodo.10519652"
_CHUNK = 1 << 20
_AGAIN = "run the same command again: it goes on where it was"
# Seconds for each step of a connection.
_TIMEOUT = 30.0
# Seconds to wait after the first attempt that brought nothing, doubled each time; then it is given up.
_WAITS = (1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class PublicSet:
    """One file of the catalogue.

    Attributes:
        name: also the name of its file, e.g. ``"pneumoniamnist_64"``.
        what: what its images show, and what is asked of them.
        task: ``multiclass``, ``multilabel`` or ``ordinal``.
        images: how many, in all parts.
        size: pixels along each edge, e.g. ``"28x28"``.
        licence, source: of the data, as published.
        url, md5: where the file is, and its MD5 as 32 hexadecimal digits.
    """

    name: str
    what: str
    task: str
    images: int
    size: str
    licence: str
    source: str
    url: str
    md5: str


@cache
def catalogue() -> tuple[PublicSet, ...]:
    """All sets, in the order of the catalogue, the small sizes first."""
    text = resources.files("osler").joinpath("public_sets.toml").read_text(encoding="utf-8")
    sets = []
    for stem, row in tomllib.loads(text).items():
        axes = 3 if stem.endswith("3d") else 2
        for edge, md5 in row["md5"].items():
            name = stem if edge == "28" else f"{stem}_{edge}"
            size = "x".join([edge] * axes)
            url, about = _ADDRESS.format(name=name), (row["what"], row["task"], row["images"], size, row["licence"])
            sets.append(PublicSet(name, *about, _SOURCE, url, md5))
    return tuple(sets)


def find(name: str) -> PublicSet:
    """The set of that name.

    Raises:
        Problem: there is none; the message names the nearest.
    """
    names = [each.name for each in catalogue()]
    if name.lower() not in names:
        near = difflib.get_close_matches(name.lower(), names, 3, 0.5)
        fix = f"did you mean {' or '.join(near)}?" if near else "osler download lists those that there are"
        raise Problem(f"there is no public set {name!r}", fix=fix)
    return catalogue()[names.index(name.lower())]


def download(name: str | PublicSet, out: Path | str, *, say: Callable[[str], None] = lambda line: None) -> Path:
    """Fetches a set into a folder, from which ``osler.train`` reads it.

    Licence and checksum are told to ``say`` before anything is fetched. What was fetched earlier, by a call that was
    cut, is kept in ``*.part`` and not fetched again.

    Returns:
        The ``.npz`` file.

    Raises:
        Problem: no such set, the server does not give it, the disk is full, or its checksum is not the published one.
    """
    wanted = name if isinstance(name, PublicSet) else find(name)
    folder = Path(out)
    file, part = folder / f"{wanted.name}.npz", folder / f"{wanted.name}.npz.part"
    say(f"{wanted.name}: {wanted.what}; {wanted.images:,} images of {wanted.size}")
    say(f"licence {wanted.licence}; source {wanted.source}; MD5 {wanted.md5}")
    if file.exists():
        if _md5(file) != wanted.md5:
            raise Problem("a file of this name is there, and it is another one", path=file, fix="move it away")
        say("it is already there, and its checksum is right")
        return file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _fetch_checked(wanted, part, say)
        note = f"{wanted.name}: {wanted.what}\nlicence: {wanted.licence}\nsource: {wanted.source}\n{wanted.url}\n"
        (folder / f"{wanted.name}.txt").write_text(note, encoding="utf-8")
        part.replace(file)
    except OSError as error:
        # A full disk above all: what is there stays.
        raise Problem(
            f"it cannot be written ({(error.strerror or str(error)).lower()})", path=part, fix=_AGAIN
        ) from error
    return file


def _fetch_checked(wanted: PublicSet, part: Path, say: Callable[[str], None]) -> None:
    earlier = part.exists()
    _fetch(wanted.url, part, say)
    found = _md5(part)
    if found != wanted.md5 and earlier:
        say("what was there from an earlier attempt does not fit; it is fetched anew")
        part.unlink()
        _fetch(wanted.url, part, say)
        found = _md5(part)
    if found != wanted.md5:
        part.unlink()
        what = f"the file that came has the MD5 {found}, not the published {wanted.md5}: it was not kept"
        raise Problem(what, path=part.with_suffix(""), fix="try again later, or tell the publishers")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _fetch(url: str, part: Path, say: Callable[[str], None]) -> None:
    """All of a file, in as many attempts as bring it forward; five in a row that bring nothing are the end."""
    waits, tag = list(_WAITS), ""
    while True:
        before = _size(part)
        try:
            tag, total = _attempt(url, part, tag)
            if _size(part) == total or total is None:
                return
            why = f"the connection ended after {_size(part):,} of {total:,} bytes"
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416 and before:
                # There is nothing after what we have: its checksum says whether it is right.
                return
            if error.code < 500 and error.code not in (408, 429):
                raise _refused(url, f"{error.code} {error.reason}") from error
            why = f"the server answered {error.code}"
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            why = str(getattr(error, "reason", error)) or type(error).__name__
        if _size(part) > before:
            waits = list(_WAITS)
        elif not waits:
            raise _refused(url, why)
        say(f"{why}; trying again")
        time.sleep(waits.pop(0))


def _refused(url: str, why: str) -> Problem:
    return Problem(f"{urlsplit(url).hostname} does not give the file ({why[:100]})", fix=f"later, {_AGAIN}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _attempt(url: str, part: Path, tag: str) -> tuple[str, int | None]:
    """One request for what is missing; the entity tag of the file, and how many bytes the whole has, if that is said.

    A server that does not go on where it is asked (RFC 9110, section 14), or has another file by now, sends all.
    """
    have = _size(part)
    request = urllib.request.Request(url, headers={"User-Agent": "osler", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        if tag.startswith('"'):
            request.add_header("If-Range", tag)
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
        goes_on = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        length = answer.headers.get("Content-Length", "")
        total = int(length) + have * goes_on if length.isdecimal() else None
        _check_room(part, int(length) if length.isdecimal() else 0)
        with part.open("ab" if goes_on else "wb") as file:
            while block := answer.read1(_CHUNK):
                file.write(block)
                file.flush()
        return answer.headers.get("ETag", ""), total


def _check_room(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if free < needed:
        what = f"{needed / 2**20:,.0f} MiB are still to come, and the disk has {free / 2**20:,.0f} MiB free"
        raise Problem(what, path=part.parent, fix=f"make room and {_AGAIN}")

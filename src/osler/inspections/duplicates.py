"""One picture under several cases: the same file, re-encoded, resized, flipped or taken again; and torn patients.

An image leaves a mark of 284 bytes: a hash of its pixels, and a copy of 16 x 16. Equal pixels are found by the hash.
For the rest, the copies are whitened by the cohort's own statistics (what all images of a cohort share says nothing
about two of them), and near ones are found by sorting random sign codes, an LSH forest (Bawa, Condie and Ganesan,
2005, "LSH forest: self-tuning indexes for similarity search"): time grows as ``n log n``.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import beta

from osler.case import Entry, Question
from osler.image import Image
from osler.inspections import Evidence, Look, Trouble

Kind = Literal["same_pixels", "reencoded_copy", "resized_copy", "flipped_copy", "near_copy"]
KINDS: tuple[Kind, ...] = ("same_pixels", "reencoded_copy", "resized_copy", "flipped_copy", "near_copy")

SIDE = 16
MARK = np.dtype([("pixels", "S16"), ("small", np.uint8, (SIDE, SIDE)), ("size", np.uint32, 3)])

# Chosen on images of five kinds (ultrasound, radiographs, smears, retinas, MRI): copies that were compressed, resized
# or changed in contrast agree by more than SAME in detail, and pictures of different patients never came near it.
SAME, SAME_WHITENED = 0.97, 0.95
# Repeated shots agree less; images of few pixels have less that could tell them apart.
NEAR, NEAR_SMALL, NEAR_DETAIL, FEW_PIXELS = 0.83, 0.93, 0.6, 64
_COMPONENTS, _BLOCK, _TABLES, _EXACT = 64, 128, 32, 2048

Float = NDArray[np.float32]
Pairs = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Copies:
    """Pairs of rows that hold one picture, or nearly one.

    Attributes:
        pairs: by kind, ``(m, 2)``; enough of them to connect all copies of a picture.
        count: of all rows.
    """

    pairs: dict[Kind, Pairs]
    count: int

    def groups(self, kinds: Iterable[Kind] = KINDS) -> list[tuple[int, ...]]:
        """Rows that belong together through copies of these kinds; only groups of two or more, each in order."""
        links = [self.pairs[kind] for kind in kinds if len(self.pairs[kind])]
        return _connected(np.concatenate(links), self.count) if links else []


def mark(image: Image, plane: Float) -> NDArray[Any]:
    """What is kept of an image to know its copies by: a scalar of type :data:`MARK`.

    Args:
        image: as it was read; the hash is over all of it.
        plane: ``(height, width)``, what is compared where the pixels differ.
    """
    made = np.zeros((), MARK)
    small = _sixteenths(_sixteenths(plane).T).T
    low, high = float(small.min()), float(small.max())
    # Sums over parts of pixels leave a trace of rounding, which is no picture.
    if high - low > 1e-9 * max(abs(high), abs(low)):
        made["small"] = np.rint((small - low) * (255 / (high - low)))
    made["pixels"], made["size"] = _pixels(image), image.size
    return made


def measure(look: Look) -> NDArray[Any]:
    """See :func:`mark`."""
    return mark(look.image, look.plane)


def _pixels(image: Image) -> bytes:
    """Hash of the values and their places, whatever type they are stored in and however often a grey is repeated."""
    array = image.array
    if array.shape[1] == 3 and (array[:, :1] == array[:, 1:]).all():
        array = array[:, :1]
    if array.dtype.kind in "iu" and array.dtype.itemsize > 1:
        low, high = int(array.min()), int(array.max())
        array = array.astype(np.uint8 if low >= 0 and high < 256 else np.min_scalar_type(min(low, -high - 1)))
    digest = hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=15)
    digest.update(f"{array.shape}{array.dtype.str}".encode())
    # NumPy drops NUL at the end of a string: a last byte that is none keeps all of it.
    return digest.digest() + b"."


def _sixteenths(plane: NDArray[Any]) -> NDArray[np.float64]:
    """The mean over each sixteenth of the first axis, pixels that are cut counting in part: ``(16, width)``."""
    size = len(plane)
    # The sum up to any edge; not a product of matrices, whose threads get into the way of those that read.
    below = np.zeros((size + 1, plane.shape[1]))
    np.cumsum(plane, axis=0, dtype=np.float64, out=below[1:])
    edges = np.linspace(0, size, SIDE + 1)
    whole = np.minimum(edges.astype(int), size - 1)
    part = (edges - whole)[:, None]
    return np.asarray(np.diff(below[whole] * (1 - part) + below[whole + 1] * part, axis=0) * (SIDE / size))


# --- finding ------------------------------------------------------------------------------------------------


def copies(marks: NDArray[Any]) -> Copies:
    """All copies among images with these marks.

    Args:
        marks: ``(n,)`` of type :data:`MARK`, see :func:`mark`.
    """
    _, first, which = np.unique(marks["pixels"], return_index=True, return_inverse=True)
    everyone = np.arange(len(marks))
    origin = first[which]
    blank = np.ptp(marks["small"].reshape(len(marks), -1), axis=1) == 0
    again = everyone[(origin != everyone) & ~blank]
    pairs: dict[Kind, Pairs] = {kind: np.empty((0, 2), np.int64) for kind in KINDS}
    pairs["same_pixels"] = np.column_stack([origin[again], again])
    rows = np.sort(first[~blank[first]])
    small, size = marks["small"][rows], marks["size"][rows]
    upright, near = _upright(small, size)
    turned = _turned(small, upright)
    alike = _same_shape(size, upright)
    found = {
        "reencoded_copy": upright[(size[upright[:, 0]] == size[upright[:, 1]]).all(1) & alike],
        "resized_copy": upright[(size[upright[:, 0]] != size[upright[:, 1]]).any(1) & alike],
        "flipped_copy": turned,
        "near_copy": np.concatenate([near, upright[~alike]]),
    }
    return Copies(pairs | {kind: rows[some] for kind, some in found.items()}, len(marks))  # type: ignore[arg-type]


def cases(marks: NDArray[Any]) -> list[tuple[int, ...]]:
    """Cases that belong together because an image of one is a copy of one of the other.

    Args:
        marks: ``(n, m)`` of type :data:`MARK`; the images of a column are compared with each other, as what is usual
            in one modality is not in the next. Zeros stand for an image that is missing.

    Returns:
        Rows, groups of two or more.
    """
    links = [pairs for column in marks.T for pairs in copies(column).pairs.values()]
    return _connected(np.concatenate(links), len(marks))


def _same_shape(size: NDArray[Any], pairs: Pairs) -> NDArray[np.bool_]:
    """Whether one size is the other times a factor, but for the pixel that rounding takes."""
    a, b = size[pairs[:, 0], 1:].astype(float), size[pairs[:, 1], 1:].astype(float)
    larger, smaller = np.maximum(a, b), np.minimum(a, b)
    scaled = larger * (smaller[:, :1] / larger[:, :1])
    return np.asarray(np.abs(scaled - smaller).max(1, initial=0) <= 1.0)


def _upright(small: NDArray[np.uint8], size: NDArray[Any]) -> tuple[Pairs, Pairs]:
    """Pairs that are the same picture as they stand, and pairs that nearly are."""
    space = _Space(small)
    least = _chance(space.whitened.shape[1], len(small))
    pairs = space.candidates(min(NEAR, SAME_WHITENED), _TABLES)
    whitened, detail = space.agreement(pairs)
    same = (detail >= SAME) & (whitened >= SAME_WHITENED)
    few = size[pairs, 1:].min((1, 2)) < FEW_PIXELS if len(pairs) else np.zeros(0, bool)
    limit = np.maximum(np.where(few, NEAR_SMALL, NEAR), least)
    return pairs[same], pairs[~same & (whitened >= limit) & (detail >= NEAR_DETAIL)]


def _turned(small: NDArray[np.uint8], known: Pairs) -> Pairs:
    """Pairs that are the same picture after a mirroring or a turn by a multiple of 90 degrees."""
    standing, pose = _canonical(small)
    space = _Space(standing)
    pairs = space.candidates(SAME_WHITENED, _TABLES // 2)
    pairs = pairs[pose[pairs[:, 0]] != pose[pairs[:, 1]]]
    whitened, detail = space.agreement(pairs)
    pairs = pairs[(detail >= SAME) & (whitened >= SAME_WHITENED)]
    count = len(small)
    return np.asarray(pairs[~np.isin(pairs @ [count, 1], known @ [count, 1])])


def _canonical(small: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Each picture in the one of its eight poses that its first moments choose, and which one that was."""
    ramp = np.arange(SIDE, dtype=np.float32) - (SIDE - 1) / 2
    down = (small.mean(2) @ ramp)[:, None, None]
    across = (small.mean(1) @ ramp)[:, None, None]
    made = np.where(down < 0, small[:, ::-1], small)
    made = np.where(across < 0, made[:, :, ::-1], made)
    made = np.where(abs(across) > abs(down), made.transpose(0, 2, 1), made)
    pose = (down < 0) * 4 + (across < 0) * 2 + (abs(across) > abs(down))
    return made, pose[:, 0, 0].astype(np.int64)


def _chance(components: int, count: int) -> float:
    """The agreement that no pair of ``count`` independent cases reaches, but for once in 100 cohorts.

    The cosine ``c`` of two independent random directions in ``k`` dimensions has ``c**2 ~ Beta(1/2, (k - 1) / 2)``.
    """
    if count < 2 or components < 8:
        return np.inf
    return float(np.sqrt(beta.isf(min(1.0, 0.04 / (count * (count - 1))), 0.5, (components - 1) / 2)))


class _Space:
    """Small copies of many images, seen as what sets each apart from the others.

    ``whitened`` is ``(n, k)`` of length 1: the components of the cohort that vary most, each with the same weight.
    In cohorts that are too small to know them, the differences from the mean alone.
    """

    def __init__(self, small: NDArray[np.uint8]) -> None:
        self.small = small
        count = len(small)
        sample = _centred(small[:: max(1, count // 4096)])
        # Of a few images the mean is mostly the images themselves.
        self.mean = sample.mean(0) * np.float32(count / (count + 8)) if count else sample.sum(0)
        self.detail_mean = _detail(sample).mean(0) * np.float32(count / (count + 8)) if count else self.mean
        components = min(_COMPONENTS, count // 4)
        axes = np.eye(SIDE * SIDE, dtype=np.float32)
        if components >= 8:
            spread, vectors = np.linalg.eigh(np.cov(sample, rowvar=False).astype(np.float64))
            top = vectors[:, ::-1][:, :components] / np.sqrt(np.maximum(spread[::-1][:components], 1e-12))
            axes = top.astype(np.float32)
        self.whitened = np.empty((count, axes.shape[1]), np.float32)
        for rows in _slabs(count, 16_384):
            self.whitened[rows] = _unit((_centred(small[rows]) - self.mean) @ axes)

    def agreement(self, pairs: Pairs) -> tuple[Float, Float]:
        """Cosines of the pairs: of all that sets them apart, and of their finer structure."""
        whitened, detail = np.empty((2, len(pairs)), np.float32)
        for rows in _slabs(len(pairs), 16_384):
            a, b = pairs[rows].T
            whitened[rows] = (self.whitened[a] * self.whitened[b]).sum(1)
            fine = [_unit(_detail(_centred(self.small[some])) - self.detail_mean) for some in (a, b)]
            detail[rows] = (fine[0] * fine[1]).sum(1)
        return whitened, detail

    def candidates(self, limit: float, tables: int) -> Pairs:
        """Pairs ``(m, 2)`` with a cosine of at least ``limit``: all in a small cohort, in a large one nearly all.

        Each table sorts the cases by the signs of random projections, so that near ones stand together, and
        compares those within a block. In large groups only some pairs are kept, but they stay connected.
        """
        count, width = self.whitened.shape
        if count < 2:
            return np.empty((0, 2), np.int64)
        if count <= _EXACT:
            return np.unique(_hits(self.whitened[None], np.arange(count)[None], limit), axis=0)
        random = np.random.default_rng(0)
        found = np.empty((0, 2), np.int64)
        for _ in range(tables):
            code = _codes(self.whitened, random.standard_normal((width, 48), np.float32))
            order = np.roll(np.argsort(code, kind="stable"), int(random.integers(_BLOCK)))
            order = np.concatenate([order, order[: -count % _BLOCK]]).reshape(-1, _BLOCK)
            new = [_hits(self.whitened[order[rows]], order[rows], limit) for rows in _slabs(len(order), 128)]
            found = np.unique(np.concatenate([found, *new]), axis=0)
        return found


def _codes(vectors: Float, planes: Float) -> NDArray[np.uint64]:
    bits = np.concatenate([np.packbits(vectors[rows] @ planes > 0, axis=1) for rows in _slabs(len(vectors), 65_536)])
    whole = np.zeros((len(bits), 8), np.uint8)
    whole[:, : bits.shape[1]] = bits
    return np.asarray(whole.view(">u8")[:, 0].astype(np.uint64))


def _hits(block: Float, rows: NDArray[np.int64], limit: float) -> Pairs:
    """Pairs within blocks ``(b, m, k)`` of cases ``rows`` ``(b, m)``: of each case the first and the last few."""
    near = block @ block.transpose(0, 2, 1) >= limit
    near &= np.tri(block.shape[1], k=-1, dtype=bool).T
    if np.count_nonzero(near) > 8 * near[:, 0].size:
        rank = np.cumsum(near, axis=2, dtype=np.int32)
        near &= (rank <= 4) | (rank > rank[:, :, -1:] - 4)
    which, i, j = np.nonzero(near)
    pairs = np.sort(np.column_stack([rows[which, i], rows[which, j]]), axis=1)
    return np.asarray(pairs[pairs[:, 0] != pairs[:, 1]], np.int64)


def _centred(small: NDArray[np.uint8]) -> Float:
    """``(n, 256)`` of mean 0 and length 1: neither brightness nor contrast counts."""
    flat = small.reshape(len(small), SIDE * SIDE).astype(np.float32)
    return _unit(flat - flat.mean(1, keepdims=True))


def _detail(centred: Float) -> Float:
    """Without what changes slowly over the picture."""
    picture = centred.reshape(-1, SIDE, SIDE)
    slow = gaussian_filter1d(gaussian_filter1d(picture, 2, axis=1), 2, axis=2)
    return _unit((picture - slow).reshape(centred.shape))


def _unit(rows: Float) -> Float:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-6)), np.float32)


def _slabs(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _connected(pairs: Pairs, count: int) -> list[tuple[int, ...]]:
    links = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), (count, count))
    _, label = connected_components(links, directed=False)
    members = defaultdict(list)
    for row in np.unique(pairs):
        members[label[row]].append(int(row))
    return [tuple(rows) for rows in members.values()]


# --- what is said about them --------------------------------------------------------------------------------

_WORDS = {
    "same_file": "are the same, byte for byte",
    "reencoded_copy": "are the same picture, stored again",
    "resized_copy": "are the same picture in another size",
    "flipped_copy": "are the same picture mirrored or turned",
    "near_copy": "are nearly the same picture: repeated shots, neighbouring slices, or one drawn upon",
}
_ACROSS = (
    "train leaves the copies of held-out cases out of training, where they would flatter every figure; better, give "
    "all copies to one split"
)
_WITHIN = "train keeps copies together in every split; remove what was stored twice by mistake"


def find(evidence: Evidence) -> list[Trouble]:
    """Copies, a trouble for each kind, apart where they cross given splits; labels that differ; torn patients."""
    found = copies(evidence.measured["duplicates"])
    entries = evidence.entries
    groups: dict[str, list[tuple[int, ...]]] = {kind: found.groups([kind]) for kind in KINDS[1:]}
    near = {int(row) for row in found.pairs["near_copy"].flat}
    groups["near_copy"] = [rows for rows in found.groups() if near & set(rows)]
    groups["same_file"], again = _same_files(found.groups(["same_pixels"]), entries)
    groups["reencoded_copy"] = again + groups["reencoded_copy"]
    troubles = []
    for kind, words in _WORDS.items():
        across = [rows for rows in groups[kind] if len({entries[row].split or "train" for row in rows}) > 1]
        within = [rows for rows in groups[kind] if rows not in set(across)]
        if across:
            message = f"{_many(across)} {words}, and stand in different splits"
            troubles.append(_trouble(kind, across, entries, message, _ACROSS, "repair"))
        if within:
            message = f"{_many(within)} {words}{_known(within, evidence)}"
            troubles.append(_trouble(kind, within, entries, message, _WITHIN, "look"))
    return [*troubles, *_conflicts(found, evidence)]


def _known(groups: list[tuple[int, ...]], evidence: Evidence) -> str:
    """How many of the groups are of one patient: that their pictures are alike is no news."""
    if not evidence.grouping:
        return ""
    one = sum(len({evidence.entries[row].patient for row in rows}) == 1 for rows in groups)
    return f"; {one:,} of {len(groups):,} hold cases of one patient only ({evidence.grouping})"


def _many(groups: list[tuple[int, ...]]) -> str:
    return f"{sum(map(len, groups)):,} cases in {len(groups):,} group{'' if len(groups) == 1 else 's'}"


def _trouble(
    kind: str,
    groups: list[tuple[int, ...]],
    entries: tuple[Entry, ...],
    message: str,
    fix: str,
    severity: Literal["stop", "repair", "look"],
) -> Trouble:
    named = tuple(tuple(entries[row].id for row in rows) for rows in groups)
    return Trouble(kind, tuple(case for group in named for case in group), message, fix, severity, named)


def _same_files(
    groups: list[tuple[int, ...]], entries: tuple[Entry, ...]
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Groups of equal pixels, parted into those of equal files and those that differ as files."""
    same, again = [], []
    for rows in groups:
        by_file = defaultdict(list)
        for row in rows:
            by_file[_file(entries[row])].append(row)
        same += [tuple(some) for some in by_file.values() if len(some) > 1]
        if len(by_file) > 1:
            again.append(tuple(some[0] for some in by_file.values()))
    return same, again


def _file(entry: Entry) -> bytes:
    """Hash of the file; empty where the image is a row of one, or a folder: there the pixels are all there is."""
    (source,) = entry.images.values()
    if source.index is not None or not source.path.is_file():
        return b""
    try:
        with source.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return entry.id.encode()


def _conflicts(found: Copies, evidence: Evidence) -> list[Trouble]:
    """One picture under two labels of one task: one of them is wrong, or the label does not depend on the picture."""
    troubles = []
    entries = evidence.entries
    for question in evidence.questions:
        torn = [rows for rows in found.groups() if _contradict([entries[row] for row in rows], question)]
        if torn:
            message = f"{_many(torn)} are (nearly) the same picture under different labels of {question.task}"
            fix = "have a reader decide which label is right"
            troubles.append(_trouble("label_conflict", torn, entries, message, fix, "look"))
    return troubles


def _contradict(entries: Iterable[Entry], question: Question) -> bool:
    """Whether two of them state different things; what one of them does not state contradicts nothing."""
    several = question.kind in ("multilabel", "regression")
    said: dict[str, set[tuple[Any, ...]]] = defaultdict(set)
    for entry in entries:
        for f in entry.findings:
            if f.task == question.task and (f.probability is not None or f.value is not None):
                said[f.name if several else ""].add((f.name, f.probability, f.value))
    return any(len(values) > 1 for values in said.values())

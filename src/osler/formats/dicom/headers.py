"""The few tags that say what DICOM files are, read from thousands of files at once, without data sets.

The first 8 KiB of many files lie in one array, and all of them are walked in step: one element of each file, then the
next one of each, in a few array operations. Two encodings are walked (explicit and implicit VR, little endian; PS3.5
section 7), in ASCII. Whatever else a file holds, or looks odd in it, is left to pydicom: an answer is given only
where it is that of pydicom.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Keyword: (tag, VR). What a cohort is sorted by, and what may give a label away.
TAGS: Mapping[str, tuple[int, str]] = {
    "ImageType": (0x00080008, "CS"),
    "SOPClassUID": (0x00080016, "UI"),
    "SOPInstanceUID": (0x00080018, "UI"),
    "StudyDate": (0x00080020, "DA"),
    "Modality": (0x00080060, "CS"),
    "Manufacturer": (0x00080070, "LO"),
    "InstitutionName": (0x00080080, "LO"),
    "StationName": (0x00081010, "SH"),
    "SeriesDescription": (0x0008103E, "LO"),
    "ManufacturerModelName": (0x00081090, "LO"),
    "PatientID": (0x00100020, "LO"),
    "PatientSex": (0x00100040, "CS"),
    "PatientAge": (0x00101010, "AS"),
    "BodyPartExamined": (0x00180015, "CS"),
    "KVP": (0x00180060, "DS"),
    "SoftwareVersions": (0x00181020, "LO"),
    "ProtocolName": (0x00181030, "LO"),
    "ViewPosition": (0x00185101, "CS"),
    "StudyInstanceUID": (0x0020000D, "UI"),
    "SeriesInstanceUID": (0x0020000E, "UI"),
    "SeriesNumber": (0x00200011, "IS"),
    "InstanceNumber": (0x00200013, "IS"),
    "PhotometricInterpretation": (0x00280004, "CS"),
    "NumberOfFrames": (0x00280008, "IS"),
    "Rows": (0x00280010, "US"),
    "BitsStored": (0x00280101, "US"),
}

# How much of each file is looked at, and how many files at a time: 8 MiB. Nearly all headers end in the first window;
# those that private elements make longer are read again.
_WINDOWS = ((8 << 10, 1024), (128 << 10, 64))

# The tags, and the character set of their text.
_WANTED = [*TAGS.values(), (0x00080005, "CS")]
_WORDS = [place for place, (_, vr) in enumerate(_WANTED) if vr != "US"]
_SHORTS = [place for place, (_, vr) in enumerate(_WANTED) if vr == "US"]
_NAMES = [list(TAGS)[place] for place in (*_WORDS[:-1], *_SHORTS)]
_COLUMN = {name: column for column, name in enumerate(_NAMES)}


def _word(text: str) -> int:
    return int.from_bytes(text.encode(), "little")


# Tables by a 16-bit word of a file, as the walk meets it.
_SHORT, _LONG, _SEQUENCE = 1, 2, 3
_KIND = np.zeros(1 << 16, np.uint8)
_SHORT_VRS = "AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US"
_KIND[[_word(vr) for vr in _SHORT_VRS.split(" ")]] = _SHORT
_LONG_VRS = "OB OD OF OL OV OW SV UC UN UR UT UV"
_KIND[[_word(vr) for vr in _LONG_VRS.split(" ")]] = _LONG
_KIND[_word("SQ")] = _SEQUENCE
_SPECIAL = np.zeros(1 << 16, bool)
_SPECIAL[[0x0000, 0x7FE0, 0xFFFE]] = True

_TAG = np.array([tag for tag, _ in _WANTED], np.int64)
_VR = np.array([_word(vr) for _, vr in _WANTED], np.uint16)
# A place in a table for each wanted tag, no two in one: the last bits of this product of group, plus the element.
_SPREAD = 1103
_PLACE = np.zeros(1 << 16, np.int64)
for _place, _number in enumerate(_TAG):
    _PLACE[((_number >> 16) * _SPREAD + (_number & 0xFFFF)) & 0xFFFF] = _place

_IMPLICIT = b"1.2.840.10008.1.2"
# Big endian, and the two whose data set is deflated.
_OTHERWISE = (b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.4.95")
# Single character sets in which a byte below 128 means what it means in ASCII (PS3.3 C.12.1.1.2).
_PLAIN = ("", "GB18030", "GBK", *(f"ISO_IR {n}" for n in (6, 100, 101, 109, 110, 126, 127, 138, 144, 148, 166, 192)))


def _one(text: str) -> bool:
    return "\\" not in text


def _whole(text: str) -> bool:
    return not text or (len(text) < 10 and text.isdecimal())


def _decimal(text: str) -> bool:
    return not text or (len(text) < 10 and text.replace(".", "", 1).isdecimal())


# What pydicom takes as it is: single texts, plain numbers, and a class that says what the object is.
_BY_VR: dict[str, Callable[[str], bool]] = {"LO": _one, "SH": _one, "IS": _whole, "DS": _decimal}
_ALLOWED = {column: _BY_VR[_WANTED[place][1]] for column, place in enumerate(_WORDS) if _WANTED[place][1] in _BY_VR}
_ALLOWED |= {_NAMES.index("SOPClassUID"): bool, len(_WORDS) - 1: _PLAIN.__contains__}
_UNDEFINED = 0xFFFFFFFF
# Bytes that need a character set, or pydicom's judgement.
_BAD = np.zeros(256, bool)
_BAD[[0, 10, 27, *range(128, 256)]] = True


class Tags(Mapping[str, str]):
    """The tags of one file by keyword: a dictionary of a fifth of the size, as there may be a million of them."""

    __slots__ = ("_values",)

    def __init__(self, values: tuple[str, ...]) -> None:
        self._values = values

    def __getitem__(self, name: str) -> str:
        return self._values[_COLUMN[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(_COLUMN)

    def __len__(self) -> int:
        return len(_COLUMN)


@dataclass(frozen=True, eq=False)
class _Window:
    """The first bytes of some files.

    Attributes:
        raw: ``(files, stride)``, each row with some more bytes after its window.
        ends: how many bytes of each row were read.
        whole: whether that is all of the file.
        odd: files for pydicom; found out on the way.
        longer: files whose header goes on after the window; found out on the way.
        starts, lengths: ``(wanted tags, files)``, bytes from the start of ``raw``; found out on the way.
    """

    raw: NDArray[np.uint8]
    ends: NDArray[np.int64]
    whole: NDArray[np.bool_]
    odd: NDArray[np.bool_]
    longer: NDArray[np.bool_]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]


def read(paths: Sequence[str]) -> list[Mapping[str, str] | None]:
    """The ``TAGS`` of each file as text, empty where missing; ``None`` where pydicom must look at the file."""
    answers: list[Mapping[str, str] | None] = [None] * len(paths)
    left = list(range(len(paths)))
    for width, count in _WINDOWS:
        longer: list[int] = []
        # Used again and again: what a row holds after its file is never looked at.
        raw = np.empty((min(count, len(left)), width + 16), np.uint8)
        for start in range(0, len(left), count):
            some = left[start : start + count]
            window = _opened([paths[index] for index in some], raw[: len(some)])
            for syntax, rows in _syntaxes(window).items():
                _walk(window, *rows, implicit=syntax == _IMPLICIT)
            for row, tags in _texts(window):
                answers[some[row]] = tags
            longer += [some[row] for row in np.flatnonzero(window.longer)]
        left = longer
    return answers


def _opened(paths: list[str], raw: NDArray[np.uint8]) -> _Window:
    count, width = len(paths), raw.shape[1] - 16
    ends, view = [0] * count, memoryview(raw.data).cast("B")
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0)
    for row, path in enumerate(paths):
        try:
            file = os.open(path, flags)
        except OSError:
            continue
        try:
            part = os.read(file, width)
            ends[row] = len(part)
            view[row * (width + 16) : row * (width + 16) + len(part)] = part
        except OSError:
            continue
        finally:
            os.close(file)
    read = np.array(ends, np.int64)
    values = np.zeros((2, len(_WANTED), count), np.int64)
    flagged = np.zeros((2, count), bool)
    return _Window(raw, read, read < width, flagged[0], flagged[1], values[0], values[1])


def _syntaxes(window: _Window) -> dict[bytes, tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Walks group 2 (always explicit): for both encodings the files, and the word at which their data sets begin."""
    words, stride = window.raw.reshape(-1).view("<u2"), window.raw.shape[1] // 2
    good = (window.raw[:, 128:140] == np.frombuffer(b"DICM\2\0\0\0UL\4\0", np.uint8)).all(1)
    window.odd[~good] = True
    rows, found = np.flatnonzero(good), np.zeros((2, len(good)), np.int64)
    at, ends = rows * stride + 72, window.ends // 2
    ready: list[tuple[Any, Any]] = []
    while len(rows):
        inside = at - rows * stride + 6 <= ends[rows]
        window.odd[rows[~inside]] = True
        rows, at = rows[inside], at[inside]
        meta = words[at] == 2
        ready.append((rows[~meta], at[~meta]))
        rows, at = rows[meta], at[meta]
        kind, length = _KIND[words[at + 2]], words[at + 3].astype(np.int64)
        long = words[at + 4] | words[at + 5].astype(np.int64) << 16
        head = np.where(kind == _SHORT, 4, 6)
        length = np.where(kind == _SHORT, length, long)
        syntax = words[at + 1] == 0x10
        found[:, rows[syntax]] = (2 * (at + head))[syntax], length[syntax]
        odd = (kind == 0) | (kind == _SEQUENCE) | (length % 2 == 1) | (length > window.raw.shape[1])
        window.odd[rows[odd]] = True
        at, rows = (at + head + length // 2)[~odd], rows[~odd]
    rows, at = (np.concatenate(parts).astype(np.int64) for parts in zip(*ready, strict=True)) if ready else (rows, at)
    flat = memoryview(window.raw.data).cast("B")
    begins, lengths = found[:, rows].tolist()
    named = [bytes(flat[a : a + n]).rstrip(b" \0") for a, n in zip(begins, lengths, strict=True)]
    implicit = np.array([name == _IMPLICIT for name in named], bool)
    known = np.array([name.startswith(_IMPLICIT) and name not in _OTHERWISE for name in named], bool)
    # The first element must look like the encoding that is stated: pydicom looks, too.
    vr = window.raw.reshape(-1)[2 * at[:, None] + [4, 5]] if len(at) else np.zeros((0, 2), np.uint8)
    letters = ((vr > 0x40) & (vr < 0x5B)).all(1)
    known &= letters != implicit
    window.odd[rows[~known]] = True
    explicit = known & ~implicit
    implicit &= known
    return {_IMPLICIT: (rows[implicit], at[implicit]), b"": (rows[explicit], at[explicit])}


def _walk(window: _Window, rows: NDArray[np.int64], at: NDArray[np.int64], *, implicit: bool) -> None:
    """From element to element up to the pixels, or the end of the file; ``at`` is in words.

    ``level`` is 0 in the data set, odd in a sequence of undefined length, even in an item of one (PS3.5 7.5).
    """
    words, stride = window.raw.reshape(-1).view("<u2"), window.raw.shape[1] // 2
    level = np.zeros(len(rows), np.int64)
    # Where the last element may begin.
    last = rows * stride + window.ends[rows] // 2 - 4
    while len(rows):
        if (at > last).any():
            _ended(window, rows, at, level, last)
            inside = at <= last
            rows, at, level, last = rows[inside], at[inside], level[inside], last[inside]
        group, vr = words[at], words[at + 2]
        length, step = words[at + 3].astype(np.int64), 4
        if implicit:
            kind, length = np.full(len(rows), _SHORT, np.uint8), length << 16 | vr
        else:
            kind = _KIND[vr]
        _note(window, rows, at, level, length, implicit=implicit)
        stop = None
        if (kind != _SHORT).any() or _SPECIAL[group].any() or level.any():
            length, step, level, stop = _unusual(window, rows, at, level, kind, length)
        uneven = (length & 1) == 1
        if uneven.any():
            # An undefined length is one of them.
            window.odd[rows[uneven]] = True
            stop = uneven if stop is None else stop | uneven
        at = at + step + (length >> 1)
        if stop is not None and stop.any():
            rows, at, level, last = rows[~stop], at[~stop], level[~stop], last[~stop]


def _ended(window: _Window, rows: Any, at: Any, level: Any, last: Any) -> None:
    """Of files of which less than an element is left."""
    over = at > last
    rows, whole = rows[over], window.whole[rows[over]]
    window.longer[rows[~whole]] = True
    # Cut short inside of an element or a sequence: pydicom says what that means.
    cut = whole & ((at > last + 4) | (level > 0))[over]
    window.odd[rows[cut]] = True


def _note(window: _Window, rows: Any, at: Any, level: Any, length: Any, *, implicit: bool) -> None:
    """Remembers where wanted values lie; of an element that comes twice the last, as in pydicom."""
    words = window.raw.reshape(-1).view("<u2")
    tag = words[at].astype(np.int64) << 16 | words[at + 1]
    place = _PLACE[((tag >> 16) * _SPREAD + tag) & 0xFFFF]
    hit = (_TAG[place] == tag) & (level == 0)
    if not hit.any():
        return
    place, rows, at = place[hit], rows[hit], at[hit]
    window.starts[place, rows] = 2 * at + 8
    window.lengths[place, rows] = length[hit]
    if not implicit:
        window.odd[rows[words[at + 2] != _VR[place]]] = True


def _unusual(window: _Window, rows: Any, at: Any, level: Any, kind: Any, length: Any) -> tuple[Any, ...]:
    """Long elements, sequences, items and pixels: length and words before it, the level after it, who stops here."""
    words, stride = window.raw.reshape(-1).view("<u2"), window.raw.shape[1] // 2
    group, element = words[at], words[at + 1]
    mark = group == 0xFFFE
    long = (kind >= _LONG) & ~mark
    length = np.where(long, words[at + 4] | words[at + 5].astype(np.int64) << 16, length)
    inside, endless = level % 2 == 1, words[at + 2] | words[at + 3].astype(np.int64) << 16 == _UNDEFINED
    item = mark & inside & (element == 0xE000) & endless
    closes = mark & np.where(inside, element == 0xE0DD, (element == 0xE00D) & (level > 0))
    opens = (kind == _SEQUENCE) & (length == _UNDEFINED) & ~mark & ~inside
    pixels = (group == 0x7FE0) & np.isin(element, (0x08, 0x09, 0x10)) & (level == 0)
    beyond = long & ~pixels & (at + 6 > rows * stride + window.ends[rows] // 2)
    odd = (group == 0) | (mark & ~item & ~closes) | (inside & ~mark) | (beyond & window.whole[rows])
    odd |= ~mark & ~pixels & ~beyond & ((kind == 0) | ((length == _UNDEFINED) & ~opens))
    window.odd[rows[odd]] = True
    window.longer[rows[beyond & ~window.whole[rows]]] = True
    stop = odd | pixels | beyond
    length = np.where(mark | opens | stop, 0, length)
    return length, np.where(long, 6, 4), level + item + opens - closes, stop


def _texts(window: _Window) -> list[tuple[int, Mapping[str, str]]]:
    """The values as text, of those files in which all of them are ASCII and what their VR allows."""
    window.odd[window.lengths[_SHORTS].max(0) > 2] = True
    raw, rows = window.raw.reshape(-1), np.flatnonzero(~(window.odd | window.longer))
    if not len(rows):
        return []
    starts, lengths = (part[_WORDS][:, rows].reshape(-1) for part in (window.starts, window.lengths))
    _trim(raw, starts, lengths)
    # All of them in one string, tag by tag, each value followed by the end of a line.
    after = np.cumsum(lengths + 1)
    letters = raw[np.repeat(starts - after + lengths + 1, lengths + 1) + np.arange(after[-1])]
    letters[after - 1] = ord("\n")
    bad = _BAD[letters]
    bad[after - 1] = False
    letters[bad] = ord("?")
    odd = set((np.searchsorted(after, np.flatnonzero(bad), "right") % len(rows)).tolist())
    texts = letters.tobytes().decode("ascii").split("\n")
    columns = [texts[start : start + len(rows)] for start in range(0, len(texts) - 1, len(rows))]
    for place, allowed in _ALLOWED.items():
        wrong = {text for text in set(columns[place]) if not allowed(text)}
        if wrong:
            odd.update(index for index, text in enumerate(columns[place]) if text in wrong)
    columns[-1:] = [_numbers(window, place, rows) for place in _SHORTS]
    answers = enumerate(zip(rows.tolist(), zip(*columns, strict=True), strict=True))
    return [(row, Tags(values)) for index, (row, values) in answers if index not in odd]


def _numbers(window: _Window, place: int, rows: NDArray[np.int64]) -> list[str]:
    raw, begin = window.raw.reshape(-1), window.starts[place, rows]
    values = np.where(window.lengths[place, rows] > 0, raw[begin] + 256 * raw[begin + 1].astype(np.int64), -1)
    known = {value: "" if value < 0 else str(value) for value in set(values.tolist())}
    return [known[value] for value in values.tolist()]


def _trim(raw: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
    """Takes padding off: blanks and NUL behind (some exporters pad with NUL: PS3.5 6.2 has it for UIDs only), blanks
    before."""
    some = np.flatnonzero(lengths)
    while len(some):
        letters = raw[starts[some] + lengths[some] - 1]
        some = some[(letters == 0) | (letters == 32)]
        lengths[some] -= 1
        some = some[lengths[some] > 0]
    some = np.flatnonzero(lengths)
    while len(some):
        some = some[raw[starts[some]] == 32]
        starts[some] += 1
        lengths[some] -= 1

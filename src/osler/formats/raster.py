"""PNG, JPEG, TIFF and BMP: grey or RGB, 8, 16 or 32 bits, all of them kept. Distances are unknown (DPI is none).

A folder of such pictures is one loop, a moment each, in the natural order of their names: 9.png comes before 10.png.
"""

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from osler.case import Source
from osler.image import Image, evenly
from osler.problem import Problem

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM")
_MOST_PIXELS = 500_000_000
_MOST_LOOP = 4_000_000_000
_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")

# EXIF 2.32, tag 274: what has to be done to (..., row, column) so that the picture stands upright.
_UPRIGHT = {
    2: "mirrored",
    3: "turned by 180 degrees",
    4: "mirrored upside down",
    5: "transposed",
    6: "turned by 90 degrees clockwise",
    7: "transposed along the other diagonal",
    8: "turned by 90 degrees anticlockwise",
}


def matches(path: Path) -> bool:
    """Whether the first bytes are those of a PNG, JPEG, TIFF or BMP file, or of one in the folder."""
    if path.is_dir():
        return any(map(matches, _pictures(path)[:1]))
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(8).startswith(_MAGIC)


def read(source: Source) -> Image:
    """The picture; pages of a TIFF become slices along the depth, pictures of a folder moments.

    Raises:
        Problem: broken, suspiciously large, transparent, CMYK, or of a pixel type that would lose bits; pictures of a
            folder that differ in size or type.
    """
    return _loop(source.path, None) if source.path.is_dir() else _single(source)


def sample(source: Source, most: int) -> Image:
    """As :func:`read`, but of a folder at most so many pictures, evenly spaced.

    Raises:
        Problem: see :func:`read`.
    """
    return _loop(source.path, most) if source.path.is_dir() else _single(source)


def _pictures(folder: Path) -> list[Path]:
    """The pictures in a folder by their names, hidden ones left out, numbers in them in the order of their values."""
    paths = [path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")]
    return sorted(paths, key=lambda path: (_natural(path.name), path.name))


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(number or 0), text.casefold()) for text, number in re.findall(r"([^0-9]*)([0-9]*)", name)]


def _loop(folder: Path, most: int | None) -> Image:
    """The pictures of a folder as moments of one image; when they were taken is not known."""
    paths = _pictures(folder)
    chosen = list(range(len(paths))) if most is None or len(paths) <= most else evenly(len(paths), most).tolist()
    array: NDArray[Any] | None = None
    notes: list[str] = []
    for number, moment in enumerate(chosen):
        picture = _single(Source(paths[moment]))
        if array is None:
            shape = (len(chosen), *picture.array.shape[1:])
            if np.prod(shape, dtype=np.int64) > _MOST_LOOP:
                what = f"{len(chosen)} pictures of {picture.size[2]} x {picture.size[1]} pixels are too many at once"
                raise Problem(what, path=folder, fix="read some of its moments, or thin it out")
            array = np.empty(shape, picture.array.dtype)
        elif (picture.array.shape[1:], picture.array.dtype) != (array.shape[1:], array.dtype):
            what = "this picture differs from the first one of its loop in size or pixel type"
            raise Problem(what, path=paths[moment], fix="export all in one way, or keep each picture as a case")
        array[number] = picture.array[0]
        notes += picture.notes
    if array is None:
        raise Problem("there is no picture in this folder", path=folder, fix="give a folder of PNG or JPEG files")
    others = sum(path.is_file() and not path.name.startswith(".") for path in folder.iterdir()) - len(paths)
    notes += [f"{others} files beside the pictures of the loop were left out."] if others else []
    numbers = tuple(chosen) if len(chosen) < len(paths) else ()
    return Image(array, notes=tuple(dict.fromkeys(notes)), numbers=numbers, length=len(paths))


def _single(source: Source) -> Image:
    from PIL import Image as Pillow

    try:
        # Pillow only warns about a decompression bomb up to twice its limit: here both are refused.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Pillow.DecompressionBombWarning)
            with Pillow.open(source.path, formats=("PNG", "JPEG", "TIFF", "BMP")) as picture:
                return _image(picture)
    except Problem as problem:
        raise Problem(problem.what, path=source.path, fix=problem.fix) from problem
    except (Pillow.DecompressionBombWarning, Pillow.DecompressionBombError) as error:
        what = "the picture is so large that it may be a decompression bomb"
        raise Problem(what, path=source.path, fix="crop or tile it") from error
    except Exception as error:
        # A broken file makes Pillow raise nearly anything: OSError, SyntaxError, ValueError, struct.error, ...
        what = "the picture is broken or cut short and cannot be decoded"
        raise Problem(what, path=source.path, fix="copy it again from where it came from") from error


def labels(source: Source) -> Image | None:
    """The numbers of a palette, as in Pascal VOC's and nnU-Net's masks; ``None`` for a picture without one."""
    from PIL import Image as Pillow

    try:
        with Pillow.open(source.path, formats=("PNG", "TIFF", "BMP")) as picture:
            if picture.mode != "P":
                return None
            numbers = _upright(np.asarray(picture)[None], picture, [])
    except Exception:
        # As for `read`, which says what is wrong.
        return None
    return Image(numbers[None, :, None])


def size(path: Path) -> tuple[int, int, int] | None:
    """``(1, height, width)``, upright; ``None`` where there are pages, or the header is broken."""
    from PIL import Image as Pillow

    path = next(iter(_pictures(path)), path) if path.is_dir() else path
    try:
        with Pillow.open(path, formats=("PNG", "JPEG", "TIFF", "BMP")) as picture:
            if int(getattr(picture, "n_frames", 1)) > 1:
                return None
            sides = (picture.height, picture.width)
            return (1, *(sides[::-1] if int(picture.getexif().get(274, 1)) in (5, 6, 7, 8) else sides))
    except Exception:
        # As for `read`, which says what is wrong.
        return None


def facts(path: Path) -> dict[str, str | float]:
    """How the picture was made: its file format, EXIF's and PNG's short texts, JPEG's tables; empty where broken."""
    from PIL import ExifTags
    from PIL import Image as Pillow

    path = next(iter(_pictures(path)), path) if path.is_dir() else path
    try:
        with Pillow.open(path, formats=("PNG", "JPEG", "TIFF", "BMP")) as picture:
            found: dict[str, Any] = {"format": picture.format or "", "mode": picture.mode}
            found |= {ExifTags.TAGS.get(tag, str(tag)): value for tag, value in picture.getexif().items()}
            found |= {str(name): value for name, value in picture.info.items()}
            # The mean of the table of luma says how strongly a JPEG was compressed.
            table = getattr(picture, "quantization", {}).get(0)
            found |= {"quantization": float(np.mean(table))} if table else {}
    except Exception:
        # As for `read`: a broken file makes Pillow raise nearly anything.
        return {}
    return {name: value for name, value in found.items() if isinstance(value, (float, int)) or _short(value)}


def _short(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 80


def _image(picture: "Picture") -> Image:
    pages = int(getattr(picture, "n_frames", 1)) if picture.format in ("TIFF", "PNG") else 1
    if pages > 1 and picture.format == "PNG":
        raise Problem(f"this is an animation of {pages} pictures", fix="save the one to read as a still PNG")
    if picture.width * picture.height * pages > _MOST_PIXELS:
        raise Problem(
            f"{pages} pages of {picture.width} x {picture.height} pixels are too many", fix="crop or tile it"
        )
    notes: list[str] = []
    slices: list[NDArray[Any]] = []
    for page in range(pages):
        if pages > 1:
            picture.seek(page)
        pixels = _upright(_pixels(picture, notes), picture, notes)
        if slices and (pixels.shape, pixels.dtype) != (slices[0].shape, slices[0].dtype):
            raise Problem("its pages differ in size or pixel type", fix="save each page as a file of its own")
        slices.append(pixels)
    if pages > 1:
        notes.append(f"The {pages} pages of the TIFF were taken as slices along the depth.")
    return Image(np.stack(slices, axis=1)[None], notes=tuple(dict.fromkeys(notes)))


def _pixels(picture: "Picture", notes: list[str]) -> NDArray[Any]:
    """One page as ``(channel, height, width)``."""
    mode = picture.mode
    if mode == "CMYK":
        raise Problem("the picture is CMYK, made for printing", fix="convert it to RGB or grey")
    if mode == "P":
        picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    elif mode in ("1", "YCbCr"):
        picture = picture.convert("L" if mode == "1" else "RGB")
    elif mode in ("L", "RGB", "I;16") and "transparency" in picture.info:
        notes.append("A colour that is declared transparent was read as any other.")
    elif mode == "PA":
        picture = picture.convert("RGBA")
    elif mode == "LA" and _sixteen_bit_colour(picture):
        raise Problem("the picture is 16-bit grey with transparency", fix="save it without an alpha channel")
    if picture.mode not in ("L", "LA", "RGB", "RGBA", "I;16", "I;16B", "I;16L", "I", "F"):
        raise Problem(f"pictures of mode {mode} cannot be read", fix="convert it to grey or RGB")
    array = _both_bytes(picture) if _sixteen_bit_colour(picture) else np.asarray(picture)
    array = array.astype(array.dtype.newbyteorder("="))
    if picture.format == "TIFF":
        array = _tiff(picture, array, notes)
    array = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    if len(array) in (2, 4):
        if (array[-1] != np.iinfo(array.dtype).max).any():
            raise Problem("the picture is partly transparent (an alpha channel)", fix="save it without transparency")
        notes.append("An alpha channel that is opaque everywhere was dropped.")
        array = array[:-1]
    return np.ascontiguousarray(array)


def _tiff(picture: "Picture", array: NDArray[Any], notes: list[str]) -> NDArray[Any]:
    """What Pillow leaves undone for TIFF 6.0: 16-bit WhiteIsZero and pixel types that it would narrow."""
    tags: Any = getattr(picture, "tag_v2", {})
    bits = max(tags.get(258, (1,)))
    if bits == 64 or (bits == 32 and tags.get(339, (1,))[0] == 1 and (array < 0).any()):
        raise Problem(f"its {bits}-bit pixels cannot be read without loss", fix="save it as 32-bit float or 16 bit")
    if tags.get(262) == 0 and array.dtype == np.uint16:
        notes.append("White was stored as 0: the values were inverted, so that larger is brighter.")
        return np.asarray(np.uint16(65535) - array)
    return array


def _sixteen_bit_colour(picture: "Picture") -> bool:
    return picture.mode in ("RGB", "RGBA", "LA") and any(";16" in mode for mode in _raw_modes(picture))


def _raw_modes(picture: "Picture") -> list[str]:
    """How Pillow's decoder is told that pixels are stored, e.g. ``RGB;16B``."""
    tiles: Any = getattr(picture, "tile", ())
    return [str(part) for tile in tiles for part in _arguments(tile)]


def _arguments(tile: Any) -> tuple[Any, ...]:
    return tile[3] if isinstance(tile[3], tuple) else (tile[3],)


def _both_bytes(picture: "Picture") -> NDArray[np.uint16]:
    """16-bit colour, which Pillow narrows to the high byte: decoded twice, each time for the other byte."""
    from PIL import Image as Pillow

    path, page = getattr(picture, "filename", ""), picture.tell()
    halves = {}
    for order in "BL":
        again: Any
        with Pillow.open(path) as again:
            again.seek(page)
            again.tile = [_with_order(tile, order) for tile in again.tile]
            halves[order] = np.asarray(again).astype(np.uint16)
    big = any(mode.endswith(";16B") for mode in _raw_modes(picture))
    high, low = (halves["B"], halves["L"]) if big else (halves["L"], halves["B"])
    return np.asarray(high << 8 | low)


def _with_order(tile: Any, order: str) -> Any:
    parts = tuple(
        part[:-1] + order if isinstance(part, str) and part[:-1].endswith(";16") else part
        for part in _arguments(tile)
    )
    return tile._replace(args=parts if isinstance(tile[3], tuple) else parts[0])


def _upright(array: NDArray[Any], picture: "Picture", notes: list[str]) -> NDArray[Any]:
    code = int(picture.getexif().get(274, 1))
    if code not in _UPRIGHT:
        return array
    notes.append(f"The picture was {_UPRIGHT[code]}, as its EXIF orientation {code} asks for.")
    if code >= 5:
        array = array.swapaxes(-1, -2)
    if code in (2, 3, 6, 7):
        array = array[..., ::-1]
    if code in (3, 4, 7, 8):
        array = array[..., ::-1, :]
    return np.ascontiguousarray(array)

"""NIfTI-1 and NIfTI-2: ``.nii``, ``.nii.gz`` and ``.hdr``/``.img`` pairs."""

import gzip
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osler import cache
from osler.case import Source
from osler.image import Affine, Geometry, Image, NoGeometry, Spacing, evenly
from osler.problem import Problem

_MILLIMETRES = {"mm": 1.0, "meter": 1000.0, "micron": 0.001}
# A header with what may lie before the voxels of a file that is looked at for its header only.
_LONGEST = 4096
# Bytes read at a time, bytes decoded at a time, and decoded bytes from which on a copy is kept: below, decoding is as
# fast as looking it up.
_CHUNK, _PIECE, _WORTH = 1 << 18, 1 << 22, 1 << 20
_PAIRS = (".hdr", ".img", ".hdr.gz", ".img.gz")
_SECONDS = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}


def matches(path: Path) -> bool:
    """Whether the name is that of a NIfTI file."""
    return path.is_file() and path.name.lower().endswith((".nii", ".nii.gz", ".hdr", ".img", ".img.gz", ".hdr.gz"))


def read(source: Source) -> Image:
    """The volume or sequence; ``x`` is the width, ``y`` the height, ``z`` the depth, the fifth axis the channel.

    ``scl_slope`` and ``scl_inter`` are applied where the header has them, else the stored type is kept. The
    affine goes from RAS to LPS. Where the file does not say where its voxels are (both form codes 0, or an
    identity without a unit) there is no geometry.

    Raises:
        Problem: broken, not NIfTI, complex numbers, or more than five axes.
    """
    return _read(source, None)


def sample(source: Source, most: int) -> Image:
    """As :func:`read`, but at most so many moments: the others stay in the file, or are decoded and thrown away.

    Of a compressed file that was decoded before, the copy is taken (see ``osler.cache``); none is made.

    Raises:
        Problem: see :func:`read`.
    """
    return _read(source, most)


def _read(source: Source, most: int | None) -> Image:
    import nibabel

    try:
        single = None if source.path.name.lower().endswith(_PAIRS) else _single(source.path, most)
        if single is None:
            volume = nibabel.load(source.path)
            if not isinstance(volume, nibabel.Nifti1Pair):
                raise Problem("this is not NIfTI but an older Analyze image", fix="convert it to NIfTI")
            proxy: Any = volume.dataobj
            single = volume.header, np.asanyarray(proxy.get_unscaled()), (proxy.slope, proxy.inter)
        header, stored, scale = single
        notes: list[str] = []
        array = _ordered(_values(stored, *scale))
        geometry = _geometry(header, notes)
        length = _length(header)
        times = _times(header, length)
        if len(array) == length:
            return Image(array, geometry, times=times, notes=tuple(notes))
        chosen = evenly(length, len(array)).tolist()
        times = tuple(times[moment] for moment in chosen) if times else ()
        return Image(array, geometry, times, notes=tuple(notes), numbers=tuple(chosen), length=length)
    except Problem as problem:
        raise Problem(problem.what, path=source.path, fix=problem.fix) from problem
    except Exception as error:
        # nibabel lets gzip, zlib, struct and numpy errors through.
        what = "the NIfTI file is broken or cut short"
        raise Problem(what, path=source.path, fix="copy it again from where it came from") from error


def size(path: Path) -> tuple[int, int, int] | None:
    """``(depth, height, width)`` as the header has it; ``None`` where it is another's or broken."""
    try:
        packed = path.suffix.lower() == ".gz"
        header = None if path.name.lower().endswith(_PAIRS) else _header(_first(path, packed))
    except Exception:
        # As for `read`, which says what is wrong.
        return None
    if header is None:
        return None
    width, height, depth = (*header.get_data_shape(), 1, 1, 1)[:3]
    return depth, height, width


def _first(path: Path, packed: bool) -> bytes:
    if packed:
        return _unpacked(path, _LONGEST).tobytes()
    with path.open("rb") as file:
        return file.read(_LONGEST)


def _length(header: Any) -> int:
    """Moments: the fourth axis."""
    shape = header.get_data_shape()
    return int(shape[3]) if len(shape) > 3 else 1


def _single(path: Path, most: int | None) -> tuple[Any, NDArray[Any], tuple[float, float]] | None:
    """Header, stored voxels, slope and intercept of a ``.nii`` or ``.nii.gz``; ``None`` for an older image.

    The voxels are not copied: they lie in the file, in its decoded copy, or in the memory that it was decoded into.
    Of more than ``most`` moments some are copied out of it.
    """
    packed = path.suffix.lower() == ".gz"
    name = cache.key(path) if packed else ""
    copy = _copy(name) if packed else np.memmap(path, np.uint8, "r")
    content = copy if copy is not None else _unpacked(path, _LONGEST)
    header = _header(content[:_LONGEST].tobytes())
    if header is None:
        return None
    offset, shape, kind = int(header.get_data_offset()), header.get_data_shape(), header.get_data_dtype()
    size = offset + int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    slope, intercept = header.get_slope_inter()
    scale = (1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept))
    chosen = evenly(_length(header), most) if most is not None and _length(header) > most else None
    if chosen is not None and packed and (copy is None or len(copy) != size):
        return header, _streamed(path, offset, shape, kind, chosen), scale
    if copy is None or (packed and len(copy) != size):
        content = _unpacked(path, size)
        content.flags.writeable = False
        if len(content) >= _WORTH:
            cache.store(name, content.data)
    voxels = np.ndarray(shape, kind, content, offset, order="F")
    return header, voxels if chosen is None else _taken(voxels, chosen), scale


def _taken(voxels: NDArray[Any], chosen: NDArray[np.int64]) -> NDArray[Any]:
    """Some moments, copied one by one: the file's other pages are not touched."""
    found = np.empty((*voxels.shape[:3], len(chosen), *voxels.shape[4:]), voxels.dtype, order="F")
    for number, moment in enumerate(chosen):
        found[:, :, :, number] = voxels[:, :, :, moment]
    return found


def _streamed(
    path: Path, offset: int, shape: tuple[int, ...], kind: np.dtype[Any], chosen: NDArray[np.int64]
) -> NDArray[Any]:
    """Some moments of a gzip file, which passes through the memory in pieces."""
    block = int(np.prod(shape[:3], dtype=np.int64)) * kind.itemsize
    parts = int(np.prod(shape[4:], dtype=np.int64))
    starts = [offset + (part * shape[3] + moment) * block for part in range(parts) for moment in chosen.tolist()]
    content = np.empty(len(starts) * block, np.uint8)
    total, number = 0, 0
    for piece in _pieces(path, offset + parts * shape[3] * block):
        while number < len(starts) and starts[number] < total + len(piece):
            begin = max(starts[number], total)
            end = min(starts[number] + block, total + len(piece))
            at = number * block + begin - starts[number]
            content[at : at + end - begin] = np.frombuffer(piece, np.uint8)[begin - total : end - total]
            if starts[number] + block > end:
                break
            number += 1
        total += len(piece)
    if number < len(starts):
        raise EOFError("the gzip file is cut short")
    return np.ndarray((*shape[:3], len(chosen), *shape[4:]), kind, content, order="F")


def _copy(name: str) -> NDArray[np.uint8] | None:
    """The decoded copy in the cache; ``None`` where there is none, or another process has just taken it away."""
    path = cache.find(name)
    try:
        return None if path is None else np.memmap(path, np.uint8, "r")
    except (OSError, ValueError):
        return None


def _header(first: bytes) -> Any:
    """The header as nibabel reads and checks it, in either byte order; ``None`` where it is not that of one file."""
    import nibabel

    versions: tuple[tuple[Any, int, bytes], ...] = (
        (nibabel.Nifti1Header, 344, b"n+1"),
        (nibabel.Nifti2Header, 4, b"n+2"),
    )
    found = (kind(first[: kind.sizeof_hdr]) for kind, at, magic in versions if first[at : at + 3] == magic)
    return next(found, None)


def _unpacked(path: Path, size: int) -> NDArray[np.uint8]:
    """The first ``size`` bytes of what is packed in a gzip file (RFC 1952), or all where there are fewer."""
    content = np.empty(size, np.uint8)
    view, at = content.data, 0
    for piece in _pieces(path, size):
        view[at : at + len(piece)] = piece[: size - at]
        at = min(size, at + len(piece))
    return content[:at]


def _pieces(path: Path, size: int) -> Iterator[bytes]:
    """What is packed in a gzip file, piece by piece, up to ``size`` bytes or a little more.

    Each member that is read to its end is checked against its CRC-32; the last one always is, up to ``size``.
    """
    try:
        zlib = importlib.import_module("isal.isal_zlib")
    except ImportError:
        zlib = importlib.import_module("zlib")
    at, decoder = 0, zlib.decompressobj(31)
    with path.open("rb", buffering=0) as file:
        left, full = b"", False
        while at < size or (size > _LONGEST and not decoder.eof):
            if decoder.eof:
                # The next member: files that were packed in parallel have many.
                left, decoder = decoder.unused_data or file.read(_CHUNK), zlib.decompressobj(31)
            part = left or file.read(_CHUNK)
            if not part and not full:
                break
            # Zeros shrink to a thousandth: what comes out is bounded, too, and may wait inside.
            out = decoder.decompress(part, _PIECE)
            left, full = decoder.unconsumed_tail, len(out) == _PIECE
            at += len(out)
            yield out
    if size > _LONGEST and not decoder.eof:
        raise EOFError("the gzip file is cut short")


def _values(stored: NDArray[Any], slope: float, intercept: float) -> NDArray[Any]:
    if stored.dtype.names == ("R", "G", "B"):
        while stored.ndim < 4:
            stored = stored[..., None]
        return np.stack([stored[name] for name in "RGB"], axis=-1)
    if stored.dtype.kind not in "iufb":
        raise Problem(f"its voxels are of type {stored.dtype}, not real numbers", fix="save magnitude or grey values")
    if (slope, intercept) == (1, 0):
        return stored.astype(stored.dtype.newbyteorder("="), copy=False)
    kind = np.float32 if stored.dtype.itemsize <= 2 else np.float64
    return np.asarray((stored.astype(np.float64) * slope + intercept).astype(kind))


def _ordered(array: NDArray[Any]) -> NDArray[Any]:
    """(x, y, z, t, c) with missing axes to (t, c, z, y, x): the same memory, seen from its other end."""
    while array.ndim > 5 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim > 5:
        raise Problem(f"it has {array.ndim} axes", fix="save at most x, y, z, time and channel")
    while array.ndim < 5:
        array = array[..., None]
    return array.transpose(3, 4, 2, 1, 0)


def _geometry(header: Any, notes: list[str]) -> Geometry:
    unit = header.get_xyzt_units()[0]
    if int(header["sform_code"]) <= 0 and int(header["qform_code"]) <= 0:
        notes.append("The header does not say where the voxels are (both form codes are 0): distances are unknown.")
        return NoGeometry()
    affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    if unit == "unknown" and np.array_equal(affine, np.eye(4)):
        notes.append("The affine is the identity and has no unit: distances are unknown.")
        return NoGeometry()
    if unit == "unknown":
        notes.append("The unit of length is not stated: millimetres were assumed.")
    scale = _MILLIMETRES.get(unit, 1.0)
    try:
        return Affine(np.diag([-scale, -scale, scale, 1.0]) @ affine)
    except ValueError:
        notes.append("The affine of the header is not invertible: distances are unknown.")
        return NoGeometry()


def _times(header: Any, frames: int) -> tuple[float, ...]:
    unit = header.get_xyzt_units()[1]
    zooms = header.get_zooms()
    if frames < 2 or len(zooms) < 4 or unit not in _SECONDS or not zooms[3] > 0:
        return ()
    step = float(zooms[3]) * _SECONDS[unit]
    return tuple(step * frame for frame in range(frames))


def write(image: Image, path: Path) -> None:
    """Writes an image of one channel as NIfTI-1, gzipped where the name ends in ``.gz``; nothing is half-written.

    The affine is that of the image, turned from LPS to RAS, in single precision; a sheared one stands in the sform
    only, as a qform cannot say it. Where distances are known and the place is not, both form codes are 0; where
    nothing is known, there is no unit either.

    Raises:
        Problem: several channels.
    """
    if image.channels != 1:
        what = f"an image of {image.channels} channels cannot be written as NIfTI"
        raise Problem(what, path=path, fix="write it as PNG, or each channel by itself")
    nibabel: Any = importlib.import_module("nibabel")
    # (t, d, h, w) to (x, y, z, t)
    array = image.array[:, 0].transpose(3, 2, 1, 0)
    made = nibabel.Nifti1Image(array if image.frames > 1 else array[..., 0], None)
    zooms, unit = (1.0, 1.0, 1.0), "unknown"
    if isinstance(image.geometry, Affine):
        affine = np.diag([-1.0, -1, 1, 1]) @ image.geometry.matrix
        made.set_sform(affine, 1)
        axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
        if np.allclose(axes.T @ axes, np.eye(3), atol=1e-4):
            made.set_qform(affine, 1)
        zooms, unit = image.geometry.spacing, "mm"
    elif isinstance(image.geometry, Spacing):
        zooms, unit = (image.geometry.x, image.geometry.y, image.geometry.z or 1.0), "mm"
    seconds = _even(image.times)
    made.header.set_zooms((*zooms, seconds or 1.0) if image.frames > 1 else zooms)
    made.header.set_xyzt_units(unit, "sec" if seconds else "unknown")
    content: bytes = made.to_bytes()
    part = path.with_name(path.name + ".part")
    # Without the time of writing: the same image is the same file.
    part.write_bytes(gzip.compress(content, 6, mtime=0) if path.suffix == ".gz" else content)
    part.replace(path)


def _even(times: tuple[float, ...]) -> float | None:
    """Seconds between moments, where they are even."""
    gaps = np.diff(times) if len(times) > 1 else np.zeros(1)
    return float(gaps[0]) if gaps[0] > 0 and np.allclose(gaps, gaps[0], rtol=1e-3) else None

"""Videos: MP4, MOV and AVI, decoded with PyAV (the extra ``video``); frames become moments, with their times."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osler.case import Source
from osler.image import Image, evenly
from osler.problem import Problem

_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi")
# Pictures are kept in the same container (HEIC, AVIF): they are no videos.
_PICTURES = (b"heic", b"heix", b"mif1", b"msf1", b"avif", b"avis")
_MOST_PIXELS = 4_000_000_000
# Chroma farther from grey than this is colour, if it is in more than that share of a frame: what compression leaves
# in a grey image, and a coloured mark in a corner, are not.
_CHROMA, _SHARE = 12, 0.01
# 8-bit luma, whose range is 16 to 235 unless stated (ITU-T H.264 E.2.1, Rec. BT.601), with its chroma.
_PLANAR = ("yuv420p", "yuv422p", "yuv444p", "yuvj420p", "yuvj422p", "yuvj444p")
_FULL = ((np.arange(256) - 16.0) * (255 / 219)).round().clip(0, 255).astype(np.uint8).tobytes()
_AGAIN = "copy it again from where it came from"


def matches(path: Path) -> bool:
    """By name, or by its first bytes."""
    if not path.is_file():
        return False
    if path.suffix.lower() in _SUFFIXES:
        return True
    with path.open("rb") as file:
        head = file.read(12)
    return (head[4:8] == b"ftyp" and head[8:12] not in _PICTURES) or (head[:4] == b"RIFF" and head[8:] == b"AVI ")


def read(source: Source) -> Image:
    """All frames, ``uint8``: grey where there is no colour to be seen, else RGB.

    Raises:
        Problem: PyAV is not installed, or the video is broken, cut short, empty, or none.
    """
    return _read(source.path, None)


def sample(source: Source, most: int) -> Image:
    """At most so many frames, evenly spaced; the video is decoded from its beginning, and no other frame is kept.

    Raises:
        Problem: see :func:`read`.
    """
    return _read(source.path, most)


def _read(path: Path, most: int | None) -> Image:
    with _in_words(path):
        taken = _take(path, None, most)
        if taken.count < taken.stated:
            _count(path)
        if taken.count > taken.stated or (most is not None and taken.count < taken.stated and taken.stated > most):
            # Some containers hold packets without frames, or several frames in one: now it is known how many are.
            taken = _take(path, taken.count, most)
        if taken.count == 0:
            raise Problem("the video holds no frame", fix="export it again")
        numbers = tuple(taken.numbers) if len(taken.numbers) < taken.count else ()
        notes = list(taken.notes)
        times = tuple(taken.times)
        if len(times) > 1 and not (np.diff(times) > 0).all():
            notes.append("The video does not say when its frames were taken.")
            times = ()
        return Image(taken.array, times=times, notes=tuple(notes), numbers=numbers, length=taken.count)


@contextmanager
def _in_words(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside is said in a sentence with the file's name."""
    try:
        import av
    except ImportError as error:
        what = "videos are read with PyAV, which is not installed"
        raise Problem(what, path=path, fix="pip install 'osler[video]'") from error
    try:
        yield
    except Problem as problem:
        raise Problem(problem.what, path=path, fix=problem.fix) from problem
    except (av.FFmpegError, ValueError, OSError) as error:
        raise Problem("the video is broken or cut short and cannot be decoded", path=path, fix=_AGAIN) from error


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its first stream of moving pictures."""
    import av
    from av.stream import Disposition

    # FFmpeg takes some names for addresses: a path is one only after its protocol. By its first bytes it would also
    # take a file for a list of others, which it then opens.
    only = {"protocol_whitelist": "file", "format_whitelist": "mov,avi"}
    try:
        opened = av.open(f"file:{path.resolve()}", options=only)
    except av.ArgumentError as error:
        raise Problem("this is no MP4, MOV or AVI, whatever it is called", fix="convert it to one of them") from error
    with opened as container:
        moving = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not moving:
            raise Problem("the file holds no video, only other streams", fix="give a video")
        moving[0].thread_type = "AUTO"
        yield container, moving[0]


def _count(path: Path) -> int:
    """How many frames there are, by the packets that hold them: nothing is decoded for it.

    Raises:
        Problem: there are fewer than the file says.
    """
    with _opened(path) as (container, stream):
        found = sum(1 for packet in container.demux(stream) if packet.size)
        if found < stream.frames:
            raise Problem(f"the video is cut short: {found} of its {stream.frames} frames are there", fix=_AGAIN)
        if found == 0:
            raise Problem("the video is empty: it holds no frame", fix="export it again")
        return found


@dataclass(frozen=True, eq=False)
class _Taken:
    """Frames as an array, when they were, which, of how many that are there, and of how many that were expected."""

    array: NDArray[np.uint8]
    times: list[float]
    numbers: list[int]
    count: int
    stated: int
    notes: list[str]


def _take(path: Path, count: int | None, most: int | None) -> _Taken:
    """The frames that stand for a video of ``count``, or as many as it says, grey unless one of all has colour."""
    grey = _decoded(path, count, most, colour=False)
    found = grey if grey is not None else _decoded(path, count, most, colour=True)
    assert found is not None
    return found


def _decoded(path: Path, count: int | None, most: int | None, *, colour: bool) -> _Taken | None:
    """See :func:`_take`; ``None`` as soon as there is colour where none is expected."""
    from av.video.reformatter import VideoReformatter

    # Made once: to prepare a conversion takes longer than to convert.
    reformatter = VideoReformatter()
    array: NDArray[np.uint8] | None = None
    times: list[float] = []
    numbers: list[int] = []
    notes: list[str] = []
    number, turns = 0, 0
    with _opened(path) as (container, stream):
        count = count or int(stream.frames) or _count(path)
        wanted = None if most is None or count <= most else set(evenly(count, most).tolist())
        for frame in container.decode(stream):
            if frame.is_corrupt:
                raise Problem(f"frame {number} of the video is broken", fix=_AGAIN)
            if array is None:
                array = _room(frame, count if wanted is None else len(wanted), colour=colour)
                turns, notes = _about(frame)
            elif (frame.height, frame.width) != array.shape[3:]:
                raise Problem("the frames of the video differ in size", fix="export it in one size")
            if not colour and _coloured(frame, reformatter):
                return None
            if (wanted is None and number < len(array)) or (wanted is not None and number in wanted):
                array[len(numbers)] = _pixels(frame, reformatter, colour=colour)
                # What has no time makes all times unknown: they then do not rise.
                times.append(0.0 if frame.pts is None else float(frame.pts * frame.time_base))
                numbers.append(number)
            number += 1
    if array is None:
        array = np.zeros((1, 1, 1, 1, 1), np.uint8)
    array = array[: max(1, len(numbers))]
    if turns:
        array = np.ascontiguousarray(np.rot90(array, turns, (3, 4)))
    return _Taken(array, [time - times[0] for time in times], numbers, number, count, notes)


def _room(frame: Any, frames: int, *, colour: bool) -> NDArray[np.uint8]:
    shape = (frames, 3 if colour else 1, 1, frame.height, frame.width)
    if np.prod(shape, dtype=np.int64) > _MOST_PIXELS:
        what = f"{frames} frames of {frame.width} x {frame.height} pixels are too many to be read at once"
        raise Problem(what, fix="read some of its moments, or cut it")
    return np.empty(shape, np.uint8)


def _about(frame: Any) -> tuple[int, list[str]]:
    """Quarter turns, anticlockwise, after which it stands upright; and what has to be assumed."""
    notes = []
    turns = round(frame.rotation / 90) % 4
    if turns:
        notes.append(f"The video was turned by {90 * turns} degrees anticlockwise, as it asks for.")
    if max(component.bits for component in frame.format.components) > 8:
        notes.append("The video has more than 8 bits: the lower ones were left out.")
    return turns, notes


def _plane(frame: Any, number: int) -> NDArray[np.uint8]:
    """A plane of 8-bit values, without what pads its lines."""
    plane = frame.planes[number]
    lines = np.frombuffer(plane, np.uint8, plane.line_size * plane.height).reshape(plane.height, plane.line_size)
    return np.asarray(lines[:, : plane.width])


def _coloured(frame: Any, reformatter: Any) -> bool:
    """More than a trace of colour."""
    name = frame.format.name
    if name.startswith(("gray", "mono")):
        return False
    if name in _PLANAR:
        # Every other pixel is enough to tell; unsigned numbers go round, so that one comparison has both sides.
        first, second = (_plane(frame, k)[::2, ::2] - np.uint8(128 - _CHROMA) for k in (1, 2))
        return bool(np.count_nonzero((first > 2 * _CHROMA) | (second > 2 * _CHROMA)) > _SHARE * first.size)
    rgb = _rgb(frame, reformatter)[::2, ::2].astype(np.int16)
    return bool((np.ptp(rgb, axis=-1) > 2 * _CHROMA).mean() > _SHARE)


def _rgb(frame: Any, reformatter: Any) -> NDArray[np.uint8]:
    return np.asarray(reformatter.reformat(frame, format="rgb24").to_ndarray())


def _pixels(frame: Any, reformatter: Any, *, colour: bool) -> NDArray[np.uint8]:
    """``(channel, 1, height, width)``; grey is luma, brought to 0 to 255."""
    if colour:
        return _rgb(frame, reformatter).transpose(2, 0, 1)[:, None]
    name = frame.format.name
    if name in ("gray", "gray8"):
        return _plane(frame, 0)[None, None]
    if name in _PLANAR:
        luma = _plane(frame, 0)
        # 2 is the full range (AVCOL_RANGE_JPEG), which the names with a j say, too.
        if not (name.startswith("yuvj") or int(frame.color_range) == 2):
            luma = np.frombuffer(luma.tobytes().translate(_FULL), np.uint8).reshape(luma.shape)
        return luma[None, None]
    if name.startswith(("gray", "mono")):
        return np.asarray(reformatter.reformat(frame, format="gray").to_ndarray())[None, None]
    rgb = _rgb(frame, reformatter)
    # Luma of ITU-R BT.601, as for pictures.
    light = rgb.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.asarray(np.rint(light)[None, None], np.uint8)


def write(image: Image, path: Path) -> None:
    """Writes a sequence of grey or RGB frames of 8 bits as AVI (lossless), MP4 or MOV (compressed, nearly lossless).

    Frames lie at their times, to the millisecond, or 25 a second where these are unknown; those of an AVI are even.

    Raises:
        Problem: PyAV is not installed, there are other pixels than such, or the times of an AVI are not even.
    """
    frames: NDArray[Any] = image.array[:, :, 0].transpose(0, 2, 3, 1)
    if image.array.dtype != np.uint8 or image.channels not in (1, 3) or image.size[0] > 1:
        what = "only flat grey or RGB frames of 8 bits can be written as a video"
        raise Problem(what, path=path, fix="write it as NIfTI or NumPy, or bring it to 8 bits")
    gaps = np.diff(image.times) if len(image.times) > 1 else np.full(1, 0.04)
    lossless = path.suffix.lower() == ".avi"
    if lossless and not np.allclose(gaps, gaps[0], rtol=0.01):
        raise Problem("the frames of an AVI are even in time, these are not", path=path, fix="write an MP4")
    with _in_words(path):
        _encode(
            np.asarray(frames, np.uint8),
            path,
            image.times or tuple(0.04 * k for k in range(len(frames))),
            float(gaps[0]),
            lossless,
        )


def _encode(frames: NDArray[np.uint8], path: Path, times: tuple[float, ...], gap: float, lossless: bool) -> None:
    from fractions import Fraction

    import av
    from av.video.frame import VideoFrame

    rate = Fraction(1 / gap).limit_denominator(1000)
    grey = frames.shape[-1] == 1
    with av.open(f"file:{path.resolve()}", "w") as container:
        stream: Any = container.add_stream("ffv1" if lossless else "libx264", rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = ("gray" if grey else "bgr0") if lossless else "yuv444p" if not grey else "yuv420p"
        clock = 1 / rate if lossless else Fraction(1, 1000)
        stream.time_base = stream.codec_context.time_base = clock
        if not lossless:
            stream.options = {"crf": "12"}
        for number, pixels in enumerate(frames):
            frame = VideoFrame.from_ndarray(pixels[..., 0] if grey else pixels, format="gray" if grey else "rgb24")
            frame.time_base = clock
            frame.pts = number if lossless else round(1000 * (times[number] - times[0]))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())

"""One shape for every image, and where its pixels lie.

An image is an array ``(time, channel, depth, height, width)``. A radiograph has time = depth = 1, a CT has
time = 1, a cine loop depth = 1. Points are ``(x, y, z)`` = (width, height, depth) in continuous pixel
coordinates, 0 at the *centre* of the first pixel.
"""

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

SpacingSource = Literal["PixelSpacing", "ImagerPixelSpacing", "UltrasoundRegion", "file", "given"]


@dataclass(frozen=True)
class NoGeometry:
    """Nothing is known about distances (a PNG): nothing is ever reported in millimetres."""


@dataclass(frozen=True)
class Spacing:
    """Distances between pixel centres are known, a place in the patient is not.

    Attributes:
        x, y: millimetres between columns and between rows, > 0.
        z: millimetres between slices; ``None`` where there is one slice or the distance is unknown.
        source: where the numbers come from. ``ImagerPixelSpacing`` is in the plane of the detector,
            not of the patient (DICOM PS3.3 C.8.11.4).
    """

    x: float
    y: float
    z: float | None = None
    source: SpacingSource = "given"

    def __post_init__(self) -> None:
        for name, value in (("x", self.x), ("y", self.y), ("z", self.z)):
            if value is not None and not (np.isfinite(value) and value > 0):
                raise ValueError(f"spacing {name} must be a positive number of millimetres; got {value}")


@dataclass(frozen=True, eq=False)
class Affine:
    """A place in the patient: pixel ``(x, y, z, 1)`` to millimetres in LPS, as in DICOM.

    Attributes:
        matrix: float64 ``(4, 4)``, at pixel centres (DICOM PS3.3 C.7.6.2.1.1 with the slice axis added).
        frame: DICOM Frame of Reference UID, empty where unknown: two images with the same one share a space.
    """

    matrix: NDArray[np.float64]
    frame: str = ""

    def __post_init__(self) -> None:
        matrix = np.asarray(self.matrix, dtype=np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
            raise ValueError("an affine must be a finite 4x4 matrix")
        # Relative to the spacings: pixels of a microscope are small, not degenerate.
        spacings = np.linalg.norm(matrix[:3, :3], axis=0)
        if abs(np.linalg.det(matrix[:3, :3])) <= 1e-6 * np.prod(spacings) or list(matrix[3]) != [0, 0, 0, 1]:
            raise ValueError("an affine must be invertible, with a last row of 0 0 0 1")
        object.__setattr__(self, "matrix", matrix)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between neighbouring pixels along x, y, z."""
        x, y, z = np.linalg.norm(self.matrix[:3, :3], axis=0)
        return float(x), float(y), float(z)


Geometry = NoGeometry | Spacing | Affine


@dataclass(frozen=True, eq=False)
class Image:
    """Pixels as they were read, all their bits, with their geometry.

    Attributes:
        array: ``(time, channel, depth, height, width)``, any real dtype.
        geometry: see :data:`Geometry`; never invented.
        times: seconds of each frame from the first, or ``()`` where unknown.
        modality: DICOM modality code (``CT MR US DX CR``), empty where unknown.
        unit: ``"HU"`` where the values are Hounsfield units, else empty.
        notes: what the reader had to assume or repair, a sentence each.
        numbers: which frames of its sequence these are, where only some were read; else ``()``.
        length: how many frames the sequence has, of which these may be some.
        visits: the images of a series of visits as they were read, where they differ in size or spacing: then
            ``array`` shows all of them in the size of the last, and a network is given each on its own.
        together: of several modalities that a network is given side by side, each as it was read or ``None`` where
            it is missing; then the rest is that of the first that is there.
    """

    array: NDArray[np.generic]
    geometry: Geometry = field(default_factory=NoGeometry)
    times: tuple[float, ...] = ()
    modality: str = ""
    unit: str = ""
    notes: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    length: int = 0
    visits: "tuple[Image, ...]" = ()
    together: "tuple[Image | None, ...]" = ()

    def __post_init__(self) -> None:
        if self.array.ndim != 5:
            raise ValueError(f"an image is (time, channel, depth, height, width); got shape {self.array.shape}")
        if 0 in self.array.shape:
            raise ValueError(f"an image has at least one pixel; got shape {self.array.shape}")
        if self.times and len(self.times) != self.array.shape[0]:
            raise ValueError(f"{len(self.times)} frame times for {self.array.shape[0]} frames")
        for name, each in (("numbers", self.numbers), ("visits", self.visits)):
            if each and len(each) != self.array.shape[0]:
                raise ValueError(f"{len(each)} {name} for {self.array.shape[0]} frames")
        if not self.numbers:
            object.__setattr__(self, "length", self.array.shape[0])

    @property
    def frames(self) -> int:
        return int(self.array.shape[0])

    @property
    def channels(self) -> int:
        return int(self.array.shape[1])

    @property
    def size(self) -> tuple[int, int, int]:
        """``(depth, height, width)`` in pixels."""
        depth, height, width = self.array.shape[2:]
        return depth, height, width

    @property
    def spacing(self) -> tuple[float | None, float, float] | None:
        """Millimetres along ``(depth, height, width)``, or ``None`` where no distance is known."""
        match self.geometry:
            case Affine() as affine:
                x, y, z = affine.spacing
                return z, y, x
            case Spacing(x, y, z):
                return z, y, x
            case _:
                return None

    def to_patient(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Pixel points ``(..., 3)`` as x, y, z to patient millimetres (LPS).

        Raises:
            ValueError: the image has no place in the patient.
        """
        if not isinstance(self.geometry, Affine):
            raise ValueError("this image has no place in the patient: its geometry is not an affine")
        matrix = self.geometry.matrix
        return np.asarray(np.asarray(points, dtype=np.float64) @ matrix[:3, :3].T + matrix[:3, 3])

    def frame(self, index: int) -> "Image":
        """One moment of a sequence."""
        if not -self.frames <= index < self.frames:
            raise ValueError(f"there is no frame {index} among {self.frames}")
        index %= self.frames
        if self.visits:
            return replace(self.visits[index], times=self.times[index : index + 1])
        times = self.times[index : index + 1]
        return replace(self, array=self.array[index : index + 1], times=times, numbers=())

    def place(self, number: int) -> int:
        """Where in ``array`` the moment lies that has this number in its sequence."""
        return self.numbers.index(number) if self.numbers else number

    def pick(self, indices: NDArray[np.int64]) -> "Image":
        """Some moments of a sequence, in the order given; they keep their times, and their numbers in it."""
        numbers = self.numbers or tuple(range(self.frames))
        return replace(
            self,
            array=self.array[indices],
            times=tuple(self.times[i] for i in indices) if self.times else (),
            numbers=tuple(numbers[i] for i in indices),
            visits=tuple(self.visits[i] for i in indices) if self.visits else (),
        )

    def thinned(self, most: int) -> "Image":
        """At most so many moments, evenly spaced from first to last (see :func:`evenly`)."""
        return self if self.frames <= most else self.pick(evenly(self.frames, most))

    def crop(self, start: tuple[int, int, int], stop: tuple[int, int, int]) -> "Image":
        """The pixels from ``start`` up to (without) ``stop``, both ``(depth, height, width)``."""
        if any(not 0 <= a < b <= n for a, b, n in zip(start, stop, self.size, strict=True)):
            raise ValueError(f"the crop {start} to {stop} is not inside an image of {self.size}")
        window = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        step = np.eye(4)
        step[:3, 3] = start[::-1]
        array = self.array[(slice(None), slice(None), *window)]
        return replace(self, array=array, geometry=self._moved(step), visits=(), together=())

    def pad(self, start: tuple[int, int, int], size: tuple[int, int, int]) -> "Image":
        """In a larger image of ``size``, from ``start`` on; around it each moment is as dark as its darkest pixel."""
        array = self.array.astype(np.float32, copy=False)
        canvas = np.empty((*array.shape[:2], *size), np.float32)
        canvas[...] = array.min(axis=(2, 3, 4), keepdims=True)
        canvas[:, :, *(slice(a, a + n) for a, n in zip(start, self.size, strict=True))] = array
        step = np.eye(4)
        step[:3, 3] = [-n for n in start[::-1]]
        return replace(self, array=canvas, geometry=self._moved(step), visits=(), together=())

    def flip(self, axis: Literal["depth", "height", "width"]) -> "Image":
        """Mirrored along one axis; an affine is updated, so every pixel stays where it is in the patient."""
        number = ("depth", "height", "width").index(axis)
        step = np.eye(4)
        step[2 - number, 2 - number] = -1
        step[2 - number, 3] = self.size[number] - 1
        array = np.flip(self.array, 2 + number)
        return replace(self, array=array, geometry=self._moved(step), visits=(), together=())

    def resample(self, size: tuple[int, int, int], *, order: Literal[0, 1] = 1) -> "Image":
        """The same field of view on a grid of ``size`` (depth, height, width).

        Pixel *edges* stay where they are, so centres move: new centre ``i`` lies at
        ``(i + .5) * old / new - .5``. With ``order=1`` an axis that shrinks is first smoothed with a
        Gaussian of ``sigma = (old / new - 1) / 2`` pixels against aliasing; ``order=0`` takes the nearest.
        """
        if any(n < 1 for n in size):
            raise ValueError(f"a size must be at least one pixel along each axis; got {size}")
        if size == self.size:
            return self
        factors = [old / new for old, new in zip(self.size, size, strict=True)]
        array = self.array
        if order == 1:
            array = _smooth(array, size)
        else:
            for axis, (factor, new) in enumerate(zip(factors, size, strict=True), start=2):
                array = _nearest(array, axis, factor, new)
        step = np.eye(4)
        for axis, factor in enumerate(reversed(factors)):
            step[axis, axis] = factor
            step[axis, 3] = factor / 2 - 0.5
        return replace(self, array=array, geometry=self._moved(step), visits=(), together=())

    def _moved(self, step: NDArray[np.float64]) -> Geometry:
        """The geometry after new pixel coordinates were mapped to old ones by ``step`` (4x4, x y z)."""
        match self.geometry:
            case Affine(matrix, frame):
                return Affine(matrix @ step, frame)
            case Spacing(x, y, z, source):
                scale = np.abs(np.diag(step))
                return Spacing(x * scale[0], y * scale[1], None if z is None else z * scale[2], source)
            case nothing:
                return nothing


def evenly(length: int, count: int) -> NDArray[np.int64]:
    """Which ``count`` moments stand for a sequence of ``length``: evenly spaced from first to last, ``(count,)``.

    Of a sequence that is shorter some come twice or more often, side by side.
    """
    return np.linspace(0, length - 1, count).round().astype(np.int64)


def _nearest(array: NDArray[np.generic], axis: int, factor: float, new: int) -> NDArray[np.generic]:
    old = array.shape[axis]
    if old == new:
        return array
    centres = np.clip((np.arange(new) + 0.5) * factor - 0.5, 0, old - 1)
    return np.asarray(np.take(array, np.rint(centres).astype(int), axis))


def _smooth(array: NDArray[np.generic], size: tuple[int, int, int]) -> NDArray[np.float32]:
    """Smoothed and interpolated, moment by moment: only what the new grid needs is ever computed."""
    depth, height, width = (_weights(old, new) for old, new in zip(array.shape[2:], size, strict=True))
    found = np.empty((*array.shape[:2], *size), np.float32)
    for place in np.ndindex(array.shape[:2]):
        volume = np.ascontiguousarray(array[place], np.float32)
        if depth is not None:
            volume = (depth @ volume.reshape(len(volume), -1)).reshape(-1, *volume.shape[1:])
        for number, plane in enumerate(volume):
            across = plane if height is None else height @ plane
            found[(*place, number)] = across if width is None else (width @ np.ascontiguousarray(across.T)).T
    return found


@lru_cache(maxsize=64)
def _weights(old: int, new: int) -> Any:
    """A sparse matrix ``(new, old)``: a Gaussian as :func:`Image.resample` says, cut off at four deviations and with
    the edge repeated beyond itself, then linear interpolation; ``None`` where nothing is to be done.
    """
    from scipy import sparse

    if old == new:
        return None
    factor = old / new
    centres = np.clip((np.arange(new) + 0.5) * factor - 0.5, 0, old - 1)
    below = np.minimum(np.floor(centres).astype(int), max(0, old - 2))
    share = centres - below
    sigma = max(0.0, (factor - 1) / 2)
    reach = int(4 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-9)) ** 2)
    kernel /= kernel.sum()
    # Each of the two neighbours is a mean over its own surroundings.
    parts = np.stack([below, np.minimum(below + 1, old - 1)])[..., None] + np.arange(-reach, reach + 1)
    values = np.stack([1 - share, share])[..., None] * kernel
    rows = np.broadcast_to(np.arange(new)[:, None], parts.shape)
    columns = parts.clip(0, old - 1).ravel()
    made = sparse.csr_array((values.ravel(), (rows.ravel(), columns)), shape=(new, old))
    made.sum_duplicates()
    made.eliminate_zeros()
    return made.astype(np.float32)

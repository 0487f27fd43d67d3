"""Volumes of one case brought onto the grid of one of them, by what they show; said where that failed.

Images of one examination share a space and lie on grids of their own; images of several days or machines do not even
share that. A network that sees them together needs the same place at the same pixel.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from osler import cache, preparations, resampling
from osler.image import Affine, Image
from osler.problem import Problem

Kind = Literal["rigid", "affine"]
Volume = NDArray[np.float32]
Matrix = NDArray[np.float64]
# What a patient can do between two images: degrees, and stretch along an axis. How far is nothing to judge by: where
# the middle of the room is, is another matter on each machine.
_TURN, _STRETCH = 45.0, 1.35
# Voxels along the longest axis at which images are compared; bins of their joint histogram.
_SIDE, _BINS = 64, 32
# How much of the reference's body must lie in the other image.
_OVERLAP = 0.6
# How many times the mutual information of the best mirrored copy is no chance: 1.9 to 33 for one person's images in
# other contrast, .3 to 1.1 for strangers' (benchmarks/preparation.py).
_GAIN = 1.5
# Motions that were found last, by the name under which they are in the cache: 16 numbers each.
_recent: dict[str, tuple[Matrix, str]] = {}
_FEW = 64


@dataclass(frozen=True, eq=False)
class Registered:
    """Images of a case on one grid.

    Attributes:
        images: by name; all have size and geometry of the reference. What failed is not among them.
        notes: a sentence for each image that was moved or left out.
        failed: names of those left out.
        motions: ``(4, 4)`` of each that was moved: points of the reference to points of the image, millimetres in LPS
            where the reference has a place in the patient, else its pixels times its spacing.
    """

    images: dict[str, Image]
    notes: tuple[str, ...]
    failed: tuple[str, ...]
    motions: dict[str, Matrix]


def register(images: Mapping[str, Image], reference: str, kind: Kind = "rigid") -> Registered:
    """Every image on the grid of the reference.

    An image that lies on this grid already stays as it is, and one of the same frame of reference (as DICOM calls it)
    is interpolated, not registered. Any other is moved by SimpleITK: rigidly, then with ``affine`` in all twelve
    degrees of freedom, so that Mattes' mutual information (Mattes 2003) of the two is largest, from coarse to fine,
    with a fixed seed. What was found is then judged by other figures, see :func:`judged`.

    Args:
        images: of one case, one moment and one channel each, volumes.
        reference: which of them all others come onto.
        kind: what motion is allowed.

    Raises:
        Problem: there is no such reference, an image is no still grey volume, or SimpleITK is not installed.
    """
    if reference not in images:
        raise Problem(f"there is no image {reference!r}", fix=f"take one of {', '.join(images)} as reference")
    for name, image in images.items():
        if not _is_volume(image):
            what = f"{name} is no still grey volume, so it cannot be registered"
            raise Problem(what, fix="give volumes of four slices or more")
        if not np.isfinite(image.array).all():
            raise Problem(f"{name} holds values that are not numbers", fix="mask or repair them first")
    fixed = images[reference]
    found = {reference: fixed}
    notes: list[str] = []
    failed: list[str] = []
    motions: dict[str, Matrix] = {}
    for name, image in images.items():
        if name == reference or _same_grid(image, fixed):
            found[name] = image
        elif _same_space(image, fixed):
            found[name] = _onto(image, fixed, np.eye(4))
            notes.append(f"{name} was interpolated on the grid of {reference}, with which it shares a space.")
        else:
            moved, wrong = _found(image, fixed, kind)
            if wrong:
                failed.append(name)
                notes.append(f"{name} could not be registered onto {reference} and was left out: {wrong}.")
            else:
                found[name], motions[name] = _onto(image, fixed, moved), moved
                notes.append(f"{name} was registered onto {reference} ({_in_words(moved, fixed)}).")
    return Registered(found, tuple(notes), tuple(failed), motions)


def onto_first(images: Mapping[str, Image], kind: Kind) -> tuple[dict[str, Image], tuple[str, ...]]:
    """Those that are, or could be brought, on the grid of the first, and a sentence for each that was not there.

    What is no still grey volume stays as it lies; where the first is none, all do. What was found is kept in the
    cache (``osler.cache``), a few numbers under a name made of both images.

    Raises:
        Problem: as :func:`register`.
    """
    first = next(iter(images))
    able = {name: image for name, image in images.items() if _is_volume(image)}
    if first not in able or len(able) < 2:
        return dict(images), ()
    found = register(able, first, kind)
    # In the order that they were given in.
    kept = {name: found.images.get(name, image) for name, image in images.items() if name not in found.failed}
    return kept, found.notes


def beside(image: Image, fixed: Image) -> Image:
    """An image on the grid of another of its case, by where both say that they lie; nothing is sought.

    Images of one size of which that is not known are taken to lie on each other.

    Raises:
        Problem: they differ in moments, in size where nothing says how they lie to each other, or in the space that
            they lie in, or nothing of the one is where the other is.
    """
    if image.frames != fixed.frames:
        what = f"one image of this case has {image.frames} moments, another {fixed.frames}"
        raise Problem(what, fix="choose one of them: image.modalities=[NAME]")
    a, b = image.geometry, fixed.geometry
    if isinstance(a, Affine) and isinstance(b, Affine):
        if _same_grid(image, fixed):
            return image
        laid = resampling.onto(image, b, fixed.size, outside=np.nan)
        if (a.frame and b.frame and a.frame != b.frame) or np.isnan(laid.array).all():
            what = "images of this case lie in other spaces, or beside each other, by what their files say"
            raise Problem(what, fix="set image.register=rigid, or choose one of them: image.modalities=[NAME]")
        return replace(laid, array=np.nan_to_num(laid.array, nan=float(image.array.min())))
    if image.size != fixed.size:
        sizes = " and ".join(" x ".join(map(str, one.size)) for one in (image, fixed))
        what = f"images of this case are {sizes} pixels, and nothing says how they lie to each other"
        raise Problem(what, fix="bring them to one grid, or choose one of them: image.modalities=[NAME]")
    return image


def apart(images: Mapping[str, Image]) -> bool:
    """Whether some of them, still grey volumes all, are known to lie on another grid than the first of these."""
    placed = [one for one in images.values() if _is_volume(one) and isinstance(one.geometry, Affine)]
    return any(not _same_grid(one, placed[0]) for one in placed[1:])


def _is_volume(image: Image) -> bool:
    return image.frames == image.channels == 1 and not image.visits and min(image.size) >= 4


def judged(motion: Matrix, image: Image, fixed: Image, kind: Kind) -> str:
    """Why a motion is not to be believed; empty where it is.

    It must be one that a patient can make; most of the reference's body (what is brighter than Otsu's threshold) must
    lie in the other image; and inside of that body the two images must tell more of each other than the reference
    and mirrored copies of the image do, registered in the same way. No motion makes a copy equal to the image, and it
    is as free to fit by chance; everything in it but the places is the same.
    """
    turn, _, stretch = _size_of(motion, fixed)
    if turn > _TURN or not 1 / _STRETCH <= stretch[0] <= stretch[1] <= _STRETCH:
        return f"the motion that fits best is not plausible ({_in_words(motion, fixed)})"
    small, other = _small(fixed), _small(image)
    share = _overlap(small, other, motion)
    if share < _OVERLAP:
        return f"only {share:.0%} of the body lies in the other image"
    found = _information(small, other, motion)
    chance = 0.0
    for axis in ("depth", "height", "width"):
        copy = replace(other.flip(axis), geometry=other.geometry)
        chance = max(chance, _information(small, copy, _moved(copy, small, kind)))
    if found < _GAIN * chance:
        return "mirrored copies of it fit as well"
    return ""


def _found(image: Image, fixed: Image, kind: Kind) -> tuple[Matrix, str]:
    """The motion, and why it is not to be believed; from the cache where both were seen before."""
    small, other = _small(fixed), _small(image)
    told = "|".join(cache.content_key(_place(one).tobytes().hex(), one.array) for one in (small, other))
    name = cache.content_key(f"motion|1|{kind}|{told}", np.zeros(0))
    # One diagnosis asks several times; the cache may be off, or have enough to write.
    known = _recent.get(name)
    if known is None:
        known = _searched(name, image, fixed, kind)
        # All at once, which threads cannot disturb.
        if len(_recent) >= _FEW:
            _recent.clear()
        _recent[name] = known
    return known[0].copy(), known[1]


def _searched(name: str, image: Image, fixed: Image, kind: Kind) -> tuple[Matrix, str]:
    there = cache.find(name)
    # Another process may take it away at any moment: then it is found again.
    with suppress(OSError, ValueError, KeyError):
        if there is not None:
            known = json.loads(there.read_bytes())
            return np.array(known["motion"]).reshape(4, 4), str(known["wrong"])
    moved = _moved(image, fixed, kind)
    wrong = judged(moved, image, fixed, kind)
    cache.store(name, memoryview(json.dumps({"motion": moved.tolist(), "wrong": wrong}).encode()))
    return moved, wrong


def _same_grid(image: Image, fixed: Image) -> bool:
    known = isinstance(image.geometry, Affine) and isinstance(fixed.geometry, Affine)
    return image.size == fixed.size and known and resampling.farthest(image, Affine(_place(fixed))) < 0.01


def _same_space(image: Image, fixed: Image) -> bool:
    a, b = image.geometry, fixed.geometry
    return isinstance(a, Affine) and isinstance(b, Affine) and a.frame == b.frame != ""


def _place(image: Image) -> Matrix:
    """Pixels to millimetres; to pixels times their spacing where an image has no place in the patient."""
    if isinstance(image.geometry, Affine):
        return image.geometry.matrix
    z, y, x = image.spacing or (1.0, 1.0, 1.0)
    return np.diag([x, y, z or 1.0, 1.0])


def _small(image: Image) -> Image:
    """At most ``_SIDE`` voxels along each axis, with an affine."""
    placed = replace(image, geometry=Affine(_place(image)), array=np.asarray(image.array, np.float32))
    depth, height, width = (min(n, _SIDE) for n in image.size)
    return placed.resample((depth, height, width))


def _sitk(image: Image) -> Any:
    import SimpleITK as sitk  # noqa: N813

    made = sitk.GetImageFromArray(np.asarray(image.array[0, 0], np.float32))
    matrix = _place(image)
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    made.SetSpacing(spacing.tolist())
    made.SetDirection((matrix[:3, :3] / spacing).ravel().tolist())
    made.SetOrigin(matrix[:3, 3].tolist())
    return made


def _moved(image: Image, fixed: Image, kind: Kind) -> Matrix:
    """The motion that fits best.

    Raises:
        Problem: SimpleITK is not installed.
    """
    try:
        import SimpleITK as sitk  # noqa: N813
    except ImportError as error:
        what = "registering images needs SimpleITK, which is not installed"
        raise Problem(what, fix='pip install "osler[registration]"') from error
    small, other = _small(fixed), _small(image)
    a, b = _sitk(small), _sitk(other)
    best = max(_starts(small, other), key=lambda start: _information(small, other, start))
    transform = sitk.Euler3DTransform()
    transform.SetCenter((_place(small) @ _middle(small))[:3].tolist())
    transform.SetTranslation((best[:3, 3]).tolist())
    _optimise(sitk, a, b, transform, [4, 2, 1])
    if kind == "affine":
        rigid, transform = transform, sitk.AffineTransform(3)
        transform.SetCenter(rigid.GetCenter())
        transform.SetMatrix(rigid.GetMatrix())
        transform.SetTranslation(rigid.GetTranslation())
        _optimise(sitk, a, b, transform, [2, 1])
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
    centre = np.array(transform.GetCenter())
    matrix[:3, 3] = np.array(transform.GetTranslation()) + centre - matrix[:3, :3] @ centre
    return matrix


def _optimise(sitk: Any, fixed: Any, moving: Any, transform: Any, shrink: list[int]) -> None:
    """Changes the transform."""
    method = sitk.ImageRegistrationMethod()
    # Sums of several threads differ from run to run; the metric looks at the second number.
    method.SetNumberOfThreads(1)
    method.SetNumberOfWorkUnits(1)
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.2, 1)
    method.SetInterpolator(sitk.sitkLinear)
    # Steps from 2 mm down to a thousandth; where it turns back they shorten by less than half, or it stops early.
    method.SetOptimizerAsRegularStepGradientDescent(2.0, 1e-3, 200, 0.7, 1e-8)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(shrink)
    method.SetSmoothingSigmasPerLevel([n / 2 if n > 1 else 0 for n in shrink])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    method.SetInitialTransform(transform, inPlace=True)
    # Nothing of the one may lie in the other: it is judged as it is.
    with suppress(RuntimeError):
        method.Execute(fixed, moving)


def _middle(image: Image) -> NDArray[np.float64]:
    depth, height, width = image.size
    return np.array([(width - 1) / 2, (height - 1) / 2, (depth - 1) / 2, 1.0])


def _starts(fixed: Image, image: Image) -> list[Matrix]:
    """Where to begin: as the files say, middle on middle, and body on body."""
    starts = [np.eye(4)]
    pairs = [(_middle(fixed), _middle(image)), (_centre(fixed), _centre(image))]
    for a, b in pairs:
        start = np.eye(4)
        start[:3, 3] = (_place(image) @ b - _place(fixed) @ a)[:3]
        starts.append(start)
    return starts


def _centre(image: Image) -> NDArray[np.float64]:
    volume = image.array[0, 0]
    body = np.argwhere(volume > preparations.otsu(volume))
    return np.array([*body.mean(0)[::-1], 1.0]) if len(body) else _middle(image)


def _seen(fixed: Image, image: Image, motion: Matrix) -> tuple[Volume, NDArray[np.bool_]]:
    """The image on the grid of the reference, and where it says anything."""
    moved = replace(image, geometry=Affine(np.linalg.inv(motion) @ _place(image)))
    where = Affine(_place(fixed))
    volume = resampling.onto(moved, where, fixed.size, outside=np.nan).array[0, 0]
    return volume, np.isfinite(volume)


def _information(fixed: Image, image: Image, motion: Matrix) -> float:
    """Mutual information (nats) of the two inside of the reference's body, of what lies in both."""
    volume, inside = _seen(fixed, image, motion)
    own = fixed.array[0, 0]
    inside &= own > preparations.otsu(own)
    if inside.sum() < 100:
        return 0.0
    counts = np.histogram2d(_clipped(own[inside]), _clipped(volume[inside]), _BINS // 2)[0]
    p = counts / counts.sum()
    expected = p.sum(1, keepdims=True) * p.sum(0, keepdims=True)
    there = p > 0
    return float((p[there] * np.log(p[there] / expected[there])).sum())


def _clipped(values: Volume) -> Volume:
    low, high = np.percentile(values, [1, 99])
    return np.asarray(values.clip(low, max(high, low + 1e-6)), np.float32)


def _overlap(fixed: Image, image: Image, motion: Matrix) -> float:
    """Share of the reference's body that lies within the image."""
    _, inside = _seen(fixed, image, motion)
    own = fixed.array[0, 0]
    body = own > preparations.otsu(own)
    return float(inside[body].mean()) if body.any() else 0.0


def _size_of(motion: Matrix, fixed: Image) -> tuple[float, float, NDArray[np.float64]]:
    """Degrees, share of the reference's extent by which its middle moves, and least and greatest stretch."""
    u, stretch, v = np.linalg.svd(motion[:3, :3])
    turn = float(np.degrees(np.arccos(np.clip((np.trace(u @ v) - 1) / 2, -1, 1))))
    middle = _place(fixed) @ _middle(fixed)
    extent = np.linalg.norm(_place(fixed)[:3, :3], axis=0) * fixed.size[::-1]
    shift = float(np.linalg.norm((motion @ middle - middle)[:3]) / extent.max())
    return turn, shift, np.array([stretch.min(), stretch.max()])


def _in_words(motion: Matrix, fixed: Image) -> str:
    turn, shift, stretch = _size_of(motion, fixed)
    said = f"turned by {turn:.0f} degrees, moved by {shift:.0%} of its extent"
    return said + (f", stretched by {stretch[0]:.2f} to {stretch[1]:.2f}" if np.ptp(stretch) > 1e-6 else "")


def _onto(image: Image, fixed: Image, motion: Matrix) -> Image:
    moved = replace(image, geometry=Affine(np.linalg.inv(motion) @ _place(image)))
    made = resampling.onto(moved, Affine(_place(fixed)), fixed.size, outside=float(image.array.min()))
    return replace(made, geometry=fixed.geometry)

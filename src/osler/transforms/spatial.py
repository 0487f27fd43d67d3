"""Rotation, scaling, shear, translation, flips and elastic deformation, all in one resampling."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32, Shaped
from numpy.typing import NDArray
from scipy.interpolate import BSpline
from torch import Tensor
from torch.nn.functional import grid_sample

from osler.draws import uniform
from osler.transforms import loops, spread, target

_CELLS = 3  # knot spans of the elastic grid along each axis, so _CELLS + 3 control points
_TURNS = 8  # of the search for where a bend brings a point to; each leaves a tenth of the error or so
VISIBLE = 0.35  # the part of a box that must be seen for it to count as there


@dataclass(frozen=True)
class Options:
    """How far images are moved; every amount is drawn uniformly, to either side.

    Attributes:
        probability: share of the images that are moved at all.
        rotation: largest angle in the plane, degrees.
        tilt: largest angle out of the plane about x and about y, degrees; 3D only.
        scale: largest change of size along all axes together, natural logarithm (0.1: -10 % to +11 %).
        stretch: the same for each axis on its own.
        shear: largest shift of x per y (and of each axis per each later one in 3D), both in equal lengths.
        translation: largest shift along each axis, as a fraction of the image's size.
        elastic: largest shift of an elastic control point, as a fraction of the image's size. Below 0.13 the
            deformation cannot fold (Choi and Lee, 2000: 0.4 of the distance of control points).
        elastic_probability: share of the moved images that are bent, too.
        flip_x, flip_y, flip_z: mirror half of the moved images along the axis. Off unless it is known that a
            mirrored patient is a possible patient: the heart is on the left.
        padding: what is seen beyond the edge, the edge's pixels (``border``) or 0 (``zero``).
        aspect_y, aspect_z: distance between rows, and between slices, over that between columns.
    """

    probability: float = 0.8
    rotation: float = 10.0
    tilt: float = 0.0
    scale: float = 0.1
    stretch: float = 0.05
    shear: float = 0.05
    translation: float = 0.05
    elastic: float = 0.03
    elastic_probability: float = 0.2
    flip_x: bool = False
    flip_y: bool = False
    flip_z: bool = False
    padding: Literal["border", "zero"] = "border"
    aspect_y: float = 1.0
    aspect_z: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.probability <= 1 and 0 <= self.elastic_probability <= 1):
            raise ValueError("spatial: a probability must lie between 0 and 1")
        if not (self.aspect_y > 0 and self.aspect_z > 0):
            raise ValueError("spatial: aspect_y and aspect_z must be positive")


def apply(
    images: Float32[Tensor, "b c d h w"], options: Options, key: NDArray[np.uint64]
) -> Float32[Tensor, "b c d h w"]:
    """Moves each chosen image by its own random map, resampled once, linearly."""
    return _move(images, options, key, nearest=False)


def move_masks(
    masks: Shaped[Tensor, "b c d h w"], options: Options, key: NDArray[np.uint64]
) -> Shaped[Tensor, "b c d h w"]:
    """Moves labels of any type (whole numbers up to 2**24) as :func:`apply` moves the images of the same keys.

    Each pixel takes the label of the nearest one; beyond the edge that is the edge's, or 0, as with the images.
    """
    return _move(masks, options, key, nearest=True)


def move_boxes(
    boxes: NDArray[np.float32], options: Options, key: NDArray[np.uint64], size: tuple[int, int, int]
) -> NDArray[np.float32]:
    """Moves the boxes of one image as :func:`apply` moves the image of the same key.

    The result is the box around the moved ellipsoid that filled the old box, because what a box holds rarely reaches
    into its corners, and turned corners would make every round thing larger. Boxes end at the edges of the image; one
    of which no more than :data:`VISIBLE` is left is dropped.

    Args:
        boxes: ``(n, 7)``: z0 y0 x0 z1 y1 x1, edges in pixels, and a class, which stays.
        options: of the transform.
        key: ``(1,)``, of the image.
        size: of the image, ``(depth, height, width)``.
    """
    if not len(boxes) or uniform(key, "spatial/apply")[0] >= options.probability:
        return boxes
    axes = slice(0, 2 if size[0] == 1 else 3)
    lengths = np.array(size[::-1], float)  # x y z, as all that follows
    aspect = np.array((1.0, options.aspect_y, options.aspect_z))
    forth = (_matrices(options, key, flat=size[0] == 1)[0] * aspect / aspect[:, None])[axes, axes]
    back = np.linalg.inv(forth)  # the map goes from the result to the image, and boxes go the other way
    shift = uniform(key, "spatial/translation", (3,), -options.translation, options.translation)[0] * lengths
    low, high = boxes[:, 2::-1].astype(float), boxes[:, 5:2:-1].astype(float)
    middle = ((low + high) / 2 - lengths / 2 - shift)[:, axes] @ back.T + lengths[axes] / 2
    # Where the moved ellipsoid reaches furthest along each axis (n, axis, xyz), from its middle.
    half = (high - low)[:, None, axes] / 2
    reach = np.sqrt(((back * half) ** 2).sum(-1))
    furthest = (back * half**2) @ back.T / reach[:, :, None]
    ends = middle[:, None, None] + np.stack([-furthest, furthest], 1)
    control = _splines(options, key, size)[0][0]
    bent = ends.copy()
    for _ in range(_TURNS if control.size else 0):
        bent = ends - _bend_at(control, bent, lengths)[..., axes] @ back.T
    moved = boxes.copy()
    edges = np.diagonal(bent, axis1=2, axis2=3)  # (n, low or high, xyz)
    edges = np.sort(edges, 1)[..., ::-1]
    moved[:, 3 - edges.shape[2] : 3], moved[:, 6 - edges.shape[2] : 6] = edges[:, 0], edges[:, 1]
    seen = moved.copy()
    seen[:, :6] = seen[:, :6].clip(0, np.tile(np.array(size, np.float32), 2))
    left = (seen[:, 3:6] - seen[:, :3]).prod(1) / (moved[:, 3:6] - moved[:, :3]).prod(1).clip(1e-9)
    return np.asarray(seen[left > VISIBLE])


def _bend_at(
    control: NDArray[np.float32], places: NDArray[np.float64], lengths: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The displacement of :func:`_bend` at places ``(..., 2 or 3)``, pixels from the corner: ``(..., 3)``, x y z."""
    flat = places.reshape(-1, places.shape[-1])
    weights = [_spline_at((flat[:, a] / lengths[a]).clip(0, 1 - 1e-9) * _CELLS) for a in range(flat.shape[1])]
    if len(weights) == 2:
        weights.append(np.ones((len(flat), 1)))
    moved = np.einsum("aijk,nk,nj,ni->na", control, *weights)
    return np.asarray(moved.reshape(*places.shape[:-1], 3))


def _move(
    images: Shaped[Tensor, "b c d h w"], options: Options, key: NDArray[np.uint64], *, nearest: bool
) -> Shaped[Tensor, "b c d h w"]:
    rows = np.flatnonzero(uniform(key, "spatial/apply") < options.probability)
    if not len(rows):
        return images
    key, result = key[rows], target(images, rows)
    depth, height, width = images.shape[2:]
    matrix = _matrices(options, key, flat=depth == 1)
    shift = uniform(key, "spatial/translation", (3,), -options.translation, options.translation)
    shift, aspect = shift * [width, height, depth], (1.0, options.aspect_y, options.aspect_z)
    loop = loops("warping", images)
    if loop is not None:
        affine = _affine(matrix * aspect / np.array(aspect)[:, None], shift, (width, height, depth))
        spline, zero = _splines(options, key, (depth, height, width)), options.padding == "zero"
        given, filled, fill = images.contiguous().numpy(), result.numpy(), loop.masks if nearest else loop.images
        spread(lambda lines: fill(given, filled, rows, affine, spline, zero, lines), len(rows) * depth * height)
        return result
    chosen = torch.from_numpy(rows).to(images.device)
    before = images[chosen].float()
    result[chosen] = warp(
        before,
        torch.from_numpy(matrix).to(before),
        torch.from_numpy(shift).to(before),
        _bend(options, key, (depth, height, width), before),
        padding=options.padding,
        aspect=aspect,
        nearest=nearest,
    ).to(images.dtype)
    return result


def _affine(
    matrix: NDArray[np.float64], shift: NDArray[np.float64], size: tuple[int, int, int]
) -> NDArray[np.float32]:
    """From an output pixel to its place in the input ``(b, 3, 4)``, x y z, counted from the corner."""
    centre = (np.array(size) - 1) / 2
    return np.concatenate([matrix, (shift + centre - matrix @ centre)[:, :, None]], axis=2).astype(np.float32)


def warp(
    images: Float32[Tensor, "b c d h w"],
    matrix: Float32[Tensor, "b 3 3"],
    shift: Float32[Tensor, "b 3"],
    bend: Float32[Tensor, "b 3 d h w"] | None = None,
    *,
    padding: Literal["border", "zero"] = "border",
    aspect: tuple[float, float, float] = (1.0, 1.0, 1.0),
    nearest: bool = False,
) -> Float32[Tensor, "b c d h w"]:
    """The images resampled at ``matrix @ (point - centre) + centre + shift + bend`` for each output point.

    Args:
        images: the batch; depth 1 means 2D, and the third row and column of ``matrix`` then do nothing.
        matrix: from output to input, about the image's centre, x y z, in equal lengths along all axes.
        shift: pixels, x y z.
        bend: pixels, x y z, for each output pixel.
        padding: beyond the edge, the edge's pixels or 0.
        aspect: the length of a pixel's step along x, y, z.
        nearest: take the value of the nearest pixel; else interpolate linearly.
    """
    sizes = images.shape[:1:-1]  # width, height, depth
    step = torch.tensor(aspect).to(images)
    matrix = matrix * step / step[:, None]
    shapes = ((1, 1, 1, -1), (1, 1, -1, 1), (1, -1, 1, 1))
    along = [
        (torch.arange(n, device=images.device, dtype=images.dtype) - (n - 1) / 2).view(shape)
        for n, shape in zip(sizes, shapes, strict=True)
    ]
    flat = images.shape[2] == 1
    places = []
    for axis in range(2 if flat else 3):
        row = matrix[:, axis, :, None, None, None]
        place = row[:, 0] * along[0] + row[:, 1] * along[1] + row[:, 2] * along[2] + shift[:, axis, None, None, None]
        if bend is not None:
            place = place + bend[:, axis]
        places.append(place * (2 / sizes[axis]))  # grid_sample counts from edge to edge: -1 to 1
    grid = torch.stack(places, -1)
    beyond, mode = "zeros" if padding == "zero" else "border", "nearest" if nearest else "bilinear"
    if flat:
        return grid_sample(images[:, :, 0], grid[:, 0], mode, beyond, align_corners=False)[:, :, None]
    return grid_sample(images, grid, mode, beyond, align_corners=False)


def _matrices(options: Options, key: NDArray[np.uint64], *, flat: bool) -> NDArray[np.float64]:
    """Rotation x shear x scale for each key, ``(b, 3, 3)``."""
    count = len(key)
    turn = np.deg2rad(
        uniform(key, "spatial/rotation", (3,), -1.0, 1.0) * [options.tilt, options.tilt, options.rotation]
    )
    scale = np.exp(
        uniform(key, "spatial/scale", (1,), -options.scale, options.scale)
        + uniform(key, "spatial/stretch", (3,), -options.stretch, options.stretch)
    )
    flips = uniform(key, "spatial/flip", (3,)) < 0.5
    scale = np.where(flips & [options.flip_x, options.flip_y, options.flip_z], -scale, scale)
    shear = np.tile(np.eye(3), (count, 1, 1))
    shear[:, [0, 0, 1], [1, 2, 2]] = uniform(key, "spatial/shear", (3,), -options.shear, options.shear)
    matrix = np.asarray(shear * scale[:, None, :])
    for axis in (0, 1, 2) if not flat else (2,):
        matrix = _rotation(axis, turn[:, axis]) @ matrix
    return matrix


def _rotation(axis: int, angle: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotations about one axis, ``(b, 3, 3)``."""
    first, second = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.tile(np.eye(3), (len(angle), 1, 1))
    matrix[:, first, first] = matrix[:, second, second] = np.cos(angle)
    matrix[:, second, first] = np.sin(angle)
    matrix[:, first, second] = -np.sin(angle)
    return matrix


def _bend(
    options: Options, key: NDArray[np.uint64], size: tuple[int, int, int], like: Tensor
) -> Float32[Tensor, "b 3 d h w"] | None:
    """A smooth random displacement in pixels: a cubic B-spline on few control points (Rueckert et al., 1999)."""
    control, *bases = (torch.from_numpy(array).to(like) for array in _splines(options, key, size))
    if control.shape[2] == 0:
        return None
    return torch.einsum("baijk,id,jh,kw->badhw", control, *bases)


def _splines(
    options: Options, key: NDArray[np.uint64], size: tuple[int, int, int]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """The control points in pixels ``(b, 3, i, j, k)``, x y z, and what each adds along z, y and x.

    i is 0 where no image is bent, 1 in 2D, else as j and k.
    """
    bent = uniform(key, "spatial/bent") < options.elastic_probability
    points = _CELLS + 3
    layers = 0 if not (bent.any() and options.elastic) else 1 if size[0] == 1 else points
    control = uniform(key, "spatial/elastic", (3, layers, points, points), -1.0, 1.0)
    control *= (bent[:, None] * options.elastic * np.array(size[::-1]))[:, :, None, None, None]
    on_z = np.ones((1, 1)) if size[0] == 1 else _spline(size[0])
    along = [np.ascontiguousarray(basis.T, np.float32) for basis in (on_z, _spline(size[1]), _spline(size[2]))]
    return control.astype(np.float32), along[0], along[1], along[2]


def _spline(size: int) -> NDArray[np.float64]:
    """The uniform cubic B-splines of an axis at its pixel centres, ``(size, control points)``."""
    return _spline_at((np.arange(size) + 0.5) * _CELLS / size)


def _spline_at(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same at places counted in knot spans, 0 to less than :data:`_CELLS`."""
    knots = np.arange(-3, _CELLS + 4, dtype=np.float64)
    return np.asarray(BSpline.design_matrix(places, knots, 3).toarray())

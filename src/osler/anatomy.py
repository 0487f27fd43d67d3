"""What phantoms look like before any noise: a chest, projected or in slices, a breast in layers, and lesions.

Lengths are in units of half the field of view, from -1 to 1: x to the right of the image, y downwards (in the
chest from head to foot), a from front to back.
"""

from dataclasses import dataclass
from functools import cache
from typing import cast

import numpy as np
from numpy.typing import NDArray

from osler.draws import normal, uniform

Array = NDArray[np.float64]
Key = NDArray[np.uint64]

_SOFT, _LUNG = 2.9, 0.8  # attenuation per unit length (17 cm) at about 70 keV


@dataclass(frozen=True, eq=False)
class Lesion:
    """A star-shaped body: round, or with spicules.

    Attributes:
        distance: of each pixel from the centre, pixels.
        surface: distance of the surface from the centre, in each pixel's direction, pixels.
    """

    distance: Array
    surface: Array

    def mask(self) -> NDArray[np.bool_]:
        """The pixels whose centre lies inside."""
        return np.asarray(self.distance <= self.surface)

    def filled(self) -> Array:
        """About the share of each pixel that lies inside."""
        return np.clip(self.surface - self.distance + 0.5, 0, 1)

    def thickness(self) -> Array:
        """Of the body that it is the outline of along the line of sight, 1 at the centre: a sphere's chord."""
        return np.sqrt(np.maximum(0, 1 - (self.distance / self.surface) ** 2))


def lesion(
    key: Key,
    size: tuple[int, ...],
    centre: Array,
    diameter: tuple[float, float],
    irregularity: float,
    steps: Array | None = None,
) -> Lesion:
    """A lesion at a place in pixels; ``irregularity`` 0 is round with a sharp edge, 1 is spiculated.

    ``steps`` says how far it is from pixel to pixel along each axis where that is not one pixel of the diameter.
    """
    scale = np.ones(len(size)) if steps is None else steps
    lines = ((np.arange(n) - c) * s for n, c, s in zip(size, centre, scale, strict=True))
    grid = np.meshgrid(*lines, indexing="ij")
    offset = np.stack(grid, -1)
    distance = np.sqrt((offset**2).sum(-1))
    radius = float(uniform(key, "lesion/diameter", (), *diameter)[0]) / 2 * (1 - 0.2 * irregularity)
    surface = np.full(size, radius)
    if irregularity:
        count = 7 if len(size) == 2 else 14
        spicules = normal(key, "lesion/spicules", (count, len(size)))[0]
        spicules /= np.linalg.norm(spicules, axis=-1, keepdims=True)
        lengths = irregularity * uniform(key, "lesion/lengths", (count,), 0.5, 1.1)[0]
        near = distance < radius * (1 + lengths.sum())
        cosine = offset[near] @ spicules.T / np.maximum(distance[near], 1e-9)[:, None]
        surface[near] *= 1 + np.exp(40 * (cosine - 1)) @ lengths
    return Lesion(distance, surface)


def texture(key: Key, size: tuple[int, ...]) -> Array:
    """A random field with a power spectrum of ``1 / f**3`` as anatomy has it (Burgess, 1999), deviation 1."""
    field = np.fft.irfftn(
        np.fft.rfftn(normal(key, "texture", size)[0]) * _power_law(size), size, axes=range(len(size))
    )
    return np.asarray(field / field.std())


def power(size: tuple[int, ...]) -> Array:
    """The power spectrum of :func:`texture` at the frequencies of a full Fourier transform, up to a factor."""
    frequencies = np.meshgrid(*(np.fft.fftfreq(n) for n in size), indexing="ij", sparse=True)
    radius = np.sqrt(sum(f**2 for f in frequencies))
    return cast(Array, np.where(radius > 0, np.maximum(radius, 1e-9) ** -3, 0))


@cache
def _power_law(size: tuple[int, ...]) -> Array:
    last = np.fft.rfftfreq(size[-1])
    frequencies = np.meshgrid(*(np.fft.fftfreq(n) for n in size[:-1]), last, indexing="ij")
    radius = np.sqrt(sum(f**2 for f in frequencies))
    return cast(Array, np.where(radius > 0, np.maximum(radius, 1e-9) ** -1.5, 0))


@dataclass(frozen=True)
class Chest:
    """A patient's chest; each attribute is a length, or a factor close to 1."""

    width: float
    depth: float
    lung_width: float
    lung_height: float
    domes: tuple[float, float]
    heart: float
    ribs: float
    tilt: float


def chest(key: Key) -> Chest:
    """A chest of its own for each patient."""
    u = uniform(key, "chest", (9,), -1.0, 1.0)[0]
    return Chest(
        width=0.92 + 0.05 * u[0],
        depth=0.60 + 0.06 * u[1],
        lung_width=0.355 + 0.025 * u[2],
        lung_height=0.70 + 0.06 * u[3],
        domes=(0.42 + 0.06 * u[4], 0.48 + 0.06 * u[5]),
        heart=0.29 + 0.05 * u[6],
        ribs=0.05 * u[7],
        tilt=0.04 * u[8],
    )


def _axis(count: int, shift: float = 0.0) -> Array:
    return (np.arange(count) + 0.5) * 2 / count - 1 - shift


def _rise(values: Array) -> Array:
    """A smooth step from 0 (at 0) to 1 (at 1)."""
    t = np.clip(values, 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def _outline(body: Chest, y: Array) -> tuple[Array, Array]:
    """Half width and half depth of the body at each height: neck, shoulders, chest."""
    shoulder = _rise((y + 1.1) / 0.35)
    return body.width * (0.35 + 0.65 * shoulder), body.depth * (0.6 + 0.4 * shoulder)


def _diaphragm(body: Chest, x: Array, y: Array) -> Array:
    """1 above the diaphragm, 0 below, for the lung of the side that x is on."""
    side = np.where(x < 0, body.domes[0], body.domes[1])
    dome = side + 0.9 * (np.abs(x) - 0.38) ** 2
    return np.asarray(1 / (1 + np.exp(np.clip((y - dome) / 0.015, -50, 50))))


def radiograph(body: Chest, key: Key, size: tuple[int, ...], shift: Array) -> Array:
    """The line integral of attenuation from front to back for each pixel, ``(height, width)``.

    Body, lungs and heart are ellipses in every slice, whose chords are known in closed form; bones are tubes.
    """
    y, x = _axis(size[0], shift[0])[:, None], _axis(size[1], shift[1])[None, :]
    x = x + body.tilt * y
    side = np.abs(x)
    width, depth = _outline(body, y)
    soft = 2 * depth * np.sqrt(np.maximum(0, 1 - (x / width) ** 2))
    squared = 1 - ((side - 0.43) / body.lung_width) ** 2 - ((y + 0.08) / body.lung_height) ** 2
    lung = 1.7 * body.depth * np.sqrt(np.maximum(0, squared)) * _diaphragm(body, x, y)
    squared = 1 - ((x - 0.13) / (1.15 * body.heart)) ** 2 - ((y - 0.3) / body.heart) ** 2
    heart = 2 * body.heart * np.sqrt(np.maximum(0, squared))
    hilum = 0.22 * np.exp(-(((side - 0.17) / 0.09) ** 2) - ((y + 0.03) / 0.16) ** 2)
    aerated = np.maximum(lung - heart - hilum, 0)
    vessels = texture(key, size)
    tissue = _SOFT * soft - (_SOFT - _LUNG) * aerated * (1 - 0.04 * vessels) + 0.02 * vessels * (soft > 0.2)
    return np.asarray(np.maximum(tissue + _bones(body, x, y, soft) - _SOFT * _trachea(x, y), 0))


def _trachea(x: Array, y: Array) -> Array:
    return np.asarray(0.08 * np.exp(-((x / 0.05) ** 2)) * _rise((-0.15 - y) / 0.1))


def _bones(body: Chest, x: Array, y: Array, soft: Array) -> Array:
    """Line integrals of spine, ribs and clavicles."""
    side = np.abs(x)
    spine = 0.45 * np.sqrt(np.maximum(0, 1 - (x / 0.1) ** 2)) * (1 + 0.2 * np.cos(2 * np.pi * 5.5 * y))
    edge = body.width * 0.93
    wall = np.minimum(1 / np.sqrt(np.maximum(1 - (side / edge) ** 2, 0.06)), 3) * (side < edge) * (side > 0.07)

    def ribs(bow: Array) -> Array:
        apart = (y - body.ribs - bow) / 0.17
        return np.asarray(np.exp(-(((apart - np.rint(apart)) / 0.21) ** 2)))

    behind = ribs(0.30 * (side - 0.25) * np.abs(side - 0.25))
    front = ribs(-0.42 * side) * _rise((side - 0.25) / 0.25) * (y < 0.25)
    collar = np.exp(-(((y + 0.68 + 0.16 * side) / 0.035) ** 2)) * (side > 0.07) * (side < 0.72)
    return np.asarray((spine + wall * (0.17 * behind + 0.08 * front) * (y < 0.72) + 0.30 * collar) * (soft > 0.1))


def volume(body: Chest, key: Key, size: tuple[int, ...], shift: Array) -> Array:
    """Hounsfield units, ``(depth, height, width)``: slices from head to foot, each from front to back."""
    y, a, x = np.meshgrid(*(_axis(n, s) for n, s in zip(size, shift, strict=True)), indexing="ij", sparse=True)
    side, pixels = np.abs(x), min(size) / 2

    def inside(squared: Array, radius: float) -> Array:
        return np.clip((1 - np.sqrt(squared)) * radius * pixels + 0.5, 0, 1)

    width, depth = _outline(body, y)
    radius = np.sqrt((x / width) ** 2 + (a / depth) ** 2)
    grain = texture(key, size)
    soft = inside(radius**2, 0.6)
    squared = ((side - 0.43) / body.lung_width) ** 2 + ((y + 0.08) / body.lung_height) ** 2
    lung = inside(squared + (a / (0.85 * body.depth)) ** 2, 0.4) * _diaphragm(body, x, y)
    squared = ((x - 0.13) / (1.15 * body.heart)) ** 2 + ((y - 0.3) / body.heart) ** 2
    heart = inside(squared + ((a + 0.1) / body.heart) ** 2, 0.3)
    spine = inside((x / 0.11) ** 2 + ((a - 0.68 * body.depth) / 0.11) ** 2, 0.11)
    slanted = np.cos(2 * np.pi * (3.2 * y - 1.6 * a + body.ribs * 10))
    rib = np.clip(1.6 - np.abs(radius - 0.90) / 0.035, 0, 1) * np.clip(slanted * 2, 0, 1) * (y < 0.7)
    values = -1000 + 1040 * soft + (-60 * soft * (radius > 0.93))
    values = values + (-850 + 40 * grain - values) * lung
    for share, level in ((heart, 50.0), (spine, 420.0), (rib * soft, 500.0)):
        values = values + (level - values) * share
    return np.asarray(values + 8 * grain * soft)


def place_in_lung(body: Chest, key: Key, size: tuple[int, ...], shift: Array) -> Array:
    """A place well inside a lung, pixels, in the order of the array's axes (2D: y x; 3D: y a x)."""
    u = uniform(key, "lesion/place", (4,))[0]
    sign = -1.0 if u[0] < 0.5 else 1.0
    radius, angle = 0.68 * np.sqrt(u[1]), 2 * np.pi * u[2]
    x = sign * (0.45 + body.lung_width * radius * np.cos(angle))
    top, low = -0.08 - 0.75 * body.lung_height, min(body.domes) - 0.14
    y = (top + low) / 2 + (low - top) / 2 * radius / 0.68 * np.sin(angle)
    place = [y, x] if len(size) == 2 else [y, 0.5 * body.depth * (2 * u[3] - 1), x]
    return np.asarray((np.array(place) + shift + 1) * np.array(size) / 2 - 0.5)


def layers(key: Key, size: tuple[int, ...], shift: Array) -> Array:
    """The mean echo of breast tissue in decibels, ``(depth, width)``: skin, fat, gland, muscle."""
    t = (np.arange(size[0])[:, None] + 0.5) / size[0]
    x = _axis(size[1], shift[1])[None, :]
    u = uniform(key, "layers", (16,), -1.0, 1.0)[0]
    grain = texture(key, size)
    waves = [
        sum(0.03 * u[4 * i + j] * np.cos((j + 1) * 1.6 * x + 3 * u[4 * i + j]) for j in range(4)) for i in range(3)
    ]
    skin = 0.06 + 0.2 * waves[2] + 0 * x
    fat, gland = 0.24 + 0.04 * u[12] + waves[0], 0.72 + 0.05 * u[13] + waves[1]
    soft = 0.012

    def below(boundary: Array) -> Array:
        return np.asarray(1 / (1 + np.exp(np.clip((boundary - t) / soft, -50, 50))))

    level = -2 + (-12 + 3 * grain + 2) * below(skin)
    level = level + (-3 + 3 * grain - level) * below(fat)
    strands = 3 * np.cos(2 * np.pi * (18 * t + 1.2 * x + 0.6 * grain))
    level = level + (-15 + strands - level) * below(gland)
    for boundary, bright in ((skin, 5.0), (fat, 5.0), (gland, 9.0)):
        level = level + bright * np.exp(-(((t - boundary) / 0.014) ** 2))
    return np.asarray(level - 10 * t - 5 * np.abs(x) ** 4)


def place_in_gland(key: Key, size: tuple[int, ...], shift: Array) -> Array:
    """A place in the glandular layer, pixels, depth then width."""
    u = uniform(key, "lesion/place", (2,))[0]
    return np.asarray(np.array([0.36 + 0.22 * u[0], 0.22 + 0.56 * u[1] + shift[1] / 2]) * np.array(size) - 0.5)

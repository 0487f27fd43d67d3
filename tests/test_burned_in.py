"""Drawn text is hidden, smooth anatomy stays."""

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw
from scipy.ndimage import gaussian_filter

from osler import burned_in


def test_text_is_covered_and_little_else() -> None:
    random = np.random.default_rng(0)
    smooth = gaussian_filter(random.normal(size=(300, 400)), 12)
    image = Pillow.fromarray(np.clip(110 + 40 * smooth / smooth.std(), 0, 255).astype(np.uint8))
    assert burned_in.found(np.asarray(image)).mean() < 0.01
    drawn = Pillow.new("L", image.size)
    ImageDraw.Draw(drawn).text((60, 200), "LEFT BREAST 12:30", fill=255, font_size=18)
    letters = np.asarray(drawn) > 128
    mask = burned_in.found(np.where(letters, 255, np.asarray(image)).astype(np.uint8))
    assert (mask & letters).sum() > 0.95 * letters.sum()
    assert mask.mean() < 0.15


def test_a_blanked_picture_keeps_its_shape_and_type_and_a_blank_one_is_left() -> None:
    colour = np.random.default_rng(1).integers(0, 255, (40, 50, 3)).astype(np.uint8)
    made = burned_in.blanked(colour)
    assert (made.shape, made.dtype) == (colour.shape, colour.dtype)
    blank = np.full((30, 30), 9, np.uint8)
    assert (burned_in.blanked(blank) == blank).all()

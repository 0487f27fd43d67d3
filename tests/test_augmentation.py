import numpy as np
import torch

from osler.augmentation import augment, augment_masks
from osler.draws import keys
from osler.recipe import ImagePlan, Recipe

SPATIAL = {"probability": 0.7, "elastic": 0.05, "elastic_probability": 0.5, "flip_x": True}


def plan(**augmentation: dict[str, float | bool]) -> Recipe:
    return Recipe(ImagePlan((1, 60, 64)), {}, augmentation=augmentation)


MOVED, BRIGHT = plan(spatial=SPATIAL), plan(intensity={"probability": 1.0})
PLAN = plan(spatial=SPATIAL, intensity={"probability": 0.5}, noise={"probability": 0.5})


def test_masks_move_with_their_images() -> None:
    shape, key = (6, 2, 1, 1, 60, 64), keys(0, np.arange(6))
    blob = torch.zeros(shape)
    blob[..., 12:40, 10:30] = 1
    image, mask = augment(blob, key, MOVED), augment_masks(blob.to(torch.uint8), key, MOVED)
    assert mask.dtype == torch.uint8 and mask.shape == shape
    assert (mask[image > 0.88] == 1).all() and (mask[image < 0.12] == 0).all()
    # grey values are another matter
    assert torch.equal(mask, augment_masks(blob.to(torch.uint8), key, PLAN))


def test_grey_values_alone_leave_masks_alone() -> None:
    masks = torch.randint(0, 3, (4, 1, 1, 5, 6, 7))
    assert torch.equal(augment_masks(masks, keys(0, np.arange(4)), BRIGHT), masks)


def test_moments_of_a_case_move_together() -> None:
    x = torch.randn(3, 1, 1, 1, 20, 20).repeat(1, 4, 1, 1, 1, 1)
    after = augment(x, keys(1, np.arange(3)), PLAN)
    assert after.shape == x.shape
    torch.testing.assert_close(after, after[:, :1].expand_as(after), rtol=0, atol=1e-5)


def test_without_transforms_nothing_changes() -> None:
    x = torch.randn(2, 1, 1, 1, 8, 8)
    assert torch.equal(augment(x, keys(0, np.arange(2)), plan()), x)

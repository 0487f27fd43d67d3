"""Softmax, self-attention and positions against their formulas."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from osler.backbones import vit
from osler.problem import Problem


def test_self_attention_is_softmax_of_qk_over_root_d_times_v() -> None:
    torch.manual_seed(0)
    layer = vit.SelfAttention(6, 2).double()
    x = torch.randn(1, 4, 6, dtype=torch.float64)
    rows = x[0].numpy() @ layer.qkv.weight.detach().numpy().T + layer.qkv.bias.detach().numpy()
    joined = np.empty((4, 6))
    for head in range(2):
        q, k, v = (rows[:, part * 6 + head * 3 : part * 6 + head * 3 + 3] for part in range(3))
        for i in range(4):
            scores = [math.exp(sum(q[i] * k[j]) / math.sqrt(3)) for j in range(4)]
            joined[i, head * 3 : head * 3 + 3] = sum(s / sum(scores) * v[j] for j, s in enumerate(scores))
    expected = joined @ layer.out.weight.detach().numpy().T + layer.out.bias.detach().numpy()
    np.testing.assert_allclose(layer(x)[0].detach().numpy(), expected, rtol=1e-10)


def test_self_attention_agrees_with_pytorchs_own_layer() -> None:
    torch.manual_seed(0)
    ours, theirs = vit.SelfAttention(8, 2), nn.MultiheadAttention(8, 2, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.out.weight,
            "out_proj.bias": ours.out.bias,
        }
    )
    x = torch.randn(3, 5, 8)
    torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0])


def test_fixed_positions_are_sines_and_cosines_and_tell_every_place_apart() -> None:
    position = vit.sincos(13, (3, 5))
    assert position.shape == (13, 3, 5)
    count = 3  # frequencies along each of two axes, 13 // 4
    for n in range(count):
        frequency = 10_000 ** (-n / count)
        assert float(position[n, 2, 4]) == pytest.approx(math.sin(2 * frequency), abs=1e-6)
        assert float(position[count + n, 2, 4]) == pytest.approx(math.cos(2 * frequency), abs=1e-6)
        assert float(position[2 * count + n, 2, 4]) == pytest.approx(math.sin(4 * frequency), abs=1e-6)
        assert float(position[3 * count + n, 2, 4]) == pytest.approx(math.cos(4 * frequency), abs=1e-6)
    assert not position[12].any()
    places = position.flatten(1).T
    assert torch.pdist(places).min() > 0.1


@pytest.mark.parametrize("position", ["sincos", "learned"])
def test_every_pixel_counts_also_where_patches_do_not_divide_the_image(position: str) -> None:
    torch.manual_seed(0)
    options = vit.Options(patch=4, width=12, depth=1, heads=2, position=position)
    network = vit.build(options, channels=1, dims=2, size=(7, 10))
    image = torch.randn(1, 1, 7, 10, requires_grad=True)
    maps = network(image)
    assert maps.shape == (1, 12, 2, 3)
    (maps * torch.randn_like(maps)).sum().backward()
    assert image.grad is not None and (image.grad != 0).all()


def test_a_width_that_is_not_a_multiple_of_the_heads_is_refused() -> None:
    with pytest.raises(Problem, match="multiple"):
        vit.build(vit.Options(width=10, heads=3), channels=1, dims=2, size=(32, 32))

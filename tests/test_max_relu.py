"""The fused pooling is PyTorch's ReLU and max-pooling: the same values, the same gradients, whatever the ties."""

from importlib.util import find_spec

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from osler import max_relu
from osler.backbones import alexnet, vgg
from osler.max_relu import MaxPoolReLU

compiled = pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed")


def ours(x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    # As behind a convolution: not a leaf.
    pooled = MaxPoolReLU(2).train()(x * 1)
    pooled.backward(gradient)
    return pooled.detach(), x.grad


def theirs(x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    pooled = F.max_pool2d(F.relu(x), 2)
    pooled.backward(gradient)
    return pooled.detach(), x.grad


@compiled
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [(6, 8), (7, 5), (2, 2)])
def test_values_and_gradients_are_those_of_pytorch(
    size: tuple[int, int], dtype: torch.dtype, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(max_relu, "LEAST", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(0)
    # Rounded to halves: many windows hold their maximum twice, many hold nothing above 0.
    x = ((torch.randn(3, 5, *size) * 4).round() / 2).to(dtype).contiguous(memory_format=torch.channels_last)
    gradient = torch.randn(3, 5, size[0] // 2, size[1] // 2).to(dtype)
    assert max_relu._suits(x.requires_grad_() * 1)
    for found, expected in zip(ours(x.detach(), gradient), theirs(x.detach(), gradient), strict=True):
        assert torch.equal(found, expected)


@compiled
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_nothing_that_is_not_finite_is_hidden(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(max_relu, "LEAST", 0)
    nan = torch.tensor([float("nan")]).to(dtype)
    # NaN with either sign: processors make the negative one.
    windows = [
        (nan, 3.0),
        (-nan, 3.0),
        (-nan, -3.0),
        (float("inf"), 1.0),
        (float("-inf"), 1.0),
        (float("-inf"), -0.0),
    ]
    x = torch.zeros(len(windows), 2, 2, 2, dtype=dtype)
    for row, (value, other) in enumerate(windows):
        x[row] = other
        x[row, :, 1, 0] = value
    x = x.contiguous(memory_format=torch.channels_last)
    found, _ = ours(x, torch.ones(len(windows), 2, 1, 1, dtype=dtype))
    expected, _ = theirs(x, torch.ones(len(windows), 2, 1, 1, dtype=dtype))
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_without_numba_pytorch_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(max_relu, "LEAST", 0)
    monkeypatch.setattr(max_relu, "find_spec", lambda name: None)
    x = torch.randn(2, 3, 6, 6).contiguous(memory_format=torch.channels_last)
    gradient = torch.randn(2, 3, 3, 3)
    for found, expected in zip(ours(x, gradient), theirs(x, gradient), strict=True):
        assert torch.equal(found, expected)


def test_small_maps_other_layouts_and_answers_are_left_to_pytorch() -> None:
    large = torch.empty(1, 1).expand(2**11, 2**11)[None, None]
    assert not max_relu._suits(large.requires_grad_())
    assert not max_relu._suits(torch.zeros(1, 2, 4, 4, requires_grad=True).to(memory_format=torch.channels_last))


@pytest.mark.parametrize("build", [
    lambda: vgg.build(vgg.Options(depth=11, dense=8), channels=1, dims=2, size=(32, 32)),
    lambda: alexnet.build(alexnet.Options(dense=8), channels=1, dims=2, size=(63, 63)),
])  # fmt: skip
def test_vgg_and_alexnet_compute_what_the_published_order_of_layers_does(build: object) -> None:
    """Convolution, ReLU, pooling, as printed in the papers: the same values, and the same gradients."""
    torch.manual_seed(0)
    network = build().double()  # type: ignore[operator]
    x = torch.randn(2, 1, 63, 63, dtype=torch.float64)
    vgg_like = isinstance(network, vgg.VGG)
    pools = [
        number for number, layer in enumerate(network.layers) if isinstance(layer, MaxPoolReLU | torch.nn.MaxPool2d)
    ]

    def as_printed(maps: Tensor) -> Tensor:
        for number, layer in enumerate(network.layers):
            if isinstance(layer, torch.nn.Conv2d):
                maps = F.relu(F.conv2d(maps, layer.weight, layer.bias, layer.stride, layer.padding))
            elif number in pools:
                maps = F.max_pool2d(maps, 2) if vgg_like else F.max_pool2d(maps, 3, 2)
        return maps

    results = []
    for way in (network, as_printed):
        network.zero_grad()
        maps = way(x)
        maps.square().sum().backward()
        results.append([maps.detach(), *(p.grad.clone() for p in network.layers.parameters())])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)

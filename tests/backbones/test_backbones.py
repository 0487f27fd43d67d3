"""What holds for every backbone."""

import math

import pytest
import torch
from torch import nn

from osler import catalog
from osler.backbones import Backbone
from osler.problem import Problem

NAMES = catalog.names("backbones")
LEAST = {"alexnet": 63, "vgg": 32, "reference_cnn": 10}
# The smallest volumes that AlexNet and VGG take are too slow for a test: their shapes are tested, without values.
QUICK = [(name, dims) for name in NAMES for dims in (2, 3) if dims == 2 or LEAST.get(name, 0) <= 16]


def built(name: str, *, channels: int = 1, dims: int = 2, pixels: int = 64, **options: object) -> Backbone:
    module = catalog.find("backbones", name)
    backbone: Backbone = module.build(module.Options(**options), channels=channels, dims=dims, size=(pixels,) * dims)
    return backbone


def small(name: str, dims: int) -> tuple[Backbone, torch.Tensor]:
    """A network and two images that a test has time for, in float64: rounding is not what is tested."""
    pixels = max(LEAST.get(name, 32), 32 if dims == 2 else 16)
    options = {
        "alexnet": {"dense": 32},
        "vgg": {"depth": 11, "dense": 32},
        "resnet": {"width": 8},
        "convnext": {"kernel": 3},
    }.get(name, {})
    torch.manual_seed(0)
    return built(name, dims=dims, pixels=pixels, **options).eval().double(), torch.randn(
        2, 1, *(pixels,) * dims
    ).double()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_with_default_options_the_shapes_are_those_stated(name: str, dims: int) -> None:
    with torch.device("meta"):
        backbone = built(name, channels=3, dims=dims)
        maps = backbone(torch.empty(2, 3, *(64,) * dims))
        assert maps.ndim == 2 + dims
        assert maps.shape[:2] == (2, backbone.features)
        if backbone.neck is None:
            assert backbone.neck_features == 0
        else:
            assert backbone.neck(maps).shape == (2, backbone.neck_features)


@pytest.mark.parametrize("size", [(28, 28), (224, 224), (100, 141), (20, 48, 31)])
@pytest.mark.parametrize("name", NAMES)
def test_any_size_works_or_is_refused_with_the_least_size(name: str, size: tuple[int, ...]) -> None:
    module = catalog.find("backbones", name)
    with torch.device("meta"):
        try:
            backbone = module.build(module.Options(), channels=1, dims=len(size), size=size)
        except Problem as problem:
            assert f"at least {LEAST[name]} pixels" in str(problem)
            assert min(size) < LEAST[name]
            return
        maps = backbone.eval()(torch.empty(1, 1, *size))
        assert math.prod(maps.shape) > 0
        if backbone.neck is not None:
            assert backbone.neck(maps).shape == (1, backbone.neck_features)


@pytest.mark.parametrize("name", LEAST)
def test_the_least_size_is_the_least(name: str) -> None:
    with torch.device("meta"):
        backbone = built(name, pixels=LEAST[name])
        assert backbone(torch.empty(1, 1, LEAST[name], LEAST[name])).shape[2:] == (1, 1)
    with pytest.raises(Problem, match=f"at least {LEAST[name]} pixels"):
        built(name, pixels=LEAST[name] - 1)


@pytest.mark.parametrize(("name", "dims"), QUICK)
def test_an_image_gives_the_same_alone_and_in_a_batch(name: str, dims: int) -> None:
    backbone, images = small(name, dims)
    with torch.inference_mode():
        together, alone = backbone(images), backbone(images[:1])
        torch.testing.assert_close(together[:1], alone, rtol=1e-9, atol=1e-9)
        assert (together[0] - together[1]).abs().max() > 1e-3
        if backbone.neck is not None:
            torch.testing.assert_close(backbone.neck(together)[:1], backbone.neck(alone), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "dims"), QUICK)
def test_the_loss_reaches_every_parameter(name: str, dims: int) -> None:
    backbone, images = small(name, dims)
    maps = backbone(images)
    vectors = maps.flatten(2).mean(2) if backbone.neck is None else backbone.neck(maps)
    (vectors * torch.randn_like(vectors)).sum().backward()
    silent = [key for key, value in backbone.named_parameters() if value.grad is None or not value.grad.any()]
    assert not silent


@pytest.mark.parametrize("name", NAMES)
def test_the_signal_keeps_its_scale_on_the_way(name: str) -> None:
    backbone, images = small(name, 2)
    backbone.train()
    for layer in backbone.modules():
        if isinstance(layer, nn.Dropout):
            layer.eval()
    with torch.no_grad():
        assert 1e-2 < float(backbone(images).std()) < 1e2

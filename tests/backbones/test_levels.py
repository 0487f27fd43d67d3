"""What holds for every backbone that can say where something is, and for the decoder above it."""

import itertools

import pytest
import torch
from torch import nn

from osler import catalog
from osler.backbones import Backbone, Stage, residual_unet, stages_of, unet
from osler.decoder import Decoder
from osler.problem import Problem

WITHOUT = ("alexnet", "reference_cnn", "vit")
WITH = sorted(set(catalog.names("backbones")) - set(WITHOUT))


def built(name: str, dims: int, size: tuple[int, ...], **options: object) -> Backbone:
    module = catalog.find("backbones", name)
    network: Backbone = module.build(module.Options(**options), channels=1, dims=dims, size=size)
    return network


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", WITH)
def test_levels_go_from_fine_to_coarse_and_end_with_the_map(name: str, dims: int) -> None:
    with torch.device("meta"):
        x = torch.empty(2, 1, *(64, 96, 128)[3 - dims :])
        network = built(name, dims, x.shape[2:]).eval()
        levels = network.levels(x)
        assert levels[-1].shape == network(x).shape
        assert len(levels) >= 4
        for fine, coarse in itertools.pairwise(levels):
            assert all(a >= b for a, b in zip(fine.shape[2:], coarse.shape[2:], strict=True))
            assert fine.shape[2:] != coarse.shape[2:]


@pytest.mark.parametrize("name", WITH)
def test_the_last_level_is_what_the_network_returns(name: str) -> None:
    torch.manual_seed(0)
    network, x = built(name, 2, (64, 64)).eval(), torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(network.levels(x)[-1], network(x))


@pytest.mark.parametrize("name", WITHOUT)
def test_the_others_say_which_to_take(name: str) -> None:
    network = built(name, 2, (64, 64))
    with pytest.raises(Problem, match="unet"):
        network.levels(torch.zeros(1, 1, 64, 64))


@pytest.mark.parametrize("size", [(64, 64), (37, 50), (24, 41, 33)])
@pytest.mark.parametrize("name", ["unet", "residual_unet"])
def test_a_u_net_gives_each_pixel_a_place_and_the_loss_reaches_every_weight(name: str, size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    dims = len(size)
    network = built(name, dims, size, width=4)
    levels = network.levels(torch.randn(2, 1, *size))
    decoder = Decoder([level.shape[1] for level in levels], dims)
    maps = decoder(levels)
    assert [m.shape for m in maps] == [level.shape for level in levels]
    assert maps[0].shape[2:] == size
    (maps[0] * torch.randn_like(maps[0])).sum().backward()
    silent = [k for k, p in [*network.named_parameters(), *decoder.named_parameters()] if p.grad is None]
    assert not silent


def test_stages_halve_what_keeps_four_places() -> None:
    stages = stages_of((40, 56, 40), (1.0, 1.0, 1.0))
    assert stages == [Stage((3, 3, 3), (1, 1, 1)), *[Stage((3, 3, 3), (2, 2, 2))] * 3]
    assert [s.stride for s in stages_of((16, 64), (1.0, 1.0))] == [(1, 1), (2, 2), (2, 2), (1, 2), (1, 2)]


def test_long_pixels_are_halved_and_looked_along_once_the_others_are_as_long() -> None:
    # Prostate MRI as in nnU-Net: 3.6 mm slices, 0.6 mm pixels.
    stages = stages_of((20, 320, 256), (3.6, 0.62, 0.62))
    assert [s.stride for s in stages][:5] == [(1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2)]
    assert [s.kernel for s in stages][:3] == [(1, 3, 3), (1, 3, 3), (3, 3, 3)]


@pytest.mark.parametrize("size", [(40, 56, 40), (8, 64, 64), (4, 32, 32), (2, 32, 32), (1, 32, 32), (5, 9, 130)])
@pytest.mark.parametrize("module", [unet, residual_unet])
def test_no_convolution_looks_along_fewer_than_three_places(module: object, size: tuple[int, ...]) -> None:
    # There bfloat16 gradients of oneDNN are memory that nobody wrote to.
    seen = []
    with torch.device("meta"):
        network = module.build(module.Options(width=4), channels=1, dims=3, size=size)  # type: ignore[attr-defined]
        for layer in network.modules():
            if isinstance(layer, nn.Conv3d):
                layer.register_forward_pre_hook(lambda m, x: seen.append((m.kernel_size, x[0].shape[2:])))
        network.levels(torch.empty(1, 1, *size))
    assert seen
    assert all(n >= 3 for kernel, places in seen for k, n in zip(kernel, places, strict=True) if k > 1)


def test_a_given_depth_is_the_depth() -> None:
    for depth in (2, 5, 7):
        assert len(stages_of((64, 64), (1.0, 1.0), depth)) == depth


@pytest.mark.parametrize("dims", [2, 3])
def test_groups_keep_how_much_of_a_channel_there_is_and_single_channels_do_not(dims: int) -> None:
    """The mean of a channel over the places of a map, before the ramp: 0 of every image, or the image's own."""
    x = torch.randn(3, 1, *(32,) * dims) + torch.arange(3.0).reshape(3, *(1,) * (dims + 1))
    spread = {}
    for norm in ("instance", "group"):
        network = unet.build(unet.Options(width=8, depth=3, norm=norm), channels=1, dims=dims, size=(32,) * dims)
        stage = network.stages[0]
        normal = stage[4](stage[3](stage[:3](x))).detach()
        spread[norm] = float(normal.flatten(2).mean(2).std(0).mean())
    assert spread["instance"] < 1e-5 < 1e-2 < spread["group"]


@pytest.mark.parametrize(("dims", "size"), [(2, (48, 40)), (3, (16, 24, 40))])
def test_a_strided_first_stage_leaves_out_the_finest_maps(dims: int, size: tuple[int, ...]) -> None:
    """Levels of the shapes that an image of half of the rows and columns has."""
    for stride in (1, 2):
        network = built("unet", dims, size, width=8, stride=stride)
        levels = network.levels(torch.zeros(1, 1, *size))
        assert tuple(levels[0].shape[2:]) == tuple(n // stride for n in size)
        small = built("unet", dims, tuple(n // stride for n in size), width=8)
        assert [level.shape for level in levels] == [
            level.shape for level in small.levels(torch.zeros(1, 1, *(n // stride for n in size)))
        ]
    slices = built("unet", 3, (8, 32, 32), width=8, stride=2, aspect_z=4.0)
    assert tuple(slices.levels(torch.zeros(1, 1, 8, 32, 32))[0].shape[2:]) == (8, 16, 16)

"""Numbers of parameters, as published for 1,000 classes (or as computed layer by layer)."""

from typing import Any

import pytest
import torch
from torch import nn

from osler import catalog


@pytest.mark.parametrize(
    ("name", "options", "classes", "published"),
    [
        ("reference_cnn", {}, 10, 23_908_682),
        ("alexnet", {}, 1000, 61_100_840),
        ("vgg", {"depth": 11}, 1000, 132_863_336),
        ("vgg", {"depth": 13}, 1000, 133_047_848),
        ("vgg", {"depth": 16}, 1000, 138_357_544),
        ("vgg", {"depth": 16, "batch_norm": True}, 1000, 138_365_992),
        ("vgg", {"depth": 19}, 1000, 143_667_240),
        ("resnet", {"depth": 18, "stem": "large"}, 1000, 11_689_512),
        ("resnet", {"depth": 34, "stem": "auto"}, 1000, 21_797_672),
        ("resnet", {"depth": 50, "stem": "large"}, 1000, 25_557_032),
        ("efficientnet_lite", {"scale": "lite0"}, 1000, 4_652_008),
        ("efficientnet_lite", {"scale": "lite1"}, 1000, 5_416_680),
        ("efficientnet_lite", {"scale": "lite2"}, 1000, 6_092_072),
        ("convnext", {"scale": "tiny"}, 1000, 28_589_128),
    ],
)
def test_the_number_of_parameters_is_the_published_one(
    name: str, options: dict[str, Any], classes: int, published: int
) -> None:
    module = catalog.find("backbones", name)
    with torch.device("meta"):
        backbone = module.build(module.Options(**options), channels=3, dims=2, size=(224, 224))
        head = nn.Linear(backbone.neck_features or backbone.features, classes)
    assert sum(p.numel() for network in (backbone, head) for p in network.parameters()) == published


def test_the_reference_cnn_has_the_parameters_of_the_document_layer_by_layer() -> None:
    first, second = 3 * 3 * 3 * 32 + 32, 3 * 3 * 32 * 64 + 64
    dense, head = 54 * 54 * 64 * 128 + 128, 128 * 10 + 10
    assert first + second + dense + head == 23_908_682


def test_a_vision_transformer_has_the_parameters_that_its_layers_add_up_to() -> None:
    width, depth, patch = 192, 6, 16
    attention = width * 3 * width + 3 * width + width * width + width
    dense = 2 * 4 * width * width + 4 * width + width
    expected = 3 * patch**2 * width + width + depth * (attention + dense + 4 * width) + 2 * width
    module = catalog.find("backbones", "vit")
    with torch.device("meta"):
        backbone = module.build(module.Options(), channels=3, dims=2, size=(224, 224))
    assert sum(p.numel() for p in backbone.parameters()) == expected

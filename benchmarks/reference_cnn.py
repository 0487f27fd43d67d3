"""Training throughput of the reference CNN (224x224x3, batch 32): our step, a plain PyTorch loop, Keras 3 on PyTorch.

    KERAS_BACKEND=torch python benchmarks/reference_cnn.py --repeats 5 --steps 10

The three run in turn in one process, so that a busy machine slows all of them alike: look at the ratios. All
have the same layers, batch, optimiser (Adam) and loss; ours differs by channels-last memory, bfloat16 autocast where
the processor has it, pooling before ReLU, a flattening without a copy and the fused Adam.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import torch
from torch import nn
from torch.nn import functional as F

from osler.backbones import reference_cnn

BATCH, PIXELS, CLASSES = 32, 224, 10

Run = Callable[[int], None]


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is computed in hardware: elsewhere it is emulated and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def ours(images: torch.Tensor, labels: torch.Tensor, *, bfloat16: bool) -> Run:
    device = images.device
    size = (PIXELS, PIXELS)
    backbone = reference_cnn.build(reference_cnn.Options(), channels=3, dims=2, size=size)
    network = nn.Sequential(backbone, backbone.neck, nn.Linear(backbone.neck_features, CLASSES))
    network = network.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    images = images.contiguous(memory_format=torch.channels_last)

    def run(steps: int) -> None:
        for _ in range(steps):
            with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
                logits = network(images)
            loss = F.cross_entropy(logits.float(), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return run


def plain(images: torch.Tensor, labels: torch.Tensor) -> Run:
    layers = (
        *(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * 54 * 54, 128), nn.ReLU(), nn.Linear(128, CLASSES)),
    )
    network = nn.Sequential(*layers).to(images.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)

    def run(steps: int) -> None:
        for _ in range(steps):
            loss = F.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def in_keras(images: torch.Tensor, labels: torch.Tensor, most: int) -> Run:
    import keras
    from keras import layers

    model: Any = keras.Sequential(
        [
            layers.Input((PIXELS, PIXELS, 3)),
            layers.Conv2D(32, (3, 3), activation="relu"),
            layers.MaxPooling2D((2, 2)),
            layers.Conv2D(64, (3, 3), activation="relu"),
            layers.MaxPooling2D((2, 2)),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(CLASSES, activation="softmax"),
        ]
    )
    model.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"])
    # The data of all steps lie ready: only training is timed.
    x = images.movedim(1, -1).repeat(most, 1, 1, 1).cpu().numpy().copy()
    y = keras.utils.to_categorical(labels.repeat(most).cpu().numpy(), CLASSES)

    def run(steps: int) -> None:
        model.fit(x[: steps * BATCH], y[: steps * BATCH], epochs=1, batch_size=BATCH, verbose=0)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="rounds; in each every loop runs once")
    parser.add_argument("--steps", type=int, default=10, help="training steps of each run")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    images = torch.rand(BATCH, 3, PIXELS, PIXELS, device=device)
    labels = torch.randint(CLASSES, (BATCH,), device=device)
    runs = {"plain PyTorch": plain(images, labels), "ours, float32": ours(images, labels, bfloat16=False)}
    if has_bfloat16(device):
        runs["ours, bfloat16"] = ours(images, labels, bfloat16=True)
    try:
        runs = {"Keras model.fit": in_keras(images, labels, max(2, arguments.steps)), **runs}
    except ImportError:
        print("Keras is not installed; left out")

    for run in runs.values():
        run(2)
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(arguments.repeats):
        for name, run in runs.items():
            finish(device)
            start = time.perf_counter()
            run(arguments.steps)
            finish(device)
            speeds[name].append(arguments.steps * BATCH / (time.perf_counter() - start))
    show(speeds, device)


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def show(speeds: dict[str, list[float]], device: torch.device) -> None:
    print(f"PyTorch {torch.__version__}, {device.type}, {torch.get_num_threads()} threads, batch {BATCH}")
    print(f"{'':18}{'img/s':>8}{'least':>8}{'most':>8}   ratio to the first, round by round: median (least - most)")
    first = next(iter(speeds.values()))
    for name, values in speeds.items():
        ratios = [value / base for value, base in zip(values, first, strict=True)]
        print(
            f"{name:18}{statistics.median(values):8.1f}{min(values):8.1f}{max(values):8.1f}"
            f"   {statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()

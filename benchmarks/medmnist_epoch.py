"""A training epoch at 28x28: ours against MedMNIST's usual script, the same ResNet-18; and the two loaders alone.

    python benchmarks/medmnist_epoch.py                 # both tables, about two minutes
    python benchmarks/medmnist_epoch.py --only loader

The usual script is that of MedMNIST (experiments/MedMNIST2D/train_and_eval_pytorch.py): a PIL image a case, ToTensor
and Normalize, DataLoader with batches of 128, Adam, float32; with a random affine move of each PIL image, since ours
augments, too. Ours is the step of `osler train`: images in memory, five augmentations of the whole batch at once, the
precision, layout and allocator that the plan chooses. Both train the ResNet-18 of width 64 with a 3x3 stem.
"""

import argparse
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import turns
from turns import Tick

BATCH, PIXELS, CLASSES, CASES = 128, 28, 2, 1024


def cases() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (CASES, PIXELS, PIXELS), np.uint8), rng.integers(0, CASES, CASES) % CLASSES


# --- the usual script -------------------------------------------------------------------------------------------


def usual_loader(*, augment: bool) -> Any:
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    images, labels = cases()
    rng = np.random.default_rng(0)

    def moved(image: Image.Image) -> Image.Image:
        x, y, angle = rng.uniform(-1, 1, 3)
        return image.rotate(15 * angle, Image.Resampling.BILINEAR, translate=(2 * x, 2 * y))

    class MedMNIST(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return CASES

        def __getitem__(self, index: int) -> tuple[torch.Tensor, np.ndarray]:
            image, target = Image.fromarray(images[index]), labels[index : index + 1].astype(int)
            image = moved(image) if augment else image
            # ToTensor, then Normalize(mean=[.5], std=[.5])
            tensor = torch.from_numpy(np.array(image, copy=True))[None].to(torch.float32).div(255)
            return tensor.sub_(0.5).div_(0.5), target

    return DataLoader(MedMNIST(), batch_size=BATCH, shuffle=True)


def usual(tick: Tick) -> None:
    import torch
    from torch import nn

    from osler.backbones import resnet

    backbone = resnet.build(resnet.Options(), channels=1, dims=2, size=(PIXELS, PIXELS))
    network = nn.Sequential(backbone, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, CLASSES)).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    criterion = nn.CrossEntropyLoss()
    loader = usual_loader(augment=True)
    while True:
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = criterion(network(inputs), targets.squeeze(1).long())
            loss.backward()
            optimizer.step()
            tick()


# --- ours ---------------------------------------------------------------------------------------------------------


def ready(plan: Any) -> Any:
    from osler import fitting
    from osler.cohort import Training

    images, labels = cases()
    pixels = images.astype(np.float32)[:, None, None, None]
    return fitting.Examples(Training(()), pixels, {"label": labels[:, None].astype(np.float32)})


def planned() -> Any:
    from osler import pace, recipe

    plan = recipe.build(
        {
            "image": {"size": [1, PIXELS, PIXELS]},
            "tasks": {"label": {"kind": "multiclass", "classes": ["no", "yes"]}},
            "network": {"backbone": "resnet", "options": {"width": 64}},
            "training": {"batch": BATCH, "clip": 5.0},
            "augmentation": {name: {} for name in ("spatial", "intensity", "blur", "noise", "bias")},
        }
    )
    return pace.measure(plan, {})[0]


def ours(tick: Tick) -> None:
    from osler import draws, fitting

    plan = planned()
    examples = ready(plan)
    state = fitting.start(examples, plan, 0)
    while True:
        order = draws.permutation(draws.keys(0, 0, state.epoch, 1), CASES)
        for rows in order.reshape(-1, BATCH):
            fitting.step_once(state, examples, rows, plan, 0, CASES // BATCH)
            state.step += 1
            tick()
        state.epoch, state.step = state.epoch + 1, 0


def loaders() -> dict[str, Iterator[Any]]:
    """Endless batches of normalised images and targets, no augmentation, from index to tensor."""
    import torch

    from osler import draws, fitting
    from osler.model import Normalise

    examples = ready(None)
    normalise = Normalise("cohort", 1)
    normalise.fit(examples.pixels)

    def our_batches() -> Iterator[Any]:
        epoch = 0
        while True:
            order = draws.permutation(draws.keys(0, 0, epoch, 1), CASES)
            for rows in order.reshape(-1, BATCH):
                yield fitting.batch(examples, rows, normalise, torch.device("cpu"))
            epoch += 1

    def usual_batches() -> Iterator[Any]:
        loader = usual_loader(augment=False)
        while True:
            yield from loader

    return {"ours": our_batches(), "usual": usual_batches()}


CONTENDERS = {"ours": ours, "usual": usual, "usual, kept": usual}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7, help="rounds")
    parser.add_argument("--steps", type=int, default=2, help="training steps of a turn")
    parser.add_argument("--only", choices=["loader", "training"])
    arguments = parser.parse_args()
    if arguments.only != "training":
        import torch

        torch.set_num_threads(1)
        batches = loaders()
        found = []
        for _ in range(max(arguments.repeats, 7) + 1):
            found.append({name: rate(batches[name], {"ours": 400, "usual": 16}[name]) for name in batches})
        print(f"loader alone, index to batch, no augmentation, one thread; {len(found) - 1} rounds")
        turns.show(found[1:])
    if arguments.only != "loader":
        found = list(
            turns.rounds(__file__, list(CONTENDERS), ["ours", "usual, kept"], arguments.steps, arguments.repeats)
        )
        print(f"\nResNet-18, {arguments.steps} steps of {BATCH}, {len(found)} rounds; kept: our allocator settings")
        turns.show(found)


def rate(batches: Iterator[Any], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        next(batches)
    return count * BATCH / (time.perf_counter() - start)


if __name__ == "__main__":
    turns.work_or(main, CONTENDERS, BATCH)

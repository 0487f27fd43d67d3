"""Training of the reference CNN (224x224x3, batch 32, Adam): our step against other loops, each in its own process.

    python -m pip install -c constraints.txt -r benchmarks/requirements.txt    # lightning, monai, keras ...
    python benchmarks/reference_cnn.py                                         # both tables, about five minutes
    python benchmarks/reference_cnn.py --allocator stock --contenders ours plain keras

Ours is what `osler train --recipe recipes/reference_cnn.toml` does in a step (`fitting.step_once`), with the
precision, layout and allocator that it chooses by itself. The others are trained as their documentation shows it:
Keras 3 on PyTorch by `model.fit`, Lightning by `Trainer.fit`, MONAI by `SupervisedTrainer`, and a plain PyTorch loop.
`by_hand` is the fastest loop that we could write with PyTorch alone. Layers, batch and optimiser are the same.

The first table is what a user gets: the others under the C library's own allocator. In the second, every process
has ours. A process lives through the whole table and trains a few steps whenever it is its turn, so that a busy
machine slows all of them alike: look at the ratios, round by round.
"""

import argparse
from pathlib import Path
from typing import Any

import turns
from turns import Tick

BATCH, PIXELS, CLASSES, CASES = 32, 224, 10, 128
RECIPE = Path(__file__).parent.parent / "recipes" / "reference_cnn.toml"

# --- contenders: each trains for ever and calls tick after every step ---------------------------------------


def ours(tick: Tick) -> None:
    from osler import draws, fitting, pace, recipe
    from osler.cohort import Training

    pixels, labels = cases()
    question = {"kind": "multiclass", "classes": [str(n) for n in range(CLASSES)]}
    given = recipe.read(RECIPE)
    plan = recipe.build({**given, "tasks": {"label": question}})
    plan, _, _ = pace.measure(plan, given["training"])
    examples = fitting.Examples(Training(()), pixels[:, None, :, None], {"label": labels[:, None].astype("float32")})
    state = fitting.start(examples, plan, 0)
    while True:
        order = draws.permutation(draws.keys(0, 0, state.epoch, 1), CASES)
        for rows in order.reshape(-1, BATCH):
            fitting.step_once(state, examples, rows, plan, 0, CASES // BATCH)
            state.step += 1
            tick()
        state.epoch, state.step = state.epoch + 1, 0


def by_hand(tick: Tick) -> None:
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 64, 3)
            self.dense, self.head = nn.Linear(64 * 54 * 54, 128), nn.Linear(128, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.relu(F.max_pool2d(self.first(x), 2))
            x = F.relu(F.max_pool2d(self.second(x), 2))
            logits: torch.Tensor = self.head(F.relu(self.dense(x.movedim(1, -1).flatten(1))))
            return logits

    pixels, labels = (torch.from_numpy(values) for values in cases())
    network = Net().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    # Normalised, in bfloat16 and channels-last before the first step.
    pixels = ((pixels - pixels.mean()) / pixels.std()).to(torch.bfloat16, memory_format=torch.channels_last)
    while True:
        for rows in torch.randperm(CASES).split(BATCH):
            with torch.autocast("cpu", torch.bfloat16):
                logits = network(pixels[rows])
            loss = F.cross_entropy(logits.float(), labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            tick()


def plain(tick: Tick) -> None:
    import torch
    from torch.nn import functional as F

    network = textbook()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    loader = torch.utils.data.DataLoader(in_torch(), batch_size=BATCH, shuffle=True)
    while True:
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()
            tick()


def lightning(tick: Tick) -> None:
    import torch
    from lightning import pytorch as pl
    from torch.nn import functional as F

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = textbook()

        def training_step(self, batch: Any, number: int) -> torch.Tensor:
            images, labels = batch
            return F.cross_entropy(self.network(images), labels)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    class Ticking(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            tick()

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(accelerator="cpu", max_epochs=-1, enable_model_summary=False, callbacks=[Ticking()], **quiet)
    trainer.fit(Module(), torch.utils.data.DataLoader(in_torch(), batch_size=BATCH, shuffle=True))


def monai(tick: Tick) -> None:
    import torch
    from ignite.engine import Events
    from monai.data import DataLoader, Dataset
    from monai.engines import SupervisedTrainer

    network = textbook()
    items = [{"image": image, "label": label} for image, label in in_torch()]
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=10**9,
        train_data_loader=DataLoader(Dataset(items), batch_size=BATCH, shuffle=True),
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), lr=1e-3),
        loss_function=torch.nn.CrossEntropyLoss(),
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: tick())
    trainer.run()


def keras(tick: Tick) -> None:
    import keras
    from keras import layers

    class Ticking(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            tick()

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
    pixels, labels = cases()
    x, y = pixels.transpose(0, 2, 3, 1).copy(), keras.utils.to_categorical(labels, CLASSES)
    model.fit(x, y, epochs=10**9, batch_size=BATCH, verbose=0, callbacks=[Ticking()])


CONTENDERS = {
    "ours": ours,
    "by_hand": by_hand,
    "plain": plain,
    "lightning": lightning,
    "monai": monai,
    "keras": keras,
}


def cases() -> tuple[Any, Any]:
    import numpy as np

    rng = np.random.default_rng(0)
    return rng.random((CASES, 3, PIXELS, PIXELS), np.float32), rng.integers(0, CLASSES, CASES)


def in_torch() -> Any:
    import torch

    return torch.utils.data.TensorDataset(*(torch.from_numpy(values) for values in cases()))


def textbook() -> Any:
    from torch import nn

    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * 54 * 54, 128), nn.ReLU(), nn.Linear(128, CLASSES)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7, help="rounds; in each every loop has its turn")
    parser.add_argument("--steps", type=int, default=2, help="training steps of a turn")
    parser.add_argument("--allocator", choices=["stock", "ours", "both"], default="both")
    parser.add_argument("--contenders", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    arguments = parser.parse_args()
    titles = {"stock": "the others under the C library's own allocator", "ours": "all under our allocator settings"}
    for allocator in titles if arguments.allocator == "both" else [arguments.allocator]:
        kept = list(CONTENDERS) if allocator == "ours" else ["ours", "by_hand"]
        found = list(turns.rounds(__file__, arguments.contenders, kept, arguments.steps, arguments.repeats))
        print(f"\n{titles[allocator]}; {len(found)} rounds of {arguments.steps} steps of {BATCH}")
        turns.show(found)


if __name__ == "__main__":
    turns.work_or(main, CONTENDERS, BATCH)

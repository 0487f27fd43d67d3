"""Which network along time learns what, from how many loops: the evidence for what is planned.

    python benchmarks/sequences.py

No images: each moment is a vector of 8 numbers, as a backbone would give them. Three truths, of two equally frequent
classes each, measured on 1,000 other loops:

- ``order``: 8 moments that grow or shrink; nothing but their order tells the classes apart;
- ``planted``: 32 moments of noise, and in every second loop one that differs;
- ``everywhere``: 32 moments, each of which differs a little.

Printed is the AUROC after 80 steps of 64 loops; then, of the readings of attention, how often the moment with the
largest share is the planted one among 60, after 150 steps.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from osler import catalog
from osler.sequences import Temporal

TEST = 1000
WIDTH = 8
Made = tuple[Tensor, Tensor, Tensor]
NETWORKS: tuple[tuple[str, dict[str, object]], ...] = (
    ("mean", {}), ("max", {}), ("rnn", {"hidden": 64}), ("gru", {"hidden": 64}), ("lstm", {"hidden": 64}),
    ("attention", {"reading": "literal"}), ("attention", {"reading": "tanh", "hidden": 32}),
    ("attention", {"reading": "frames", "hidden": 32}), ("self_attention", {"width": 64}),
)  # fmt: skip


def order(count: int, seed: int) -> Made:
    torch.manual_seed(seed)
    y = (torch.arange(count) % 2).float()
    size = torch.linspace(-1, 1, 8) * (0.5 + torch.rand(count, 1))
    size = torch.where(y[:, None] == 1, size, size.flip(1))
    direction = torch.tensor([1.0, -0.5, 0.3, 0.0])
    return size[..., None] * direction + 0.1 * torch.randn(count, 8, 4), y, torch.zeros(count)


def planted(count: int, seed: int, moments: int = 32) -> Made:
    torch.manual_seed(seed)
    x, y = torch.randn(count, moments, WIDTH), (torch.arange(count) % 2).float()
    at = torch.randint(0, moments, (count,))
    x[torch.arange(count), at, :3] += y[:, None] * torch.tensor([4.0, -4.0, 4.0])
    return x, y, at


def everywhere(count: int, seed: int) -> Made:
    torch.manual_seed(seed)
    y = (torch.arange(count) % 2).float()
    return torch.randn(count, 32, WIDTH) + 0.1 * (2 * y - 1)[:, None, None], y, torch.zeros(count)


def trained(name: str, options: dict[str, object], made: Made, steps: int) -> tuple[Temporal, nn.Module]:
    torch.manual_seed(0)
    x, y, _ = made
    module = catalog.find("sequences", name)
    network: Temporal = module.build(module.Options(**options), features=x.shape[2])
    head = nn.Linear(network.features, 1)
    optimizer = torch.optim.AdamW([*network.parameters(), *head.parameters()], 3e-3, weight_decay=0.05)
    mask, gaps = torch.ones(64, x.shape[1], dtype=torch.bool), torch.ones(64, x.shape[1])
    for _ in range(steps):
        rows = torch.randperm(len(x))[:64]
        logit = head(network(x[rows], mask, gaps))[:, 0]
        loss = nn.functional.binary_cross_entropy_with_logits(logit, y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network, head


@torch.no_grad()
def auroc(network: Temporal, head: nn.Module, made: Made) -> float:
    x, y, _ = made
    mask, gaps = torch.ones(x.shape[:2], dtype=torch.bool), torch.ones(x.shape[:2])
    logit = head(network(x, mask, gaps))[:, 0]
    above = logit[y == 1][:, None] - logit[y == 0]
    return float(((above > 0).double() + (above == 0).double() / 2).mean())


@torch.no_grad()
def found(network: Temporal, made: Made) -> float:
    x, y, at = made
    mask, gaps = torch.ones(x.shape[:2], dtype=torch.bool), torch.ones(x.shape[:2])
    weights: Tensor = network.weights(x, mask, gaps)  # type: ignore[operator]
    return float((weights.argmax(1) == at)[y == 1].double().mean())


def main() -> None:
    torch.set_num_threads(1)
    truths: tuple[Callable[[int, int], Made], ...] = (order, planted, everywhere)
    sizes = (128, 1024)
    heads = [f"{truth.__name__} {size}" for size in sizes for truth in truths]
    print(f"{'AUROC':36s}" + "".join(f"{head:>17s}" for head in heads) + "   seconds", flush=True)
    for name, options in NETWORKS:
        began = time.perf_counter()
        values = [
            auroc(*trained(name, options, truth(size, 0), 80), truth(TEST, 1)) for size in sizes for truth in truths
        ]
        label = " ".join([name, *(f"{value}" for value in options.values())])
        seconds = time.perf_counter() - began
        print(f"{label:36s}" + "".join(f"{v:17.2f}" for v in values) + f"{seconds:10.1f}", flush=True)
    print("\nlargest share at the planted moment among 60, from 256 and from 1,024 loops")
    for reading in ("literal", "tanh", "frames"):
        options = {"reading": reading, "hidden": 16}
        shares = [
            found(trained("attention", options, planted(size, 0, 60), 150)[0], planted(TEST, 1, 60))
            for size in (256, 1024)
        ]
        print(f"{reading:36s}" + "".join(f"{share:17.1%}" for share in shares), flush=True)


if __name__ == "__main__":
    main()

"""Which network along time learns what, from how many loops: the evidence for what is planned.

    python benchmarks/sequences.py [--moments 32] [--steps 100]

No images: each moment is a vector of 8 numbers, as a backbone would give them. Three truths, of two equally frequent
classes each, with 1,000 test loops:

- ``order``: the same moments, growing or shrinking; nothing but their order tells the classes apart;
- ``planted``: noise, and in every second loop one moment that differs;
- ``everywhere``: every moment differs a little.

Printed is the AUROC, and of networks that attend how often the moment with the largest share is the planted one.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from osler import catalog
from osler.sequences import Temporal

TEST = 1000
WIDTH = 8
Made = tuple[Tensor, Tensor, Tensor]


def order(count: int, moments: int) -> Made:
    y = (torch.arange(count) % 2).float()
    size = torch.linspace(-1, 1, moments) * (0.5 + torch.rand(count, 1))
    size = torch.where(y[:, None] == 1, size, size.flip(1))
    x = 0.3 * torch.randn(count, moments, WIDTH) + size[..., None] * torch.linspace(1, -1, WIDTH)
    return x, y, torch.zeros(count)


def planted(count: int, moments: int) -> Made:
    y, at = (torch.arange(count) % 2).float(), torch.randint(0, moments, (count,))
    x = torch.randn(count, moments, WIDTH)
    x[torch.arange(count), at, :3] += y[:, None] * torch.tensor([4.0, -4.0, 4.0])
    return x, y, at


def everywhere(count: int, moments: int) -> Made:
    y = (torch.arange(count) % 2).float()
    return torch.randn(count, moments, WIDTH) + 0.1 * (2 * y - 1)[:, None, None], y, torch.zeros(count)


def trained(name: str, options: dict[str, object], x: Tensor, y: Tensor, steps: int) -> tuple[Temporal, nn.Module]:
    torch.manual_seed(0)
    module = catalog.find("sequences", name)
    network: Temporal = module.build(module.Options(**options), features=WIDTH)
    head = nn.Linear(network.features, 1)
    optimizer = torch.optim.AdamW([*network.parameters(), *head.parameters()], 3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randperm(len(x))[:64]
        mask, gaps = torch.ones(64, x.shape[1], dtype=torch.bool), torch.ones(64, x.shape[1])
        logit = head(network(x[rows], mask, gaps))[:, 0]
        loss = nn.functional.binary_cross_entropy_with_logits(logit, y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network, head


@torch.no_grad()
def measured(network: Temporal, head: nn.Module, made: Made) -> tuple[float, float]:
    x, y, at = made
    mask, gaps = torch.ones(x.shape[:2], dtype=torch.bool), torch.ones(x.shape[:2])
    logit = head(network(x, mask, gaps))[:, 0]
    above = logit[y == 1][:, None] - logit[y == 0]
    auroc = float(((above > 0).double() + (above == 0).double() / 2).mean())
    if not hasattr(network, "weights"):
        return auroc, float("nan")
    return auroc, float((network.weights(x, mask, gaps).argmax(1) == at)[y == 1].double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=32)
    parser.add_argument("--steps", type=int, default=100)
    given = parser.parse_args()
    torch.set_num_threads(1)
    truths: dict[str, Callable[[int, int], Made]] = {"order": order, "planted": planted, "everywhere": everywhere}
    sizes = (128, 1024)
    heads = [f"{truth} {size}" for size in sizes for truth in truths]
    print(f"{'AUROC of 1,000 loops':28s}" + "".join(f"{head:>17s}" for head in heads) + "   top moment   seconds")
    chosen: list[tuple[str, dict[str, object]]] = [(name, {}) for name in ("mean", "max", "rnn", "gru", "lstm")]
    chosen += [("attention", {"reading": reading}) for reading in ("literal", "tanh", "frames")]
    chosen += [("self_attention", {})]
    for name, options in chosen:
        began, found, tops = time.perf_counter(), [], []
        for size in sizes:
            for truth, make in truths.items():
                torch.manual_seed(1)
                x, y, _ = make(size, given.moments)
                auroc, top = measured(*trained(name, options, x, y, given.steps), make(TEST, given.moments))
                found.append(auroc)
                tops += [top] if truth == "planted" else []
        shown = "" if tops[0] != tops[0] else " and ".join(f"{top:.0%}" for top in tops)
        label = " ".join([name, *map(str, options.values())])
        seconds = time.perf_counter() - began
        print(f"{label:28s}" + "".join(f"{v:17.3f}" for v in found) + f"{shown:>13s}{seconds:10.1f}", flush=True)


if __name__ == "__main__":
    main()

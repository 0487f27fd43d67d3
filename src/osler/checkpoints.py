"""All that a training of one network is between two steps, and how it lies on the disk: whole or not at all."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tensorboardX import SummaryWriter
from torch import Tensor

from osler import files, model
from osler.model import Network
from osler.problem import Problem


@dataclass(eq=False)
class State:
    """All that a training of one member is, between two steps.

    ``average`` is the weights themselves where the recipe asks for no average (``ema = 0``).
    """

    network: Network
    average: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    best: dict[str, Tensor] = field(default_factory=dict)
    epoch: int = 0
    step: int = 0
    best_loss: float = math.inf
    best_epoch: int = -1
    loss_sum: float = 0.0
    skipped: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


def save(state: State, path: Path) -> None:
    """Writes the whole state, atomically; not a pickle."""
    tensors = {f"network.{k}": v for k, v in state.network.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in state.average.items()}
    tensors |= {f"best.{k}": v for k, v in state.best.items()}
    for number, values in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{k}": torch.as_tensor(v) for k, v in values.items() if v is not None}
    plain = {
        k: getattr(state, k) for k in ("epoch", "step", "best_epoch", "best_loss", "loss_sum", "skipped", "history")
    }
    model.write_tensors(path, tensors, {"format": "osler-checkpoint", "state": json.dumps(plain)})


def restore(state: State, path: Path) -> None:
    """Reads what :func:`save` wrote into a fresh state.

    Raises:
        Problem: the checkpoint is damaged or of another network.
    """
    header, tensors = model.read_tensors(path)

    def part(name: str) -> dict[str, Tensor]:
        return {k[len(name) + 1 :]: v for k, v in tensors.items() if k.startswith(name + ".")}

    try:
        for key, value in json.loads(header["state"]).items():
            setattr(state, key, value)
        state.network.load_state_dict(part("network"))
        device = next(state.network.parameters()).device
        # In place: without an average these are the weights themselves.
        for key, value in part("average").items():
            state.average[key].copy_(value)
        state.best = {k: v.to(device) for k, v in part("best").items()}
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in part("optimizer").items():
            number, name = key.split(".", 1)
            moments.setdefault(int(number), {})[name] = value
        state.optimizer.load_state_dict({**state.optimizer.state_dict(), "state": moments})
    except (KeyError, RuntimeError, ValueError) as error:
        raise Problem(
            f"the checkpoint does not fit ({str(error)[:100]})",
            path=path,
            fix="delete the run folder and train again",
        ) from error


def write_history(out: Path, member: int, rows: Sequence[Mapping[str, float]]) -> None:
    """``history.csv`` of all members so far."""
    path = out / "history.csv"
    others: list[Mapping[str, Any]] = []
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            others = [row for row in csv.DictReader(file) if float(row["member"]) != member]
    names = list(dict.fromkeys(key for row in [*others, *rows] for key in row))
    lines = [",".join(names)]
    lines += [",".join(str(row.get(name, "")) for name in names) for row in [*others, *rows]]
    files.replaced(path, "\n".join(lines) + "\n")


def write_tensorboard(writer: SummaryWriter, row: Mapping[str, float]) -> None:
    """What TensorBoard draws of one epoch."""
    for name, value in row.items():
        if name not in ("member", "epoch"):
            writer.add_scalar(name.replace(".", "/"), value, int(row["epoch"]))
    writer.flush()

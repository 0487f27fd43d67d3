"""How fast a training step is on this machine, in which precision and layout."""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from osler.model import Network
from osler.recipe import CovariatePlan, Recipe

Precision = Literal["float32", "bfloat16"]


def measure(plan: Recipe, chosen: Mapping[str, Any]) -> tuple[Recipe, float, dict[str, str]]:
    """The fastest precision and layout for this network here, in cases a second."""
    # Covariates take no time, and what a network needs to know of them is learned when cases are divided.
    about, plan = plan.covariates, replace(plan, covariates=CovariatePlan())
    rates: dict[tuple[Precision, bool], float] = {}
    thin = plan.image.dims == 3 and not torch.cuda.is_available() and _thin(plan)
    precisions: tuple[Precision, ...] = ("float32",) if thin else ("float32", "bfloat16")
    for precision in [chosen["precision"]] if "precision" in chosen else precisions:
        for layout in [chosen["channels_last"]] if "channels_last" in chosen else [True, False]:
            rates[precision, layout] = _rate(plan, precision, layout)
    (precision, layout), rate = max(rates.items(), key=lambda item: item[1])
    if precision == "bfloat16" and rate < 1.15 * max((r for (p, _), r in rates.items() if p == "float32"), default=0):
        (precision, layout), rate = max(((k, r) for k, r in rates.items() if k[0] == "float32"), key=lambda i: i[1])
    wrong = ""
    if precision == "bfloat16" and "precision" not in chosen and not _same_gradients(plan, layout):
        (precision, layout), rate = max(((k, r) for k, r in rates.items() if k[0] == "float32"), key=lambda i: i[1])
        wrong = "bfloat16 is faster but its gradients are wrong here; "
    text = ", ".join(f"{p} {'channels last' if c else 'channels first'} {r:.3g}/s" for (p, c), r in rates.items())
    training = replace(plan.training, precision=precision, channels_last=layout)
    measured = {"training.precision": f"{wrong}measured: {text}", "training.channels_last": "measured"}
    return replace(plan, training=training, covariates=about), rate, measured


def _same_gradients(plan: Recipe, channels_last: bool) -> bool:
    """Whether bfloat16 gives the gradients of float32, to its precision.

    Freed memory is filled with NaN before, so that memory shows that nobody wrote to.
    """
    on_gpu = torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    image = plan.image
    torch.manual_seed(0)
    network = Network(plan).to(device).eval()
    network.channels_last = channels_last
    x = torch.randn(2 if plan.dense else 4, image.stacked, plan.image.channels, *image.size, device=device)
    gradients = []
    for precision in ("float32", "bfloat16", "bfloat16", "bfloat16"):
        junk = [torch.full((2**k,), math.nan, device=device) for k in range(8, 22)]
        del junk
        network.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            answers = _answers(network, x)
        loss = sum((functional.softplus(a.float()).mean() for a in answers), torch.zeros((), device=device))
        loss.backward()  # type: ignore[no-untyped-call]
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    exact = gradients[0]
    close = [functional.cosine_similarity(exact, other, dim=0) > 0.9 for other in gradients[1:]]
    return all(bool(torch.isfinite(other).all()) for other in gradients[1:]) and all(bool(c) for c in close)


def _thin(plan: Recipe) -> bool:
    """Whether any 3D convolution looks along an axis with fewer than three places.

    There oneDNN returns memory that nobody wrote to as the gradient in bfloat16, or writes outside of its own
    (PyTorch 2.13 on CPU; never seen with three places or more, in thousands of convolutions): it is not even tried.
    """
    found: list[bool] = []

    def look(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(layer, nn.Conv3d):
            pairs = zip(layer.kernel_size, inputs[0].shape[2:], strict=True)
            found.append(any(kernel > 1 and places < 3 for kernel, places in pairs))

    network = Network(plan).eval()
    for layer in network.modules():
        layer.register_forward_pre_hook(look)
    with torch.no_grad():
        _answers(network, torch.zeros(1, plan.image.stacked, plan.image.channels, *plan.image.size))
    return any(found)


def _answers(network: Network, x: Tensor) -> list[Tensor]:
    """All outputs of a network that a loss looks at."""
    said = network.say(x)
    parts = [*_tensors(said.places), *_tensors(said.answers), *_tensors(said.opinions)]
    return [part for part in parts if part.requires_grad]


def _tensors(outputs: Any) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    else:
        for part in outputs.values() if isinstance(outputs, Mapping) else outputs:
            yield from _tensors(part)


def _rate(plan: Recipe, precision: str, channels_last: bool) -> float:
    """Cases a second of a training step on random input, the best of a few."""
    network = Network(plan)
    network.channels_last = channels_last
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network.to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6, fused=True)
    batch = min(plan.training.batch, 32) if device == "cpu" else plan.training.batch
    image = plan.image
    x = torch.randn(batch, image.stacked, plan.image.channels, *image.size, device=device)
    best = math.inf
    began = time.perf_counter()
    for step in range(4):
        start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            answers = _answers(network, x)
        loss = sum((functional.softplus(a.float()).mean() for a in answers), torch.zeros((), device=device))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        if step:
            best = min(best, time.perf_counter() - start)
        if step and time.perf_counter() - began > 6:
            break
    return batch / best

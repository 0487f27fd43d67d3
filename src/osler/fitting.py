"""The one training loop: a network is fitted to cases, step by step, and goes on where it was killed.

It goes on from its last checkpoint to the same bits (same machine, build and thread count), because every random
number is keyed by what it is for (``osler.draws``) and not by what came before.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from tensorboardX import SummaryWriter
from torch import Tensor

from osler import asking, calibration, draws, model, store, subsets
from osler.augmentation import augment
from osler.checkpoints import State, restore, save, write_history, write_tensorboard
from osler.cohort import Calibration, Training, Validation
from osler.linking import Said
from osler.metrics.auroc import macro_auroc
from osler.model import Network
from osler.problem import Problem
from osler.recipe import Recipe

Say = Callable[[str], None]
SAVE_SECONDS = 60.0
# At the end of an epoch it is kept sooner, but not after each of many short ones.
_EPOCH_SECONDS = 5.0


@dataclass(frozen=True, eq=False)
class Examples:
    """Cases of one part, ready for a network: pixels, targets by task, when each moment was, and what is known of
    the persons (``osler.covariates.table``, ``(n, k)``; ``None`` where there is only the image).
    """

    part: Training | Validation | Calibration
    pixels: store.Images
    targets: Mapping[str, NDArray[np.float32]]
    times: NDArray[np.float32] | None = None
    covariates: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True)
class Course:
    """Where the training of one network is kept, which of how many it is, and who hears of it.

    Attributes:
        out: run folder.
        member, members: number of the network, and how many there will be.
        say: takes progress lines.
        began: ``time.monotonic()`` of the start of all of them.
    """

    out: Path
    member: int
    members: int
    say: Say
    began: float


def fit(training: Examples, validation: Examples, plan: Recipe, course: Course) -> Network:
    """Trains one network; goes on from its checkpoint where there is one.

    Args:
        training: weights, normalisation and class weights are fitted on these.
        validation: watched after each epoch; may be empty.
        plan: the recipe.
        course: number of the network, where it is kept, and who hears of it.
    """
    if not isinstance(training.part, Training) or not isinstance(validation.part, Validation):
        raise TypeError("a network is fitted on Training and watched on Validation, nothing else")
    state = start(training, plan, course.member)
    network = state.network
    loop(
        state,
        plan,
        len(training),
        lambda rows, steps: step_once(state, training, rows, plan, course.member, steps),
        lambda: watch(state, validation, plan),
        course,
    )
    network.load_state_dict(state.best if state.best else state.average)
    return network.eval().cpu()


def loop(
    state: State,
    plan: Recipe,
    count: int,
    step: Callable[[NDArray[np.intp], int], float],
    look: Callable[[], dict[str, float]],
    course: Course,
) -> None:
    """Epoch after epoch over ``count`` cases, from the checkpoint in the run folder where there is one.

    Args:
        state: changed in place.
        plan: the recipe.
        count: how many cases there are.
        step: one step on the cases of these rows, told how many steps an epoch has; returns the loss.
        look: figures of the state after each epoch, for the history.
        course: where it is kept, and who hears of it.
    """
    folder = course.out / "checkpoints"
    folder.mkdir(exist_ok=True)
    path = folder / f"member-{course.member}.safetensors"
    if path.exists():
        restore(state, path)
        if state.epoch or state.step:
            course.say(f"network {course.member + 1}: going on from epoch {state.epoch + 1}, step {state.step}")
    writer = SummaryWriter(str(course.out / "tensorboard" / f"network-{course.member}"))
    steps = max(1, math.ceil(count / plan.training.batch))
    saved = time.monotonic()
    while state.epoch < plan.training.epochs and not _stalled(state, plan):
        epoch_began, first = time.monotonic(), state.step
        order = draws.permutation(draws.keys(plan.training.seed, course.member, state.epoch, 1), count)
        for rows in np.array_split(order, steps)[state.step :]:
            state.loss_sum += step(rows, steps)
            state.step += 1
            if time.monotonic() - saved > SAVE_SECONDS:
                save(state, path)
                saved = time.monotonic()
        row = {"member": float(course.member), "epoch": float(state.epoch + 1), "loss": state.loss_sum / steps}
        row |= look()
        state.history.append(row)
        state.epoch, state.step, state.loss_sum = state.epoch + 1, 0, 0.0
        over = state.epoch >= plan.training.epochs or _stalled(state, plan)
        if over or time.monotonic() - saved > min(_EPOCH_SECONDS, SAVE_SECONDS):
            save(state, path)
            saved = time.monotonic()
        now = time.monotonic()
        write_history(course.out, course.member, state.history)
        write_tensorboard(writer, row)
        pace = (now - epoch_began) * steps / max(1, steps - first)
        left = pace * (plan.training.epochs * (course.members - course.member) - state.epoch)
        course.say(_line(row, plan, course.member, course.members, left, now - course.began))
    writer.close()
    write_history(course.out, course.member, state.history)


def start(training: Examples, plan: Recipe, member: int) -> State:
    """The state before the first step: weights drawn or read, normalisation and class weights fitted."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(seed_of(plan.training.seed, member, 0))
    network = Network(plan).to(device)
    network.channels_last = plan.training.channels_last
    if plan.network.weights:
        from osler import weights

        for backbone, *_ in network.looks():
            weights.load_weights(Path(plan.network.weights), backbone, plan.network.backbone)
    network.normalise.fit(training.pixels, training.times)
    if training.times is not None:
        network.rhythm.fit(torch.from_numpy(training.times.reshape(-1, plan.image.frames)))
    if network.persons is not None and training.covariates is not None:
        network.persons.fit(training.covariates)
    for name, task in network.tasks.items():
        scale = torch.from_numpy(task.fit(training.targets[name], plan.training.balance))
        network.scale(name).copy_(scale)
    average = network.state_dict()
    if plan.training.ema:
        average = {name: value.clone() for name, value in average.items()}
    return State(network, average, optimizer_for(network, plan))


def seed_of(*parts: int) -> int:
    """A seed for ``torch.manual_seed`` from what the numbers are for."""
    return int(draws.keys(*parts)[0] >> np.uint64(1))


def optimizer_for(network: Network, plan: Recipe) -> torch.optim.Optimizer:
    """Weight decay on weights only: not on biases, nor on normalisation."""
    chosen = plan.training
    groups: list[dict[str, Any]] = []
    backbones = [(backbone, chosen.backbone_rate) for backbone, *_ in network.looks()]
    for part, rate in (*backbones, (network, 1.0)):
        taken = {id(p) for group in groups for p in group["params"]}
        fresh = [p for p in part.parameters() if id(p) not in taken]
        for matrices in (True, False):
            params = [p for p in fresh if (p.ndim > 1) is matrices]
            if params:
                decay = chosen.weight_decay if matrices else 0.0
                groups.append({"params": params, "weight_decay": decay, "rate": rate, "lr": 0.0})
    if chosen.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=chosen.learning_rate, momentum=0.9, nesterov=True)
    if chosen.optimizer == "adam":
        for group in groups:
            group["weight_decay"] = 0.0
        return torch.optim.Adam(groups, lr=chosen.learning_rate, eps=1e-7, fused=True)
    return torch.optim.AdamW(groups, lr=chosen.learning_rate, fused=True)


def rate_at(plan: Recipe, done: int, total: int) -> float:
    """Learning rate of step ``done`` of ``total``: linear warm-up, then a half cosine to zero, or constant."""
    chosen = plan.training
    warm = chosen.warmup * total
    if chosen.schedule == "constant":
        return chosen.learning_rate
    if done < warm:
        return chosen.learning_rate * (done + 1) / (warm + 1)
    return chosen.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - warm) / max(1, total - warm)))


def step_once(
    state: State, training: Examples, rows: NDArray[np.intp], plan: Recipe, member: int, steps: int
) -> float:
    """One batch forward and back, one step of the optimiser and of the average; returns the loss."""
    network, chosen = state.network, plan.training
    device = next(network.parameters()).device
    number = state.epoch * steps + state.step
    torch.manual_seed(seed_of(chosen.seed, member, 2, number))
    network.train()
    x, targets = batch(training, rows, network.normalise, device)
    x = augment(x, draws.keys(chosen.seed, member, 3, state.epoch, rows), plan)
    person = persons(training, rows, draws.keys(chosen.seed, member, 8, state.epoch, rows), plan, device)
    with statistics_of_taken_steps(state):
        with torch.autocast(device.type, torch.bfloat16, enabled=chosen.precision == "bfloat16"):
            when = None if training.times is None else torch.from_numpy(training.times[rows])
            said = network.say(x, when, person)
            loss = loss_of(
                network, said, person, targets, plan, draws.keys(chosen.seed, member, 9, state.epoch, rows)
            )
        return descend(state, loss, plan, steps)


def loss_of(
    network: Network,
    said: Said,
    covariates: Float[Tensor, "b k"] | None,
    targets: Mapping[str, Tensor],
    plan: Recipe,
    key: NDArray[np.uint64],
) -> Float[Tensor, ""]:
    """The sum over the tasks that ask of the whole image.

    Where there are several sources (modalities, covariates), the mean of that of all together and of each alone:
    beside a source that tells much, another one is hardly learned from (Wang, Tran and Feiszli 2020,
    arXiv:1905.12681). Of more than two, some of them, drawn with ``key``, are asked as well, so that every part of
    them is answered from (modality dropout; Neverova 2016, arXiv:1501.00102).
    """
    told = each_source(network, said, covariates, key)
    loss = next(network.parameters()).new_zeros(())
    for answers, rows in told:
        for name, task in network.tasks.items():
            target = targets[name] if rows is None else torch.where(rows[:, None], targets[name], torch.nan)
            loss = loss + task.loss(answers[name], target, network.scale(name), plan.training.smoothing)
    return loss / len(told)


def each_source(
    network: Network, said: Said, covariates: Float[Tensor, "b k"] | None, key: NDArray[np.uint64] | None = None
) -> list[tuple[Mapping[str, Tensor], Tensor | None]]:
    """What is said from all sources, and where there are several, from each alone; of more than two from some, too.

    Each beside the cases that have the source; ``None`` stands for all cases. ``key`` draws the some.
    """
    told: list[tuple[Mapping[str, Tensor], Tensor | None]] = [(said.answers, None)]
    if network.fusion is not None and said.whole is not None:
        every = torch.ones(len(said.whole), len(network.sources), dtype=torch.bool, device=said.whole.device)
        there = every if said.there is None else said.there
        for one in torch.eye(len(network.sources), dtype=torch.bool, device=every.device):
            told.append((network.from_some(said, covariates, one[None]), (there & one).any(1)))
        if key is not None and len(network.sources) > 2:
            some = torch.from_numpy(subsets.some(there.cpu().numpy(), key))
            told.append((network.from_some(said, covariates, some), None))
    return told


@contextmanager
def statistics_of_taken_steps(state: State) -> Iterator[None]:
    """Running statistics stay as they were if the step within is left out: one NaN would stay in them for good."""
    before = {name: value.clone() for name, value in state.network.named_buffers()}
    skipped = state.skipped
    yield
    if state.skipped > skipped:
        for name, value in state.network.named_buffers():
            value.copy_(before[name])


def descend(state: State, loss: Float[Tensor, ""], plan: Recipe, steps: int) -> float:
    """One step of the optimiser and of the average, at the learning rate of this step; returns the loss.

    Raises:
        Problem: too many steps had no finite gradient.
    """
    network, chosen = state.network, plan.training
    number = state.epoch * steps + state.step
    state.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    rate = rate_at(plan, number, chosen.epochs * steps)
    for group in state.optimizer.param_groups:
        group["lr"] = rate * group["rate"]
    norm = _clip(network, chosen.clip)
    if not torch.isfinite(norm):
        # One overflow would turn every weight into NaN: the step is left out, as with a loss scaler.
        state.skipped += 1
        if state.skipped > 20 + number // 10:
            raise Problem(
                f"the training diverged: {state.skipped} steps had no finite gradient",
                fix="lower learning_rate, or set precision=float32",
            )
        return 0.0 if not torch.isfinite(loss) else float(loss.detach())
    state.optimizer.step()
    if chosen.ema:
        _average(state, min(chosen.ema, (1 + number) / (10 + number)))
    return float(loss.detach())


def batch(
    training: Examples, rows: NDArray[np.intp], normalise: model.Normalise, device: torch.device
) -> tuple[Float[Tensor, "b t c d h w"], dict[str, Tensor]]:
    """The normalised images of these rows, and their targets by task, on the device."""
    x = normalise(torch.from_numpy(training.pixels[rows]).to(device))
    return x, {name: torch.from_numpy(values[rows]).to(device) for name, values in training.targets.items()}


def persons(
    training: Examples, rows: NDArray[np.intp], key: NDArray[np.uint64], plan: Recipe, device: torch.device
) -> Float[Tensor, "b k"] | None:
    """What is known of the persons of these rows; now and then a value is hidden.

    So one network learns to answer from any part of them (modality dropout; Neverova 2016, arXiv:1501.00102).
    """
    if training.covariates is None:
        return None
    return hidden(torch.from_numpy(training.covariates[rows]), key, plan).to(device)


def hidden(values: Float[Tensor, "b k"], key: NDArray[np.uint64], plan: Recipe) -> Float[Tensor, "b k"]:
    """Covariates with NaN in place of ``covariates.hidden`` of them."""
    left_out = draws.uniform(key, "each", (values.shape[1],)) < plan.covariates.hidden
    return values.masked_fill(torch.from_numpy(left_out), torch.nan)


def _clip(network: Network, limit: float) -> Tensor:
    """Norm of the gradient, which is scaled down to ``limit``; 0 only measures: a pass over all weights less."""
    if limit:
        return torch.nn.utils.clip_grad_norm_(network.parameters(), limit)
    return torch.nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])


@torch.no_grad()
def _average(state: State, decay: float) -> None:
    """Exponential moving average of weights and running statistics (Polyak and Juditsky 1992)."""
    for name, value in state.network.state_dict().items():
        if value.is_floating_point():
            state.average[name].lerp_(value, 1 - decay)
        else:
            state.average[name].copy_(value)


def watch(state: State, validation: Examples, plan: Recipe) -> dict[str, float]:
    """Loss and AUROC of the averaged weights on the validation part; remembers the best for early stopping."""
    if not len(validation):
        return {}
    network = Network(plan)
    network.load_state_dict(state.average)
    network.channels_last = plan.training.channels_last
    network.to(next(state.network.parameters()).device)
    answers = asking.outputs(
        network, validation.pixels, [lambda x: x], times=validation.times, covariates=validation.covariates
    ).answers
    return judge(state, network, answers, validation.targets, plan)


def judge(
    state: State,
    network: Network,
    answers: Mapping[str, NDArray[np.float64]],
    targets: Mapping[str, NDArray[np.float32]],
    plan: Recipe,
) -> dict[str, float]:
    """Loss and AUROC of answers to the validation part; remembers the weights that gave the best."""
    row: dict[str, float] = {}
    total = 0.0
    for name, task in network.tasks.items():
        target = targets[name]
        raw = answers[name]
        if task.question.kind == "regression":
            centre, spread = network.scale(name).double().cpu().numpy()
            raw = (raw - centre) / spread
        scale = network.scale(name).cpu()
        plain = scale if task.question.kind == "regression" else torch.ones_like(scale)
        loss = task.loss(torch.from_numpy(raw).float(), torch.from_numpy(target), plain)
        total += float(loss)
        row[f"{name}.loss"] = float(loss)
        if task.question.kind in ("multiclass", "multilabel"):
            known = calibration.known_rows(task, target)
            p = task.probabilities(answers[name][known])
            hot = (
                target[known]
                if task.question.kind == "multilabel"
                else np.eye(p.shape[1])[target[known, 0].astype(int)]
            )
            value = macro_auroc(hot.astype(float), p)
            if math.isfinite(value):
                row[f"{name}.auroc"] = value
    if plan.training.patience and not plan.training.folds and total < state.best_loss:
        state.best_loss, state.best_epoch = total, state.epoch
        state.best = {k: v.clone() for k, v in state.average.items()}
    return row


def _stalled(state: State, plan: Recipe) -> bool:
    patience = plan.training.patience
    return bool(patience) and not plan.training.folds and 0 <= state.best_epoch <= state.epoch - 1 - patience


def _line(row: Mapping[str, float], plan: Recipe, member: int, members: int, left: float, gone: float) -> str:
    which = f"network {member + 1}/{members} " if members > 1 else ""
    shown = "  ".join(f"{k} {v:.4f}" for k, v in row.items() if k not in ("member", "epoch"))
    times = f"{_clock(gone)} gone, about {_clock(left)} left"
    return f"{which}epoch {int(row['epoch'])}/{plan.training.epochs}  {shown}  {times}"


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"

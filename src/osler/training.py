"""The one training loop, and what surrounds it: from a cohort to a model that is calibrated and stored.

A run folder is complete at any moment: every file in it is replaced whole. Killed at any step, the same command
goes on from the last checkpoint to the same bits (same machine, build and thread count), because every random
number is keyed by what it is for (``osler.draws``) and not by what came before.
"""

import csv
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from tensorboardX import SummaryWriter
from torch import Tensor

from osler import calibration, catalog, cohort, data, draws, model, novelty, planning, recipe
from osler.cohort import Calibration, Cohort, Splits, Training, Validation
from osler.inspections import duplicates
from osler.metrics.auroc import macro_auroc
from osler.model import Model, Network
from osler.problem import Problem
from osler.recipe import Recipe
from osler.tasks.classification import Classification

Say = Callable[[str], None]
SAVE_SECONDS = 60.0


@dataclass(frozen=True, eq=False)
class Examples:
    """Cases of one part, ready for a network: pixels, and targets by task."""

    part: Training | Validation | Calibration
    pixels: NDArray[np.float32]
    targets: Mapping[str, NDArray[np.float32]]

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(eq=False)
class State:
    """All that a training of one member is, between two steps."""

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


def train(
    cohort_path: Path | str,
    out: Path | str,
    settings: Mapping[str, Any] | None = None,
    *,
    cohort_file: Path | str | None = None,
    minutes: float = 12.0,
    say: Say = print,
) -> Model:
    """Trains, calibrates and stores a model of a cohort.

    Args:
        cohort_path: the cohort, in any layout.
        out: run folder; if it holds an unfinished run of the same cohort and settings, that one goes on.
        settings: what to fix in the recipe (nested, or the content of a recipe file); the rest is planned.
        cohort_file: a ``cohort.toml`` outside the cohort's folder.
        minutes: time for training, turned into a number of epochs when planned.
        say: takes one line of progress at a time.

    Raises:
        Problem: the cohort, the settings or the run folder cannot be used.
    """
    out = Path(out)
    found = cohort.read(Path(cohort_path), None if cohort_file is None else Path(cohort_file))
    for note in found.notes:
        say(note)
    _say_problems(found.problems, say)
    with _locked(out):
        plan = _plan(found, out, dict(settings or {}), minutes, say)
        torch.set_num_threads(plan.training.threads)
        return _train(found, plan, out, say)


def _train(found: Cohort, plan: Recipe, out: Path, say: Say) -> Model:
    say(f"reading {len(found.entries)} cases")
    loaded = data.load(found.entries, plan.image)
    _say_problems(loaded.problems, say)
    _same_pixels(out, cohort.digest(loaded.entries, loaded.digests))
    done = _finished(out)
    if done is not None:
        say(f"{out.name} is finished already; nothing was trained again")
        return done
    splits, notes = divide(found, loaded, plan)
    for note in notes:
        say(note)
    row_of = {entry.id: i for i, entry in enumerate(loaded.entries)}
    tasks = {name: Classification(question) for name, question in plan.tasks.items()}
    targets = {
        name: np.stack([task.encode(entry.findings) for entry in loaded.entries]) for name, task in tasks.items()
    }

    def examples(part: Any) -> Examples:
        rows = [row_of[entry.id] for entry in part.entries]
        return Examples(part, loaded.pixels[rows], {name: values[rows] for name, values in targets.items()})

    pairs = _members(found, loaded, splits, plan)
    _write_splits(out / "splits.csv", splits, pairs if plan.training.folds else [], loaded, row_of)
    networks: list[Network] = []
    began = time.monotonic()
    for number, (training, validation, _) in enumerate(pairs):
        networks.append(fit(examples(training), examples(validation), plan, number, out, say, began, len(pairs)))
    say("calibrating")
    digests = [int(loaded.digests[row_of[e.id]][:15], 16) for _, _, c in pairs for e in c.entries]
    fitted, card, held = _calibrate(networks, ((examples(t), examples(c)) for t, _, c in pairs), plan)
    seen = {e.id for t, v, c in pairs for part in (t, v, c) for e in part.entries}
    fitted["seen"] = np.array(
        sorted(int(loaded.digests[row_of[i]][:15], 16) for i in seen), np.int64
    )  # 60 bits of SHA-256: enough to know a case again, not to rebuild it.
    card |= {"notes": [*found.notes, *notes], "grouping": found.grouping or "each case its own patient"}
    card |= {"cohort_sha256": cohort.digest(loaded.entries, loaded.digests), "cases": len(loaded.entries)}
    card |= {"training_cases": len(pairs[0][0]), "modalities": sorted({m for m in loaded.modalities if m})}
    # The folder of the weights may be somebody's name; a model file travels.
    network_plan = replace(plan.network, weights=Path(plan.network.weights).name)
    made = Model(replace(plan, network=network_plan), networks, fitted, card)
    if plan.training.folds:
        held["digest"] = torch.tensor(digests)
        model.write_tensors(out / "out_of_fold.safetensors", held, {"format": "osler-out-of-fold"})
    _training_page(out, card, plan)
    made.save(out / "model.safetensors")
    return made


# --- the plan and the folder -------------------------------------------------------------------------------


def _plan(found: Cohort, out: Path, settings: dict[str, Any], minutes: float, say: Say) -> Recipe:
    """The recipe in the run folder if there is one, else a new one, written there with its reasons."""
    request = {"settings": settings, "minutes": minutes, "cohort": _listing_hash(found)}
    request_file, recipe_file = out / "request.json", out / "recipe.toml"
    if recipe_file.exists() and request_file.exists():
        before = json.loads(request_file.read_text(encoding="utf-8"))
        if before != request:
            different = [key for key in request if before.get(key) != json.loads(json.dumps(request[key]))]
            if different:
                raise Problem(
                    f"holds a run that began with other {' and '.join(different)}", path=out, fix="give another --out"
                )
        say(f"going on with the run in {out.name}")
        return recipe.build(recipe.read(recipe_file))
    say("planning")
    plan, reasons = planning.derive(found, settings, minutes)
    recipe.write(plan, reasons, out / "recipe.toml.part")
    (out / "recipe.toml.part").replace(recipe_file)
    _write_text(request_file, json.dumps(request, indent=1))
    size = " x ".join(str(n) for n in plan.image.size)
    say(
        f"plan: {plan.network.backbone} on {size}, {plan.training.epochs} epochs of {plan.training.batch}, "
        f"{plan.training.precision}, {plan.training.folds or 'no'} folds; reasons in recipe.toml"
    )
    return plan


def _listing_hash(found: Cohort) -> str:
    return cohort.digest(found.entries, [f"{entry.id}|{entry.patient}|{entry.split}" for entry in found.entries])


def _same_pixels(out: Path, digest: str) -> None:
    """A run goes on with the images that it began with.

    Raises:
        Problem: the files have changed since.
    """
    path = out / "cohort.sha256"
    if path.exists() and path.read_text(encoding="utf-8").strip() != digest:
        raise Problem("this run began with other images or labels", path=out, fix="give another --out")
    _write_text(path, digest + "\n")


def _finished(out: Path) -> Model | None:
    try:
        return model.load(out / "model.safetensors") if (out / "model.safetensors").exists() else None
    except Problem:
        return None


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """One training in a folder at a time."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / "lock").open("w")
    except OSError as error:
        raise Problem(
            f"the run folder cannot be written ({error.strerror})", path=out, fix="give another --out"
        ) from error
    with lock:
        try:
            import fcntl
        except ImportError:  # Windows: no lock.
            yield
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Problem("another training is running in this folder", path=out, fix="wait for it") from error
        yield


def _write_text(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise Problem(f"cannot be written ({error.strerror})", path=path, fix="free some space") from error


def _say_problems(problems: Sequence[Problem], say: Say) -> None:
    for problem in problems[:5]:
        say(f"left out: {problem}")
    if len(problems) > 5:
        say(f"left out: {len(problems) - 5} more")


# --- who is trained on what -------------------------------------------------------------------------------


def divide(found: Cohort, loaded: data.Loaded, plan: Recipe) -> tuple[Splits, list[str]]:
    """The parts, with copies kept apart: copies of one picture count as one patient, or leave training.

    Raises:
        Problem: copies stand in several given parts and ``split.leaks`` is ``stop``; or one patient does.
    """
    notes = []
    entries, share = loaded.entries, plan.split
    folded = plan.training.folds > 0
    groups = [] if share.leaks == "ignore" else duplicates.copies(loaded.marks).groups()
    if share.leaks != "ignore":
        entries, joined = cohort.join(entries, groups, folded=folded)
        if joined:
            notes.append(f"{joined} cases are copies of others, or nearly: they stay together in every split")
    if not found.grouping:
        notes.append("nothing says which cases share a patient: each case counts as its own patient")
    splits = cohort.split(
        replace(found, entries=entries),
        validation=0 if folded else share.validation,
        calibration=0 if folded else share.calibration,
        test=0 if folded else share.test,
        seed=plan.training.seed,
    )
    notes += splits.notes
    held = {e.id for part in (splits.validation, splits.calibration, splits.test) for e in part.entries}
    together = [{loaded.entries[row].id for row in rows} for rows in groups]
    twice = set().union(*(ids for ids in together if ids & held))
    copies = twice & {e.id for e in splits.training.entries}
    if copies and share.leaks == "stop":
        raise Problem(
            f"{len(copies)} training cases stand in validation, calibration or test as well, or nearly the same",
            path=found.root, fix="remove them or set leaks=fix",
        )  # fmt: skip
    if copies:
        splits = cohort.without(splits, copies)
        notes.append(
            f"{len(copies)} training cases stand in a held-out part as well, or nearly the same: they left training"
        )
    return splits, notes


def _members(
    found: Cohort, loaded: data.Loaded, splits: Splits, plan: Recipe
) -> list[tuple[Training, Validation, Calibration]]:
    """For each network what it is trained on, watched on and calibrated on."""
    if not plan.training.folds:
        return [(splits.training, splits.validation, splits.calibration)] * plan.training.members
    pool = [*splits.training.entries, *splits.validation.entries, *splits.calibration.entries]
    question = next(iter(plan.tasks.values()))
    # A fold is watched but never chosen by: its outputs stay out of fold.
    return [
        (training, Validation(held.entries), held)
        for training, held in cohort.folds(pool, question, plan.training.folds, plan.training.seed)
    ]


def _write_splits(
    path: Path, splits: Splits, pairs: Sequence[Any], loaded: data.Loaded, row_of: Mapping[str, int]
) -> None:
    """Which case went where, by digest of its pixels (no names)."""
    rows = []
    for role in ("training", "validation", "calibration", "test"):
        rows += [(loaded.digests[row_of[e.id]], role, "") for e in getattr(splits, role).entries]
    for fold, (_, _, held) in enumerate(pairs):
        rows += [(loaded.digests[row_of[e.id]], "fold", str(fold)) for e in held.entries]
    _write_text(path, "sha256,part,fold\n" + "".join(",".join(row) + "\n" for row in rows))


# --- the loop ---------------------------------------------------------------------------------------------


def fit(
    training: Examples,
    validation: Examples,
    plan: Recipe,
    member: int,
    out: Path,
    say: Say,
    began: float,
    members: int,
) -> Network:
    """Trains one network; goes on from its checkpoint where there is one.

    Args:
        training: weights, normalisation and class weights are fitted on these.
        validation: watched after each epoch; may be empty.
        plan: the recipe.
        member: number of the network in the ensemble.
        out: run folder.
        say: takes progress lines.
        began: ``time.monotonic()`` of the start, and ``members`` in all: for the estimate.
        members: how many networks there will be.
    """
    if not isinstance(training.part, Training) or not isinstance(validation.part, Validation):
        raise TypeError("a network is fitted on Training and watched on Validation, nothing else")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(_seed(plan.training.seed, member, 0))
    network = Network(plan).to(device)
    network.channels_last = plan.training.channels_last
    if plan.network.weights:
        from osler import weights

        weights.load_weights(Path(plan.network.weights), network.backbone, plan.network.backbone)
    network.normalise.fit(training.pixels)
    for name, task in network.tasks.items():
        scale = torch.from_numpy(task.fit(training.targets[name], plan.training.balance))
        network.scale(name).copy_(scale)
    state = State(network, {k: v.clone() for k, v in network.state_dict().items()}, _optimizer(network, plan))
    folder = out / "checkpoints"
    folder.mkdir(exist_ok=True)
    path = folder / f"member-{member}.safetensors"
    if path.exists():
        restore(state, path)
        if state.epoch or state.step:
            say(f"network {member + 1}: going on from epoch {state.epoch + 1}, step {state.step}")
    writer = SummaryWriter(str(out / "tensorboard" / f"network-{member}"))
    steps = max(1, math.ceil(len(training) / plan.training.batch))
    saved = time.monotonic()
    while state.epoch < plan.training.epochs and not _stalled(state, plan):
        start, first = time.monotonic(), state.step
        order = draws.permutation(draws.keys(plan.training.seed, member, state.epoch, 1), len(training))
        for rows in np.array_split(order, steps)[state.step :]:
            state.loss_sum += step_once(state, training, rows, plan, member, steps)
            state.step += 1
            if time.monotonic() - saved > SAVE_SECONDS:
                save(state, path)
                saved = time.monotonic()
        row = {"member": float(member), "epoch": float(state.epoch + 1), "loss": state.loss_sum / steps}
        row |= watch(state, validation, plan)
        state.history.append(row)
        state.epoch, state.step, state.loss_sum = state.epoch + 1, 0, 0.0
        save(state, path)
        saved = time.monotonic()
        _write_history(out, member, state.history)
        _write_tensorboard(writer, row)
        pace = (saved - start) * steps / max(1, steps - first)
        left = pace * (plan.training.epochs * (members - member) - state.epoch)
        say(_line(row, plan, member, members, left, saved - began))
    writer.close()
    _write_history(out, member, state.history)
    network.load_state_dict(state.best if state.best else state.average)
    return network.eval().cpu()


def _seed(*parts: int) -> int:
    return int(draws.keys(*parts)[0] >> np.uint64(1))


def _optimizer(network: Network, plan: Recipe) -> torch.optim.Optimizer:
    """Weight decay on weights only: not on biases, nor on normalisation."""
    chosen = plan.training
    groups: list[dict[str, Any]] = []
    for part, rate in ((network.backbone, chosen.backbone_rate), (network, 1.0)):
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
    torch.manual_seed(_seed(chosen.seed, member, 2, number))
    network.train()
    x = network.normalise(torch.from_numpy(training.pixels[rows]).to(device))
    x = augment(x, draws.keys(chosen.seed, member, 3, state.epoch, rows), plan)
    with torch.autocast(device.type, torch.bfloat16, enabled=chosen.precision == "bfloat16"):
        answers = network(x)
    loss = torch.zeros((), device=device)
    for name, task in network.tasks.items():
        target = torch.from_numpy(training.targets[name][rows]).to(device)
        loss = loss + task.loss(answers[name], target, network.scale(name), chosen.smoothing)
    state.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    rate = rate_at(plan, number, chosen.epochs * steps)
    for group in state.optimizer.param_groups:
        group["lr"] = rate * group["rate"]
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), chosen.clip or math.inf)
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
    _average(state, min(chosen.ema, (1 + number) / (10 + number)))
    return float(loss.detach())


@torch.no_grad()
def _average(state: State, decay: float) -> None:
    """Exponential moving average of weights and running statistics (Polyak and Juditsky 1992)."""
    for name, value in state.network.state_dict().items():
        if value.is_floating_point():
            state.average[name].lerp_(value, 1 - decay)
        else:
            state.average[name].copy_(value)


def augment(x: Float[Tensor, "b t c d h w"], key: NDArray[np.uint64], plan: Recipe) -> Float[Tensor, "b t c d h w"]:
    """Every transform of the recipe, in its order; the moments of a case move together."""
    frames = x.shape[1]
    flat, keys = x.reshape(-1, *x.shape[2:]), np.repeat(key, frames)
    for name, given in plan.augmentation.items():
        options = recipe.options("transforms", name, given)
        flat = catalog.find("transforms", name).apply(flat, options, keys)
    return flat.reshape(x.shape)


def watch(state: State, validation: Examples, plan: Recipe) -> dict[str, float]:
    """Loss and AUROC of the averaged weights on the validation part; remembers the best for early stopping."""
    if not len(validation):
        return {}
    network = Network(plan)
    network.load_state_dict(state.average)
    network.channels_last = plan.training.channels_last
    answers = model.outputs(
        network.to(next(state.network.parameters()).device), validation.pixels, [lambda x: x]
    ).answers
    row: dict[str, float] = {}
    total = 0.0
    for name, task in network.tasks.items():
        target = validation.targets[name]
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


# --- checkpoints and history ------------------------------------------------------------------------------


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
        state.average = {k: v.to(device) for k, v in part("average").items()}
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


def _write_history(out: Path, member: int, rows: Sequence[Mapping[str, float]]) -> None:
    """``history.csv`` of all members so far."""
    path = out / "history.csv"
    others: list[Mapping[str, Any]] = []
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            others = [row for row in csv.DictReader(file) if float(row["member"]) != member]
    names = list(dict.fromkeys(key for row in [*others, *rows] for key in row))
    lines = [",".join(names)]
    lines += [",".join(str(row.get(name, "")) for name in names) for row in [*others, *rows]]
    _write_text(path, "\n".join(lines) + "\n")


def _write_tensorboard(writer: SummaryWriter, row: Mapping[str, float]) -> None:
    for name, value in row.items():
        if name not in ("member", "epoch"):
            writer.add_scalar(name.replace(".", "/"), value, int(row["epoch"]))
    writer.flush()


# --- what makes a network's outputs a diagnosis ------------------------------------------------------------


def _calibrate(
    networks: Sequence[Network], parts: Iterable[tuple[Examples, Examples]], plan: Recipe
) -> tuple[dict[str, NDArray[Any]], dict[str, Any], dict[str, Tensor]]:
    """Fits everything of ``osler.calibration`` and ``osler.novelty`` on cases that each network has not seen.

    Returns:
        Arrays by name for the model, facts for its card, and the held-out outputs (for out-of-fold evaluation).
    """
    views = model.moved_copies(plan.inference.views)
    arrays: dict[str, NDArray[Any]] = {}
    raw: dict[str, list[NDArray[np.float64]]] = {}
    logs, fold, held_parts = [], [], []
    for number, (network, (training, held)) in enumerate(zip(networks, parts, strict=True)):
        if not isinstance(held.part, Calibration):
            raise TypeError("calibration is fitted on Calibration, nothing else")
        if not len(held):
            continue
        chosen = draws.permutation(draws.keys(plan.training.seed, number, 5), len(training))[:3000]
        gate = novelty.fit(model.outputs(network, training.pixels[np.sort(chosen)], views[:1]))
        seen = model.outputs(network, held.pixels, views)
        away = novelty.distances(gate, seen)
        centre, spread = novelty.standardise(away)
        arrays |= {
            f"novelty.{number}.{k}": v for k, v in {**gate, "log.centre": centre, "log.spread": spread}.items()
        }
        held_parts.append((held.part, held.targets))
        logs.append(novelty.score(away, centre, spread))
        fold.append(np.full(len(held), number))
        for name, value in seen.answers.items():
            raw.setdefault(name, []).append(value)
    if not logs:
        return arrays, {"calibrated": False}, {}
    # Folds answer for different cases; members of one ensemble answer the same cases together.
    together = np.concatenate if plan.training.folds else _mean
    scores = together(logs)
    arrays["novelty.threshold"] = np.array([novelty.threshold(scores, plan.inference.refusals)])
    arrays["novelty.scores"] = np.sort(scores)
    held_parts = held_parts if plan.training.folds else held_parts[:1]
    patients = [entry.patient for part, _ in held_parts for entry in part.entries]
    held_tensors = {"fold": torch.from_numpy(together(fold).astype(np.int64)), "novelty": torch.from_numpy(scores)}
    card: dict[str, Any] = {"calibrated": True, "calibration_cases": len(scores), "isotonic": {}}
    for number, (name, task) in enumerate(networks[0].tasks.items()):
        outputs = together(raw[name])
        target = np.concatenate([targets[name] for _, targets in held_parts])
        held_tensors |= {f"outputs.{name}": torch.from_numpy(outputs), f"target.{name}": torch.from_numpy(target)}
        fitted = calibration.fit(
            task, outputs, target, patients, coverage=plan.inference.coverage, rule=plan.inference.threshold
        )
        arrays |= {f"task.{number}.{k}": v for k, v in vars(fitted).items()}
        card["isotonic"][name] = calibration.against_isotonic(task, outputs, target, patients)
    return arrays, card, held_tensors


def _mean(values: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.asarray(np.mean(values, axis=0))


def _training_page(out: Path, card: Mapping[str, Any], plan: Recipe) -> None:
    from osler import report

    with (out / "history.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    text = (out / "recipe.toml").read_text(encoding="utf-8")
    if plan.network.weights:
        text = text.replace(plan.network.weights, Path(plan.network.weights).name)
    report.training_page(rows, text, list(card["notes"]), out / "training.html")

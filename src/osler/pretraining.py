"""Self-supervised: what images have in common is learned from the images alone, before any label is seen.

Each image is changed twice, as scanners, positions and days change it (``osler.transforms``), and the network
learns to tell which two views are of one image among all views of the batch (SimCLR: Chen et al., 2020,
arXiv:2002.05709). All that it needs of a backbone is a feature vector, so every backbone and pooling will do, in 2D
and 3D. The loop, its checkpoints and its plan are those of ``osler.training``; what comes out is a file of weights
as ``osler.weights`` has them.
"""

import csv
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from osler import (
    asking,
    cohort,
    data,
    draws,
    fitting,
    model,
    planning,
    recipe,
    report,
    run_folder,
    store,
    training,
    weights,
)
from osler.augmentation import augment
from osler.case import Question
from osler.checkpoints import State
from osler.cohort import Cohort, Training
from osler.fitting import Say
from osler.model import Network
from osler.planning import Fingerprint
from osler.problem import Problem
from osler.progress import Progress
from osler.recipe import Recipe

# What is asked of an image is the image itself: nobody has answered it, and the plan needs a question.
ITSELF = Question("self", "regression", ("itself",))
LEAST = 16
WATCHED = 256
TEMPERATURE = 0.2
PROJECTED = 128
# Wider than what differs between scanners, so that the position, the exposure and the noise tell nothing.
AUGMENTATION: dict[str, recipe.Options] = {
    "spatial": {
        "probability": 1.0, "rotation": 20.0, "scale": 0.35, "stretch": 0.15, "shear": 0.1, "translation": 0.15,
        "elastic": 0.04, "elastic_probability": 0.3,
    },
    "intensity": {"probability": 0.9, "brightness": 0.6, "contrast": 0.5, "gamma": 0.6},
    "blur": {"probability": 0.4, "low": 0.3, "high": 1.5},
    "noise": {"probability": 0.3, "high": 0.3},
    "bias": {"probability": 0.3, "strength": 0.4},
}  # fmt: skip


def pretrain(
    cohort_path: Path | str,
    out: Path | str,
    settings: Mapping[str, Any] | None = None,
    *,
    cohort_file: Path | str | None = None,
    minutes: float = 12.0,
    say: Say = print,
) -> Path:
    """Learns from the images of a cohort without their labels; writes weights that a training starts from.

    Args:
        cohort_path: the cohort, in any layout; labels are not needed, and never looked at except to hold out the
            same test part as ``osler.train`` does.
        out: the ``.safetensors`` file to write. Beside it a folder ``NAME.run`` holds the recipe, the history and
            the checkpoint; if it holds an unfinished run of the same cohort and settings, that one goes on.
        settings: as for ``osler.train``; ``network.weights`` names weights to start from.
        cohort_file: a ``cohort.toml`` outside the cohort's folder.
        minutes: time, turned into a number of epochs when planned.
        say: takes one line of progress at a time.

    Returns:
        ``out``.

    Raises:
        Problem: the cohort, the settings or the place cannot be used, or the representation collapsed.
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise Problem("weights are a .safetensors file", path=out, fix=f"give --out {out.stem}.safetensors")
    folder = out.with_suffix(".run")
    if out.exists() and not (folder / "recipe.toml").exists():
        raise Problem("there is a file of this name already", path=out, fix="give another --out")
    found = cohort.read(Path(cohort_path), None if cohort_file is None else Path(cohort_file))
    # The test part is held out by the labels, or else by what is outlined.
    found, _ = cohort.asking(found, None)
    for note in found.notes:
        say(note)
    training.say_problems(found.problems, say)
    with run_folder.locked(folder):
        plan = run_folder.settle(found, folder, dict(settings or {}), minutes, say, derive)
        torch.set_num_threads(plan.training.threads)
        return _pretrain(found, plan, folder, out, say)


def _pretrain(found: Cohort, plan: Recipe, folder: Path, out: Path, say: Say) -> Path:
    say(f"reading {len(found.entries)} cases")
    loaded = data.load(found.entries, plan.image, Progress(len(found.entries), say))
    training.say_problems(loaded.problems, say)
    part, notes = learned(found, loaded, plan)
    row_of = {entry.id: i for i, entry in enumerate(loaded.entries)}
    rows = [row_of[entry.id] for entry in part.entries]
    digest = cohort.digest(part.entries, [loaded.digests[i] for i in rows])
    run_folder.same_pixels(folder, digest)
    if out.exists():
        say(f"{out.name} is finished already; nothing was learned again")
        return out
    for note in notes:
        say(note)
    if len(part) < LEAST:
        raise Problem(f"only {len(part)} images to learn from", path=found.root, fix=f"give at least {LEAST}")
    network, seen = fit(loaded.pixels.take(rows), plan, folder, say)
    notes.append(f"at the end: {seen.sentence}")
    say(notes[-1])
    with (folder / "history.csv").open(encoding="utf-8", newline="") as file:
        history = list(csv.DictReader(file))
    text = (folder / "recipe.toml").read_text(encoding="utf-8")
    if plan.network.weights:  # its folder may be somebody's name
        name = Path(plan.network.weights).name
        text = text.replace(training.quoted(plan.network.weights), training.quoted(name))
    report.training_page(history, text, notes, folder / "training.html")
    if seen.collapsed:
        raise Problem(
            f"the representation collapsed: {seen.sentence}",
            path=folder, fix="give more images, a larger batch or a lower learning_rate",
        )  # fmt: skip
    model.write_tensors(out, network.backbone.state_dict(), _header(plan, len(part), digest))
    return out


def derive(found: Cohort, given: Mapping[str, Any], minutes: float) -> tuple[Recipe, dict[str, str]]:
    """The recipe of a pretraining: as :func:`osler.planning.derive`, but for what only labels need.

    Raises:
        Problem: as there; or questions are asked, or a batch holds one image.
    """
    if given.get("tasks"):
        raise Problem("a pretraining asks nothing of the images", fix="leave tasks out")

    def adapt(base: dict[str, Any], why: dict[str, str], fingerprint: Fingerprint) -> None:
        volumes = base["image"]["dims"] == 3
        base["training"] |= {"batch": 16 if volumes else 64 if len(found.entries) >= 256 else 32}
        why["training.batch"] = "the views of an image are told apart from those of all others in the batch"
        base["network"]["dropout"] = 0.0
        why["network.dropout"] = "the views differ enough"
        base["network"]["sequence"], why["network.sequence"] = "mean", "only the backbone is kept"
        held = 0.2 if found.questions and fingerprint.patients >= 500 else 0.0
        base["split"] |= {"validation": 0.0, "calibration": 0.0, "test": held}
        why["split.test"] = (
            "what osler train holds out as well" if held else "no part that osler train would hold out"
        )
        base["augmentation"] |= AUGMENTATION
        why["augmentation"] = "stronger than for labels: what two views share should be the patient"

    alone = {"training": {"members": 1, "folds": 0}}
    # Two views of each image cost twice the time of one.
    plan, reasons = planning.derive(
        replace(found, questions=(ITSELF,)), recipe.merge(given, alone), minutes / 2, adapt=adapt
    )
    if len(plan.image.modalities) > 1:
        raise Problem(
            f"a pretraining looks at one image of a case, and these have {', '.join(plan.image.modalities)}",
            fix="choose one, image.modalities=[NAME]",
        )
    if plan.training.batch < 2:
        raise Problem("in a batch of 1 there is nothing to tell an image apart from", fix="set batch to 2 or more")
    return plan, reasons | {"training.members": "one network learns", "training.folds": "one network learns"}


def learned(found: Cohort, loaded: data.Loaded, plan: Recipe) -> tuple[Training, list[str]]:
    """The images that are learned from: all but the test part, and those that are copies of one in it.

    Raises:
        Problem: one patient stands in two given parts.
    """
    questions = found.questions or (ITSELF,)
    # Two parts only: no case may leave because its copy stands in validation.
    entries = tuple(e if e.split in (None, "test") else replace(e, split="train") for e in loaded.entries)
    whole = replace(plan, split=replace(plan.split, validation=0, calibration=0))
    splits, notes = training.divide(
        replace(found, questions=questions, entries=entries), replace(loaded, entries=entries), whole
    )
    part = splits.training
    held = len(splits.test)
    notes.append(
        f"{len(part)} images of {part.patients} patients are learned from, without their labels; "
        + (f"the {held} of the test part are not" if held else "no test part is kept apart")
    )
    if not held:
        notes.append(
            "figures of a model that starts from these weights are honest only on patients that are not among them: "
            "also those out of fold are of images that were seen here"
        )
    return part, notes


# --- the loop ---------------------------------------------------------------------------------------------


def learner(plan: Recipe) -> Network:
    """The network of the recipe with a projector where its head would be: it is thrown away afterwards.

    The loss makes the last layer forget what differs between views, e.g. exposure; a projector of two layers keeps
    that loss away from the features (Chen et al., 2020, section 4.2).
    """
    network = Network(plan)
    width = network.sequence.features
    network.heads = nn.ModuleList(
        [nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, PROJECTED))]
    )
    return network


def fit(pixels: store.Images, plan: Recipe, folder: Path, say: Say) -> tuple[Network, "Seen"]:
    """Learns from images ``(n, t, c, d, h, w)``; goes on from the checkpoint in ``folder`` where there is one.

    Returns:
        The network with its averaged weights, and what its feature vectors look like.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(fitting.seed_of(plan.training.seed, 0, 0))
    network = learner(plan).to(device)
    network.channels_last = plan.training.channels_last
    if plan.network.weights:
        weights.load_weights(Path(plan.network.weights), network.backbone, plan.network.backbone)
    network.normalise.fit(pixels)
    average = {k: v.clone() for k, v in network.state_dict().items()}
    state = State(network, average, fitting.optimizer_for(network, plan))
    watched = pixels[:: -(-len(pixels) // WATCHED)]
    pause = -(-plan.training.epochs // 20)

    def look() -> dict[str, float]:
        if (state.epoch + 1) % pause and state.epoch + 1 < plan.training.epochs:
            return {}
        seen = look_at(_averaged(state, plan), watched)
        return {"rank": seen.rank, "spread": seen.spread}

    fitting.loop(
        state,
        plan,
        len(pixels),
        lambda rows, steps: step_once(state, pixels, rows, plan, steps),
        look,
        fitting.Course(folder, 0, 1, say, time.monotonic()),
    )
    made = _averaged(state, plan)
    seen = look_at(made, watched)
    return made.cpu(), seen


def step_once(state: State, pixels: store.Images, rows: NDArray[np.intp], plan: Recipe, steps: int) -> float:
    """Two views of each image of a batch, one step; returns the loss."""
    network, chosen = state.network, plan.training
    device = next(network.parameters()).device
    torch.manual_seed(fitting.seed_of(chosen.seed, 0, 2, state.epoch * steps + state.step))
    network.train()
    x = network.normalise(torch.from_numpy(pixels[rows]).to(device))
    keys = [draws.keys(chosen.seed, 0, 3, state.epoch, rows, view) for view in (0, 1)]
    views = torch.cat([augment(x, key, plan) for key in keys])
    with fitting.statistics_of_taken_steps(state):
        with torch.autocast(device.type, torch.bfloat16, enabled=chosen.precision == "bfloat16"):
            vectors = network.vector(network.moments(network.maps(views), len(views)))
        first, second = network.answer(vectors.float())[ITSELF.task].chunk(2)
        return fitting.descend(state, contrast(first, second), plan, steps)


def contrast(first: Float[Tensor, "b p"], second: Float[Tensor, "b p"]) -> Float[Tensor, ""]:
    """How hard it is to find the other view of each image among all other views of the batch.

    The mean cross-entropy over the 2b views of picking, among the 2b - 1 others, the view of the same image by its
    cosine similarity over ``TEMPERATURE`` (NT-Xent: Chen et al., 2020, eq. 1). ``log(2b - 1)`` where all are alike.
    """
    both = functional.normalize(torch.cat([first, second]).float(), dim=1)
    similarity = both @ both.T / TEMPERATURE
    itself = torch.eye(len(both), dtype=torch.bool, device=both.device)
    other = torch.arange(len(both), device=both.device).roll(len(first))
    return functional.cross_entropy(similarity.masked_fill(itself, -torch.inf), other)


def _averaged(state: State, plan: Recipe) -> Network:
    network = learner(plan)
    network.load_state_dict(state.average)
    network.channels_last = plan.training.channels_last
    return network.to(next(state.network.parameters()).device).eval()


# --- what was learned -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """What the feature vectors of some images look like: whether the network still tells images apart.

    Attributes:
        rank: effective rank of the centred vectors: the exponential of the entropy of their singular values, from 1
            (all on one line) to the number of features (Roy and Vetterli, 2007; as a measure of what was learned:
            Garrido et al., 2023, arXiv:2210.02885).
        spread: mean standard deviation of the features of vectors of length 1, times the root of their number: 0
            where all images give one vector, 1 where they point everywhere (Chen and He, 2021, arXiv:2011.10566).
        features: length of a vector.
    """

    rank: float
    spread: float
    features: int

    @property
    def collapsed(self) -> bool:
        """All images give one vector, or lie on one line."""
        return not (self.rank >= 2 and self.spread >= 0.01)

    @property
    def sentence(self) -> str:
        """For people."""
        return f"effective rank {self.rank:.1f} of {self.features} features, spread {self.spread:.3f} of 1"


def look_at(network: Network, pixels: store.Images) -> Seen:
    """The feature vectors of unchanged images ``(n, t, c, d, h, w)``."""
    return measure(asking.outputs(network, pixels, [lambda x: x]).vectors.astype(np.float64))


def measure(vectors: Float[np.ndarray, "n v"]) -> Seen:
    """Rank and spread of feature vectors."""
    values = np.linalg.svd(vectors - vectors.mean(0), compute_uv=False)
    shares = values[values > 0] / max(values.sum(), np.finfo(float).tiny)
    rank = float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.maximum(lengths, np.finfo(float).tiny)
    spread = float(unit.std(0).mean() * np.sqrt(vectors.shape[1]))
    return Seen(rank, spread, vectors.shape[1])


def _header(plan: Recipe, images: int, digest: str) -> dict[str, str]:
    """What a file of weights says of itself: see :func:`osler.weights.load_weights`."""
    parts, image = plan.network, plan.image
    options = asdict(recipe.options("backbones", parts.backbone, parts.options))
    header = {
        "format": weights.FORMAT,
        "format_version": "1",
        "backbone": parts.backbone,
        "options": json.dumps(options, sort_keys=True),
        "channels": str(image.channels),
        "dims": str(image.dims),
        "size": json.dumps(image.size[3 - image.dims :]),
        "licence": "own data",
        "source": f"osler pretrain on {images} images",
        "sha256": digest,
    }
    if parts.weights:
        before, _ = model.read_tensors(Path(parts.weights))
        header["licence"] += f"; it began with weights under {before['licence']}"
        header["source"] += f", beginning with weights from {before['source']}"
    return header

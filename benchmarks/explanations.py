"""Do the maps point at the lesion? Each method is asked about images whose lesions are known.

    python benchmarks/explanations.py [--epochs 12] [--test 60] [--modality xray] [--size 32] [--pooling average]
    python benchmarks/explanations.py --run RUN --cohort $OSLER_DATA/busi --cohort-file recipes/cohorts/busi.toml

The first line trains a network on phantoms. The second takes a run with folds that answers a classification of a
cohort with masks: each image is explained by the network that has not seen its patient.

Prints for each method, over images with a lesion of which the network is right: the pointing game (share of maps
whose hottest place lies inside the lesion) with Wilson's interval, the mean share of the map's energy inside with a
bootstrap interval by patient, both against the mean share of the image that the lesion covers (chance), and against a
map that is hottest in the middle of the image (middle); how many maps passed their own tests; and how many of the
same maps, turned by half a turn and therefore mostly wrong, the removal test would have let pass.
"""

import argparse
import csv
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from osler import cohort, data, diagnosis, explanation, model, targets, training
from osler.case import Case, Finding
from osler.explanation import Explanation
from osler.metrics import pointing
from osler.metrics.auroc import auroc
from osler.metrics.estimate import wilson
from osler.model import Model
from osler.phantom import Phantom, phantom_case, write_phantom

METHODS = ("gradcam", "occlusion", "integrated_gradients", "attention")
CASES = 1200  # written for training
FIRST = 5000  # number of the first case that is tested
DRAWS = 2000


@dataclass
class Row:
    hit: list[bool] = field(default_factory=list)
    energy: list[float] = field(default_factory=list)
    passed: list[bool] = field(default_factory=list)
    turned: list[bool] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Tested:
    """An image with a lesion, the class that is explained, and the model that is asked."""

    made: Model
    case: Case
    mask: NDArray[np.bool_]
    asked: Finding


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--test", type=int, default=60)
    parser.add_argument("--modality", choices=("xray", "ct", "ultrasound"), default="xray")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--pooling", default="average")
    parser.add_argument("--width", type=int, default=16, help="of the ResNet-18's first stage")
    parser.add_argument("--keep", type=Path, help="folder in which cohort and run stay for the next time")
    parser.add_argument("--run", type=Path, help="run folder with folds, of a classification")
    parser.add_argument("--cohort", type=Path, help="its cohort, with masks")
    parser.add_argument("--cohort-file", type=Path)
    given = parser.parse_args()
    if given.run:
        report(_unseen(given.run, given.cohort, given.cohort_file, given.test))
        return
    spec = Phantom(
        given.modality, given.size, ("normal", "lesion"), (0.5, 0.5), contrast=(0.8, 1.5), cases_per_patient=1.0,
        lesion=(0.15 * given.size, 0.25 * given.size), splits=(0.7, 0.1, 0.1, 0.1),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.keep or Path(scratch)
        made_of, run = folder / "cohort", folder / "run"
        if not made_of.exists():
            write_phantom(made_of, spec, CASES if spec.dims == 2 else CASES // 4)
        network = {"backbone": "resnet", "options": {"width": given.width}, "pooling": given.pooling}
        plan = {"epochs": given.epochs, "learning_rate": 3e-3, "precision": "float32"}
        made = training.train(made_of, run, {"network": network, "training": plan}, minutes=1)
        report(_found(made, spec, given.test))


def _found(made: Model, spec: Phantom, wanted: int) -> list[Tested]:
    """New cases with a lesion, of which the network is right; and how well it tells them apart."""
    cases = [phantom_case(FIRST + number, spec) for number in range(4 * wanted)]
    pixels = np.stack([data.prepare(data.the_image(one.case), made.recipe.image) for one in cases])
    number = made.tasks["label"].question.classes.index("lesion")
    p = diagnosis.answer(made, pixels).probability["label"][:, number]
    truth = np.array([one.label == "lesion" for one in cases], float)
    ideal = np.array([one.score for one in cases])
    print(f"AUROC on {len(cases)} new cases: network {auroc(truth, p):.3f}, ideal observer {auroc(truth, ideal):.3f}")
    right = [one for one, answer in zip(cases, p, strict=True) if one.label == "lesion" and answer > 0.5]
    return [Tested(made, one.case, one.mask, Finding("label", "lesion")) for one in right[:wanted]]


def _unseen(run: Path, folder: Path, cohort_file: Path | None, wanted: int) -> list[Tested]:
    """Images with an outlined lesion, evenly over a cohort, that their own fold's network calls what they are."""
    made = model.load(run)
    found = cohort.read(folder, cohort_file)
    with (run / "splits.csv").open(newline="") as file:
        fold = {row["sha256"]: int(row["fold"]) for row in csv.DictReader(file) if row["part"] == "fold"}
    small = replace(made.recipe.image, size=(1, 1, 1), fit="stretch")
    loaded = data.load(found.entries, small)
    of = {
        entry.id: fold[digest] for entry, digest in zip(loaded.entries, loaded.digests, strict=True) if digest in fold
    }
    seen = [entry for entry in loaded.entries if entry.id in of]
    right = list(_right(made, (data.read_case(entry, found.questions) for entry in seen), of))
    print(f"{len(right)} images with an outlined lesion that their own fold's network calls what they are")
    chosen = np.unique(np.linspace(0, len(right) - 1, min(wanted, len(right))).astype(int))
    return [right[number] for number in chosen]


def _right(made: Model, cases: Iterable[Case], fold: dict[str, int]) -> Iterator[Tested]:
    task = next(iter(made.tasks))
    classes = made.tasks[task].question.classes
    for case in cases:
        masks = [finding.mask for finding in case.findings if finding.mask is not None]
        named = [finding.name for finding in case.findings if finding.task == task and finding.probability == 1]
        if not masks or not named:
            continue
        image = data.the_image(case)
        alone = Model(made.recipe, [made.networks[fold[case.id]]], made.calibration)
        said = diagnosis.answer(alone, data.prepare(image, made.recipe.image)[None]).probability[task][0]
        if classes[int(said.argmax())] == named[0]:
            mask = np.logical_or.reduce([one.within(image.size) for one in masks])
            yield Tested(alone, case, mask, Finding(task, named[0]))


def report(tested: list[Tested]) -> None:
    """The table, a row for each method that fits the model."""
    level = float(np.mean([pointing.chance(one.mask) for one in tested]))
    middle = [bool(one.mask[tuple(n // 2 for n in one.mask.shape)]) for one in tested]
    patients = np.unique([one.case.patient for one in tested], return_inverse=True)[1]
    print(f"{len(tested)} images of {patients.max() + 1} patients; chance {level:.1%}, middle {np.mean(middle):.1%}")
    heads = ("pointing game", "energy", "passed", "turned", "hit if passed", "s")
    print(
        f"{'method':22}"
        + "".join(f"{head:>{width}}" for head, width in zip(heads, (24, 24, 8, 8, 24, 7), strict=True))
    )
    for method in METHODS:
        if method == "attention" and tested[0].made.recipe.network.pooling != "attention":
            continue
        row = Row()
        for one in tested:
            began = time.process_time()
            why = explanation.explain(one.made, one.case, one.asked, method)
            row.seconds.append(time.process_time() - began)
            row.hit.append(pointing.pointing_game(why.heatmap, one.mask))
            row.energy.append(pointing.energy_inside(why.heatmap, one.mask))
            row.passed.append(why.passed)
            row.turned.append(_turned_passes(one, why))
        after = [hit for hit, passed in zip(row.hit, row.passed, strict=True) if passed]
        low, high = _interval(np.array(row.energy), patients)
        print(
            f"{method:22}{_share(row.hit):>24}{f'{np.nanmean(row.energy):.1%} ({low:.1%}-{high:.1%})':>24}"
            f"{np.mean(row.passed):>8.0%}{np.mean(row.turned):>8.0%}{_share(after):>24}{np.mean(row.seconds):>7.2f}",
            flush=True,
        )


def _share(hits: list[bool]) -> str:
    found = wilson(sum(hits), len(hits))
    return f"{found.value:.1%} ({found.low:.1%}-{found.high:.1%})"


def _interval(values: NDArray[np.float64], patients: NDArray[np.intp]) -> tuple[float, float]:
    """95 % by resampling patients; images without a map count for nothing."""
    known = np.isfinite(values)
    sums = np.bincount(patients, np.where(known, values, 0))
    counts = np.bincount(patients, known)
    drawn = np.random.default_rng(0).integers(0, len(sums), (DRAWS, len(sums)))
    low, high = np.percentile(sums[drawn].sum(1) / counts[drawn].sum(1), [2.5, 97.5])
    return float(low), float(high)


def _turned_passes(one: Tested, why: Explanation) -> bool:
    """Whether the map, turned by half a turn and so mostly wrong, would pass the removal test."""
    asked = targets.ask(one.made, one.case, one.asked)
    size = one.made.recipe.image.size
    heat = torch.nn.functional.interpolate(
        torch.from_numpy(why.heatmap)[None, None], size=size, mode="trilinear", align_corners=False
    )[0, 0].flip((1, 2))
    tests = explanation.removal(asked, heat) | {"randomised": 0.0}
    return not explanation._failures(asked, heat, tests)


if __name__ == "__main__":
    main()

"""Do the maps point at the lesion? A network is trained on phantoms whose lesions are known, and each method asked.

    python benchmarks/explanations.py [--epochs 12] [--test 60] [--modality xray] [--size 32] [--pooling average]

Prints for each method, over test cases with a lesion that the network finds: the pointing game (share of maps whose
hottest place lies inside the lesion) with Wilson's interval, the mean share of the map's energy inside, both
against the mean share of the image that the lesion covers (chance); how many maps passed their own tests; and how
many of the same maps, mirrored and therefore wrong, the removal test would have let pass.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from osler import data, diagnosis, explanation, training
from osler.case import Finding
from osler.explanation import Explanation
from osler.metrics import pointing
from osler.metrics.auroc import auroc
from osler.metrics.estimate import wilson
from osler.model import Model
from osler.phantom import Phantom, PhantomCase, phantom_case, write_phantom

METHODS = ("gradcam", "occlusion", "integrated_gradients", "attention")
CASES = 1200  # written for training
FIRST = 5000  # number of the first case that is tested


@dataclass
class Row:
    hit: list[bool] = field(default_factory=list)
    energy: list[float] = field(default_factory=list)
    passed: list[bool] = field(default_factory=list)
    mirrored: list[bool] = field(default_factory=list)
    hit_where_passed: list[bool] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--test", type=int, default=60)
    parser.add_argument("--modality", choices=("xray", "ct", "ultrasound"), default="xray")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--pooling", default="average")
    parser.add_argument("--width", type=int, default=16, help="of the ResNet-18's first stage")
    parser.add_argument("--keep", type=Path, help="folder in which cohort and run stay for the next time")
    given = parser.parse_args()
    spec = Phantom(
        given.modality, given.size, ("normal", "lesion"), (0.5, 0.5), contrast=(0.8, 1.5), cases_per_patient=1.0,
        lesion=(0.15 * given.size, 0.25 * given.size), splits=(0.7, 0.1, 0.1, 0.1),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.keep or Path(scratch)
        cohort, run = folder / "cohort", folder / "run"
        if not cohort.exists():
            write_phantom(cohort, spec, CASES if spec.dims == 2 else CASES // 4)
        network = {"backbone": "resnet", "options": {"width": given.width}, "pooling": given.pooling}
        plan = {"epochs": given.epochs, "learning_rate": 3e-3, "precision": "float32"}
        made = training.train(cohort, run, {"network": network, "training": plan}, minutes=1)
        tested = _found(made, spec, given.test)
        report(made, tested)


def _found(made: Model, spec: Phantom, wanted: int) -> list[PhantomCase]:
    """New cases with a lesion, of which the network is right; and how well it tells them apart."""
    cases = [phantom_case(FIRST + number, spec) for number in range(4 * wanted)]
    pixels = np.stack([data.prepare(data.the_image(one.case), made.recipe.image) for one in cases])
    p = diagnosis.answer(made, pixels).probability["label"][:, _lesion(made)]
    truth = np.array([one.label == "lesion" for one in cases], float)
    ideal = np.array([one.score for one in cases])
    print(f"AUROC on {len(cases)} new cases: network {auroc(truth, p):.3f}, ideal observer {auroc(truth, ideal):.3f}")
    right = [one for one, answer in zip(cases, p, strict=True) if one.label == "lesion" and answer > 0.5]
    return right[:wanted]


def _lesion(made: Model) -> int:
    return made.tasks["label"].question.classes.index("lesion")


def report(made: Model, tested: list[PhantomCase]) -> None:
    """The table, a row for each method that fits the model."""
    level = float(np.mean([pointing.chance(one.mask) for one in tested]))
    print(f"{len(tested)} cases with a lesion that was found; chance {level:.1%}")
    print(
        f"{'method':22}{'pointing game':>24}{'energy':>9}{'passed':>8}{'mirrored':>10}{'hit if passed':>15}{'s':>7}"
    )
    for method in METHODS:
        if method == "attention" and made.recipe.network.pooling != "attention":
            continue
        row = Row()
        for one in tested:
            began = time.process_time()
            why = explanation.explain(made, one.case, Finding("label", "lesion"), method)
            row.seconds.append(time.process_time() - began)
            row.hit.append(pointing.pointing_game(why.heatmap, one.mask))
            row.energy.append(pointing.energy_inside(why.heatmap, one.mask))
            row.passed.append(why.passed)
            row.mirrored.append(_mirrored_passes(made, one, why))
        row.hit_where_passed = [hit for hit, passed in zip(row.hit, row.passed, strict=True) if passed]
        game, after = wilson(sum(row.hit), len(row.hit)), wilson(sum(row.hit_where_passed), len(row.hit_where_passed))
        print(
            f"{method:22}{game.value:>9.1%} ({game.low:.1%}-{game.high:.1%}){np.nanmean(row.energy):>9.1%}"
            f"{np.mean(row.passed):>8.0%}{np.mean(row.mirrored):>10.0%}{after.value:>15.1%}{np.mean(row.seconds):>7.2f}"
        )


def _mirrored_passes(made: Model, one: PhantomCase, why: Explanation) -> bool:
    """Whether the map, turned by half a turn and so mostly wrong, would pass the removal test."""
    pixels = torch.from_numpy(data.prepare(data.the_image(one.case), made.recipe.image)[None])
    with torch.no_grad():
        asked = explanation._Asked(
            made, "label", _lesion(made), [network.normalise(pixels) for network in made.networks]
        )
    size = made.recipe.image.size
    heat = torch.nn.functional.interpolate(
        torch.from_numpy(why.heatmap)[None, None], size=size, mode="trilinear", align_corners=False
    )[0, 0].flip((1, 2))
    tests = explanation.removal(asked, heat) | {"randomised": 0.0}
    return not explanation._failures(asked, heat, tests)


if __name__ == "__main__":
    main()

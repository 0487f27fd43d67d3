"""How many flipped labels ``osler inspect`` finds, in cohorts of phantoms whose lesions fade.

    python benchmarks/mislabels.py [--seeds 3]

One in twenty labels of the demo's cohort is flipped; a line for each strength of the lesions: the share of
the flipped labels that is shown (recall), the share of those shown that is flipped (precision), each with Wilson's
interval over all seeds, and how well the ideal observer and the check's own trees tell the classes (AUROC against
the true labels).
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from osler import demonstration
from osler.case import Entry, Finding, Question, Source
from osler.inspections import Evidence, Look, mislabels
from osler.metrics.auroc import auroc
from osler.metrics.estimate import wilson
from osler.phantom import Phantom, phantom_case

CONTRASTS = ((0.6, 1.4), (0.35, 1.1), (0.2, 0.6), (0.1, 0.3))


def run(spec: Phantom, cases: int, seed: int) -> tuple[int, int, int, float, float]:
    """Flipped labels that were shown, flipped, shown; AUROC of the ideal observer and of the trees."""
    made = [phantom_case(number, replace(spec, seed=seed)) for number in range(cases)]
    wrong = set(np.random.default_rng(seed).choice(cases, cases // 20, replace=False).tolist())
    entries, rows = [], []
    for number, one in enumerate(made):
        label = spec.classes[spec.classes.index(one.label) ^ (number in wrong)]
        entry = Entry(
            str(number), one.case.patient, {"image": Source(Path("x"))}, (Finding("label", label, probability=1.0),)
        )
        image = one.case.images["image"]
        entries.append(entry)
        rows.append(mislabels.measure(Look(entry, image, image.array[0, 0, 0].astype(np.float32))))
    small = np.stack(rows)
    question = Question("label", "multiclass", spec.classes)
    found = mislabels.find(Evidence(tuple(entries), (question,), measured={"mislabels": small}))
    shown = {int(case) for trouble in found for case in trouble.cases}
    truth = np.array([one.label == spec.classes[1] for one in made], float)
    given = np.array([entry.findings[0].name == spec.classes[1] for entry in entries], np.intp)
    patients = np.unique([entry.patient for entry in entries], return_inverse=True)[1]
    told = mislabels.out_of_fold(mislabels.describe(small), given, patients)[:, 1]
    return (
        len(shown & wrong),
        len(wrong),
        len(shown),
        auroc(truth, np.array([o.score for o in made])),
        auroc(truth, told),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cases", type=int, default=demonstration.CASES)
    asked = parser.parse_args()
    for contrast in CONTRASTS:
        spec = replace(demonstration.SPEC, contrast=contrast)
        found, wrong, shown, ideal, trees = np.array([run(spec, asked.cases, s) for s in range(asked.seeds)]).T
        recall, precision = wilson(found.sum(), wrong.sum()), wilson(found.sum(), shown.sum())
        print(
            f"contrast {contrast[0]:.2f} to {contrast[1]:.2f}: recall {recall.value:.2f} ({recall.low:.2f} to "
            f"{recall.high:.2f}), precision {precision.value:.2f} ({precision.low:.2f} to {precision.high:.2f}), "
            f"{shown.sum():.0f} shown of {asked.cases * asked.seeds}; "
            f"AUROC ideal {ideal.mean():.3f}, trees {trees.mean():.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()

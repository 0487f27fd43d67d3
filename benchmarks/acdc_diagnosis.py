"""What a heart has, from the masks that a model draws: ACDC, five classes, out of fold.

    osler train DATA/acdc --cohort-file recipes/cohorts/acdc.toml tasks=heart --out RUN --minutes 170
    python benchmarks/acdc_diagnosis.py DATA/acdc --run RUN
    python benchmarks/acdc_diagnosis.py DATA/acdc              # the same from the readers' masks

Each heart is outlined by the network that was trained without it. Its chambers are measured at both moments as ratios
only, since the spacing is unknown; a random forest, as in Wolterink (2017) and Isensee (2017), learns the class from
the other hearts' numbers, in the same folds. Prints accuracy with Wilson's interval, the confusion, and how far the
ejection fractions of the two ventricles lie from those of the readers' masks.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedKFold

from osler import cohort, data, dense_evaluation, diagnosis, identity, model
from osler.case import Case, Diagnosis
from osler.metrics.estimate import wilson

COHORT_FILE = Path(__file__).parents[1] / "recipes" / "cohorts" / "acdc.toml"
RV, MYO, LV = 1, 2, 3
NAMES = (
    "EF of LV", "EF of RV", "RV over LV, full", "RV over LV, empty", "muscle over LV, full", "muscle over LV, empty",
    "muscle, empty over full", "LV in the field of view, full", "LV in the field of view, empty",
    "muscle in the field of view", "RV in the field of view, full",
    *(f"{what}, {when}" for when in ("full", "empty") for what in ("wall", "thickest sector", "thinnest sector",
                                                                  "spread of sectors")),
    "thickening", "least thickening", "spread of thickening",
)  # fmt: skip
SECTORS = 12


def wall(labels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Thickness of the muscle in twelve sectors around the LV ``(slices, sectors)``, NaN where there is none.

    The distance to the pool and that to the outside of the heart, added up, over the square root of the area of heart
    and pool in the largest slice. The first sector points from the LV to the RV, so that sectors of two moments and
    of two hearts are the same walls.
    """
    scale = np.sqrt(max(1, max(int(np.isin(plane, (MYO, LV)).sum()) for plane in labels)))
    found = np.full((len(labels), SECTORS), np.nan)
    y, x = np.mgrid[: labels.shape[1], : labels.shape[2]]
    right = np.array([[(plane == k).sum() for k in (RV, LV)] for plane in labels]).min(1).argmax()
    toward = 0.0
    if (labels[right] == RV).any() and (labels[right] == LV).any():
        (ry, rx), (ly, lx) = (ndimage.center_of_mass(labels[right] == k) for k in (RV, LV))
        toward = np.arctan2(ry - ly, rx - lx)
    for number, plane in enumerate(labels):
        muscle, pool = plane == MYO, plane == LV
        if muscle.sum() < 20 or pool.sum() < 10:
            continue
        thick = ndimage.distance_transform_edt(~pool) + ndimage.distance_transform_edt(muscle | pool)
        cy, cx = ndimage.center_of_mass(pool)
        angle = (np.arctan2(y - cy, x - cx) - toward) % (2 * np.pi)
        sector = (angle / (2 * np.pi) * SECTORS).astype(int) % SECTORS
        for k in range(SECTORS):
            there = muscle & (sector == k)
            # A ring that is open there has no thickness: the valve.
            found[number, k] = thick[there].mean() / scale if there.any() else np.nan
    return found


def measured(maps: NDArray[np.uint8]) -> NDArray[np.float64]:
    """:data:`NAMES` of a heart ``(2, depth, height, width)``: full first, then empty."""
    size = np.array([[np.count_nonzero(moment == k) for k in (RV, MYO, LV)] for moment in maps], float)
    (rv, muscle, lv), (rv_empty, muscle_empty, lv_empty) = np.maximum(size, 1)
    field = maps[0].size
    full, empty = (np.nanmedian(w, 0) if np.isfinite(w).any() else np.full(SECTORS, np.nan) for w in map(wall, maps))
    thickening = empty / full
    values = [
        1 - lv_empty / lv, 1 - rv_empty / rv, rv / lv, rv_empty / lv_empty, muscle / lv, muscle_empty / lv_empty,
        muscle_empty / muscle, lv / field, lv_empty / field, muscle / field, rv / field,
        *(f(w) for w in (full, empty) for f in (np.nanmean, np.nanmax, np.nanmin, np.nanstd)),
        np.nanmean(thickening), np.nanmin(thickening), np.nanstd(thickening),
    ]  # fmt: skip
    return np.nan_to_num(np.array(values), nan=-1.0)


def drawn(case: Case, said: Diagnosis) -> NDArray[np.uint8]:
    """The label map that a model draws."""
    image = data.the_image(case)
    maps = np.zeros((image.frames, *image.size), np.uint8)
    classes = [c for c in said.answers["heart"].findings if c.mask is not None]
    numbers = {"RV": RV, "MYO": MYO, "LV": LV}
    for finding in classes:
        if finding.mask is not None:
            key = next(k for k in numbers if k.lower() in _short(finding.name).lower())
            maps[finding.frame][finding.mask.within(image.size)] = numbers[key]
    return maps


def _short(name: str) -> str:
    words = {"right ventricle": "RV", "myocardium": "MYO", "left ventricle": "LV"}
    return words.get(name.lower().replace("_", " "), name)


def forest(x: NDArray[np.float64], y: Sequence[str], fold: NDArray[np.intp], seeds: int = 10) -> list[str]:
    """For each heart the class by the majority of forests that were grown on the other folds."""
    votes = np.zeros((len(y), len(set(y))))
    names = sorted(set(y))
    for k in np.unique(fold):
        for seed in range(seeds):
            grown = RandomForestClassifier(500, min_samples_leaf=2, random_state=seed)
            grown.fit(x[fold != k], np.asarray(y)[fold != k])
            p = grown.predict_proba(x[fold == k])
            for column, name in enumerate(grown.classes_):
                votes[fold == k, names.index(name)] += p[:, column]
    return [names[i] for i in votes.argmax(1)]


def main() -> None:
    """Prints what the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--run", type=Path, help="a run with folds; without one the readers' masks are measured")
    given = parser.parse_args()
    found = cohort.read(given.cohort, COHORT_FILE)
    question = next(q for q in found.questions if q.dense)
    made = None if given.run is None else model.load(given.run)
    fold_of = {} if made is None else dense_evaluation.folds(made, given.run)
    rows, truth, names, fold = [], [], [], []
    for entry in found.entries:
        case = data.read_case(entry, [question])
        reference = case.maps[question.task]
        maps = reference
        if made is not None:
            number = fold_of[identity.short(identity.pixels(data.the_image(case)))]
            maps = drawn(case, diagnosis.diagnose(made, case, [made.networks[number]]))
            fold.append(number)
        rows.append(measured(maps))
        truth.append(measured(reference))
        names.append(next(f.name for f in entry.findings if f.task == "diagnosis" and f.probability == 1))
        print(f"{len(rows)} of {len(found.entries)}", end="\r", flush=True)
    x, y = np.stack(rows), names
    if made is None:
        fold = [0] * len(y)
        for k, (_, held) in enumerate(StratifiedKFold(5, shuffle=True, random_state=0).split(x, y)):
            for row in held:
                fold[row] = k
    said = forest(x, y, np.array(fold))
    right = sum(a == b for a, b in zip(said, y, strict=True))
    one = wilson(right, len(y))
    print(f"accuracy {one.value:.3f} ({one.low:.3f} to {one.high:.3f}), {right} of {len(y)}, Wilson")
    order = sorted(set(y))
    print("rows: truth; columns: said:", ", ".join(order))
    for name in order:
        print(f"  {name:5}", *(sum(a == b and t == name for a, b, t in zip(said, [c] * len(y), y, strict=True))
                                for c in order))  # fmt: skip
    if made is not None:
        for column, name in enumerate(NAMES[:2]):
            off = np.abs(x[:, column] - np.stack(truth)[:, column]) * 100
            print(f"{name}: off by {off.mean():.1f} points on average, {np.percentile(off, 95):.1f} in 95 %")


if __name__ == "__main__":
    main()

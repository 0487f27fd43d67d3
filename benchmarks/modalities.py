"""Does a model of several modalities find what each set of them is worth? On phantoms whose best AUROC is known.

    python benchmarks/modalities.py --out FOLDER [--cases N] [--epochs N] [--fusion NAME ...] [--own] [--missing N]

Four modalities, d' of .5, 1.2, .8 and 1.0 (`modality_phantom`), a fifth of the images missing. One model is trained
for each fusion; every one of the 15 sets is measured on the test cases that have all of it. Printed are the best
possible AUROC, what was reached, and the calibration slope. A set more than .02 short of the best, beyond its
interval, is marked with !. Below it: whether the AUROC falls with everything that is taken away, on the test cases
that have all four: pairs of sets, one of which lies in the other, whose paired interval says the contrary.

With --cases 26000 about 5,200 are tested; 1,000 are enough to see that it works. What is done is not done again.
"""

import argparse
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import osler
from osler import answers, cohort, diagnosis, modality_phantom, model, scoring
from osler.cohort import Test
from osler.predictions import Predictions


def settings(epochs: int, fusion: str, own: bool) -> dict[str, object]:
    """A small network that can look at one place; nothing is moved, because the spot never is."""
    return {
        "image": {"size": [1, 16, 16], "intensity": "cohort"},
        "network": {
            "backbone": "reference_cnn",
            "pooling": "neck",
            "fusion": fusion,
            "shared": not own,
            "dropout": 0.0,
        },
        "training": {"epochs": epochs, "batch": 64, "folds": 0, "members": 1, "smoothing": 0.0, "weight_decay": 0.1},
        "inference": {"views": 1},
        "augmentation": "none",
    }


def against_order(run: Path, folder: Path, draws: int = 200) -> tuple[int, list[str]]:
    """How many pairs of sets were compared, and those of which the smaller is better beyond the paired interval."""
    made = model.load(run)
    part = tuple(e for e in cohort.read(folder).entries if e.split == "test" and len(e.images) == 4)
    found, *_ = answers.answer_all(made, Test(part))
    assert found is not None
    task = made.tasks["label"]
    target = task.encode_all([entry.findings for entry in found.entries]).astype(float)[:, 0]
    ids = tuple(entry.id for entry in found.entries)
    by: dict[str, Any] = {}
    for name in made.networks[0].subsets:
        said: diagnosis.Answered = found.alone[name] if name else found.answered
        by[name] = Predictions(ids, ids, task.question, target, said.probability["label"], found.abstained)
    wrong, pairs = [], 0
    for (large, outer), (small, inner) in combinations(made.networks[0].subsets.items(), 2):
        if (inner & ~outer).any():
            continue
        pairs += 1
        gap = scoring.compare(by[small], by[large], draws, only=("auroc",))["differences"]["auroc"]
        if gap["low"] is not None and gap["low"] > 0:
            wrong.append(f"{small} over {large or 'all'} by {scoring.said(gap)}")
    return pairs, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=26_000)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--missing", type=float, default=0.2)
    parser.add_argument("--fusion", nargs="*", default=["concat", "film", "cross_attention"])
    parser.add_argument("--own", action="store_true", help="a backbone for each modality")
    given = parser.parse_args()
    spec = modality_phantom.ModalityPhantom(missing=given.missing)
    folder = given.out / f"four-{given.cases}-{given.missing:g}"
    if not (folder / "truth.json").exists():
        modality_phantom.write(folder, spec, given.cases)
    expected = modality_phantom.expected_auroc(spec)
    print("fusion           set                  cases  best   reached (95 % interval)      off     slope")
    for fusion in given.fusion:
        began = time.monotonic()
        run = given.out / f"{folder.name}-{fusion}{'-own' if given.own else ''}-{given.epochs}"
        osler.train(folder, run, settings(given.epochs, fusion, given.own), say=lambda line: None)
        result = osler.evaluate(run, folder, run / "evaluation", say=lambda line: None, draws=200)
        for name, one in result["modalities"]["label"]["subsets"].items():
            found, slope = one["metrics"]["auroc"], one["metrics"]["calibration_slope"]
            mark = " !" if found["value"] + 0.02 < expected[name] and found["high"] < expected[name] else ""
            span = f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
            off = found["value"] - expected[name]
            row = f"{fusion:16} {name:18} {one['n']:7}  {expected[name]:.3f}  {span:26} {off:+.3f}{mark:2}"
            print(f"{row}  {scoring.said(slope)}")
        pairs, wrong = against_order(run, folder)
        print(f"{fusion:16} of {pairs} pairs, {len(wrong)} are better with less: {'; '.join(wrong) or 'none'}")
        print(f"{fusion:16} {result['cases']} cases tested, {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()

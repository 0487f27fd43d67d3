"""Does a model with covariates find what the image and the covariates are each worth? On phantoms with a known split.

    python benchmarks/person.py --out FOLDER [--cases N] [--epochs N] [--fusion concat|film] [--split NAME ...]

Image and covariates of a phantom are independent given the class, and their log-odds add up, so that the AUROC of the
best possible observer of the image alone, of the covariates alone, and of both is known (`phantom.expected_auroc`).
Three splits of the signal: `image` (most of it there), `covariates`, and `even`. For each, one model is trained and
measured three times; a difference to the expected AUROC of more than .02 beyond the interval is marked.

With --cases 26000 about 5,200 are tested; 2,600 are enough to see that it works. What is done is not done again.
"""

import argparse
import time
from pathlib import Path

import osler
from osler import phantom
from osler.phantom import Phantom

BASE = {
    "size": 16,
    "classes": ("normal", "malignant"),
    "prevalence": (0.5, 0.5),
    "lesion": (5.0, 5.0),
    "contrast": (0.06, 0.06),
    "cases_per_patient": 1.0,
    "known": True,
}
SPLITS = {
    "image": Phantom(**BASE, noise=1.0, age_effect=0.5, sex_effect=0.2),
    "even": Phantom(**BASE, noise=1.6, age_effect=1.0, sex_effect=0.5),
    "covariates": Phantom(**BASE, noise=3.0, age_effect=1.5, sex_effect=0.5),
}


def settings(epochs: int, fusion: str) -> dict[str, object]:
    """A small network that can look at one place; nothing is moved, because the lesion never is."""
    return {
        "image": {"size": [1, 16, 16], "intensity": "cohort"},
        "network": {"backbone": "reference_cnn", "pooling": "neck", "fusion": fusion, "dropout": 0.0},
        "training": {"epochs": epochs, "batch": 64, "folds": 0, "members": 1, "smoothing": 0.0, "weight_decay": 0.1},
        "inference": {"views": 1},
        "augmentation": "none",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=26_000)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--fusion", default="concat")
    parser.add_argument("--split", nargs="*", default=list(SPLITS))
    given = parser.parse_args()
    print("split       source      expected  measured (95 % interval)   off")
    for name in given.split:
        spec = SPLITS[name]
        folder, run = given.out / f"{name}-{given.cases}", given.out / f"{name}-{given.cases}-{given.fusion}"
        began = time.monotonic()
        if not (folder / "truth.json").exists():
            phantom.write_phantom(folder, spec, given.cases)
        osler.train(folder, run, settings(given.epochs, given.fusion), say=lambda line: None)
        result = osler.evaluate(run, folder, run / "evaluation", say=lambda line: None, draws=200)
        found = result["covariates"]["label"]["sources"]
        for source, expected in phantom.expected_auroc(spec).items():
            one = found[source]["auroc"]
            mark = " !" if one["value"] + 0.02 < expected and one["high"] < expected else ""
            span = f"{one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})"
            print(f"{name:11} {source:11} {expected:.3f}     {span:26} {one['value'] - expected:+.3f}{mark}")
        trees = found["table"]["auroc"]
        print(f"{name:11} {'trees':11} {'':9} {trees['value']:.3f} ({trees['low']:.3f} to {trees['high']:.3f})")
        print(f"{name:11} {result['cases']} cases tested, {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()

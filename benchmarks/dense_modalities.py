"""Are places found from whatever images a case has? On phantoms in which each class shows in one image only.

    python benchmarks/dense_modalities.py --out FOLDER [--cases N] [--minutes N] [--volumes]

Two images a case (`phantom_files`, layout `modalities`): one shows nodules, the other cysts, each on
a tissue of its own. Three models are planned by default and trained for the same time: from both images, any of which
may be missing, and from each alone. On the test cases every part of the images is answered from. The truth is known:
from both a class should be found as well as by the model that was trained on its image only; from that image alone,
too; and without its image nothing of it can be found, so that nothing should be drawn.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import osler
from osler import dense_phantom, phantom_files, scoring


def rows(said: dict[str, Any], arm: str) -> list[str]:
    """A line for each class and part."""
    found = []
    for part, one in said.items():
        for name, figures in one["classes"].items():
            told = [scoring.said(figures[key]) for key in ("dice", "lesion_sensitivity", "drawn_without")]
            found.append(f"{arm:8} {part:8} {name:8} {one['n']:6}  " + "  ".join(f"{text:24}" for text in told))
    return found


def main() -> None:
    """Prints what the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=2400)
    parser.add_argument("--minutes", type=float, default=4.0, help="of training, each model")
    parser.add_argument("--volumes", action="store_true", help="24 x 48 x 48 instead of 64 x 64")
    given = parser.parse_args()
    spec = replace(dense_phantom.LESIONS, size=(1, 64, 64), classes=("nodule", "cyst"), contrast=(4.0, 4.0))
    if given.volumes:
        spec = replace(spec, size=(24, 48, 48), spacing=(1.0, 1.0, 1.0), diameter=(4.0, 9.0))
    spec = replace(spec, splits=(0.4, 0.02, 0.08, 0.5))
    folder = given.out / f"{'volumes' if given.volumes else 'flat'}-{given.cases}"
    if not (folder / "truth.json").exists():
        phantom_files.write_dense_phantom(folder, spec, given.cases, "modalities")
    print(
        "model    from     class     cases  Dice                      lesions found             drawn where none is"
    )
    for arm, names in (("both", []), *((name, [name]) for name in spec.classes)):
        began = time.monotonic()
        run = given.out / f"{folder.name}-{arm}-{given.minutes:g}"
        settings = {"training": {"folds": 0}} | ({"image": {"modalities": names}} if names else {})
        osler.train(folder, run, settings, minutes=given.minutes, say=lambda line: None)
        result = osler.evaluate(run, folder, run / "evaluation", say=lambda line: None, draws=500)
        alone = {
            arm: {
                "n": result["cases"],
                "classes": {n: c["metrics"] for n, c in result["tasks"]["mask"]["classes"].items()},
            }
        }
        print("\n".join(rows(result["modalities"]["mask"]["subsets"] if not names else alone, arm)))
        print(f"{arm:8} {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()

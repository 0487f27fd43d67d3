"""What lies in the order of frames, and in one frame of many: does each network along time find it in images?

    python benchmarks/loop_truths.py FOLDER [--truth order needle] [--loops N] [--epochs N] [--networks NAME ...]

Loop phantoms (`osler.loop_phantom`), of which 40 % are tested:

- ``order``: a lesion grows from frame to frame, or shrinks. Each frame alone, and all of them without their order,
  tell nothing: what averages frames stays at an AUROC of .5.
- ``needle``: one frame of 60 has a lesion, or none has. Printed is also how often the frame with the largest share of
  the attention is that one, with Wilson's interval, over all tested loops that have one.

One small convolutional network is trained from scratch under each network along time, by the same plan. Beside each
figure stands what an ideal observer reaches on the same loops. What is done is not done again.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import osler
from osler import layouts, loop_phantom
from osler.loop_phantom import LoopPhantom
from osler.metrics.auroc import delong
from osler.metrics.estimate import wilson

SPLITS = (0.5, 0.05, 0.05, 0.4)
TRUTHS: dict[str, tuple[LoopPhantom, tuple[str, ...]]] = {
    "order": (replace(loop_phantom.ORDER, splits=SPLITS), ("mean", "max", "rnn", "gru", "lstm", "self_attention")),
    "needle": (replace(loop_phantom.NEEDLE, splits=SPLITS), ("mean", "max", "attention", "gru")),
}


def settings(frames: int, sequence: str, epochs: int) -> dict[str, Any]:
    """Every frame is seen, and one small network is trained; the rest is planned."""
    return {
        "image": {"size": [1, 32, 32], "frames": frames, "intensity": "cohort"},
        "network": {"backbone": "resnet", "options": {"width": 8}, "pooling": "average", "sequence": sequence},
        "training": {"epochs": epochs, "batch": 32, "folds": 0, "members": 1, "learning_rate": 2e-3},
        "inference": {"views": 1},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="FOLDER")
    parser.add_argument("--truth", nargs="*", default=list(TRUTHS), choices=list(TRUTHS))
    parser.add_argument("--loops", type=int, default=2600)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--networks", nargs="*")
    given = parser.parse_args()
    for truth in given.truth:
        spec, networks = TRUTHS[truth]
        folder = given.out / f"{truth}-{given.loops}"
        if not (folder / "truth.json").exists():
            loop_phantom.write_loop_phantom(folder, spec, given.loops)
        told = json.loads((folder / "truth.json").read_text(encoding="utf-8"))["cases"]
        known = {case["case"]: case for case in told}
        tested = [entry for entry in layouts.read(folder).entries if entry.split == "test"]
        ideal = delong(
            np.array([known[entry.id]["label"] != loop_phantom.CLASSES[spec.kind][0] for entry in tested], float),
            np.array([known[entry.id]["score"] for entry in tested]),
        )
        print(f"{truth}: {len(tested)} loops tested; the ideal observer reaches {ideal.value:.3f}", flush=True)
        for name in given.networks or networks:
            began, run = time.monotonic(), folder.with_name(f"{folder.name}-{name}-{given.epochs}")
            osler.train(folder, run, settings(spec.frames, name, given.epochs), say=lambda line: None)
            result = osler.evaluate(run, folder, run / "evaluation", say=lambda line: None, draws=200)
            found = result["tasks"]["label"]["metrics"]["auroc"]
            line = f"  {name:15} AUROC {found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
            if truth == "needle" and "attention" in name:
                line += f"; {_top(run, tested, known)}"
            print(f"{line}; {time.monotonic() - began:.0f} s", flush=True)


def _top(run: Path, tested: list[Any], known: dict[str, Any]) -> str:
    """How often the frame with the largest share is the planted one."""
    made = osler.load_model(run)
    there = [entry for entry in tested if known[entry.id]["planted"] is not None]
    right = 0
    for entry in there:
        shares = osler.diagnose(made, osler.read_case(entry.images["image"].path)).moments
        right += max(shares, key=lambda moment: moment.share).frame == known[entry.id]["planted"]
    rate = wilson(right, len(there))
    return f"the top frame is the planted one in {rate.value:.1%} ({rate.low:.1%} to {rate.high:.1%}) of {rate.n}"


if __name__ == "__main__":
    main()

"""Do networks along time read lung ultrasound better than a vote of single frames? COVID-BLUES, 43 patients.

    python benchmarks/covid_blues.py DATA/covid_blues --weights lite0.safetensors --out FOLDER
                                     [--repeats N] [--frames N] [--size PIXELS] [--epochs N] [--arms NAME ...]

Arms are the networks along time by their names, `vote`, and `person`. `vote` is trained on single frames, as many of
each loop as the others look at, for an eighth of the epochs; a loop's score is the share of its frames that say
positive, and its grade the one that most of them say (of several the lowest). `person` is the network `mean` with
what is known of the patient beside it, and prints the three answers of `osler evaluate`, loop by loop. All stand on
the same backbone, frozen with the weights that are given (docs/transfer.md), and learn the test's result, the
severity and the B-lines of a loop together.

Measured out of five folds by patient, repeated with other folds. Of the test the patients are counted: a patient's
score is the mean over its loops, and .5 decides. Of the severity, known for some loops, the mean absolute difference
of the likeliest grade, loop by loop. A figure is the mean over the repeats; intervals draw patients, the same for
both sides of a difference. What is done is not done again.
"""

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score

import osler
from osler import cohort, data
from osler.cohort import Cohort

COHORT_FILE = Path(__file__).parents[1] / "recipes" / "cohorts" / "covid_blues.toml"
TASKS = ("cov_test", "severity", "b_lines")
NETWORKS = ("mean", "max", "rnn", "gru", "lstm", "attention", "self_attention")
DRAWS = 2000
Floats = NDArray[np.float64]


def frames_of(found: Cohort, folder: Path, count: int) -> Path:
    """A cohort of so many frames of each loop, evenly spaced, each a case of its own."""
    table = folder / "frames.csv"
    if table.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    asked = [question for question in found.questions if question.task in TASKS]
    rows = []
    for entry in found.entries:
        pixels = next(iter(data.read_case(entry, moments=count).images.values())).array
        labels = {question.task: cohort.label_of(entry, question) for question in asked}
        for number, frame in enumerate(pixels[:, :, 0]):
            name = f"{entry.id}-{number}.png"
            Image.fromarray(frame[0] if len(frame) == 1 else np.moveaxis(frame, 0, -1)).save(folder / name)
            rows.append({"case": name.removesuffix(".png"), "patient": entry.patient, "image": name} | labels)
    lines = ['table = "frames.csv"', 'case = "case"', 'patient = "patient"', 'image = "{image}"', 'modality = "US"']
    for question in asked:
        lines += [
            f"[label.{question.task}]",
            f'column = "{question.task}"',
            f'kind = "{question.kind}"',
            f"classes = {list(question.classes)}",
        ]
    (folder / "cohort.toml").write_text("\n".join(lines) + "\n")
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def settings_of(arm: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    return {
        "tasks": list(TASKS),
        "image": {"size": [1, args.size, args.size]} | ({} if arm == "vote" else {"frames": args.frames}),
        "network": {"backbone": "efficientnet_lite", "weights": str(args.weights.resolve()), "pooling": "average"}
        | ({} if arm == "vote" else {"sequence": "mean" if arm == "person" else arm}),
        "training": {
            "epochs": max(1, args.epochs // 8) if arm == "vote" else args.epochs,
            "batch": 16,
            "folds": 5,
            "freeze": True,
            "seed": seed,
        },
        "inference": {"views": 1},
    } | ({} if arm == "person" else {"covariates": {"columns": []}})


def predictions(arm: str, seed: int, source: Path, args: argparse.Namespace) -> list[dict[str, str]]:
    run = args.out / f"{arm}-{seed}-{args.frames}x{args.size}-{args.epochs}"
    file = None if arm == "vote" else args.cohort_file
    if not (run / "evaluation" / "predictions.csv").exists():
        osler.train(source, run, settings_of(arm, seed, args), cohort_file=file, say=lambda line: None)
        told = osler.evaluate(
            run, source, run / "evaluation", cohort_file=file, out_of_fold=True, draws=200, say=lambda line: None
        )
        for name, sources in told.get("covariates", {}).items():
            for which, one in sources["sources"].items():
                figure = one["auroc"]
                span = f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"
                print(f"  {arm}, repeat {seed}: {name}, {which} AUROC {span}, loop by loop", flush=True)
    with (run / "evaluation" / "names.csv").open(newline="") as table:
        names = {row["pseudonym"]: row["case"] for row in csv.DictReader(table)}
    with (run / "evaluation" / "predictions.csv").open(newline="") as table:
        return [row | {"case": names[row["case"]]} for row in csv.DictReader(table)]


def loops_of(rows: list[dict[str, str]], vote: bool, found: Cohort) -> list[dict[str, Any]]:
    """Each loop's patient, truth, score for a positive test and how far its grade is off."""
    classes = next(question.classes for question in found.questions if question.task == "severity")
    told = []
    for entry in found.entries:
        own = [row for row in rows if (row["case"].rpartition("-")[0] if vote else row["case"]) == entry.id]
        if not own:
            continue
        positive = np.array([float(row["cov_test.positive"]) for row in own])
        grades = np.array([[float(row[f"severity.{c}"]) for c in classes] for row in own]).argmax(1)
        truth = own[0]["severity.truth"]
        told.append({
            "patient": entry.patient,
            "positive": own[0]["cov_test.truth"] == "positive",
            "score": float((positive > 0.5).mean()) if vote else float(positive[0]),
            "off": abs(int(np.bincount(grades).argmax()) - classes.index(truth)) if truth else np.nan,
        })  # fmt: skip
    return told


def measure(repeats: list[list[dict[str, Any]]], patients: list[str]) -> Callable[[NDArray[np.intp]], Floats]:
    """AUROC and accuracy of patients, and how far grades are off, as a function of which patients were drawn."""
    score, truth = np.empty((len(repeats), len(patients))), np.empty(len(patients), bool)
    off, known = np.zeros_like(score), np.zeros(len(patients))
    for number, loops in enumerate(repeats):
        for place, patient in enumerate(patients):
            own = [loop for loop in loops if loop["patient"] == patient]
            truth[place] = own[0]["positive"]
            score[number, place] = np.mean([loop["score"] for loop in own])
            off[number, place] = np.nansum([loop["off"] for loop in own])
            known[place] = np.isfinite([loop["off"] for loop in own]).sum()

    def figures(drawn: NDArray[np.intp]) -> Floats:
        right = [((row[drawn] > 0.5) == truth[drawn]).mean() for row in score]
        area = [roc_auc_score(truth[drawn], row[drawn]) for row in score]
        return np.array([np.mean(area), np.mean(right), np.mean(off[:, drawn].sum(1) / known[drawn].sum())])

    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--cohort-file", type=Path, default=COHORT_FILE)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--arms", nargs="*", default=["vote", *NETWORKS, "person"])
    args = parser.parse_args()
    found = cohort.read(args.cohort, args.cohort_file)
    measured: dict[str, Callable[[NDArray[np.intp]], Floats]] = {}
    draws: list[NDArray[np.intp]] = []
    patients: list[str] = []
    # First what the others are held against.
    for arm in sorted(args.arms, key=lambda arm: arm != "vote"):
        began, vote = time.monotonic(), arm == "vote"
        source = frames_of(found, args.out / f"frames-{args.frames}", args.frames) if vote else args.cohort
        loops = [loops_of(predictions(arm, r, source, args), vote, found) for r in range(args.repeats)]
        if not patients:
            patients = sorted({loop["patient"] for loop in loops[0]})
            truth = np.array([any(o["positive"] for o in loops[0] if o["patient"] == p) for p in patients])
            rng = np.random.default_rng(0)
            # Of each class as many as there are: a draw without positive ones has no AUROC.
            parts = [np.flatnonzero(truth == side) for side in (False, True)]
            draws = [np.concatenate([rng.choice(part, len(part)) for part in parts]) for _ in range(DRAWS)]
            print(f"{len(patients)} patients, {truth.sum()} positive, {len(loops[0])} loops", flush=True)
        measured[arm] = measure(loops, patients)
        tell(arm, measured, draws, time.monotonic() - began)


def tell(arm: str, measured: dict[str, Any], draws: list[NDArray[np.intp]], seconds: float) -> None:
    everyone = np.arange(len(draws[0]))

    def line(what: str, value: Floats, drawn: Floats) -> None:
        low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
        names = ("AUROC", "accuracy", "severity off by")
        cells = [f"{n} {v:+.3f} ({a:+.3f} to {b:+.3f})" for n, v, a, b in zip(names, value, low, high, strict=True)]
        print(f"{what:28} {'  '.join(cells)}", flush=True)

    drawn = np.array([measured[arm](one) for one in draws])
    line(f"{arm}, {seconds:.0f} s", measured[arm](everyone), drawn)
    if arm != "vote" and "vote" in measured:
        vote = np.array([measured["vote"](one) for one in draws])
        line("  less vote", measured[arm](everyone) - measured["vote"](everyone), drawn - vote)


if __name__ == "__main__":
    main()

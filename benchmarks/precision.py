r"""Does training in bfloat16 cost accuracy? The same network from the same start in float32 and in bfloat16.

    python benchmarks/precision.py $DATA/pneumoniamnist epochs=3
    python benchmarks/precision.py $DATA/pneumoniamnist epochs=5 --recipe recipes/reference_cnn.toml \
        image.size=[1,28,28] image.channels=1
    python benchmarks/precision.py $DATA/busi epochs=5 --recipe recipes/reference_cnn.toml \
        --cohort-file recipes/cohorts/busi.toml

Both train on the training part by `fitting.fit`, with the same batches and the same augmentation; all other cases
of the cohort are the test. Answers are always computed in float32. Printed are the macro AUROC of each start and of
the mean over the starts, and the paired difference, each with its 95 % bootstrap interval by patient; and, as the
measure of what is only chance, the difference between two starts in float32.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from osler import asking, cohort, data, fitting, planning, recipe, training
from osler.allocator import keep_memory
from osler.cohort import Training, Validation
from osler.metrics.auroc import macro_auroc
from osler.metrics.bootstrap import bootstrap
from osler.recipe import Recipe
from osler.tasks.classification import Classification

Scores = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cohort", type=Path)
    parser.add_argument("settings", nargs="*", help="key=value for anything in the recipe")
    parser.add_argument("--recipe", type=Path)
    parser.add_argument("--cohort-file", type=Path)
    parser.add_argument("--starts", type=int, default=2, help="seeds, in each precision")
    arguments = parser.parse_intermixed_args()
    keep_memory()
    given = recipe.settings(tuple(arguments.settings))
    if arguments.recipe:
        given = recipe.merge(recipe.read(arguments.recipe), given)
    listed = cohort.read(arguments.cohort, arguments.cohort_file)
    fixed = {"training": {"folds": 0, "members": 1, "precision": "float32"}}
    plan, _ = planning.derive(listed, recipe.merge(given, fixed), 12.0)
    loaded = data.load(listed.entries, plan.image)
    splits, _ = training.divide(listed, loaded, plan)
    held = [e for part in (splits.validation, splits.calibration, splits.test) for e in part.entries]
    name, question = next(iter(plan.tasks.items()))
    task = Classification(question)
    row_of = {entry.id: row for row, entry in enumerate(loaded.entries)}

    def examples(part: Training | Validation) -> fitting.Examples:
        rows = [row_of[e.id] for e in part.entries]
        targets = np.stack([task.encode(e.findings) for e in part.entries]) if rows else np.empty((0, 1), np.float32)
        return fitting.Examples(part, loaded.pixels[rows], {name: targets})

    train, test = examples(splits.training), examples(Validation(tuple(held)))
    hot = np.eye(len(question.classes))[test.targets[name][:, 0].astype(int)]
    patients = np.unique([e.patient for e in held], return_inverse=True)[1]

    def scores(precision: str, seed: int) -> Scores:
        chosen = replace(plan, training=replace(plan.training, precision=precision, seed=seed))
        return task.probabilities(answers(chosen, train, test, name))

    made = {(p, s): scores(p, s) for s in range(arguments.starts) for p in ("float32", "bfloat16")}

    def area(of: Scores, weight: Scores) -> float:
        return macro_auroc(hot, of, weight)

    def show(what: str, statistic: Callable[[Scores], float]) -> None:
        found = bootstrap(statistic, patients)
        print(f"{what:44}{found.value:8.4f} ({found.low:.4f} to {found.high:.4f})", flush=True)

    print(
        f"{plan.network.backbone}, {len(train)} training cases, {plan.training.epochs} epochs; {len(test)} test cases"
    )
    for (precision, seed), of in made.items():
        show(f"AUROC, {precision}, start {seed}", lambda w, of=of: area(of, w))
    means = {p: np.mean([made[p, s] for s in range(arguments.starts)], 0) for p in ("float32", "bfloat16")}
    for precision, of in means.items():
        show(f"AUROC, {precision}, starts averaged", lambda w, of=of: area(of, w))
    show("bfloat16 - float32, paired", lambda w: area(means["bfloat16"], w) - area(means["float32"], w))
    if arguments.starts > 1:
        one, other = made["float32", 0], made["float32", 1]
        show("float32, start 1 - start 0: chance alone", lambda w: area(other, w) - area(one, w))


def answers(plan: Recipe, train: fitting.Examples, test: fitting.Examples, name: str) -> Scores:
    """Raw outputs of the freshly trained network, in float32."""
    nothing = fitting.Examples(
        Validation(()), test.pixels[:0], {key: value[:0] for key, value in test.targets.items()}
    )
    with tempfile.TemporaryDirectory() as folder:
        network = fitting.fit(train, nothing, plan, fitting.Course(Path(folder), 0, 1, lambda line: None, 0.0))
    return asking.outputs(network, test.pixels, [lambda x: x]).answers[name]


if __name__ == "__main__":
    main()

"""Do tasks that are linked help each other? One linked model against a model for each task, on the same cases.

    python benchmarks/linking.py COHORT --out FOLDER [--cohort-file FILE] [--label NAME --mask NAME]
                                 [--scenario full|masks|boxes] [--as-it-is] [--arms linked label mask boxes ...]
                                 [--epochs N] [--size PIXELS] [--backbone NAME] [--width N] [--against FOLDER]
                                 [--draws N] [--print]

The cohort needs a class for each case and outlines of lesions. Arms:

    linked          one network for the class, the outlines and the boxes
    label           the class alone          (the same backbone, made wider until it has no fewer parameters)
    mask            the outlines alone       (the same)
    boxes           the boxes alone          (the same)
    shared          linked, with every link cut: the tasks share features and nothing else
    no-KEY          linked without one link, e.g. no-masks_see_classes

All take as many steps, of as many images, with the same augmentation; where few images have outlines, the arm that
asks for nothing else sees these as much more often. Where the cohort names no test part, everything is measured out
of five folds by patient, the same ones for all arms. Scenarios: `full`; `masks`: outlines (and boxes) of a tenth of
the patients only, classes of all; `boxes`: half of the patients have boxes instead of outlines. Measured is always on
everything. `--against` compares the linked model with that of another folder of this command, e.g. of `full`.
`--as-it-is` asks the cohort's own tasks, of whatever classes and moments: those named by --label, the first that it
asks of a whole image, and --mask; there is no arm `boxes`.

Prints each arm's figures, the paired differences (bootstrap over patients), the false outlines on images without any,
and how often the class is wrong where answers agree and where they do not. An arm that is done is not done again, and
one that was stopped goes on.
"""

import argparse
import csv
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import osler
from osler import cohort, data, model, recipe, training
from osler.cohort import Cohort
from osler.linking import boxes_of
from osler.model import Network
from osler.recipe import Recipe

LINKS = ("classes_see_places", "boxes_see_masks", "masks_see_boxes", "masks_see_classes", "complete", "consistency")
SINGLE = ("label", "mask", "boxes")
COLUMN = {"mask": "mask.lesion", "boxes": "boxes"}
SHARES = {"full": 1.0, "masks": 0.1, "boxes": 0.5}
SEED = 0


def table_of(found: Cohort, label: str, mask: str, scenario: str, path: Path) -> Path:
    """The cohort as a table with columns label, mask.lesion and boxes, from which the scenario takes some away."""
    label_of = {q.task: q for q in found.questions}[label]
    outlined = {q.task: q for q in found.questions}[mask]
    boxed = replace(outlined, kind="detection")
    # Not the seed of the training, whose folds would each hold all of them or none.
    groups = cohort.folds(found.entries, label_of, 10, SEED + 1)
    kept = {e.patient for _, part in groups[: round(10 * SHARES[scenario])] for e in part.entries}
    rows = []
    for entry in found.entries:
        source = next(iter(entry.images.values())).path
        row = {"case": entry.id, "patient": entry.patient, "image": str(source.resolve()), "split": entry.split or ""}
        row["label"] = cohort.label_of(entry, label_of)
        labels = data.read_case(entry, [outlined]).maps.get(mask)
        if labels is not None:
            around = boxes_of(labels[0], outlined, boxed)
            assert around is not None
            cells = [_cell(r, flat=labels.shape[1] == 1) for r in around.tolist()]
            file = next(o.source.path for o in entry.outlines if o.task == mask) if entry.outlines else None
            row["mask.lesion"] = str(file.resolve()) if file is not None and cells else "none"
            row["boxes"] = "; ".join(cells) or "none"
            if entry.split != "test" and entry.patient not in kept:
                row["mask.lesion"] = ""
                row["boxes"] = row["boxes"] if scenario == "boxes" else ""
        rows.append(row)
    if not any(row["split"] for row in rows):
        rows = [{key: value for key, value in row.items() if key != "split"} for row in rows]
    with path.open("w", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def _cell(row: list[float], *, flat: bool) -> str:
    axes = (2, 1) if flat else (2, 1, 0)
    return " ".join(f"{v:g}" for v in (*(row[a] for a in axes), *(row[a + 3] - row[a] for a in axes))) + " lesion"


def settings_of(arm: str, linked: Recipe | None, table: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What is fixed of the recipe of an arm; the linked one is planned first, and the others do as it does."""
    if arm == "linked":
        return {
            "tasks": [args.label, args.mask] if args.as_it_is else "all",
            "training": {"epochs": args.epochs, "batch": args.batch},
            "image": {"size": [args.depth, args.size, args.size]},
            "network": {"backbone": args.backbone, "options": {"width": args.width}},
            "patches": {"per_case": 1},
        }
    if linked is None:
        raise SystemExit(f"{arm} does as the linked model does: train that first (--arms linked {arm})")
    content = recipe.to_dict(linked)
    if arm not in SINGLE:
        cut = LINKS if arm == "shared" else (arm.removeprefix("no-"),)
        content["links"] |= {key: 0.0 if key == "consistency" else False for key in cut}
        return content
    del content["links"]
    content["tasks"] = {name: content["tasks"][name] for name in [named(arm, args)]}
    content["patches"]["longest"] = args.size
    # What is planned for classes alone would stay beside what is given.
    content["augmentation"].setdefault("bias", {"probability": 0.0})
    if arm != "label" and not args.as_it_is:
        with table.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row.get("split") != "test"]
        content["patches"]["per_case"] = round(len(rows) / sum(bool(row[COLUMN[arm]]) for row in rows))
    want = parameters(linked)
    for width in range(args.width, 4 * args.width):
        content["network"]["options"]["width"] = width
        if parameters(recipe.build(content)) >= want:
            break
    return content


def named(arm: str, args: argparse.Namespace) -> str:
    """The task of an arm that asks for one."""
    return {"label": args.label, "mask": args.mask}.get(arm, arm) if args.as_it_is else arm


def parameters(plan: Recipe) -> int:
    return sum(p.numel() for p in Network(plan).parameters())


def run(arm: str, table: Path, args: argparse.Namespace, say: Callable[[str], None]) -> None:
    folder = args.out / arm
    linked = args.out / "linked" / "recipe.toml"
    plan = recipe.build(recipe.read(linked)) if linked.exists() and arm != "linked" else None
    began = time.monotonic()
    file = args.cohort_file if args.as_it_is else None
    training.train(table, folder, settings_of(arm, plan, table, args), cohort_file=file, say=say)
    note = folder / "seconds.json"
    before = json.loads(note.read_text()) if note.exists() else 0
    note.write_text(json.dumps(before + time.monotonic() - began))


def figure(found: Mapping[str, Any]) -> str:
    if found["value"] is None:
        return "unknown"
    if found["low"] is None:
        return f"{found['value']:.3f}"
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


WANTED = {
    "label": ("auroc", "accuracy"),
    "mask": ("dice", "map50", "drawn_without"),
    "boxes": ("map50", "cpm", "drawn_without"),
}


def report(full: Path, args: argparse.Namespace, say: Callable[[str], None]) -> None:
    file = args.cohort_file if args.as_it_is else None

    def measured(run: Path, place: Path, against: Path | None = None) -> dict[str, Any]:
        return osler.evaluate(
            run, full, place, cohort_file=file, against=against, out_of_fold=folded, draws=args.draws,
            say=lambda line: None,
        )  # fmt: skip

    folded = model.load(args.out / "linked").recipe.training.folds > 0
    done = [arm for arm in args.arms if (args.out / arm / "model.safetensors").exists()]
    told: dict[str, Any] = {}
    for arm in ["linked", *(arm for arm in done if arm != "linked")]:
        against = None if arm == "linked" else args.out / arm
        run_of = args.out / ("linked" if against else arm)
        place = args.out / f"evaluation-{arm}"
        if not (place / "evaluation.json").exists():
            measured(run_of, place, against)
            if against:
                measured(against, args.out / f"evaluation-{arm}-own")
        told[arm] = json.loads((place / "evaluation.json").read_text())
    for arm, result in told.items():
        own = args.out / (f"evaluation-{arm}-own" if arm != "linked" else "evaluation-linked")
        tasks = json.loads((own / "evaluation.json").read_text())["tasks"]
        size = parameters(model.load(args.out / arm).recipe)
        seconds = json.loads((args.out / arm / "seconds.json").read_text())
        say(f"{arm}: {size:,} parameters a network, {seconds / 60:.0f} minutes")
        for kind, names in WANTED.items():
            task = named(kind, args)
            for name in names if task in tasks else ():
                if name not in tasks[task]["metrics"]:
                    continue
                say(f"  {task} {name} {figure(tasks[task]['metrics'][name])}")
                if arm != "linked":
                    change = result["comparison"]["tasks"].get(task, {}).get("differences", {}).get(name)
                    say(f"    linked less {arm}: {figure(change)}" if change else "    no paired difference")
    if args.against is not None:
        found = measured(args.out / "linked", args.out / "evaluation-against", args.against / "linked")
        say(f"linked less linked of {args.against.name}")
        for kind, names in WANTED.items():
            for name in names:
                task = named(kind, args)
                change = found["comparison"]["tasks"].get(task, {}).get("differences", {}).get(name)
                say(f"  {task} {name} {figure(change)}" if change else f"  {task} {name} no paired difference")
    found = told["linked"]["concordance"]
    for name in ("concordant", "discordant"):
        say(f"{name}: class wrong in {figure(found[name]['wrong'])} of {found[name]['cases']}")
    say(f"risk ratio {figure(found['risk_ratio'])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--cohort-file", type=Path)
    parser.add_argument("--label", default="label", help="the task that asks of the whole image")
    parser.add_argument("--mask", default="mask", help="the task that outlines")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenario", choices=SHARES, default="full")
    parser.add_argument(
        "--as-it-is", action="store_true", help="no table is made of the cohort; --scenario full only"
    )
    parser.add_argument("--arms", nargs="*", help="all by default; a cohort as it is has no arm boxes")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--depth", type=int, default=1)
    parser.add_argument("--backbone", default="resnet", help="of every arm; as wide as --width, or wider")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--against", type=Path, help="the --out of another scenario")
    parser.add_argument("--draws", type=int, default=2000, help="of patients, for intervals")
    parser.add_argument("--print", action="store_true", dest="only_print")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    found = cohort.read(args.cohort, args.cohort_file)
    full, table, before = args.out / "full.csv", args.out / "table.csv", args.out / "scenario.txt"
    if before.exists() and before.read_text() != args.scenario:
        raise SystemExit(f"{args.out} holds the scenario {before.read_text()}: give another --out")
    if args.as_it_is and args.scenario != "full":
        raise SystemExit("--as-it-is takes nothing away: leave out --scenario")
    if args.arms is None:
        args.arms = ["linked", *SINGLE]
        if args.as_it_is:
            args.arms.remove("boxes")
    if args.as_it_is and "boxes" in args.arms:
        raise SystemExit("--as-it-is asks for a class and an outline: leave boxes out of --arms")
    if args.as_it_is and args.label != found.balanced_by.task:
        raise SystemExit(f"the folds have alike shares of {found.balanced_by.task}: give it as --label")
    before.write_text(args.scenario)
    if args.as_it_is:
        full = table = args.cohort
    elif not full.exists():
        table_of(found, args.label, args.mask, args.scenario, table)
        table_of(found, args.label, args.mask, "full", full)

    def say(line: str) -> None:
        print(line, flush=True)

    for arm in args.arms if not args.only_print else ():
        say(f"== {arm}")
        run(arm, table, args, say)
    report(full, args, say)


if __name__ == "__main__":
    main()

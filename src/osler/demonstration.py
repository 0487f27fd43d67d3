"""``osler demo``: a phantom cohort through every verb, to pages that a newcomer opens."""

import html
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from osler import (
    dense_phantom,
    diagnoses,
    evaluation,
    explanation,
    inspection,
    layouts,
    phantom,
    phantom_files,
    training,
)
from osler.case import Entry
from osler.metrics.auroc import delong

SPEC = phantom.Phantom(classes=("normal", "nodule"), prevalence=(0.5, 0.5), contrast=(0.35, 1.1))
CASES = 640
# Small and quick: two minutes, not twelve. The nodules are faint, so what would hide them is left out.
SETTINGS: dict[str, Any] = {
    "network": {"pooling": "attention", "options": {"width": 16}},
    "training": {"epochs": 14, "batch": 16, "members": 1, "learning_rate": 2e-3},
    "inference": {"views": 3},
    "augmentation": {
        "spatial": {"rotation": 8.0, "scale": 0.1, "stretch": 0.05, "shear": 0.05, "elastic_probability": 0.0},
        "intensity": {"probability": 0.5, "brightness": 0.2, "contrast": 0.2, "gamma": 0.2},
        "blur": {"probability": 0.0},
        "noise": {"probability": 0.0},
        "bias": {"probability": 0.0},
    },
}

# Lesions to be outlined: half a minute.
LESIONS = replace(dense_phantom.LESIONS, size=(1, 64, 64), classes=("nodule", "cyst"), contrast=(3.0, 5.0), vessels=3)
OUTLINED = 160
OUTLINING: dict[str, Any] = {
    "network": {"options": {"width": 8}},
    "patches": {"per_case": 4},
    "training": {"epochs": 12, "batch": 8, "learning_rate": 4e-3, "folds": 0},
}


def demo(out: Path, *, say: Callable[[str], None] = print) -> Path:
    """Makes a cohort of synthetic radiographs, inspects it, trains, evaluates, diagnoses, explains; then
    the same where lesions are outlined. In three minutes.

    Args:
        out: folder; an interrupted demo goes on.
        say: takes one line at a time.

    Returns:
        The page to open.
    """
    began = time.monotonic()
    folder = out / "cohort"
    if not (folder / "truth.json").exists():
        say(f"making {CASES} synthetic chest radiographs in {out.name}/cohort")
        phantom.write_phantom(folder, SPEC, CASES)
    say("osler inspect")
    inspection.inspect(folder, out / "inspection", say=say)
    say("osler train")
    training.train(folder, out / "run", SETTINGS, say=say)
    say("osler evaluate")
    result = evaluation.evaluate(out / "run", folder, out / "evaluation", say=say)
    ideal = _ideal(folder)
    say(f"an ideal observer who knows the anatomy reaches AUROC {ideal}")
    say("osler diagnose and osler explain")
    test = [entry for entry in layouts.read(folder).entries if entry.split == "test"]
    paths = [entry.images["image"].path for entry in _one_of_each(test)]
    diagnoses.diagnose_paths(out / "run", paths, out / "diagnoses", say=say)
    lesion = next(e for e in test if any(f.name == SPEC.classes[-1] and f.probability == 1 for f in e.findings))
    shown = lesion.images["image"].path
    for line in explanation.explain_path(out / "run", shown, out / "explanations", method="all"):
        say(line)
    where = _outlined(out / "outlines", say)
    page = out / "index.html"
    page.write_text(_page(result, where, ideal, out, time.monotonic() - began), encoding="utf-8")
    say(f"done in {time.monotonic() - began:.0f} s")
    return page


def _outlined(out: Path, say: Callable[[str], None]) -> dict[str, object]:
    """The same verbs for a cohort with masks; the evaluation."""
    folder = out / "cohort"
    if not (folder / "truth.json").exists():
        say(f"making {OUTLINED} synthetic images with outlined lesions in outlines/cohort")
        phantom_files.write_dense_phantom(folder, LESIONS, OUTLINED)
    training.train(folder, out / "run", OUTLINING, say=say)
    result = evaluation.evaluate(out / "run", folder, out / "evaluation", say=say)
    tested = [entry for entry in layouts.read(folder).entries if entry.split == "test"]
    diagnoses.diagnose_paths(
        out / "run", [e.images["image"].path for e in tested[:4]], out / "diagnoses", method="none", say=say
    )
    return result


def _one_of_each(entries: list[Entry]) -> list[Entry]:
    chosen: dict[str, Entry] = {}
    for entry in entries:
        chosen.setdefault("+".join(f.name for f in entry.findings if f.probability == 1), entry)
    return [*entries[:3], *(entry for _, entry in sorted(chosen.items()) if entry not in entries[:3])]


def _ideal(folder: Path) -> str:
    """AUROC of the ideal observer on the test cases, from the truth that the phantom wrote beside its images."""
    truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    tested = {entry.id for entry in layouts.read(folder).entries if entry.split == "test"}
    cases = [case for case in truth["cases"] if case["case"] in tested]
    target = np.array([case["label"] != SPEC.classes[0] for case in cases], float)
    found = delong(target, np.array([case["score"] for case in cases]))
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def _said(result: Mapping[str, object], describe: Callable[[dict[str, Any]], list[str]]) -> str:
    tasks = result["tasks"]
    assert isinstance(tasks, dict)
    return "".join(f"<li>{html.escape(line)}</li>" for task in tasks.values() for line in describe(task))


def _page(result: dict[str, object], where: dict[str, object], ideal: str, out: Path, seconds: float) -> str:
    from osler import dense_scoring, scoring

    said, outlined = _said(result, scoring.describe), _said(where, dense_scoring.describe)
    pictures = "".join(
        f'<figure><img src="explanations/{path.name}" alt="{path.stem}"><figcaption>{path.stem}</figcaption></figure>'
        for path in sorted((out / "explanations").glob("*.png"))
    )
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Osler demo</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root {{ color-scheme: light dark }}
body {{ font: 17px/1.55 system-ui, sans-serif; max-width: 46rem; margin: 3rem auto; padding: 0 1rem }}
figure {{ display: inline-block; margin: .5rem; text-align: center }} img {{ width: 10.5rem; border-radius: 6px }}
figcaption, small {{ opacity: .7 }} li {{ margin: .3rem 0 }}
</style>
<h1>Osler, from images to a diagnosis</h1>
<p>{CASES} synthetic chest radiographs, half of them with a nodule, were made, and a network was trained,
calibrated, evaluated and explained, in {seconds:.0f} seconds on this machine.</p>
<ol>
<li><a href="inspection/inspection.html">Inspection</a> of the cohort: what is there, and what is wrong with it</li>
<li><a href="run/training.html">Training</a>: the plan with a reason for each choice, and how it went</li>
<li><a href="evaluation/evaluation.html">Evaluation</a> on patients that it has not seen</li>
<li><a href="diagnoses/index.html">Diagnoses</a> of single cases, as a radiologist would see them</li>
</ol>
<h2>What was found</h2>
<ul>{said}
<li>An ideal observer, who knows each patient's anatomy, reaches AUROC {html.escape(ideal)}.</li></ul>
<h2>Where the network looked</h2>
{pictures}
<h2>Where lesions are</h2>
<p>{OUTLINED} images with the masks of their lesions went the same way:
<a href="outlines/run/training.html">training</a>, <a href="outlines/evaluation/evaluation.html">evaluation</a>,
<a href="outlines/diagnoses/index.html">diagnoses</a>.</p>
<ul>{outlined}</ul>
<p><small>Synthetic images. Osler is for research; it is not a medical device.</small></p>
</html>"""

"""Pages for people: one file each, complete in itself, that works offline, on a phone, in the dark and in print.

Nothing in a page is loaded from elsewhere and nothing in it runs; every name is escaped, and cases are shown under
the pseudonyms that they are given here.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray
from PIL import Image as Pillow

from osler import dense_scoring, files
from osler.case import DENSE, Answer, Diagnosis
from osler.pages import figures, modalities, persons
from osler.pages.overlays import Example, chosen
from osler.pages.wording import FIGURES, HEADLINES, answer_in_words, row, shown, when
from osler.predictions import Predictions
from osler.scoring import describe

Picture = NDArray[np.uint8]


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("osler", "pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": shown, "lowered": lambda text: text[:1].lower() + text[1:]}
    environment.filters["capital"] = lambda text: text[:1].upper() + text[1:]
    return environment


def _write(path: str | Path, template: str, **content: Any) -> None:
    files.replaced(Path(path), _templates().get_template(template).render(content))


def _data_uri(picture: Picture, side: int | None = None) -> str:
    """A grey or colour image as a PNG inside the page, no larger than ``side`` pixels."""
    image = Pillow.fromarray(np.ascontiguousarray(picture))
    if side is not None:
        image.thumbnail((side, side))
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def evaluation_page(
    evaluation: Mapping[str, Any],
    predictions: Sequence[Predictions],
    path: str | Path,
    examples: Mapping[str, Sequence[Example]] | None = None,
) -> None:
    """What an evaluation found: the answer in sentences and four numbers, then every figure behind it.

    Args:
        evaluation: the content of ``evaluation.json`` (docs/schemas/evaluation.schema.json).
        predictions: of each task in it, for the best and worst cases; may be empty.
        path: the HTML file to write.
        examples: of each segmentation and detection, every case with what was drawn on it; the best, the middle and
            the worst are shown.
    """
    keys = ("model", "cohort", "part", "cases", "patients", "times_evaluated", "date", "grouping")
    about = {key: evaluation.get(key) for key in keys} | {"notes": evaluation.get("notes", [])}
    other = evaluation.get("comparison", {})
    about["other"] = other.get("model", "")
    by_task = {one.question.task: one for one in predictions}
    tasks = [
        _task(name, result, by_task.get(name), (examples or {}).get(name, ()))
        for name, result in evaluation["tasks"].items()
    ]
    for task in tasks:
        differences = other.get("tasks", {}).get(task["name"], {}).get("differences", {})
        task["differences"] = [row(key, found) for key, found in differences.items()]
        task["sources"] = persons.sources(evaluation.get("covariates", {}).get(task["name"]))
        task["sets"] = modalities.sets(evaluation.get("modalities", {}).get(task["name"]))
    _write(path, "evaluation.html", about=about, tasks=tasks)


def _task(
    name: str, result: Mapping[str, Any], predictions: Predictions | None, examples: Sequence[Example]
) -> dict[str, Any]:
    metrics, dense = result["metrics"], result["kind"] in DENSE
    binary = not dense and result["kind"] != "multilabel" and len(result["order"]) == 2
    headlines = HEADLINES["binary" if binary else result["kind"]]
    selective = {key: value for key, value in result["selective"].items() if key in FIGURES}
    best, worst = ([], []) if predictions is None else _best_and_worst(predictions)
    return {
        "name": name,
        "dense": dense,
        "examples": chosen(examples),
        "summary": dense_scoring.describe(result) if dense else describe(dict(result)),
        "tiles": [_fitted(row(key, metrics[key]), key, result) for key in headlines if key in metrics],
        "figures": _figures(result, binary),
        "subgroups": _subgroup_tables(result),
        "rows": [_fitted(row(key, estimate), key, result) for key, estimate in (metrics | selective).items()],
        "classes": [] if binary else _class_table(result),
        "best": best,
        "worst": worst,
        "notes": result["notes"],
    }


def _fitted(entry: dict[str, Any], key: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """A figure whose form or unit depends on what was asked."""
    number = result["kind"] == "regression"
    if key.startswith("error") and not number:
        return entry | {"form": "percent"}
    if key in ("mae", "rmse", "interval_width"):
        unit = result["unit"] or "the unit of the quantity"
        return entry | {"meaning": f"in {unit}" if number else "in ranks"}
    if key in ("hd95", "assd"):
        return entry | {"meaning": f"{entry['meaning']}; in {result['unit']}"}
    return entry


def _figures(result: Mapping[str, Any], binary: bool) -> list[dict[str, Any]]:
    curves, order = result["curves"], result["order"]
    drawn: list[tuple[str, Markup, str]] = []
    if curves.get("roc"):
        caption = (
            "The dot is the threshold fixed beforehand, with its intervals; the band is the 95 % range of the curve."
        )
        drawn.append(("Telling apart", figures.roc(curves["roc"], result["classes"]), caption))
    if curves.get("reliability"):
        caption = "On the diagonal, what is called 70 % happens in 70 of 100. Bars are Wilson's 95 % intervals."
        drawn.append(("Do probabilities come true?", figures.reliability(curves["reliability"]), caption))
    if "agreement" in curves:
        caption = "On the diagonal the prediction is exact; bars are prediction intervals."
        drawn.append(("Predicted and true", figures.agreement(curves["agreement"], order[0]), caption))
    if "confusion" in curves and len(order) <= 20:
        caption = "Number of cases and share of each row."
        drawn.append(("Which are mistaken for which?", figures.confusion(curves["confusion"], order), caption))
    if binary and curves.get("decision"):
        caption = "Acting on the model is worth it where its line is the highest (Vickers and Elkin, 2006)."
        drawn.append(("Is it worth acting on?", figures.decision(curves["decision"][order[1]], order[1]), caption))
    if "risk_coverage" in curves:
        caption = "How often answers are wrong if the least certain are withheld; the dot is the gate as it was used."
        curve = figures.risk_coverage(curves["risk_coverage"], result["kind"])
        drawn.append(("What does withholding buy?", curve, caption))
    drawn += figures.of_places(curves)
    return [{"title": title, "drawing": drawing, "caption": caption} for title, drawing, caption in drawn]


def _subgroup_tables(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    tables = []
    for column, groups in result["subgroups"].items():
        keys = list(dict.fromkeys(key for group in groups.values() for key in group["metrics"]))[:4]
        rows = []
        for value, group in groups.items():
            cells = [
                row(key, group["metrics"][key]) | {"mark": result["metrics"].get(key, {}).get("value")}
                for key in keys
                if key in group["metrics"]
            ]
            rows.append({"value": value, "n": group["n"], "omitted": group.get("omitted", ""), "cells": cells})
        tables.append({"column": column, "heads": [row(key, {"value": None})["label"] for key in keys], "rows": rows})
    return tables


def _class_table(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    keys: Sequence[str] = ("auroc", "sensitivity", "specificity", "ppv", "calibration_slope")
    if result["kind"] in DENSE:
        every = (*HEADLINES[result["kind"]], "false_lesions", "drawn_without")
        keys = [key for key in every if any(key in entry["metrics"] for entry in result["classes"].values())]
    return [
        {
            "name": name,
            "n": entry["n"],
            "heads": [FIGURES[key][0] for key in keys],
            "cells": [row(key, entry["metrics"][key]) for key in keys],
        }
        for name, entry in result["classes"].items()
    ]


def _best_and_worst(predictions: Predictions) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Cards of the cases nearest to the truth and furthest from it."""
    known = predictions.take(predictions.known)
    if not known.cases:
        return [], []
    if known.question.kind == "regression":
        distance = np.abs(known.probability[:, 0] - known.target)
    else:
        distance = np.nanmean(np.abs(known.probability - known.truth), axis=1)
    order = np.argsort(-distance, kind="stable")
    few = max(1, min(6, len(order) // 2))
    best = order[::-1][:few]
    return [_card(known, int(i)) for i in best], [_card(known, int(i)) for i in order[:few]]


def _card(known: Predictions, i: int) -> dict[str, Any]:
    question = known.question
    if question.kind == "regression":
        truth, said = (
            f"{shown(float(x))} {question.unit}".strip() for x in (known.target[i], known.probability[i, 0])
        )
        right = True
    else:
        names = np.array(question.classes, dtype=object)
        actual, stated = known.truth[i] == 1, known.stated[i] & np.isfinite(known.truth[i])
        truth, right = ", ".join(names[actual]) or "none", bool((actual == stated).all())
        said = ", ".join(
            f"{name} {shown(float(p), 'percent')}"
            for name, p in zip(names[stated], known.probability[i][stated], strict=True)
        )
    picture = None if known.images is None else _data_uri(known.images(i), side=192)
    return {
        "case": known.cases[i],
        "truth": truth,
        "said": said or "none",
        "right": right,
        "withheld": bool(known.abstained[i]),
        "picture": picture,
    }


def diagnosis_page(
    diagnosis: Diagnosis,
    picture: Picture,
    overlays: Mapping[str, tuple[Picture, str]],
    path: str | Path,
    frames: Mapping[int, Picture] | None = None,
) -> None:
    """One case: the decision, or why it is withheld, first; then how sure, what was checked, and the image.

    Args:
        diagnosis: its ``case`` is shown as it is, so it should be a pseudonym.
        picture: ``(h, w)`` or ``(h, w, 3)``, the image as it was read.
        overlays: by name an image of the same size, ``(h, w, 3)``, and a caption that says what it shows.
        path: the HTML file to write.
        frames: by number, the moments of a sequence that are shown beside the curve of their shares.
    """
    panes = [("image", picture, ""), *((name, image, caption) for name, (image, caption) in overlays.items())]
    # What was found where is what a reader looks for first.
    drawn = ("all findings", *(task for task, answer in diagnosis.answers.items() if answer.kind in DENSE))
    panes.sort(key=lambda pane: not pane[0].startswith(drawn))
    shown = [
        {"name": name, "picture": _data_uri(image), "caption": caption, "small": max(image.shape[:2]) < 100}
        for name, image, caption in panes
    ]
    answers = [answer_in_words(answer) for answer in diagnosis.answers.values()]
    _write(path, "diagnosis.html", diagnosis=diagnosis, panes=shown, answers=answers, novelty=_novelty(diagnosis),
           concordance=_concordance(diagnosis), moments=_moments(diagnosis, frames or {}),
           shares=[persons.shares(found) for found in diagnosis.shares])  # fmt: skip


def _moments(diagnosis: Diagnosis, frames: Mapping[int, Picture]) -> dict[str, Any] | None:
    if not diagnosis.moments:
        return None
    by_frame = {moment.frame: moment for moment in diagnosis.moments}
    cards = [
        {
            "picture": _data_uri(picture, 192),
            "number": n + 1,
            "share": by_frame[n].share,
            "at": when(by_frame[n].seconds),
        }
        for n, picture in frames.items()
    ]
    return {"curve": figures.moments(diagnosis.moments), "shown": cards}


def _concordance(diagnosis: Diagnosis) -> dict[str, Any] | None:
    found = diagnosis.concordance
    if found is None:
        return None
    sentence = ""
    if found.wrong is not None:
        share, low, high = (shown(number, "percent") for number in found.wrong)
        how = "agreed" if found.agree else "disagreed"
        sentence = (
            f"In {found.cases} cases held out from training the answers {how} like this; "
            f"the class was wrong in {share} of them ({low} to {high})."
        )
    return {"agree": found.agree, "statements": found.statements, "sentence": sentence}


def _novelty(diagnosis: Diagnosis) -> dict[str, Any] | None:
    if diagnosis.novelty is None:
        return None
    strange = diagnosis.novelty.score > diagnosis.novelty.threshold
    share = f"{shown(diagnosis.novelty.p_value, 'percent')} of calibration cases were at least as far"
    distance = f"its distance is {shown(diagnosis.novelty.score)}, the limit {shown(diagnosis.novelty.threshold)}"
    return {"strange": strange, "sentence": f"{share} from what the model was trained on; {distance}."}


def diagnoses_page(diagnoses: Sequence[Diagnosis], path: str | Path, pages: Mapping[str, str] | None = None) -> None:
    """Many cases in one table, withheld ones first.

    Args:
        diagnoses: their ``case`` is shown as it is.
        path: the HTML file to write.
        pages: by case, the file name of its own page, relative to this one.
    """
    tasks = list(dict.fromkeys(task for diagnosis in diagnoses for task in diagnosis.answers))
    rows = [
        {
            "case": diagnosis.case,
            "link": quote((pages or {}).get(diagnosis.case, "")),
            "answers": [_cells(diagnosis.answers.get(task)) for task in tasks],
            "reasons": "; ".join(diagnosis.reasons) if diagnosis.abstained else None,
            "novelty": "–" if diagnosis.novelty is None else shown(diagnosis.novelty.p_value, "percent"),
        }
        for diagnosis in sorted(diagnoses, key=lambda diagnosis: not diagnosis.abstained)
    ]
    withheld = sum(diagnosis.abstained for diagnosis in diagnoses)
    models = list(dict.fromkeys(diagnosis.model for diagnosis in diagnoses))
    _write(path, "diagnoses.html", rows=rows, tasks=tasks, withheld=withheld, models=models)


def _cells(answer: Answer | None) -> dict[str, str]:
    if answer is None:
        return {"verdict": "–", "leading": "–", "possible": "–"}
    said = answer_in_words(answer)
    leading = [f"{bar['name']} {shown(bar['probability'], 'percent')}" for bar in said["bars"][:1]]
    possible = ", ".join(answer.prediction_set) or "–"
    return {"verdict": said["verdict"], "leading": "".join(leading) or said["number"], "possible": possible}


def training_page(
    history: Sequence[Mapping[str, Any]], recipe_text: str, notes: Sequence[str], path: str | Path
) -> None:
    """How a training went: losses and metrics along it, the plan with its reasons, and the recipe.

    Args:
        history: a row an epoch of each network, numbers (or their text) by name: ``member``, ``epoch``, the losses
            (named ``loss`` or ending in it) and any metrics.
        recipe_text: the TOML, whose comments are the reasons of its choices.
        notes: what was decided and why, a sentence each.
        path: the HTML file to write.
    """
    columns = list(dict.fromkeys(name for entry in history for name in entry))
    members = list(dict.fromkeys(entry.get("member") for entry in history))
    names = [name for name in columns if name not in ("member", "epoch")]
    lines = {name: [_line(history, name, member) for member in members] for name in names}
    lines = {name: found for name, found in lines.items() if any(found)}
    losses = {name: found for name, found in lines.items() if name.endswith("loss")}
    networks = "One network" if len(members) < 2 else f"{len(members)} networks"
    drawn = (
        [("Loss", losses, "What is minimised, beside the same on cases that are not trained on.")] if losses else []
    )
    drawn += [(name, {name: found}, "") for name, found in lines.items() if name not in losses]
    many = " A line for each network." if len(members) > 1 else ""
    _write(
        path,
        "training.html",
        title=f"{networks}, {len(history):,} epochs in all" if history else "Not trained yet",
        tiles=[_best(name, found) for name, found in lines.items()],
        figures=[
            {"title": title, "drawing": figures.history(found, "epoch"), "caption": caption + many}
            for title, found, caption in drawn
        ],
        notes=list(notes),
        recipe=_recipe(recipe_text),
        columns=columns,
        rows=[[_cell(entry.get(name)) for name in columns] for entry in history],
    )


def ablation_page(result: Mapping[str, Any], path: str | Path) -> None:
    """What each augmentation is worth: differences to the base as a forest plot, and every figure behind them.

    Args:
        result: the content of ``ablation.json`` (see :func:`osler.ablation.ablate`).
        path: the HTML file to write.
    """
    heads = {"auroc": "AUROC", "robust": "AUROC, corrupted images", "brier": "Brier score", "log_loss": "Log loss"}
    compared = [arm for arm in result["arms"] if arm["differences"]]
    drawings = [
        {
            "title": heads[key],
            "drawing": figures.forest([(arm["name"], arm["differences"][key]) for arm in compared], heads[key]),
            "caption": "Difference to the base with its paired 95 % interval over patients; right is better.",
        }
        for key in ("auroc", "robust")
        if compared
    ]
    _write(path, "ablation.html", about=result, heads=heads, figures=drawings)


def inspection_page(
    inspection: Mapping[str, Any],
    pictures: Sequence[Sequence[Sequence[Mapping[str, Any]]]],
    distributions: Mapping[str, Sequence[float]],
    path: str | Path,
) -> None:
    """What is in a cohort, what is wrong with it and what to do.

    Args:
        inspection: the content of ``inspection.json``.
        pictures: for each of its problems rows of cases: ``case`` (shown as it is), ``facts`` and ``picture``.
        distributions: values of all cases by name, drawn as histograms.
        path: the HTML file to write.
    """
    rows = [
        [[{**card, "picture": _data_uri(card["picture"], side=160)} for card in row] for row in shown]
        for shown in pictures
    ]
    summary = inspection["summary"]
    tables = [(f"{task} (class)", counts) for task, counts in summary["classes"].items()]
    tables += [("images", summary["images"])] if summary["images"] else []
    tables += [("split", summary["splits"]), ("size (time x depth x height x width)", summary["sizes"])]
    tables += [("spacing (z x y x x, mm)", summary["spacings"])]
    tables += [
        (name, counts)
        for name, counts in summary["values"].items()
        if {value.rpartition(": ")[2] for value in counts} != {"None"}
    ]
    tables += [("missing values", summary["missing"])] if summary["missing"] else []
    drawn = [(name, figures.histogram(values, name)) for name, values in distributions.items()]
    _write(
        path,
        "inspection.html",
        summary=summary,
        problems=[{**one, "rows": some} for one, some in zip(inspection["problems"], rows, strict=True)],
        tables=[
            (name, [(value, count, count / max(1, summary["cases"])) for value, count in counts.items()])
            for name, counts in tables
        ],
        figures=drawn,
    )


def _line(history: Sequence[Mapping[str, Any]], name: str, member: Any) -> list[tuple[float, float]]:
    """Epoch and value of one network, where there is a value."""
    rows = [entry for entry in history if entry.get("member") == member]
    pairs = [(_number(entry.get("epoch", i + 1)), _number(entry.get(name))) for i, entry in enumerate(rows)]
    return [(x, y) for x, y in pairs if x is not None and y is not None]


def _best(name: str, lines: Sequence[Sequence[tuple[float, float]]]) -> dict[str, str]:
    """The last and the best value of each network, the mean over networks where there are several."""
    choose = min if name.endswith(("loss", "error", "mae", "rmse")) else max
    known = [line for line in lines if line]
    best = [choose(line, key=lambda pair: pair[1]) for line in known]
    last = float(np.mean([line[-1][1] for line in known]))
    where = f"at epoch {best[0][0]:.0f}" if len(known) == 1 else f"mean of {len(known)} networks"
    value = shown(float(np.mean([pair[1] for pair in best])))
    return {"label": name, "value": value, "meaning": f"best, {where}; at the end {shown(last)}"}


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


def _cell(value: Any) -> str:
    number = _number(value)
    return str(value or "–") if number is None else shown(number) if number % 1 else f"{number:.0f}"


def _recipe(text: str) -> Markup:
    """TOML with its comments set apart: they are the reasons."""
    lines = []
    for line in text.splitlines():
        code, mark, why = line.partition("#")
        # A # inside of a string is no comment; an odd number of quotes before it tells.
        if code.count('"') % 2:
            code, mark, why = line, "", ""
        shown_code = Markup('<span class="part">{}</span>').format(code) if code.startswith("[") else escape(code)
        lines.append(shown_code + (Markup('<span class="why">#{}</span>').format(why) if mark else ""))
    return Markup("\n").join(lines)

"""Names, meanings and numbers as people read them on a page."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from osler.case import DENSE, Answer, Measurement

# name: (label, meaning, form, scale)
_SHARE, _PLAIN = (0.0, 1.0), None
FIGURES: dict[str, tuple[str, str, str, tuple[float, float] | None]] = {
    "auroc": ("AUROC", "how often a case with the class ranks above one without", "decimal", (0.5, 1.0)),
    "accuracy": ("Accuracy", "share of right decisions", "percent", _SHARE),
    "balanced_accuracy": ("Balanced accuracy", "mean sensitivity over the classes", "percent", _SHARE),
    "sensitivity": ("Sensitivity", "share of those with the class that are found", "percent", _SHARE),
    "specificity": ("Specificity", "share of those without it that are cleared", "percent", _SHARE),
    "ppv": ("Positive predictive value", "share of those stated that have it, at this frequency", "percent", _SHARE),
    "npv": ("Negative predictive value", "share of those cleared that do not, at this frequency", "percent", _SHARE),
    "f1": ("F1", "harmonic mean of sensitivity and positive predictive value", "decimal", _SHARE),
    "brier": ("Brier score", "mean squared error of the probabilities; 0 is best", "decimal", _PLAIN),
    "ece": (
        "Expected calibration error",
        "mean gap between stated and observed; above 0 by chance",
        "decimal",
        _PLAIN,
    ),
    "calibration_slope": (
        "Calibration slope",
        "1 is ideal; below, the probabilities are too extreme",
        "decimal",
        (0, 2),
    ),
    "calibration_intercept": ("Calibration in the large", "0 is ideal; below, they are too high", "decimal", (-1, 1)),
    "set_coverage": (
        "Coverage of the sets",
        "how often the set of possible answers holds the truth",
        "percent",
        _SHARE,
    ),
    "set_size": ("Size of the sets", "mean number of possible answers", "decimal", _PLAIN),
    "quadratic_kappa": ("Quadratic kappa", "agreement on the rank beyond chance", "decimal", _SHARE),
    "mae": ("Mean absolute error", "in ranks or in the unit of the quantity", "decimal", _PLAIN),
    "rmse": ("Root mean squared error", "large errors weigh more", "decimal", _PLAIN),
    "r2": ("R²", "share of the variance explained", "decimal", _SHARE),
    "spearman": ("Spearman correlation", "agreement of the order", "decimal", (-1, 1)),
    "interval_coverage": ("Coverage of the intervals", "how often they hold the truth", "percent", _SHARE),
    "interval_width": ("Width of the intervals", "in the unit of the quantity", "decimal", _PLAIN),
    "abstained_share": ("Withheld", "share of cases without a decision", "percent", _SHARE),
    "error": ("Error among all", "share of wrong decisions, or mean absolute error", "decimal", _PLAIN),
    "error_answered": ("Error among the answered", "the same, without withheld cases", "decimal", _PLAIN),
    "error_withheld": ("Error among the withheld", "what withholding avoided", "decimal", _PLAIN),
    "aurc": (
        "Area under risk and coverage",
        "mean error over all shares answered; lower is better",
        "decimal",
        _PLAIN,
    ),
    "dice": ("Dice", "overlap with the reader's outlines, where there is something", "decimal", _SHARE),
    "iou": ("Intersection over union", "the same as a share of both together", "decimal", _SHARE),
    "hd95": ("Hausdorff distance, 95 %", "95 % of the outline lie nearer", "decimal", _PLAIN),
    "assd": ("Mean surface distance", "from outline to outline, both ways", "decimal", _PLAIN),
    "nsd": ("Normalised surface distance", "share of the outlines within the tolerance", "percent", _SHARE),
    "volume_error": ("Error of the volume", "mean share; above 0 outlines are too large", "decimal", (-1, 1)),
    "volume_error_absolute": ("Absolute error of the volume", "too large or too small", "percent", _PLAIN),
    "drawn_without": ("Drawn where there is nothing", "share of images without it", "percent", _SHARE),
    "lesion_sensitivity": ("Lesions found", "share of all that there are", "percent", _SHARE),
    "lesion_precision": ("Lesions that are real", "share of all that were stated", "percent", _SHARE),
    "false_lesions": ("False lesions an image", "stated where the reader has none", "decimal", _PLAIN),
    "map50": ("Average precision, IoU 0.5", "over all thresholds of the score", "decimal", _SHARE),
    "map": ("Average precision, IoU 0.5 to 0.95", "mean over ten overlaps, as in COCO", "decimal", _SHARE),
    "map10": ("Average precision, IoU 0.1", "pointing at the lesion is enough", "decimal", _SHARE),
    "cpm": ("FROC, mean sensitivity", "at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false boxes an image", "decimal", _SHARE),
}
# Findings below the threshold that a page lists, for those who want to look.
MOST_UNSURE = 8
HEADLINES = {
    "binary": ("auroc", "sensitivity", "specificity", "calibration_slope"),
    "multiclass": ("auroc", "accuracy", "balanced_accuracy", "set_coverage"),
    "ordinal": ("quadratic_kappa", "accuracy", "mae", "set_coverage"),
    "multilabel": ("auroc", "sensitivity", "specificity", "set_coverage"),
    "regression": ("mae", "r2", "spearman", "interval_coverage"),
    "segmentation": ("dice", "hd95", "nsd", "lesion_sensitivity"),
    "detection": ("map50", "map", "cpm", "lesion_sensitivity"),
}


def shown(value: float | None, form: str = "decimal") -> str:
    """A number for people: as many digits as it deserves; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    if form == "percent":
        if 0 < value < 0.0005 or 0.9995 < value < 1:
            return "<\u00a00.1\u00a0%" if value < 0.5 else ">\u00a099.9\u00a0%"
        return f"{100 * value:.1f}\u00a0%" if 0 < value < 1 else f"{100 * value:.0f}\u00a0%"
    sign = "−" if value < 0 and round(value, 3) != 0 else "+" if form == "signed" and value > 0 else ""
    size = abs(value)
    return sign + (f"{size:.3f}" if size < 10 else f"{size:.2f}" if size < 100 else f"{size:,.0f}")


def row(key: str, estimate: Mapping[str, Any]) -> dict[str, Any]:
    """A figure of ``evaluation.json`` with its name, meaning, form and scale."""
    label, meaning, form, scale = FIGURES.get(key, (key, "", "decimal", None))
    if key.startswith("net_benefit_"):
        threshold = 100 * float(key.removeprefix("net_benefit_"))
        label = f"Net benefit at {threshold:g} %"
        meaning = "true positives a case, less the false ones at that exchange rate"
    plain = {"value": None, "note": "", "method": "", "low": None, "high": None, "n": 0} | dict(estimate)
    return {"label": label, "meaning": meaning, "form": form, "scale": scale, "estimate": plain}


def when(seconds: float | None) -> str:
    """A time after the first moment of a sequence; nothing where it is unknown."""
    if seconds is None:
        return ""
    return f"day {seconds / 86_400:.0f}" if seconds > 2 * 86_400 else f"{seconds:.3g} s"


def answer_in_words(answer: Answer) -> dict[str, Any]:
    """What is said about one task, in words and bars."""
    if answer.kind in DENSE:
        return _places_in_words(answer)
    by_name = {finding.name: finding for finding in answer.findings}
    if answer.kind == "regression":
        finding = answer.findings[0]
        verdict = f"{shown(finding.value)} {finding.unit}".strip()
        ends = "" if finding.interval is None else " to ".join(shown(x) for x in finding.interval)
        level = "" if answer.coverage is None else f", made to hold the truth in {100 * answer.coverage:g} % of cases"
        number = f"{finding.name}; prediction interval {ends}{level}" if ends else finding.name
        return {"task": answer.task, "verdict": verdict, "number": number, "sets": "", "bars": [], "places": []}
    nothing = "Nothing above its threshold" if answer.kind == "multilabel" else "No decision"
    bars = [
        {
            "name": name,
            "probability": finding.probability,
            "interval": finding.interval,
            "stated": name in answer.decision,
        }
        for name, finding in by_name.items()
        if finding.probability is not None
    ]
    if answer.kind != "ordinal":
        bars.sort(key=lambda bar: (not bar["stated"], -float(str(bar["probability"]))))
    verdict = ", ".join(answer.decision) or nothing
    sets = _set_in_words(answer)
    return {"task": answer.task, "verdict": verdict, "number": "", "sets": sets, "bars": bars, "places": []}


def _places_in_words(answer: Answer) -> dict[str, Any]:
    """How many of which class were found, and a row for each."""
    placed = [finding for finding in answer.findings if finding.box is not None]
    certain = [finding for finding in placed if (finding.probability or 0.0) >= (answer.threshold or 0.0)]
    count = Counter(finding.name for finding in certain)
    verdict = ", ".join(f"{name}: {n}" if n > 1 else name for name, n in count.items()) or "Nothing stated"
    stated = {id(finding) for finding in certain}
    unsure = [finding for finding in placed if id(finding) not in stated]
    left = (
        f"{len(unsure) - MOST_UNSURE} more, even less likely, are in diagnosis.json."
        if len(unsure) > MOST_UNSURE
        else ""
    )
    nowhere = [finding.name for finding in answer.findings if finding.box is None and finding.name not in count]
    places = [
        {
            "number": number,
            "name": finding.name,
            "stated": number <= len(certain),
            "frame": finding.frame,
            "probability": finding.probability,
            "interval": finding.interval,
            "measurements": [_measured(m) for m in finding.measurements],
        }
        for number, finding in enumerate([*certain, *unsure[:MOST_UNSURE]], 1)
    ]
    number = f"Nowhere: {', '.join(dict.fromkeys(nowhere))}." if nowhere else ""
    return {"task": answer.task, "verdict": verdict, "number": number, "sets": left, "bars": [], "places": places}


def _measured(measurement: Measurement) -> dict[str, str]:
    ends = measurement.interval
    span = "" if ends is None else f"{_digits(ends[0])} to {_digits(ends[1])}"
    return {"name": measurement.name, "value": f"{_digits(measurement.value)} {measurement.unit}", "span": span}


def _digits(value: float) -> str:
    """Three digits that count: more than any of these measurements can promise."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _set_in_words(answer: Answer) -> str:
    if answer.coverage is None:
        return ""
    level, names = f"{100 * answer.coverage:g} %", answer.prediction_set
    if not names:
        return f"No class is likely enough for a set that holds the truth in {level} of such cases."
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
    if answer.kind == "multilabel":
        return f"Cannot be ruled out, at {level}: {listed}."
    if len(names) == len(answer.findings):
        return f"No class can be ruled out: a set made to hold the truth in {level} of such cases holds all of them."
    only = "only " if len(names) == 1 else ""
    return f"Possible answers: {only}{listed} (sets made like this hold the truth in {level} of such cases)."


SOURCES = {
    "image": "image only",
    "covariates": "covariates only",
    "both": "both",
    "table": "covariates only, boosted trees",
}

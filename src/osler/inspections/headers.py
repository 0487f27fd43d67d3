"""Header fields and columns that tell the label though they should not: the scanner, the ward, the order of files.

A network that can see what a field betrays (the look of a scanner, a site's collimation) learns that instead of the
disease (Zech et al., *Variable generalization performance of a deep learning model to detect pneumonia*, 2018).
Each value is judged by other patients who have it, so an identifier, whose values do not come back, tells nothing;
but the number, the date or the folder in one can.
"""

import datetime
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from osler.columns import meaning
from osler.inspections import Evidence, Trouble
from osler.metrics.estimate import Estimate
from osler.probe import Cell, area, contrasts, family, levels, number, tell_by_value

# A field that moves the answer by less than that is found in every cohort that is large enough.
_TELLS = 0.6
_NAMED = 6
# What the check of exposure asks already.
_EXPOSURE = ("image.min", "image.max", "image.mean", "image.std")


@dataclass(frozen=True)
class _Told:
    field: str
    of: str
    usual: Estimate


def find(evidence: Evidence) -> list[Trouble]:
    """``header_shortcut``, one for each task: the fields that tell its classes, the strongest first.

    Said of a field whose out-of-fold AUROC is above .5 with a chance of .1 % that any of all fields is so by chance
    (Bonferroni), and above .6 with 95 %. Columns that are by their name known at diagnosis (age, sex) or outcomes are
    not asked: the former may tell the label, the latter do.
    """
    columns = {name: levels(cells) for name, cells in _columns(evidence)}
    columns = {name: level for name, level in columns.items() if len(np.unique(level)) > 1}
    asked = list(contrasts(evidence.entries, evidence.questions))
    confidence = family(len(columns) * len(asked), alarm=0.001)
    best: dict[tuple[str, str], _Told] = {}
    for contrast in asked:
        for name, level in columns.items():
            scores = tell_by_value(level, contrast)
            usual = area(scores, contrast)
            if not usual.low > _TELLS or not area(scores, contrast, confidence).low > 0.5:
                continue
            key = (contrast.task, name)
            if key not in best or usual.value > best[key].usual.value:
                best[key] = _Told(name, contrast.name, usual)
    tasks = dict.fromkeys(task for task, _ in best)
    return [_trouble(task, [told for (of, _), told in best.items() if of == task]) for task in tasks]


def _trouble(task: str, told: list[_Told]) -> Trouble:
    told.sort(key=lambda each: (-each.usual.value, each.field))
    parts = [
        f"{each.field} (of {each.of!r}, AUROC {each.usual.value:.2f}, {each.usual.low:.2f} to {each.usual.high:.2f})"
        for each in told[:_NAMED]
    ]
    more = f" and {len(told) - _NAMED} more" if len(told) > _NAMED else ""
    return Trouble(
        "header_shortcut",
        (),
        f"{task} can be told without the image, from {', '.join(parts)}{more}",
        "find out why; collect the classes in the same places and ways, or compare within each value of the field",
    )


def _columns(evidence: Evidence) -> Iterator[tuple[str, Sequence[Cell]]]:
    """Every field and column that is asked, and what can be made of those whose values do not come back."""
    entries = evidence.entries
    plain: dict[str, Sequence[Cell]] = {k: v for k, v in evidence.fields.items() if k not in _EXPOSURE}
    for name in dict.fromkeys(name for entry in entries for name in entry.metadata):
        if meaning(name) not in ("attribute", "outcome"):
            plain[name] = [entry.metadata.get(name) for entry in entries]
    if evidence.grouping:
        plain["the patient's identifier"] = [entry.patient for entry in entries]
    for name, cells in plain.items():
        texts = [cell for cell in cells if isinstance(cell, str) and cell]
        if len(set(texts)) <= max(20, 0.2 * len(cells)):
            yield name, cells
            continue
        yield f"the number in {name}", [_number_in(cell) for cell in cells]
        yield f"the text without numbers in {name}", [_without_digits(cell) for cell in cells]


def _number_in(cell: Cell) -> float | None:
    """A date as days, else the last number: ``2020-03-01``, ``scan_0012.png``."""
    if not isinstance(cell, str):
        return cell
    value = number(cell)
    if not np.isnan(value):
        return value
    for form in ("%Y%m%d", "%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y", "%B %d, %Y"):
        try:
            return float(datetime.datetime.strptime(cell[:20].strip(), form).toordinal())
        except ValueError:
            continue
    digits = re.findall(r"\d+", cell)
    return float(digits[-1][-15:]) if digits else None


def _without_digits(cell: Cell) -> str | None:
    return re.sub(r"\d+", "", cell) if isinstance(cell, str) else None

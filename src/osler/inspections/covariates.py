"""Covariates that are the outcome; and which columns may be covariates at all, which not, and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from osler.case import Entry, Question
from osler.columns import Meaning, meaning
from osler.inspections import Evidence, Trouble
from osler.probe import Cell, Contrast, area, contrasts, family, levels, tell_by_value

PIXELS = False
# One number that tells the class nearly always is not a risk factor: age alone reaches .7 to .8 where it is strong.
_DETERMINES, _AT_LEAST = 0.95, 0.85
_MOSTLY_MISSING = 0.5

_WITHHELD: dict[Meaning, str] = {
    "outcome": "by its name an outcome, a test or an opinion: known with the diagnosis or after it",
    "identifier": "an identifier",
    "date": "a date or time: it tells when, not who",
    "acquisition": "it tells where or how the image was taken",
    "": "its name does not say that it is known at diagnosis",
}


@dataclass(frozen=True)
class Column:
    """What may be done with a column of a cohort's table.

    Attributes:
        name: as in the table, without ``covariate.``.
        verdict: ``covariate`` (given as one, nothing against it), ``propose`` (may be made one) or ``withhold``.
        reason: a clause that says why.
        missing: share of the cases that have no value.
        values: how many different values there are.
    """

    name: str
    verdict: Literal["covariate", "propose", "withhold"]
    reason: str
    missing: float
    values: int


def propose(entries: Sequence[Entry], questions: Sequence[Question]) -> tuple[Column, ...]:
    """Every covariate and every other column, with what may be done with it: in the order of the table.

    Proposed is only what its name says to be known at diagnosis, and what the values do not speak against. It is
    a proposal: whoever made the table knows what was known when.
    """
    asked = list(contrasts(entries, questions))
    given = {name: [entry.covariates.get(name) for entry in entries] for name in _names(entries, "covariates")}
    rest = {name: [entry.metadata.get(name) for entry in entries] for name in _names(entries, "metadata")}
    return tuple(_judge(name, cells, asked, name in given) for name, cells in (given | rest).items())


def find(evidence: Evidence) -> list[Trouble]:
    """``leaking_covariate``: a covariate that nearly determines the label, or is an outcome by its name."""
    asked = list(contrasts(evidence.entries, evidence.questions))
    found = []
    for name in _names(evidence.entries, "covariates"):
        cells = [entry.covariates.get(name) for entry in evidence.entries]
        told = _determined(cells, asked)
        if not told and meaning(name) != "outcome":
            continue
        said = told or f"is {_WITHHELD['outcome']}"
        fix = f"leave {name!r} out of the covariates, unless it is known before the image is read"
        found.append(Trouble("leaking_covariate", (), f"the covariate {name!r} {said}", fix))
    return found


def _names(entries: Sequence[Entry], where: Literal["covariates", "metadata"]) -> list[str]:
    return list(dict.fromkeys(name for entry in entries for name in getattr(entry, where)))


def _judge(name: str, cells: list[Cell], asked: list[Contrast], given: bool) -> Column:
    known = [cell for cell in cells if cell not in (None, "")]
    missing, values = 1 - len(known) / max(1, len(cells)), len(set(known))
    said = meaning(name)
    told = _determined(cells, asked)
    words = [cell for cell in known if isinstance(cell, str)]
    if values == 0:
        reason = "it is empty"
    elif values == 1:
        reason = "it is the same in every case that has it"
    elif told:
        reason = f"it {told}"
    elif said != "attribute" and not (given and said == ""):
        reason = _WITHHELD[said]
    elif missing > _MOSTLY_MISSING and not given:
        reason = f"{missing:.0%} of the cases have no value"
    elif len(words) > 0.5 * len(known) and len(set(words)) > 0.5 * len(words):
        reason = "nearly every case has another text"
    elif given:
        rare = f"; {missing:.0%} of the cases have no value" if missing > _MOSTLY_MISSING else ""
        return Column(name, "covariate", f"given as a covariate{rare}", missing, values)
    else:
        return Column(name, "propose", "by its name known at diagnosis", missing, values)
    return Column(name, "withhold", reason, missing, values)


def _determined(cells: list[Cell], asked: list[Contrast]) -> str:
    """How well the column alone tells a class, if nearly always; else empty."""
    level = levels(cells)
    if len(np.unique(level)) < 2:
        return ""
    for contrast in asked:
        scores = tell_by_value(level, contrast)
        usual, sure = area(scores, contrast), area(scores, contrast, family(len(asked)))
        if usual.value >= _DETERMINES and sure.low >= _AT_LEAST:
            return (
                f"alone tells {contrast.name!r} with an AUROC of {usual.value:.2f} "
                f"({usual.low:.2f} to {usual.high:.2f})"
            )
    return ""

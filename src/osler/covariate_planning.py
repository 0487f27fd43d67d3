"""What a plan says of covariates: which of the columns that a cohort names are used, and why."""

from typing import Any

from osler.cohort import Cohort
from osler.inspections import covariates as columns
from osler.problem import Problem
from osler.recipe import Recipe


def plan(base: dict[str, Any], why: dict[str, str], cohort: Cohort) -> None:
    """Columns that the cohort names as covariates, without those that tell the answer or nothing."""
    learned = [entry for entry in cohort.entries if entry.split != "test"] or list(cohort.entries)
    named = dict.fromkeys(name for entry in cohort.entries for name in entry.covariates)
    judged = [one for one in columns.propose(learned, cohort.questions) if one.name in named]
    if not judged:
        return
    kept = [one for one in judged if one.verdict == "covariate"]
    left = [f"{one.name}: {one.reason}" for one in judged if one.verdict != "covariate"]
    base["covariates"] = {"columns": [one.name for one in kept]}
    told = [f"{one.name}: {one.reason}" for one in kept]
    why["covariates.columns"] = "; ".join([*told, *(f"left out is {one}" for one in left)])
    if kept:
        base["network"]["fusion"] = "concat"
        why["network.fusion"] = "evidence of image and person is added, and seen together by a small layer"
        why["covariates.hidden"] = "so that any part of them is answered from"


def check(cohort: Cohort, plan: Recipe) -> None:
    """A recipe may name what no case has.

    Raises:
        Problem: such a covariate.
    """
    known = dict.fromkeys(name for entry in cohort.entries for name in entry.covariates)
    for name in plan.covariates.columns:
        if name not in known:
            also = (
                f"it has {', '.join(known)}" if known else "name columns covariate.NAME, or list them in cohort.toml"
            )
            raise Problem(f"the cohort has no covariate {name!r}", path=cohort.root, fix=also)

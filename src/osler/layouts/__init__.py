"""Folders and tables that hold a cohort: one layout a file.

Every file holds ``matches(path) -> bool`` (cheap) and ``read(path) -> Listing``, which reads names, headers and
tables but no pixels.
"""

from dataclasses import dataclass

from osler.case import Entry, Question
from osler.problem import Problem


@dataclass(frozen=True)
class Listing:
    """What a folder or table says about its cases.

    Attributes:
        entries: the cases, in a stable order (by id).
        questions: what the labels ask, one for each task.
        grouping: how patients were told apart, e.g. ``"column patient_id"`` or ``"DICOM PatientID"``;
            empty where nothing says so and each case counts as its own patient.
        problems: rows or files that were left out, each with its reason; the rest goes on.
        notes: what was assumed, a sentence each.
    """

    entries: tuple[Entry, ...]
    questions: tuple[Question, ...]
    grouping: str = ""
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()

"""Patients who stand in more than one given split: their images know each other."""

from collections import defaultdict

from osler.inspections import Evidence, Trouble

PIXELS = False


def find(evidence: Evidence) -> list[Trouble]:
    """``torn_patient``: where the cohort says which cases share a patient, and which split each is in."""
    if not evidence.grouping:
        return []
    by_patient = defaultdict(list)
    for entry in evidence.entries:
        by_patient[entry.patient].append(entry)
    torn = [
        tuple(entry.id for entry in entries)
        for entries in by_patient.values()
        if len({entry.split or "train" for entry in entries}) > 1
    ]
    if not torn:
        return []
    cases = tuple(case for group in torn for case in group)
    message = f"{len(torn):,} patients ({evidence.grouping}) stand in more than one split, with {len(cases):,} cases"
    fix = "give each patient to one split; train does not begin before"
    return [Trouble("torn_patient", cases, message, fix, "stop", tuple(torn))]

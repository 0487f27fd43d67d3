"""Images that show nothing, or far less than the others of their cohort: blank, saturated, blurred, noisy."""

from osler.inspections import Evidence, Trouble


def find(evidence: Evidence) -> list[Trouble]:
    """Outliers by robust z-scores within the cohort."""
    return []

"""Each planted defect is found and the right cases are named; clean cohorts are left alone."""

from pathlib import Path

import pytest

import osler
import planted
from osler.inspections import Trouble

TWELVE = {kind for _, kinds in planted.DEFECTS.values() for kind in kinds}


def troubles(made: planted.Planted, out: Path) -> tuple[Trouble, ...]:
    return osler.inspect(made.write(), out, say=lambda line: None).problems


@pytest.mark.slow
@pytest.mark.parametrize("defect", planted.DEFECTS)
def test_what_is_planted_is_found(defect: str, tmp_path: Path) -> None:
    plant, kinds = planted.DEFECTS[defect]
    made = plant(tmp_path / "cohort")
    found = [trouble for trouble in troubles(made, tmp_path / "out") if trouble.kind in kinds]
    assert found
    if made.cases:
        named = {case for trouble in found for case in trouble.cases}
        assert len(named & made.cases) >= 0.9 * len(made.cases)
        assert len(named & made.cases) >= 0.9 * len(named)


@pytest.mark.slow
@pytest.mark.parametrize("name", planted.CLEAN)
def test_clean_cohorts_are_left_alone(name: str, tmp_path: Path) -> None:
    made = planted.phantoms(tmp_path / "cohort", planted.CLEAN[name], 200)
    found = troubles(made, tmp_path / "out")
    assert not [trouble for trouble in found if trouble.severity == "stop" or trouble.kind in TWELVE]

"""Shapes and types are executed: every function of osler is checked against its annotations in the tests."""

import os
import sys
import types
from pathlib import Path

import pytest
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

# An int is a float (PEP 484), which beartype asks to be told; the hook takes a name, not a function.
_checker = types.ModuleType("osler_type_checker")
_checker.check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # type: ignore[attr-defined]
sys.modules["osler_type_checker"] = _checker
install_import_hook("osler", "osler_type_checker.check")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real data sets, or a skip that says what to set."""
    folder = Path(os.environ.get("OSLER_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}: set OSLER_DATA to the folder of pneumoniamnist, busi, ...")
    return folder

"""Shapes and types are executed: every function of osler is checked against its annotations in the tests."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

install_import_hook("osler", "beartype.beartype")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real data sets, or a skip that says what to set."""
    folder = Path(os.environ.get("OSLER_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}: set OSLER_DATA to the folder that holds pneumoniamnist, busi, ...")
    return folder

"""What pages say of several modalities: how good every set of them is, and what it is short of all."""

from collections.abc import Mapping
from typing import Any

from osler.pages.wording import row


def sets(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A table of ``modalities.<task>`` of ``evaluation.json``: a line for each set, with a cell for each figure."""
    if found is None or not found["subsets"]["all"]["metrics"]:
        return None
    whole = found["subsets"]["all"]["metrics"]
    first = next(iter(whole))
    lines = []
    for name, one in found["subsets"].items():
        cells = [row(key, one["metrics"][key]) if key in one["metrics"] else None for key in whole]
        less = one["less_all"].get(first)
        beside = None if less is None else row(first, less)
        lines.append({"name": name.replace("+", " + "), "n": one["n"], "cells": cells, "less": beside})
    return {"heads": [row(key, whole[key])["label"] for key in whole], "first": row(first, whole[first])["label"],
            "calibrated": "classes" not in found["subsets"]["all"], "rows": lines}  # fmt: skip

"""What pages say of covariates: what each source is worth over many cases, and what it adds in one."""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from osler.case import Share, Shares
from osler.pages.wording import SOURCES, row, shown


def sources(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Tables of ``covariates.<task>`` of ``evaluation.json``: a line a source, and a line a difference."""
    if found is None or not found["sources"]["both"]:
        return None
    keys = list(found["sources"]["both"])

    def cells(of: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [row(key, of[key]) for key in keys]

    pairs = [(name.split(" - "), one) for name, one in found["differences"].items()]
    return {
        "n": found["n"],
        "known": found["known"],
        "heads": [row(key, found["sources"]["both"][key])["label"] for key in keys],
        "rows": [{"name": SOURCES[name], "cells": cells(one)} for name, one in found["sources"].items()],
        "differences": [
            {"name": f"{SOURCES[a]} less {SOURCES[b]}", "cells": cells(one)}
            for (a, b), one in pairs if all(key in one for key in keys)
        ],
    }  # fmt: skip


def shares(found: Shares) -> dict[str, Any]:
    """A line for the image and for each covariate, the largest share first."""
    most = max((abs(one.share) for one in found.shares), default=0.0) or 1.0
    how = {
        "shapley": "Shapley's values: what a source adds on average over all orders in which sources become known.",
        "integrated_gradients": "Integrated gradients from nothing known to all that is known.",
    }[found.method]
    ordered = sorted(found.shares, key=lambda one: -abs(one.share))
    return {
        "task": found.task,
        "name": found.name,
        "unit": found.unit,
        "nothing": f"{found.nothing:+z.2f}",
        "all": f"{found.all:+z.2f}",
        "rows": [
            {"source": one.source, "value": _given(one), "bar": _bar(one.share / most), "share": f"{one.share:+z.2f}"}
            for one in ordered
        ],
        "method": how,
    }


def _given(one: Share) -> str:
    if one.source == "image":
        return ""
    if one.value is None:
        return "not known"
    return one.value if isinstance(one.value, str) else shown(float(one.value))


def _bar(share: float) -> Markup:
    """From the middle to the right for, to the left against; ``share`` from -1 to 1."""
    left, right = 50 + 50 * min(share, 0), 50 - 50 * max(share, 0)
    style = f"left:{left:.1f}%;right:{right:.1f}%"
    return Markup('<span class="track" aria-hidden="true"><i style="{}"></i></span>').format(style)

"""Figures as inline SVG that take their colours from the page, so they follow its light and dark theme.

Each function draws one figure from the plain lists of ``evaluation.json`` (see ``osler.scoring.score``).
"""

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from osler.case import Moment

# Stand-ins that are drawn by matplotlib and then replaced by the page's own colours.
INK, MUTED, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"
SERIES = tuple(f"#0500{number:02x}" for number in range(8))
_COLOURS = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--line)", PAPER: "var(--paper)"} | {
    colour: f"var(--c{number})" for number, colour in enumerate(SERIES)
}
# So many letters have room side by side below a figure.
_LETTERS = 34
_UNITS = {"mm2": "mm²", "px2": "pixels", "voxels": "voxels"}
_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.linewidth": 1.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.xmargin": 0.02,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.9,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 10,
}


@contextmanager
def _style(label: str) -> Iterator[None]:
    """While it lasts, figures are drawn in the style of the pages; ``label`` keeps the ids of figures apart."""
    with mpl.rc_context(_STYLE | {"svg.hashsalt": label}), warnings.catch_warnings():
        # The browser sets the text in its own font, so a glyph that matplotlib's font lacks is no matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def _figure(width: float = 4.4, height: float = 3.9) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Figure, label: str) -> Markup:
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return _inline(stream.getvalue(), label)


def _inline(svg: str, label: str) -> Markup:
    """An SVG file as an element of a page: no prolog, metadata, namespaces, foreign fonts or own colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg, count=2)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r' width="[^"]*pt" height="[^"]*pt"| height="[^"]*pt"| width="[^"]*pt"', "", svg, count=2)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for stand_in, colour in _COLOURS.items():
        svg = svg.replace(stand_in, colour)
    # The names of classes were escaped when they were drawn.
    return Markup(svg.replace("<svg", f'<svg class="figure" role="img" aria-label="{escape(label)}"', 1))


def _square(axes: Axes, across: str, along: str) -> None:
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=across, ylabel=along)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, dashes=(3, 3))


def _whisker(estimate: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """Value, distance to the lower and to the upper end of the interval; ``None`` where there is no value."""
    value, low, high = (estimate.get(key) for key in ("value", "low", "high"))
    if value is None:
        return None
    return value, 0.0 if low is None else max(0.0, value - low), 0.0 if high is None else max(0.0, high - value)


def roc(curves: Mapping[str, Any], classes: Mapping[str, Any]) -> Markup:
    """ROC curves with bootstrap bands, and the operating point that was fixed beforehand with its intervals."""
    with _style("ROC curve"):
        figure = _figure()
        axes = figure.subplots()
        _square(axes, "1 − specificity", "sensitivity")
        for colour, (name, curve) in zip(SERIES, curves.items(), strict=False):
            band = curve.get("band")
            if band and len(curves) <= 3:
                axes.fill_between(band["fpr"], band["low"], band["high"], color=colour, alpha=0.14, linewidth=0)
            axes.plot(curve["fpr"], curve["tpr"], color=colour, label=name)
            metrics = classes.get(name, {}).get("metrics", {})
            across, along = (_whisker(metrics.get(key, {})) for key in ("specificity", "sensitivity"))
            if across and along:
                axes.errorbar(
                    1 - across[0],
                    along[0],
                    xerr=[[across[2]], [across[1]]],
                    yerr=[[along[1]], [along[2]]],
                    color=colour,
                    elinewidth=1.2,
                    marker="o",
                    markersize=6.5,
                    markeredgecolor=PAPER,
                )
        if len(curves) > 1:
            axes.legend(loc="lower right")
        return _svg(figure, "ROC curve")


def reliability(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> Markup:
    """Stated probability against observed share with Wilson bars, and how many cases each point stands for."""
    with _style("Reliability diagram"):
        figure = _figure(height=4.3)
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1))
        _square(axes, "", "observed share")
        shift = 0.006 * (np.arange(len(curves)) - (len(curves) - 1) / 2)
        for colour, offset, (name, bins) in zip(SERIES, shift, curves.items(), strict=False):
            mean = np.array([group["mean"] for group in bins])
            share = np.array([group["fraction"] for group in bins])
            low = np.maximum(share - [group["low"] for group in bins], 0)
            high = np.maximum([group["high"] for group in bins] - share, 0)
            axes.errorbar(
                mean + offset,
                share,
                yerr=(low, high),
                color=colour,
                label=name,
                elinewidth=1.2 if len(curves) == 1 else 0.5,
                linewidth=1.4 if len(curves) > 1 else 0,
                marker="o",
                markersize=6,
                markeredgecolor=PAPER,
            )
            below.bar(mean + offset, [group["n"] for group in bins], width=0.025, color=colour, alpha=0.75)
        below.set(xlabel="stated probability", ylabel="cases")
        below.grid(visible=False, axis="x")
        below.locator_params(axis="y", nbins=2)
        if len(curves) > 1:
            axes.legend(loc="upper left")
        return _svg(figure, "Reliability diagram")


def decision(curve: Mapping[str, Sequence[float]], name: str) -> Markup:
    """Net benefit of acting on the model, on everyone and on no one (Vickers and Elkin, 2006)."""
    with _style("Decision curve"):
        figure = _figure()
        axes = figure.subplots()
        axes.axhline(0, color=MUTED, linewidth=1.2, label="treat no one")
        axes.plot(curve["threshold"], curve["all"], color=MUTED, dashes=(3, 2), linewidth=1.3, label="treat everyone")
        axes.plot(curve["threshold"], curve["model"], color=SERIES[0], label="by the model")
        top = max([0.02, *curve["model"]])
        axes.set(ylim=(-0.15 * top, 1.08 * top), xlabel=f"threshold probability of {name}", ylabel="net benefit")
        axes.legend(loc="best")
        return _svg(figure, "Decision curve")


def confusion(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> Markup:
    """Counts of truth (rows) against what was stated (columns), shaded by their share of the row."""
    table, size = np.asarray(counts), len(classes)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    side = min(3.0 + 0.45 * size, 7.0)
    with _style("Confusion matrix"):
        figure = _figure(side, side * 0.86)
        axes = figure.subplots()
        for row in range(size):
            for column in range(size):
                share = float(shares[row, column])
                colour = SERIES[0] if row == column else SERIES[1]
                axes.add_patch(
                    Rectangle((column + 0.02, row + 0.02), 0.96, 0.96, color=colour, alpha=0.06 + 0.5 * share)
                )
                axes.text(
                    column + 0.5, row + 0.47, f"{table[row, column]:,}", ha="center", va="center", weight="bold"
                )
                if size <= 6:
                    axes.text(
                        column + 0.5, row + 0.68, f"{share:.1%}", ha="center", va="center", fontsize=9, color=MUTED
                    )
        middles = np.arange(size) + 0.5
        axes.set(xlim=(0, size), ylim=(size, 0), xlabel="stated by the model", ylabel="truth")
        names = [name if len(name) <= 22 else f"{name[:21]}…" for name in classes]
        fits = max(map(len, names)) * 6 < 50 * side / size
        axes.set_xticks(middles, names, rotation=0 if fits else 35, ha="center" if fits else "right")
        axes.set_yticks(middles, names, rotation=90 if fits else 0, va="center")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        return _svg(figure, "Confusion matrix")


def risk_coverage(curve: Mapping[str, Any], kind: str) -> Markup:
    """Error among the share of cases answered when the least certain are withheld first."""
    with _style("Error against share answered"):
        figure = _figure()
        axes = figure.subplots()
        coverage, risk = np.asarray(curve["coverage"]), np.asarray(curve["risk"])
        axes.fill_between(coverage, 0, risk, color=SERIES[0], alpha=0.10, linewidth=0)
        axes.plot(coverage, risk, color=SERIES[0])
        gate, top = curve.get("gate"), float(np.nanmax(risk, initial=0.0))
        if gate and gate["risk"] is not None:
            axes.plot(gate["coverage"], gate["risk"], "o", color=SERIES[1], markersize=7, markeredgecolor=PAPER)
            axes.annotate(
                "as used",
                (gate["coverage"], gate["risk"]),
                (-8, 8),
                textcoords="offset points",
                ha="right",
                color=INK,
            )
            top = max(top, gate["risk"])
        axes.set(xlim=(0, 1.02), ylim=(0, 1.15 * top or 1), xlabel="share of cases answered")
        axes.set_ylabel("mean absolute error" if kind == "regression" else "share of errors")
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        if kind != "regression":
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0 if top > 0.04 else 1))
        return _svg(figure, "Error against share answered")


def agreement(curve: Mapping[str, Sequence[float]], quantity: str) -> Markup:
    """Predicted against true values of a regression, with their prediction intervals."""
    with _style("Predicted against true value"):
        figure = _figure()
        axes = figure.subplots()
        target, value = np.asarray(curve["target"]), np.asarray(curve["value"])
        if "low" in curve:
            axes.vlines(target, curve["low"], curve["high"], color=SERIES[0], alpha=0.18, linewidth=1)
        axes.plot(target, value, "o", color=SERIES[0], markersize=3.6, alpha=0.7, markeredgewidth=0)
        ends = [float(min(target.min(), value.min())), float(max(target.max(), value.max()))]
        axes.plot(ends, ends, color=MUTED, linewidth=1, dashes=(3, 3))
        axes.set(xlabel=f"true {quantity}", ylabel=f"predicted {quantity}")
        return _svg(figure, "Predicted against true value")


def sizes(curves: Mapping[str, Any]) -> Markup:
    """Dice against how large a class is, a dot an image, and the median of each fifth of the sizes."""
    with _style("Dice against size"):
        figure = _figure()
        axes = figure.subplots()
        for colour, (name, curve) in zip(SERIES, curves.items(), strict=False):
            size, dice = np.asarray(curve["size"]), np.asarray(curve["dice"])
            axes.plot(size, dice, "o", color=colour, markersize=3.6, alpha=0.5, markeredgewidth=0)
            order = np.argsort(size)
            fifths = [part for part in np.array_split(order, min(5, max(1, len(order) // 4))) if len(part)]
            medians = [[np.median(values[part]) for part in fifths] for values in (size, dice)]
            axes.plot(*medians, color=colour, label=name, marker="s", markersize=4, markeredgecolor=PAPER)
        axes.set_xscale("log")
        unit = next((curve["unit"] for curve in curves.values()), "")
        axes.set(ylim=(-0.03, 1.03), ylabel="Dice", xlabel=f"size in the reference, {_UNITS.get(unit, unit)}")
        # A narrow range may hold no power of ten, and in a wide one there is no room for more.
        low, high = axes.get_xlim()
        ways = [
            [tick for power in range(-6, 10) for step in steps if low <= (tick := step * 10.0**power) <= high]
            for steps in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))
        ]

        def apart(ticks: Sequence[float]) -> bool:
            letters = np.array([len(f"{tick:,g}") for tick in ticks], float)
            room = np.diff(np.log(ticks)) / np.log(high / low) * _LETTERS
            return bool((room > (letters[1:] + letters[:-1]) / 2 + 1).all())

        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(next((ticks for ticks in ways if apart(ticks)), ways[-1]), minor=False)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        if len(curves) > 1:
            axes.legend(loc="lower right")
        return _svg(figure, "Dice against size")


def froc(curves: Mapping[str, Any]) -> Markup:
    """Lesions found against false ones an image, with a band."""
    with _style("FROC curve"):
        figure = _figure()
        axes = figure.subplots()
        for colour, (name, curve) in zip(SERIES, curves.items(), strict=False):
            low, high = (np.array(curve[key], float) for key in ("low", "high"))
            if len(curves) <= 3:
                axes.fill_between(curve["rate"], low, high, color=colour, alpha=0.14, linewidth=0)
            axes.plot(curve["rate"], np.array(curve["value"], float), color=colour, label=name)
        axes.set_xscale("log", base=2)
        ticks = [2.0**power for power in range(-3, 4)]
        axes.set_xticks(ticks, ["1/8", "1/4", "1/2", "1", "2", "4", "8"])
        axes.set(xlim=(0.118, 8.5), ylim=(-0.02, 1.02), xlabel="false boxes an image", ylabel="sensitivity")
        if len(curves) > 1:
            axes.legend(loc="lower right")
        return _svg(figure, "FROC curve")


def precision_recall(curves: Mapping[str, Any]) -> Markup:
    """The highest precision at each recall or above, at an intersection over union of one half."""
    with _style("Precision and recall"):
        figure = _figure()
        axes = figure.subplots()
        for colour, (name, curve) in zip(SERIES, curves.items(), strict=False):
            # the first precision holds down to a recall of 0, and behind the last one there is none
            recall = [0.0, *curve["recall"], curve["recall"][-1]]
            precision = [curve["precision"][0], *curve["precision"], 0.0]
            axes.step(recall, precision, where="pre", color=colour, label=name)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="recall (sensitivity)", ylabel="precision")
        if len(curves) > 1:
            axes.legend(loc="lower left")
        return _svg(figure, "Precision and recall")


def of_places(curves: Mapping[str, Any]) -> list[tuple[str, Markup, str]]:
    """Title, drawing and caption of each figure of outlines and boxes that there is something for."""
    drawn = []
    if curves.get("sizes"):
        caption = (
            "A dot an image that has the class; squares are medians. One pixel more or less is much of a small one."
        )
        drawn.append(("Does it depend on the size?", sizes(curves["sizes"]), caption))
    if curves.get("froc"):
        caption = (
            "How many lesions are found if so many false boxes are accepted (IoU 0.1); the band is the 95 % range."
        )
        drawn.append(("Found against false", froc(curves["froc"]), caption))
    if curves.get("precision_recall"):
        caption = "The area below is the average precision (IoU 0.5)."
        drawn.append(("Precision and recall", precision_recall(curves["precision_recall"]), caption))
    return drawn


def history(series: Mapping[str, Sequence[Sequence[tuple[float, float]]]], across: str) -> Markup:
    """Values along a training: for each name one line of ``(x, y)`` for each network."""
    with _style("Along the training"):
        figure = _figure(4.8, 3.1)
        axes = figure.subplots()
        for number, (name, lines) in enumerate(series.items()):
            for place, line in enumerate(lines):
                x, y = zip(*line, strict=True) if line else ((), ())
                axes.plot(
                    x,
                    y,
                    color=SERIES[number % len(SERIES)],
                    alpha=1 if len(lines) == 1 else 0.7,
                    marker="o" if len(line) <= 30 else "",
                    markersize=3,
                    label=name if place == 0 else None,
                )
        axes.set_xlabel(across)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(series) > 1:
            axes.legend(loc="best")
        return _svg(figure, "Along the training")


def moments(seen: Sequence[Moment]) -> Markup:
    """What share each moment of a sequence has in an answer, along time where it is known of all of them."""
    known = all(moment.seconds is not None for moment in seen)
    last = max((moment.seconds or 0.0 for moment in seen), default=0.0)
    unit, seconds = ("days", 86_400.0) if last > 2 * 86_400 else ("seconds", 1.0)
    at = [(moment.seconds or 0.0) / seconds if known else moment.frame + 1 for moment in seen]
    with _style("Shares of the moments"):
        figure = _figure(4.8, 2.2)
        axes = figure.subplots()
        axes.vlines(at, 0, [moment.share for moment in seen], color=SERIES[0], linewidth=1)
        axes.plot(at, [moment.share for moment in seen], color=SERIES[0], marker="o", markersize=3, linewidth=0.8)
        axes.axhline(1 / len(seen), color=MUTED, linewidth=1, dashes=(3, 3))
        axes.set(xlabel=unit if known else "moment", ylabel="share", ylim=(0, None))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        return _svg(figure, "Shares of the moments")


def forest(rows: Sequence[tuple[str, Mapping[str, Any]]], across: str) -> Markup:
    """Differences with their intervals, a line each, beside a line at 0."""
    with _style(f"Difference of {across}"):
        figure = _figure(4.8, 1.0 + 0.34 * len(rows))
        axes = figure.subplots()
        axes.axvline(0, color=MUTED, linewidth=1, dashes=(3, 3))
        for place, (_, estimate) in enumerate(rows):
            whisker = _whisker(estimate)
            if whisker:
                value, below, above = whisker
                axes.errorbar(value, place, xerr=[[below], [above]], color=SERIES[0], elinewidth=1.4, marker="o")
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        axes.set(ylim=(len(rows) - 0.5, -0.5), xlabel=f"difference of {across}")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(visible=False, axis="y")
        return _svg(figure, f"Difference of {across}")


def histogram(values: Sequence[float], name: str) -> Markup:
    """How often values come, in 30 bins."""
    with _style(name):
        figure = _figure(4.4, 2.4)
        axes = figure.subplots()
        axes.hist(values, bins=30, color=SERIES[0], alpha=0.8)
        axes.set(xlabel=name, ylabel="cases")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=4))
        axes.grid(visible=False, axis="x")
        return _svg(figure, name)

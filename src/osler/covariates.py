"""What is known of the person beside the image: what each covariate may be, and how a network sees it.

A covariate is a number or one of some categories, or it is not known. What is learned of it (kind, plausible range,
categories) comes from training cases alone and stands in the recipe of the model; mean and spread stand in each
network. What is not known is a vector of its own that is learned, never a zero.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32
from numpy.typing import NDArray
from torch import Tensor, nn

from osler.case import Entry
from osler.problem import Problem
from osler.recipe import CovariatePlan

Cell = float | str | None
# Numbers whose ends everybody knows: words of a name, low, high, unit, and words of that unit. Where nearly all
# training values lie inside, they are the range.
_WELL_KNOWN: tuple[tuple[tuple[str, ...], float, float, str, tuple[str, ...]], ...] = (
    (("age",), 0, 120, "years", ()),
    (("bmi",), 5, 150, "kg/m2", ("kg", "m2")),
    (("spo2", "saturation"), 0, 100, "", ()),
    (("pulse", "heart", "hr"), 0, 400, "", ("minute",)),
    (("temperature", "temp"), 15, 45, "", ()),
    (("height",), 0.2, 280, "", ("m", "cm")),
    (("weight",), 0.2, 700, "", ("kg",)),
    (("systolic", "diastolic", "bp", "pressure"), 0, 400, "", ("mm", "mmhg")),
)
# Words of a name that say another unit: then nobody knows the ends. A gestational age is one in weeks.
_UNITS = frozenset((
    *("days", "day", "weeks", "week", "wks", "wk", "months", "month", "mos", "mo", "gestational", "gestation"),
    *("hours", "hour", "hrs", "minutes", "minute", "seconds", "kg", "g", "grams", "gram", "lbs", "lb", "pounds"),
    *("stone", "oz", "cm", "mm", "m", "m2", "inch", "inches", "ft", "feet", "f", "fahrenheit", "kelvin", "mmhg"),
    *("kpa", "hpa", "cmh2o", "score", "group", "decade"),
))  # fmt: skip
_FITS = 0.99  # share of training values inside of well-known ends from which these are believed
_MOSTLY_NUMBERS = 0.9
MOST_CATEGORIES = 64
WIDTH = 8  # numbers that a network makes of each covariate


@dataclass(frozen=True, eq=False)
class Encoded:
    """The covariates of one case.

    Attributes:
        row: ``(k,)`` float32, a number a column: the value, the number of the category, or NaN where it is not known.
        notes: what counts as unknown although something was given, and what is unusual, a sentence each.
        checked: what was checked, a sentence each.
        refused: names of those that cannot be what was given, and count as unknown.
    """

    row: NDArray[np.float32]
    notes: tuple[str, ...] = ()
    checked: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


# --- what a covariate may be --------------------------------------------------------------------------------


def learn(plan: CovariatePlan, entries: Sequence[Entry]) -> tuple[CovariatePlan, list[str]]:
    """The plan with kind, unit, range and categories of each column, from training cases; what is given stays.

    The plausible range of a number is that of the well-known ends of such numbers (an age lies between 0 and 120),
    where at least 99 % of the training values lie inside; else from the smallest to the largest training value, on
    each side widened by their distance, and not below 0 where no training value is.

    Args:
        plan: which columns, and what is known of them beforehand.
        entries: the training cases.

    Returns:
        The plan, and what was decided about single values, a sentence each.
    """
    kinds, units, notes = dict(plan.kinds), dict(plan.units), []
    ranges, seen, categories = dict(plan.ranges), dict(plan.seen), dict(plan.categories)
    for name in plan.columns:
        known = [value for entry in entries if (value := entry.covariates.get(name)) not in (None, "")]
        kind = kinds.setdefault(name, _kind(known))
        if kind == "category":
            counts = Counter(_text(value) for value in known if value is not None)
            common = sorted(label for label, _ in counts.most_common(MOST_CATEGORIES))
            units.setdefault(name, "")
            if not categories.setdefault(name, tuple(common)):
                notes.append(f"no training case has a value of {name}")
            rare = len(counts) - MOST_CATEGORIES
            if rare > 0:
                notes.append(f"{name} has {len(counts)} categories; the {rare} rarest count as missing")
            continue
        numbers = np.array([value for value in known if isinstance(value, float | int)], float)
        low, high = ranges.setdefault(name, plausible(name, numbers))
        units.setdefault(name, unit_of(name, (low, high)))
        inside = numbers[(numbers >= low) & (numbers <= high)]
        left = len(known) - len(inside)
        if left:
            notes.append(f"{left} training values of {name} are no numbers between {low:g} and {high:g}: missing")
        seen[name] = (float(inside.min()), float(inside.max())) if len(inside) else (low, high)
    filled = replace(plan, kinds=kinds, units=units, ranges=ranges, seen=seen, categories=categories)
    return filled, notes


def _kind(known: Sequence[Cell]) -> Literal["number", "category"]:
    numbers = sum(isinstance(value, float | int) for value in known)
    return "number" if known and numbers >= _MOSTLY_NUMBERS * len(known) else "category"


def unit_of(name: str, ends: tuple[float, float]) -> str:
    """The unit that a name says, as in ``crp [mg/l]``; of an age that lies between 0 and 120, years; else empty."""
    said = re.search(r"[\[(]([^\])]+)[\])]\s*$", name)
    if said:
        return said.group(1)
    known = [unit for low, high, unit in _well_known(name) if (low, high) == ends]
    return known[0] if known else ""


def _well_known(name: str) -> list[tuple[float, float, str]]:
    """Low, high and unit of such a number, unless the name says another unit."""
    words = set(re.findall(r"[a-z0-9]+", name.lower()))
    return [
        (low, high, unit)
        for names, low, high, unit, own in _WELL_KNOWN
        if words & set(names) and not (words - set(names) - set(own)) & _UNITS
    ]


def plausible(name: str, numbers: Float[NDArray[np.float64], " n"]) -> tuple[float, float]:
    """What a number of that name may be; see :func:`learn`."""
    finite = numbers[np.isfinite(numbers)]
    for low, high, _ in _well_known(name):
        inside = (finite >= low) & (finite <= high)
        if not len(finite) or inside.mean() >= _FITS:
            return float(low), float(high)
    if not len(finite):
        return 0.0, 0.0
    least, most = float(finite.min()), float(finite.max())
    span = (most - least) or abs(most) or 1.0
    return (max(0.0, least - span) if least >= 0 else least - span), most + span


# --- one case -----------------------------------------------------------------------------------------------


def encode(plan: CovariatePlan, given: Mapping[str, object], *, refuse: bool = True) -> Encoded:
    """The covariates of a case, checked.

    Args:
        plan: of a model, with everything that :func:`learn` learned.
        given: by name; other names are ignored, what is not there (or NaN) is unknown.
        refuse: what cannot be is refused; else it counts as missing, which is noted.

    Raises:
        Problem: a value outside of its plausible range, or of another type.
    """
    row = np.full(len(plan.columns), np.nan, np.float32)
    notes, checked, refused = [], [], []
    for number, name in enumerate(plan.columns):
        try:
            row[number], said = _encoded(plan, name, given.get(name))
        except Problem as problem:
            if refuse:
                raise
            said = [f"{problem.what}: it counts as missing"]
            refused.append(name)
        notes += said
        if plan.kinds[name] == "number" and np.isfinite(row[number]):
            low, high = plan.ranges[name]
            checked.append(f"{name} lies between {low:g} and {high:g} {plan.units.get(name, '')}".rstrip())
    missing = [name for name, value in zip(plan.columns, row, strict=True) if np.isnan(value)]
    if plan.columns and len(missing) == len(plan.columns):
        notes.append("nothing is known of the person: the answer rests on the image alone")
    elif missing:
        notes.append(f"not known of the person: {', '.join(missing)}")
    return Encoded(row, tuple(notes), tuple(checked), tuple(refused))


def possible(plan: CovariatePlan, given: Mapping[str, Cell]) -> dict[str, Cell]:
    """What is given, less what :func:`encode` would refuse."""
    refused = encode(plan, given, refuse=False).refused
    return {name: value for name, value in given.items() if name not in refused}


def _encoded(plan: CovariatePlan, name: str, value: object) -> tuple[float, list[str]]:
    if isinstance(value, Real):
        try:
            value = float(value)
        except OverflowError:
            value = math.inf
    blank = math.isnan(value) if isinstance(value, float) else isinstance(value, str) and not value.strip()
    if value is None or blank:
        return math.nan, []
    if not isinstance(value, float | str):
        raise Problem(f"the covariate {name} is a number or a text; {value!r} is neither", fix="give one value")
    return (_category if plan.kinds[name] == "category" else _number)(plan, name, value)


def _category(plan: CovariatePlan, name: str, value: float | str) -> tuple[float, list[str]]:
    known, text = plan.categories[name], _text(value)
    if text in known:
        return float(known.index(text)), []
    among = ", ".join(known)
    if _is_number(text) and not any(_is_number(label) for label in known):
        raise Problem(f"the covariate {name} is one of {among}; {text} is a number", fix="give one of them")
    return math.nan, [f"{name} {text!r} was in no training case (known are {among}): it counts as missing"]


def _number(plan: CovariatePlan, name: str, value: float | str) -> tuple[float, list[str]]:
    unit = plan.units.get(name, "")
    if isinstance(value, str) and not _is_number(value):
        said = f"the covariate {name} is a number{f' ({unit})' if unit else ''}; {value!r} is none"
        raise Problem(said, fix="correct it or leave it out")
    number, (low, high) = float(value), plan.ranges[name]
    if not low <= number <= high:
        raise Problem(
            f"{name} = {number:g} is not plausible: it lies between {low:g} and {high:g} {unit}".rstrip(),
            fix="correct it or leave it out",
        )
    least, most = plan.seen.get(name, (low, high))
    if least <= number <= most:
        return number, []
    return number, [f"{name} {number:g} lies outside of what the training cases have ({least:g} to {most:g})"]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _text(value: float | str) -> str:
    return value.strip() if isinstance(value, str) else f"{value:g}"


def table(plan: CovariatePlan, entries: Sequence[Entry]) -> Float32[NDArray[np.float32], "n k"]:
    """The covariates of many cases; what :func:`encode` would refuse counts as unknown."""
    rows = [encode(plan, entry.covariates, refuse=False).row for entry in entries]
    return np.stack(rows) if rows else np.empty((0, len(plan.columns)), np.float32)


def digest(plan: CovariatePlan, entries: Sequence[Entry]) -> str:
    """SHA-256 of the covariates of a cohort, after a space; empty where there are none."""
    if not plan.columns:
        return ""
    rows = sorted(f"{entry.id}|{[entry.covariates.get(name) for name in plan.columns]}" for entry in entries)
    return " " + hashlib.sha256("\n".join(rows).encode(errors="surrogateescape")).hexdigest()


def named(plan: CovariatePlan, words: Sequence[str]) -> dict[str, Cell]:
    """``("age=71", "sex=F")`` as covariates.

    Raises:
        Problem: not ``name=value``, or a name that the model does not know.
    """
    found: dict[str, Cell] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise Problem(f"{word!r} is no covariate", fix="write name=value, e.g. age=71")
        found[name.strip()] = value.strip()
    check_names(plan, found)
    return found


def check_names(plan: CovariatePlan, given: Mapping[str, Cell]) -> None:
    """Refuses what somebody gives by hand and the model does not know.

    Raises:
        Problem: such a name.
    """
    for name in given:
        if not plan.columns:
            raise Problem(f"this model takes no covariates, yet {name} is given", fix="leave it out")
        if name not in plan.columns:
            raise Problem(f"this model knows no covariate {name!r}", fix=f"it knows {', '.join(plan.columns)}")


# --- how a network sees it ----------------------------------------------------------------------------------


class Encoder(nn.Module):
    """A vector of ``WIDTH`` numbers for each covariate, one after the other.

    A number is standardised by the training cases of the network, then mapped linearly; a category has a vector of
    its own; and so has, of each column, what is not known. A category that none of these cases had is not known: its
    vector would be one that was drawn, and never learned.
    """

    mean: Tensor
    spread: Tensor
    seen: Tensor

    def __init__(self, plan: CovariatePlan) -> None:
        super().__init__()
        count = len(plan.columns)
        self.numbers = [i for i, name in enumerate(plan.columns) if plan.kinds[name] == "number"]
        self.labels = [i for i in range(count) if i not in self.numbers]
        sizes = [len(plan.categories[plan.columns[i]]) for i in self.labels]
        self.starts = np.cumsum([0, *sizes])[:-1].tolist()
        self.features = count * WIDTH
        self.missing = nn.Parameter(0.5 * torch.randn(count, WIDTH))
        self.slope = nn.Parameter(0.5 * torch.randn(len(self.numbers), WIDTH))
        self.offset = nn.Parameter(0.5 * torch.randn(len(self.numbers), WIDTH))
        self.levels = nn.Parameter(0.5 * torch.randn(sum(sizes), WIDTH))
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("spread", torch.ones(count))
        self.register_buffer("seen", torch.ones(sum(sizes), dtype=torch.bool))

    def fit(self, values: Float32[NDArray[np.float32], "n k"]) -> None:
        """Learns mean and spread of the numbers, and which categories there are, from the training part."""
        for column in self.numbers:
            known = values[np.isfinite(values[:, column]), column].astype(np.float64)
            if len(known):
                self.mean[column], self.spread[column] = float(known.mean()), float(known.std() or 1.0)
        self.seen[:] = False
        for start, column in zip(self.starts, self.labels, strict=True):
            known = values[np.isfinite(values[:, column]), column]
            self.seen[start + torch.from_numpy(known.astype(np.int64))] = True

    def forward(self, values: Float[Tensor, "b k"]) -> Float[Tensor, "b f"]:
        """The vectors of all covariates, side by side."""
        return self.each(values).flatten(1)

    def each(self, values: Float[Tensor, "b k"]) -> Float[Tensor, "b k w"]:
        """The vector of each covariate."""
        known = torch.isfinite(values)
        filled = torch.where(known, values, self.mean)
        vectors = self.missing.expand(len(values), -1, -1).clone()
        if self.numbers:
            z = ((filled - self.mean) / self.spread)[:, self.numbers, None]
            vectors[:, self.numbers] = z * self.slope + self.offset
        for start, column in zip(self.starts, self.labels, strict=True):
            if len(self.levels):
                # A column may be without any category; then nothing is known of it.
                number = (start + filled[:, column].long()).clamp(max=len(self.levels) - 1)
                vectors[:, column] = self.levels[number]
                known[:, column] &= self.seen[number]
        return torch.where(known[..., None], vectors, self.missing)

"""Class names that are likely the same class, written in two ways."""

from collections import Counter
from collections.abc import Iterator

from osler.inspections import Evidence, Trouble

PIXELS = False
# As a share of the class that it may be: a typo is rare.
_RARE = 0.05
_LONG_ENOUGH = 5
# Beginnings that turn a word into another one, though only a letter or two long.
_CHANGING = ("a", "an", "ab", "un", "in", "im", "non", "pre", "de", "re")


def find(evidence: Evidence) -> list[Trouble]:
    """``label_typo``: names that differ by case, blanks or punctuation, or a rare one that is one letter off.

    One letter off: inserted, left out, changed, or two neighbours swapped (Damerau, 1964). Names with different
    digits, one word of which is short (*T1*, *type I*), or to which a beginning was added (*normal*, *abnormal*) are
    different classes.
    """
    troubles = []
    for question in evidence.questions:
        counted: Counter[str] = Counter()
        holders: dict[str, list[str]] = {}
        for entry in evidence.entries:
            # Once a case, however many boxes it has.
            stated = (f.name for f in entry.findings if f.task == question.task and f.probability == 1)
            for name in dict.fromkeys(stated):
                counted[name] += 1
                holders.setdefault(name, []).append(entry.id)
        for rare, usual in _pairs(counted):
            troubles.append(
                Trouble(
                    "label_typo",
                    tuple(holders[rare]),
                    f"the class {rare!r} of {question.task} ({counted[rare]} cases) is written nearly like {usual!r} "
                    f"({counted[usual]} cases)",
                    f"if it is the same, write {usual!r} in those cases, or rename it in the cohort file",
                )
            )
    return troubles


def _pairs(counted: Counter[str]) -> Iterator[tuple[str, str]]:
    """Each name that may be a slip, with the most frequent name that it may stand for."""
    names = sorted(counted, key=lambda name: (-counted[name], name))
    for place, rare in enumerate(names):
        for usual in names[:place]:
            seldom = counted[rare] <= max(1, _RARE * counted[usual])
            if _plain(rare) == _plain(usual) or (seldom and _slip(rare, usual)):
                yield rare, usual
                break


def _plain(name: str) -> str:
    """Without blanks, case and punctuation, but for signs with a meaning: ``1.5``, ``I/II``, ``-1``, ``ER-``."""
    folded = name.casefold()
    last = len(folded) - 1
    kept = (
        letter
        for place, letter in enumerate(folded)
        if letter.isalnum() or letter in "+<>=./" or (letter == "-" and place in (0, last))
    )
    return "".join(kept)


def _slip(one: str, other: str) -> bool:
    a, b = sorted((one.casefold().split(), other.casefold().split()), key=lambda words: len(" ".join(words)))
    if len(a) != len(b):
        return False
    differing = [(x, y) for x, y in zip(a, b, strict=True) if x != y]
    if len(differing) != 1:
        return False
    x, y = differing[0]
    if min(len(x), len(y)) < _LONG_ENOUGH or any(letter.isdigit() for letter in x + y):
        return False
    if any(y == start + x or x == start + y for start in _CHANGING):
        return False
    return _one_off(x, y)


def _one_off(x: str, y: str) -> bool:
    """Whether one insertion, deletion, change or swap of neighbours makes ``y`` of ``x``."""
    if len(x) > len(y):
        x, y = y, x
    if len(y) - len(x) > 1:
        return False
    same = next((i for i, (p, q) in enumerate(zip(x, y, strict=False)) if p != q), len(x))
    if len(x) < len(y):
        return x[same:] == y[same + 1 :]
    swapped = x[same + 1 : same + 2] + x[same : same + 1] + x[same + 2 :]
    return x[same + 1 :] == y[same + 1 :] or swapped == y[same:]

"""Which augmentations and preparations are planned for which kind of machine, and why."""

from collections.abc import Sequence
from typing import Any

_RADIOGRAPH: dict[str, tuple[float, str]] = {
    "exposure": (0.2, "dose and tone curve differ from room to room"),
    "collimation": (0.2, "the edge of the field is set by hand"),
}
# By DICOM's code of the modality: the probability of each augmentation, and the reason for it.
SPECIFIC: dict[str, dict[str, tuple[float, str]]] = {
    "MR": {
        "ghost": (0.1, "breath and pulse"),
        "motion": (0.1, "patients move during a scan of minutes"),
        "spike": (0.05, "rare faults of a coil"),
    },
    "CT": {
        "dose": (0.2, "protocols differ in dose"),
        "metal": (0.05, "rare, and it hides much"),
    },
    "US": {
        "speckle": (0.3, "its grain differs from probe to probe"),
        "shadow": (0.2, "ribs, gas and cysts lie elsewhere in each patient"),
        "gain": (0.3, "it is set by hand"),
    },
    "CR": _RADIOGRAPH,
    "DX": _RADIOGRAPH,
    "MG": _RADIOGRAPH,
}


# What `osler ablate` said of them on public sets (recipes/README.md); the rest is what is known of such machines.
_RADIOGRAPHS = "neither gain nor loss beyond chance on PneumoniaMNIST"
EVIDENCE = {
    "MR": "not measured yet",
    "CT": "not measured yet",
    "US": "neither gain nor loss beyond chance on BUSI",
    "CR": _RADIOGRAPHS,
    "DX": _RADIOGRAPHS,
    "MG": _RADIOGRAPHS,
}


_FIELD = (
    ("collimation",),
    ("the edge of the field is set by hand and tells rooms apart; MONOCHROME1 is inverted where a file is read"),
)
# What is done to the images of each before they are resized.
PREPARATIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "MR": (
        ("foreground",),
        "there is no unit, and how much air lies around a body is chance; n4 is not planned: it takes 1 to 3 seconds "
        "a volume (benchmarks/preparation.py) and may take slow anatomy for the coil's",
    ),
    "CT": ((), "Hounsfield units mean the same on every scanner; image.intensity clips them to a window"),
    "US": (
        ("sector",),
        "text and marks beside the sector say nothing of the patient; grey values are decibels, a logarithm already, "
        "so that mean and deviation suit them",
    ),
    "CR": _FIELD,
    "DX": _FIELD,
    "MG": _FIELD,
}


def preparations(modality: str, channels: int) -> tuple[tuple[str, ...], str]:
    """Files of ``preparations`` that are planned for this modality, and why."""
    colour = "colour stays as it was read" if channels == 3 else "unknown machine: nothing is taken away"
    return PREPARATIONS.get(modality, ((), colour))


def decide(seen: Sequence[str], stated: str) -> tuple[str, str]:
    """The modality that the plan is made for, and why.

    Args:
        seen: codes of the images that were read.
        stated: what a cohort file says, which goes first.

    Returns:
        A code of :data:`SPECIFIC`; empty where nothing is known, where it is mixed, or where it is another.
    """
    codes = (stated,) if stated else tuple(seen)
    if not codes:
        return "", "unknown: the files do not say it; set modality=US, MR, CT, CR, DX or MG"
    if codes[0] in SPECIFIC and all(SPECIFIC.get(code) == SPECIFIC[codes[0]] for code in codes):
        return codes[0], f"{'the cohort file says' if stated else 'the files say'} so"
    return "", f"{', '.join(codes)}: there is no augmentation for just that"


def augmentations(modality: str) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """What is planned for this modality on top of what is planned for all, and the reason for each by its key."""
    chosen = SPECIFIC.get(modality, {})
    options = {name: {"probability": probability} for name, (probability, _) in chosen.items()}
    return options, {f"augmentation.{name}": f"{why}; {EVIDENCE[modality]}" for name, (_, why) in chosen.items()}

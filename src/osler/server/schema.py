"""The diagnosis as it is written (``osler.writing.as_data``), for the description of the server's answer."""

from dataclasses import dataclass, make_dataclass
from typing import Any, get_type_hints

from osler import case


def _written(kind: type, **other: Any) -> Any:
    """The same type with other fields; those that are ``None`` are not written."""
    types: dict[str, Any] = {**get_type_hints(kind), **other}
    fields = [(name, shown) for name, shown in types.items() if shown is not None]
    return make_dataclass(kind.__name__, fields, namespace={"__doc__": kind.__doc__})


@dataclass
class Mask:
    """Where the pixels of a finding are written: in no file where it is not stated.

    Attributes:
        file, value: the label map of the case's folder, and the finding's value in it.
        pixels: how many it has.
    """

    file: str | None
    value: int | None
    pixels: int


# Arrays are in files of their own.
Box: Any = _written(case.Box, corners=list[list[float]] | None)
Finding: Any = _written(case.Finding, mask=Mask | None, box=Box | None)
Answer: Any = _written(case.Answer, findings=list[Finding], uncertainty=None)
Diagnosis: Any = _written(case.Diagnosis, answers=dict[str, Answer])

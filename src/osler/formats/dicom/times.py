"""When the frames of a loop were taken."""

from typing import TYPE_CHECKING, Any

import numpy as np

from osler.formats.dicom import moments

if TYPE_CHECKING:
    from pydicom import Dataset

_VECTOR, _STEP = 0x00181065, 0x00181063


def of_frames(dataset: "Dataset", count: int, notes: list[str]) -> tuple[float, ...]:
    """Seconds of each frame from the first; ``()`` where the object does not say.

    In this order: what the functional groups say of each frame (PS3.3 C.7.6.16.2.2, Frame Content; C.7.6.16.2.2.6,
    Temporal Position); what Frame Increment Pointer points to (C.7.6.6.1.2), be it Frame Time Vector
    (C.7.6.5.1.2) or Frame Time (C.7.6.5.1.1), both milliseconds; either of the two without being pointed to; Cine
    Rate, frames per second; and Recommended Display Frame Rate (C.7.6.5), which is about showing, and noted.
    Frame Delay moves all frames by the same and does not count from the first.
    """
    each = _of_groups(dataset, count)
    if each:
        return each
    pointed = dataset.get("FrameIncrementPointer")
    targets = {
        int(tag) for tag in (pointed if isinstance(pointed, (list, tuple)) or _many(pointed) else [pointed or 0])
    }
    vector, step = _vector(dataset, count), _even(_number(dataset.get("FrameTime")) / 1000, count)
    # Where both are there, the pointer says which one is meant.
    found = (step or vector) if _STEP in targets and _VECTOR not in targets else (vector or step)
    if found:
        return found
    rate = _number(dataset.get("CineRate"))
    if not rate:
        rate = _number(dataset.get("RecommendedDisplayFrameRate"))
        if rate:
            notes.append(
                f"The frames are said to be shown at {rate:g} a second; that they were taken so was assumed."
            )
    return _even(1 / rate, count) if rate else ()


def _of_groups(dataset: "Dataset", count: int) -> tuple[float, ...]:
    if len(dataset.get("PerFrameFunctionalGroupsSequence") or ()) != count:
        return ()
    seconds = [moments.second_of_frame(dataset, frame) for frame in range(count)]
    return _from_first([second for second in seconds if second is not None], count)


def _vector(dataset: "Dataset", count: int) -> tuple[float, ...]:
    """The first increment is 0 by definition; whatever stands there is not counted."""
    stated = dataset.get("FrameTimeVector")
    if stated is None or isinstance(stated, (str, float, int)) or len(stated) != count:
        return ()
    return _from_first(np.cumsum([float(step) for step in stated]) / 1000, count)


def _from_first(seconds: Any, count: int) -> tuple[float, ...]:
    """Seconds that rise from frame to frame; frames out of order of time are no loop that can be timed."""
    if len(seconds) != count or not np.isfinite(seconds).all() or not (np.diff(seconds) > 0).all():
        return ()
    return tuple(float(second - seconds[0]) for second in seconds)


def _even(step: float, count: int) -> tuple[float, ...]:
    return tuple(step * frame for frame in range(count)) if step > 0 else ()


def _number(value: Any) -> float:
    """A positive number, 0 for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return 0.0
    return number if np.isfinite(number) and number > 0 else 0.0


def _many(value: Any) -> bool:
    from pydicom.multival import MultiValue

    return isinstance(value, MultiValue)

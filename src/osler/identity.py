"""What an image is known again by, under any name: SHA-256 of its pixels."""

import hashlib

import numpy as np

from osler.image import Image


def pixels(image: Image, moments: int | None = None) -> str:
    """SHA-256 of the pixels and their shape, in whatever file they stand.

    Args:
        image: as it was read, whole or in moments.
        moments: what is counted of a sequence: at most so many, evenly spaced, so that it does not matter whether
            all of it was read. Whoever compares digests asks for the same number: the model's (``Recipe.moments``).
    """
    if image.together:
        return of_each(image, moments)[0]
    image = image if moments is None else image.thinned(moments)
    if image.visits:
        return hashlib.sha256("|".join(pixels(visit) for visit in image.visits).encode()).hexdigest()
    head = f"{image.array.shape}{image.array.dtype.str}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(image.array).tobytes()).hexdigest()


def of_each(image: Image, moments: int | None = None) -> tuple[str, tuple[str, ...]]:
    """:func:`pixels`, and that of each of several images by itself: of one patient each may be another's, too.

    One that is of one value throughout is no picture, and is left out of the latter.
    """
    if not image.together:
        whole = pixels(image, moments)
        return whole, (whole,)
    each = ["" if one is None else pixels(one, moments) for one in image.together]
    shown = [one is not None and bool((one.array != one.array.flat[0]).any()) for one in image.together]
    whole = hashlib.sha256("|".join(each).encode()).hexdigest()
    return whole, tuple(digest for digest, picture in zip(each, shown, strict=True) if picture)


def short(digest: str) -> int:
    """60 bits of a SHA-256: enough to know a case again, not to rebuild it."""
    return int(digest[:15], 16)

"""Labels that are likely wrong, by confident learning (Northcutt, Jiang and Chuang, *JAIR* 70, 2021).

A classifier learns on some patients and says of the others what each looks like; a case that looks clearly more like
another class than like its own is shown. What is learned from is a small copy of the image: its place among all
images (principal components), and the brightest and darkest blobs in what the first few components leave, which is
what differs from the usual anatomy (lesions among them). Extremely randomised trees (Geurts, 2006) learn it.
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.ensemble import ExtraTreesClassifier

from osler import draws
from osler.case import Entry, Question
from osler.inspections import Evidence, Look, Trouble
from osler.probe import FEWEST_PATIENTS, FOLDS, folds, sample

_SIZE = 32
_LOWEST, _HIGHEST = -0.25, 1.25
_LEFT_OUT = (4, 8, 16)
_SCALES = (1.0, 1.5, 2.0, 2.8, 4.0)
_PEAKS = 3
_TREES, _MOST_LEARNED, _MOST_PATIENTS = 300, 5_000, 10_000
# Its own class must be so much less likely than the other; and out of fold so many must be right that the rest is
# rather a wrong label than a hard case. Measured by ``benchmarks/mislabels.py``.
_LESS_LIKELY, _RIGHT = 0.5, 0.75
_MOST_SHOWN = 0.1

Small = NDArray[np.uint8]
Array = NDArray[np.float32]


def measure(look: Look) -> Small:
    """The image's middle plane, averaged to 32 x 32, from its 1st to its 99th percentile: uint8."""
    sampled = look.plane.reshape(-1)[:: look.plane.size // (1 << 14) | 1]
    low, high = np.percentile(sampled, [1, 99])
    small = _averaged(_averaged(look.plane).T).T
    unit = ((small - low) / max(high - low, 1e-9) - _LOWEST) / (_HIGHEST - _LOWEST)
    return np.asarray(np.rint(np.clip(unit, 0, 1) * 255), np.uint8)


def _averaged(plane: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rows averaged to ``_SIZE``; a row that straddles two counts in both by its share."""
    edges = np.linspace(0, len(plane), _SIZE + 1)
    sums = np.vstack([np.zeros((1, plane.shape[1])), np.cumsum(plane, axis=0, dtype=np.float64)])
    whole = np.minimum(edges.astype(int), len(plane) - 1)
    until = sums[whole] + (edges - whole)[:, None] * plane[whole]
    return np.asarray(np.diff(until, axis=0) * _SIZE / len(plane))


def find(evidence: Evidence) -> list[Trouble]:
    """``likely_wrong_label``, one for each task with classes; silent where the classes cannot be told well.

    Of more than 10,000 patients a random sample, always the same, is looked at.
    """
    troubles = []
    for question in evidence.questions:
        if question.kind in ("multiclass", "ordinal"):
            stated = [_stated(entry, question.task, question.classes) for entry in evidence.entries]
            label, rows, patients = _asked(evidence, np.array(stated, np.intp))
            if len(np.unique(label)) > 1:
                found = out_of_fold(describe(evidence.measured["mislabels"][rows]), label, patients)
                troubles += _trouble(evidence, question, rows, label, found)
    return troubles


def _stated(entry: Entry, task: str, classes: tuple[str, ...]) -> int:
    names = [f.name for f in entry.findings if f.task == task and f.probability == 1]
    return classes.index(names[0]) if len(names) == 1 and names[0] in classes else -1


def _asked(
    evidence: Evidence, stated: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Label, place and patient of the cases that are looked at: those of classes with enough patients."""
    rows, patients = sample(evidence.entries, stated >= 0, _MOST_PATIENTS)
    held = np.array([len(np.unique(patients[stated[rows] == c])) for c in range(int(stated.max(initial=0)) + 1)])
    kept = held[stated[rows]] >= FEWEST_PATIENTS
    return stated[rows][kept], rows[kept], patients[kept]


def describe(small: Small) -> Array:
    """What is learned from, ``(n, 199)``, of small copies ``(n, 32, 32)``.

    Of the images less their first 4, 8 and 16 principal components, each pixel in units of its own deviation: at five
    scales the three strongest peaks of bright and of dark, and of bright and dark blobs (both principal curvatures
    of one sign: the smaller one counts, Lindeberg, 1998); and the image's place along the components.
    """
    x = small.reshape(len(small), -1).astype(np.float32)
    x -= x.mean(axis=0)
    most = min(_LEFT_OUT[-1], *x.shape)
    # The covariance of the pixels is small whatever the number of images.
    axes = np.linalg.eigh((x.T @ x).astype(np.float64))[1][:, ::-1][:, :most].astype(np.float32)
    places = x @ axes
    found = [places]
    for count in _LEFT_OUT:
        rest = x - places[:, :count] @ axes[:, :count].T
        deviation = rest.std(axis=0)
        rest = np.asarray(rest / (deviation + 0.5 * np.sqrt(np.mean(rest**2)) + 1e-6), np.float32)
        found += [np.sqrt(np.mean(rest**2, axis=1, keepdims=True)), _peaks(np.reshape(rest, small.shape))]
    return np.concatenate(found, axis=1)


def _peaks(images: Array) -> Array:
    """The strongest peaks of each response at each scale, ``(n, 60)``; a thousand images at a time."""
    chunks = (images[start : start + 1000] for start in range(0, len(images), 1000))
    return np.concatenate([np.concatenate(list(_strongest(chunk)), axis=1) for chunk in chunks])


def _strongest(images: Array) -> Iterator[Array]:
    for scale in _SCALES:
        smooth, down, across, mixed = (
            ndimage.gaussian_filter(images, (0, scale, scale), order=(0, *order))
            for order in ((0, 0), (2, 0), (0, 2), (1, 1))
        )
        mean, apart = (down + across) / 2, np.sqrt(((down - across) / 2) ** 2 + mixed**2)
        for response in (smooth, -smooth, -(mean + apart) * scale**2, (mean - apart) * scale**2):
            peak = response == ndimage.maximum_filter(response, (1, 3, 3))
            values = np.where(peak, response, -np.inf).reshape(len(images), -1)
            highest = np.partition(values, -_PEAKS, axis=1)[:, -_PEAKS:]
            yield np.sort(np.where(np.isfinite(highest), highest, 0), axis=1).astype(np.float32)


def out_of_fold(features: Array, label: NDArray[np.intp], patients: NDArray[np.intp]) -> NDArray[np.float64]:
    """Out-of-fold probabilities of the classes that there are, ``(n, k)``."""
    classes, fold = np.unique(label), folds(label, patients)
    told = np.zeros((len(label), len(classes)))
    for number in range(FOLDS):
        out = fold == number
        inside = np.flatnonzero(~out)
        inside = inside[draws.permutation(draws.keys(0, 3, number), len(inside))[:_MOST_LEARNED]]
        trees = ExtraTreesClassifier(_TREES, min_samples_leaf=2, max_features=0.3, random_state=0, n_jobs=-1)
        trees.fit(features[inside], label[inside])
        told[np.ix_(out, np.searchsorted(classes, trees.classes_))] = trees.predict_proba(features[out])
    return told


def _trouble(
    evidence: Evidence,
    question: Question,
    rows: NDArray[np.intp],
    label: NDArray[np.intp],
    told: NDArray[np.float64],
) -> list[Trouble]:
    classes = np.unique(label)
    own = np.searchsorted(classes, label)
    right = np.mean([np.mean(told[own == c].argmax(1) == c) for c in range(len(classes))])
    wrong = suspects(told, own)
    if right < _RIGHT or not len(wrong):
        return []
    pairs = Counter((question.classes[label[i]], question.classes[classes[told[i].argmax()]]) for i in wrong)
    (given, looks), count = pairs.most_common(1)[0]
    return [
        Trouble(
            "likely_wrong_label",
            tuple(evidence.entries[rows[i]].id for i in wrong),
            f"{len(wrong)} of {len(rows)} cases look clearly more like another class of {question.task} than like "
            f"their own ({count} of them are {given!r} and look like {looks!r}), to a classifier that is right in "
            f"{right:.0%} of the cases of a class that it has not seen",
            "look at these cases again, the first ones first; some may be right and only unusual",
        )
    ]


def suspects(told: NDArray[np.float64], own: NDArray[np.intp]) -> NDArray[np.intp]:
    """Rows whose own class is clearly less likely than another, the clearest first; at most a tenth of all.

    Args:
        told: out-of-fold probabilities ``(n, k)``.
        own: the class that each row is said to have, ``(n,)``.
    """
    given = told[np.arange(len(own)), own]
    other = np.where(np.eye(told.shape[1], dtype=bool)[own], -np.inf, told).max(axis=1)
    order = np.argsort(given - other, kind="stable")
    wrong = order[given[order] < _LESS_LIKELY * other[order]]
    return np.asarray(wrong[: int(_MOST_SHOWN * len(own))])

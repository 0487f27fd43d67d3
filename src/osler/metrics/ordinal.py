"""Agreement on ordered classes."""

import numpy as np

from osler.metrics.confusion import confusion_matrix
from osler.metrics.rows import Rows, ratio


def quadratic_kappa(target: Rows, predicted: Rows, classes: int, weight: Rows | None = None) -> float:
    """Cohen's kappa with quadratic weights (Cohen, 1968): 1 agrees, 0 agrees as often as chance would.

    Args: as :func:`osler.metrics.confusion.confusion_matrix`; classes in order.

    Returns:
        -1 to 1; nan if truth and prediction are all one and the same class.
    """
    matrix = confusion_matrix(target, predicted, classes, weight)
    rank = np.arange(classes)
    distance = (rank[:, None] - rank) ** 2
    chance = np.outer(matrix.sum(axis=1), matrix.sum(axis=0))
    return 1 - ratio((distance * matrix).sum() * matrix.sum(), (distance * chance).sum())

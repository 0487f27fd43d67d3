"""The same system in scikit-learn's words: ``fit``, ``predict``, ``predict_proba`` on arrays."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from osler import calibration, data, diagnosis, model, training
from osler.image import Image
from osler.recipe import settings as parsed


class Classifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Classifies 2D images ``(n, h, w)``, colour images ``(n, h, w, 3)`` or volumes ``(n, d, h, w)``.

    Args:
        settings: as on the command line, e.g. ``("epochs=5", "backbone=vgg")``.
        minutes: time for training, turned into epochs.
        out: run folder to keep; ``None`` uses one that is deleted after.

    Attributes:
        classes_: the labels, sorted.
        model_: the :class:`osler.model.Model`.
    """

    def __init__(self, settings: tuple[str, ...] = (), minutes: float = 5.0, out: str | None = None) -> None:
        self.settings = settings
        self.minutes = minutes
        self.out = out

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> "Classifier":  # noqa: N803
        """Trains on images and labels; ``groups`` names the patient of each image, so that none is split.

        Raises:
            ValueError: X and y do not fit together.
            Problem: nothing can be learned from them.
        """
        images, labels = np.asarray(X), np.asarray(y)
        if len(images) != len(labels):
            raise ValueError(f"X has {len(images)} images, y has {len(labels)} labels")
        self.classes_ = np.unique(labels)
        patients = None if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
        if patients is not None and len(patients) != len(images):
            raise ValueError(f"X has {len(images)} images, groups has {len(patients)}")
        with tempfile.TemporaryDirectory() as folder:
            rows = ["case,image,label" + ("" if patients is None else ",patient")]
            for i, image in enumerate(images):
                np.save(Path(folder) / f"{i}.npy", _shaped(image))
                rows.append(f"{i},{i}.npy,c{np.searchsorted(self.classes_, labels[i]):06d}")
                rows[-1] += "" if patients is None else f",p{patients[i]}"
            (Path(folder) / "manifest.csv").write_text("\n".join(rows) + "\n")
            out = Path(self.out) if self.out else Path(folder) / "run"
            self.model_ = training.train(
                folder, out, parsed(("test=0", *self.settings)), minutes=self.minutes, say=lambda line: None
            )
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """Calibrated probabilities ``(n, classes)``."""
        check_is_fitted(self)
        plan = self.model_.recipe.image
        pixels = np.stack([data.prepare(Image(_shaped(image)), plan) for image in np.asarray(X)])
        answered = diagnosis.answer(self.model_, pixels)
        return np.asarray(next(iter(answered.probability.values())))

    def predict(self, X: ArrayLike) -> NDArray[Any]:  # noqa: N803
        """The stated class of each image; see ``osler.diagnose`` for when it should be withheld."""
        p = self.predict_proba(X)
        name = next(iter(self.model_.tasks))
        threshold = diagnosis.calibrated(self.model_, name).threshold
        return np.asarray(self.classes_[calibration.decide(self.model_.tasks[name], p, threshold).argmax(1)])

    def save(self, path: str | Path) -> None:
        """Writes the model as one safetensors file for every other verb."""
        check_is_fitted(self)
        self.model_.save(Path(path))

    @staticmethod
    def load_model(path: str | Path) -> model.Model:
        """The model behind a saved classifier."""
        return model.load(Path(path))


def _shaped(image: NDArray[Any]) -> NDArray[Any]:
    """One array of scikit-learn's shape to ``(time, channel, depth, height, width)``."""
    if image.ndim == 2:
        return image[None, None, None]
    if image.ndim == 3 and image.shape[-1] == 3:
        return np.moveaxis(image, -1, 0)[None, :, None]
    if image.ndim == 3:
        return image[None, None]
    raise ValueError(f"an image is (h, w), (h, w, 3) or (d, h, w); got {image.shape}")

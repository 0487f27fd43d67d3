"""Augmentations of a training batch: one a file.

Every file holds ``Options`` (a frozen dataclass of plain types; ``probability`` among them) and
``apply(images, options, key) -> images`` on a float32 batch ``(b, c, d, h, w)`` whose intensities were
normalised to about mean 0, standard deviation 1, with one 64-bit key for each image (``osler.draws``). Depth 1
means 2D. Each image's result depends on its own pixels and its own key only, never on its place in the batch.
The batch that was handed in is never changed; where nothing is to be done it is returned itself.
"""

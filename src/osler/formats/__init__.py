"""Files that hold one image: one format a file.

Every file holds ``matches(path) -> bool`` (cheap: name and first bytes) and
``read(source) -> Image``, which raises :class:`osler.problem.Problem` for anything it cannot read honestly;
optionally ``write(image, path)``.
"""

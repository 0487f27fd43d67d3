"""From a feature map to a vector: one way a file.

Every file holds ``Options`` (a frozen dataclass of plain types) and ``build(options, *, features) -> nn.Module``.
The module maps ``(b, k, *size)`` to ``(b, k)`` in 2D and 3D, and may have a method
``weights(maps) -> (b, *size)``: what share of the answer each place has; it sums to 1 over the map.
"""

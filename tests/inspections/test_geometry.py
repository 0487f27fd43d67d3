"""A few cases unlike all others are named; what differs by nature is not."""

from osler.case import Entry
from osler.inspections import Evidence, geometry

COUNT = 50


def found(**fields: list[str | float | None]) -> dict[str, tuple[str, ...]]:
    entries = tuple(Entry(str(number), str(number), {}) for number in range(COUNT))
    usual: dict[str, list[str | float | None]] = {
        "image.height": [256.0] * COUNT, "image.width": [256.0] * COUNT, "image.channels": [1.0] * COUNT,
        "image.spacing_x": [0.7] * COUNT, "image.geometry": ["Affine"] * COUNT,
    }  # fmt: skip
    usual |= {f"image.{name}": values for name, values in fields.items()}
    troubles = geometry.find(Evidence(entries, (), fields=usual))
    return {trouble.message: trouble.cases for trouble in troubles}


def test_one_geometry_is_no_trouble() -> None:
    assert found() == {}


def test_the_odd_ones_are_named() -> None:
    values: list[str | float | None] = [0.7] * COUNT
    values[3], values[4] = 7.0, None
    kinds: list[str | float | None] = ["Affine"] * COUNT
    kinds[4] = "NoGeometry"
    told = found(spacing_x=values, geometry=kinds, channels=[*[1.0] * (COUNT - 1), 3.0])
    assert sorted(told.values()) == [("3",), ("4",), (str(COUNT - 1),)]


def test_a_factor_of_exactly_two_and_many_sizes_are_natural() -> None:
    assert found(spacing_x=[*[0.7] * (COUNT - 1), 1.4]) == {}
    assert found(width=[100.0 + 20 * number for number in range(COUNT)]) == {}


def test_a_mixture_is_left_to_the_summary() -> None:
    assert found(channels=[1.0, 3.0] * (COUNT // 2)) == {}

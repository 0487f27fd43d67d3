import numpy as np
import pytest

from osler import formats
from osler.case import Source
from osler.formats import medmnist
from osler.problem import Problem

ARRAYS = {
    "grey": np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5),
    "colour": np.arange(3 * 4 * 5 * 3, dtype=np.uint8).reshape(3, 4, 5, 3),
    "volume": np.arange(3 * 6 * 4 * 5, dtype=np.uint8).reshape(3, 6, 4, 5),
}


@pytest.fixture
def file(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", **ARRAYS)
    return tmp_path / "a.npz"


@pytest.mark.parametrize(
    ("key", "shape"), [("grey", (1, 1, 1, 4, 5)), ("colour", (1, 3, 1, 4, 5)), ("volume", (1, 1, 6, 4, 5))]
)
def test_a_row_is_an_image(file, key, shape):
    image = formats.read(Source(file, key=key, index=2))
    assert image.array.shape == shape and image.array.dtype == np.uint8
    row = ARRAYS[key][2]
    assert (image.array.squeeze() == (np.moveaxis(row, -1, 0) if key == "colour" else row)).all()


def test_an_array_is_decompressed_once_and_again_when_the_file_changed(file):
    medmnist._array.cache_clear()
    for index in range(3):
        formats.read(Source(file, key="grey", index=index))
    assert medmnist._array.cache_info().misses == 1
    np.savez_compressed(file, grey=np.full((4, 2, 2), 7, np.uint8))
    assert formats.read(Source(file, key="grey", index=3)).array.max() == 7


def test_reading_gives_a_copy(file):
    formats.read(Source(file, key="grey", index=0)).array[:] = 99
    assert (formats.read(Source(file, key="grey", index=0)).array[0, 0, 0] == ARRAYS["grey"][0]).all()


def test_bad_rows_keys_and_files_are_named(file, tmp_path):
    for source, words in [
        (Source(file, key="grey", index=3), "no row 3 among 3"),
        (Source(file, key="nothing", index=0), "no array 'nothing'; it holds grey"),
        (Source(file), "holds many images"),
    ]:
        with pytest.raises(Problem, match=words):
            formats.read(source)
    np.savez(tmp_path / "pickled.npz", a=np.array([{}], dtype=object))
    (tmp_path / "cut.npz").write_bytes(file.read_bytes()[:300])
    for name in ("pickled.npz", "cut.npz"):
        with pytest.raises(Problem, match=name):
            formats.read(Source(tmp_path / name, key="a", index=0))

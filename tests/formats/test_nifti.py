import gzip
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from osler import data, formats, identity
from osler.case import Source
from osler.formats import nifti
from osler.image import Affine, NoGeometry, evenly
from osler.problem import Problem

VOLUME = np.arange(24, dtype=np.int16).reshape(4, 3, 2)
OBLIQUE = np.array([[0.9, -0.2, 0.1, 5], [0.3, 1.1, -0.4, -7], [0.0, 0.5, 2.0, 11], [0, 0, 0, 1.0]])


def read(path: Path):
    return formats.read(Source(path))


def saved(path: Path, array: np.ndarray, affine=OBLIQUE, *, unit="mm", time="sec", code=1, **header) -> Path:
    made = nibabel.Nifti1Image(array, affine)
    made.header.set_xyzt_units(unit, time)
    made.set_sform(affine, code)
    made.set_qform(None, 0)
    for name, value in header.items():
        made.header[name] = value
    nibabel.save(made, path)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.hdr"])
def test_voxels_and_their_places_are_those_of_nibabel(tmp_path, name):
    image = read(saved(tmp_path / name, VOLUME))
    assert image.array.shape == (1, 1, 2, 3, 4) and image.array.dtype == np.int16
    assert isinstance(image.geometry, Affine)
    for x, y, z in [(0, 0, 0), (3, 2, 1), (1, 2, 0)]:
        assert image.array[0, 0, z, y, x] == VOLUME[x, y, z]
        right, front, up = nibabel.affines.apply_affine(OBLIQUE, [x, y, z])
        assert image.to_patient(np.array([x, y, z], float)) == pytest.approx([-right, -front, up], abs=1e-5)


def test_slope_is_applied_only_where_stated(tmp_path):
    made = nibabel.Nifti1Image(VOLUME, OBLIQUE)
    made.header.set_slope_inter(0.5, 10)
    nibabel.save(made, tmp_path / "a.nii")
    stored = np.asanyarray(nibabel.load(tmp_path / "a.nii").dataobj)
    image = read(tmp_path / "a.nii")
    assert image.array.dtype == np.float32 and image.array[0, 0].transpose(2, 1, 0) == pytest.approx(stored)


def test_units_other_than_millimetres_are_converted(tmp_path):
    image = read(saved(tmp_path / "a.nii", VOLUME, unit="meter"))
    assert image.geometry.matrix[0, 3] == pytest.approx(-5000)


def test_time_is_the_fourth_axis_and_channels_the_fifth(tmp_path):
    array = np.arange(2 * 3 * 4 * 5 * 2, dtype=np.float32).reshape(2, 3, 4, 5, 2)
    made = nibabel.Nifti1Image(array, OBLIQUE)
    made.header.set_xyzt_units("mm", "msec")
    made.header["pixdim"][4] = 250
    nibabel.save(made, tmp_path / "a.nii")
    image = read(tmp_path / "a.nii")
    assert image.array.shape == (5, 2, 4, 3, 2) and image.times == pytest.approx((0, 0.25, 0.5, 0.75, 1))
    assert image.array[3, 1, 2, 1, 0] == array[0, 1, 2, 3, 1]


@pytest.mark.parametrize(
    ("unit", "code", "affine", "known"),
    [
        ("mm", 0, OBLIQUE, False),
        ("unknown", 2, np.eye(4), False),
        ("mm", 2, np.eye(4), True),
        ("unknown", 2, OBLIQUE, True),
    ],
)
def test_distances_are_never_invented(tmp_path, unit, code, affine, known):
    image = read(saved(tmp_path / "a.nii", VOLUME, affine, unit=unit, code=code))
    assert isinstance(image.geometry, Affine if known else NoGeometry)
    assert bool(image.notes) == (unit == "unknown" or not known)


def test_rgb_voxels_are_channels(tmp_path):
    colours = np.zeros((2, 2, 2), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    colours["G"][1, 0, 1] = 9
    nibabel.save(nibabel.Nifti1Image(colours, OBLIQUE), tmp_path / "a.nii")
    image = read(tmp_path / "a.nii")
    assert image.channels == 3 and image.array[0, 1, 1, 0, 1] == 9


def test_broken_files_are_named(tmp_path):
    whole = saved(tmp_path / "a.nii.gz", np.random.default_rng(0).normal(size=(9, 9, 9))).read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.nii").write_text("hello")
    for name in ("cut.nii.gz", "text.nii"):
        with pytest.raises(Problem, match=f"{name}: the NIfTI file is broken"):
            read(tmp_path / name)
    with pytest.raises(Problem, match="not real numbers"):
        read(saved(tmp_path / "c.nii", VOLUME.astype(np.complex64)))


@pytest.mark.real_data
def test_a_heart_of_acdc_has_two_moments_and_no_millimetres(real_data):
    image = read(real_data / "acdc" / "images" / "heart_008.nii.gz")
    assert image.array.shape == (2, 1, 10, 174, 208) and image.array.dtype == np.uint8
    assert image.spacing is None and image.times == () and image.notes


@pytest.fixture(params=["isal", "zlib"])
def decoder(request, monkeypatch):
    if request.param == "zlib":
        monkeypatch.setitem(sys.modules, "isal", None)
    else:
        pytest.importorskip("isal", reason="isal is an optional extra")
    monkeypatch.setenv("OSLER_CACHE", "0")


def damaged(path: Path, change) -> Path:
    path.write_bytes(change(path.read_bytes()))
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-1],
        lambda whole: whole[:-8],
        lambda whole: whole[:-8] + b"\0\0\0\0" + whole[-4:],
        lambda whole: whole[:-4] + b"\0\0\0\0",
        lambda whole: whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 64]) + whole[len(whole) // 2 + 1 :],
        lambda whole: gzip.compress(gzip.decompress(whole)[:-2]),
        lambda whole: gzip.compress(gzip.decompress(whole)[:351]),
    ],
)
def test_a_damaged_gzip_file_is_refused(tmp_path, decoder, change):
    volume = np.random.default_rng(0).integers(0, 999, (90, 80, 70), np.int16)
    path = saved(tmp_path / "a.nii.gz", volume)
    assert (read(path).array[0, 0] == volume.T).all()
    with pytest.raises(Problem, match="the NIfTI file is broken or cut short"):
        read(damaged(path, change))


def test_members_one_after_the_other_and_zeros_behind_are_read(tmp_path, decoder):
    volume = np.random.default_rng(0).integers(0, 999, (90, 80, 70), np.int16)
    whole = gzip.decompress(saved(tmp_path / "a.nii.gz", volume).read_bytes())
    for pieces in ([whole[:100], whole[100:5000], whole[5000:]], [whole, b"\0" * 9], [whole + b"\0" * 9]):
        (tmp_path / "b.nii.gz").write_bytes(b"".join(gzip.compress(piece) for piece in pieces))
        assert (read(tmp_path / "b.nii.gz").array[0, 0] == volume.T).all()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [np.uint8, ">i2", np.float32, ">f8"])
@pytest.mark.parametrize("made", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_every_type_and_both_versions_are_those_of_nibabel(tmp_path, decoder, suffix, kind, made):
    volume = np.random.default_rng(0).integers(0, 99, (5, 4, 3, 2)).astype(kind)
    header = made.header_class(endianness=">" if kind[0] == ">" else "<") if isinstance(kind, str) else None
    if header is not None:
        header.set_data_dtype(kind)
    nibabel.save(made(volume, OBLIQUE, header), tmp_path / f"a{suffix}")
    image = read(tmp_path / f"a{suffix}")
    truth = np.asanyarray(nibabel.load(tmp_path / f"a{suffix}").dataobj)
    assert (image.array[:, 0] == truth.transpose(3, 2, 1, 0)).all() and image.array.dtype.isnative
    assert image.array.dtype == truth.dtype.newbyteorder("=")


def test_an_extension_before_the_voxels_is_passed_over(tmp_path, decoder):
    image = nibabel.Nifti1Image(VOLUME, OBLIQUE)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"x" * 9000))
    for name in ("a.nii", "a.nii.gz"):
        nibabel.save(image, tmp_path / name)
        assert (read(tmp_path / name).array[0, 0] == VOLUME.T).all()


def test_pixels_that_are_mapped_go_through_all_that_is_done_to_images(tmp_path, decoder):
    """Nothing writes into an image as it was read: the memory may be the file."""
    from osler.recipe import ImagePlan

    path = saved(tmp_path / "a.nii", VOLUME)
    image = read(path)
    assert not image.array.flags.writeable
    before = path.read_bytes()
    for size in ((2, 3, 4), (4, 6, 8)):
        plan = ImagePlan(size=size, channels=1, frames=1)
        assert np.isfinite(data.prepare(image, plan)).all()
    identity.pixels(image)
    image.resample((1, 2, 2), order=0)
    assert path.read_bytes() == before


def test_a_cut_file_without_compression_is_refused(tmp_path):
    path = saved(tmp_path / "a.nii", VOLUME)
    with pytest.raises(Problem, match="broken or cut short"):
        read(damaged(path, lambda whole: whole[:-1]))


# --- some moments -------------------------------------------------------------------------------------------


def sequence(path, *, axes=4, slope=None, unit="msec"):
    shape = (9, 7, 5, 11) if axes == 4 else (9, 7, 5, 11, 2)
    made = nibabel.Nifti1Image(
        np.random.default_rng(5).integers(-900, 900, shape).astype(np.int16), np.diag([2, 2, 3, 1])
    )
    made.header.set_xyzt_units("mm", unit)
    made.header.set_zooms((2, 2, 3, 40) + (1,) * (axes - 4))
    if slope:
        made.header.set_slope_inter(slope, 3)
    nibabel.save(made, path)
    return path


@pytest.mark.parametrize("moments", [1, 4, 11, 20])
@pytest.mark.parametrize("slope", [None, 0.5])
@pytest.mark.parametrize("axes", [4, 5])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.hdr"])
def test_some_moments_are_those_of_all(tmp_path, monkeypatch, decoder, name, axes, slope, moments):
    monkeypatch.setattr(nifti, "_CHUNK", 300)
    monkeypatch.setattr(nifti, "_PIECE", 1000)
    path = sequence(tmp_path / name, axes=axes, slope=slope)
    whole, some = read(path), formats.read(Source(path), moments)
    chosen = evenly(11, moments) if moments < 11 else np.arange(11)
    assert (some.array == whole.array[chosen]).all() and some.array.dtype == whole.array.dtype
    assert some.times == pytest.approx([0.04 * k for k in chosen]) and some.length == whole.length == 11
    assert some.numbers == (tuple(chosen) if moments < 11 else ())
    assert (some.geometry.matrix == whole.geometry.matrix).all()
    assert identity.pixels(some, moments) == identity.pixels(whole, moments)


@pytest.mark.parametrize(
    ("unit", "step"), [("sec", 40.0), ("msec", 0.04), ("usec", 4e-5), ("hz", None), ("unknown", None)]
)
def test_the_step_of_time_has_the_unit_of_the_header(tmp_path, unit, step):
    image = read(sequence(tmp_path / "a.nii", unit=unit))
    assert image.times == (() if step is None else pytest.approx([step * k for k in range(11)]))


def test_a_sequence_that_is_cut_short_is_refused_also_where_its_end_is_not_asked_for(tmp_path, decoder):
    path = sequence(tmp_path / "a.nii.gz")
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(Problem, match="cut short"):
        formats.read(Source(path), 1)

import warnings
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, uid
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence

from dicom_files import dataset, in_patient, write
from osler import formats
from osler.case import Source
from osler.image import Affine, NoGeometry, Spacing
from osler.problem import Problem

RAMP = np.arange(12, dtype=np.int16).reshape(3, 4)


def read(path: Path, key: str = ""):
    return formats.read(Source(path, key=key))


def oblique() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column and normal of a rotation that no axis is spared by."""
    from scipy.spatial.transform import Rotation

    return tuple(Rotation.from_euler("xyz", [20, -35, 50], degrees=True).as_matrix().T)


def series(folder: Path, positions, **tags) -> Path:
    row, column, _ = oblique()
    for number, position in enumerate(positions):
        made = dataset(RAMP + 100 * number, **in_patient(position, row, column, (0.7, 0.5)), **tags)
        # Names and instance numbers that say the opposite of the positions.
        made.InstanceNumber = 100 - number
        write(folder / f"{(7 * number) % 11:02d}.dcm", made)
    return folder


def along_normal(count: int, step: float = 2.0) -> list[np.ndarray]:
    return [np.array([10.0, -20.0, 30.0]) + step * number * oblique()[2] for number in range(count)]


def test_a_series_is_sorted_by_position_and_placed_in_the_patient(tmp_path):
    image = read(series(tmp_path, along_normal(5)))
    row, column, normal = oblique()
    assert image.array.shape == (1, 1, 5, 3, 4)
    assert (image.array[0, 0, :, 0, 0] == [0, 100, 200, 300, 400]).all()
    assert isinstance(image.geometry, Affine) and image.geometry.frame == "1.2.3.4"
    for x, y, z in [(0, 0, 0), (3, 0, 0), (0, 2, 0), (1.5, 0.5, 4)]:
        # PS3.3 C.7.6.2.1.1: the first spacing is that between rows, along y.
        there = [10, -20, 30] + x * 0.5 * row + y * 0.7 * column + z * 2.0 * normal
        assert image.to_patient(np.array([x, y, z], float)) == pytest.approx(there, abs=1e-5)


def test_the_affine_is_that_of_an_independent_reader(tmp_path):
    simple = pytest.importorskip("SimpleITK", reason="SimpleITK is an optional oracle")
    series(tmp_path, along_normal(4))
    names = simple.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path))
    volume = simple.ReadImage(names)
    image = read(tmp_path)
    assert (simple.GetArrayFromImage(volume) == image.array[0, 0]).all()
    for point in [(0, 0, 0), (3, 2, 3), (1, 0, 2)]:
        there = volume.TransformContinuousIndexToPhysicalPoint([float(number) for number in point])
        assert image.to_patient(np.array(point, float)) == pytest.approx(there, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: [*p[:2], *p[3:]], "missing"),
        (lambda p: [*p, p[2]], "same position"),
        (lambda p: [*p[:-1], p[-1] + 0.4 * oblique()[2]], "not even"),
        (lambda p: [*p[:-1], p[-1] + 9 * oblique()[0]], "straight line"),
    ],
)
def test_slices_that_make_no_volume_are_refused(tmp_path, change, words):
    with pytest.raises(Problem, match=words):
        read(series(tmp_path, change(along_normal(6))))


def test_a_tilted_gantry_gives_a_sheared_affine_and_a_note(tmp_path):
    positions = [position + 0.5 * number * oblique()[1] for number, position in enumerate(along_normal(4))]
    image = read(series(tmp_path, positions))
    assert any("tilted by 14.0 degrees" in note for note in image.notes)
    assert image.to_patient(np.array([0.0, 0.0, 3.0])) == pytest.approx(positions[3], abs=1e-5)


def test_a_copied_file_is_harmless_and_another_series_is_not(tmp_path):
    series(tmp_path, along_normal(3))
    (tmp_path / "copy.dcm").write_bytes((tmp_path / "00.dcm").read_bytes())
    image = read(tmp_path)
    assert image.size == (3, 3, 4) and any("copies" in note for note in image.notes)
    series(tmp_path / "more", along_normal(2), SeriesInstanceUID="1.2.9")
    with pytest.raises(Problem, match="2 series are in this folder"):
        read(tmp_path)
    assert read(tmp_path, key="1.2.9").size == (2, 3, 4)


def test_slices_of_different_size_orientation_or_spacing_are_refused(tmp_path):
    for name, tags, words in [
        ("size", in_patient((0, 0, 2)), "differ in size"),
        ("orientation", in_patient((0, 0, 2), (0, 1, 0), (1, 0, 0)), "orientations"),
        ("spacing", in_patient((0, 0, 2), spacing=(2, 2)), "spacings"),
    ]:
        write(tmp_path / name / "a.dcm", dataset(RAMP, **in_patient((0, 0, 0))))
        pixels = RAMP[:2] if name == "size" else RAMP
        write(tmp_path / name / "b.dcm", dataset(pixels, **tags))
        with pytest.raises(Problem, match=words):
            read(tmp_path / name)


def test_localizers_and_reports_are_left_out_and_broken_slices_are_not(tmp_path):
    series(tmp_path, along_normal(3))
    write(tmp_path / "l.dcm", dataset(RAMP, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], SeriesInstanceUID="1.9"))
    (tmp_path / "readme.txt").write_text("hello")
    image = read(tmp_path)
    assert image.size[0] == 3 and any("localizer" in note for note in image.notes)
    (tmp_path / "lost.dcm").touch()
    with pytest.raises(Problem, match="empty"):
        read(tmp_path)


def test_hounsfield_units_stay_whole_numbers(tmp_path):
    made = dataset(RAMP.astype(np.uint16), BitsStored=12, RescaleSlope=1, RescaleIntercept=-1024)
    image = read(write(tmp_path / "a.dcm", made))
    assert image.unit == "HU" and image.array.dtype == np.int16
    assert (image.array[0, 0, 0] == RAMP.astype(int) - 1024).all()


def test_a_fractional_slope_and_a_modality_table_are_applied(tmp_path):
    image = read(write(tmp_path / "a.dcm", dataset(RAMP, RescaleSlope=0.25, RescaleIntercept=3, Modality="PT")))
    assert image.array[0, 0, 0] == pytest.approx(RAMP * 0.25 + 3) and image.unit == ""
    item = Dataset()
    item.LUTDescriptor, item.ModalityLUTType = [12, 0, 16], "OD"
    item.add_new("LUTData", "US", [number**2 for number in range(12)])
    made = dataset(RAMP.astype(np.uint16), Modality="CR", ModalityLUTSequence=Sequence([item]))
    assert (read(write(tmp_path / "b.dcm", made)).array[0, 0, 0] == RAMP.astype(int) ** 2).all()


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16])
def test_larger_is_always_brighter(tmp_path, kind):
    bright = read(write(tmp_path / "a.dcm", dataset(RAMP.astype(kind), Modality="DX")))
    dark = dataset(RAMP.astype(kind), Modality="DX", PhotometricInterpretation="MONOCHROME1")
    image = read(write(tmp_path / "b.dcm", dark))
    limits = np.iinfo(kind)
    assert (image.array.astype(int) == limits.min + limits.max - bright.array.astype(int)).all()
    assert image.array.dtype == kind and any("inverted" in note for note in image.notes)


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian, uid.RLELossless])
def test_every_transfer_syntax_gives_the_same_pixels(tmp_path, syntax):
    made = dataset(RAMP)
    if syntax == uid.RLELossless:
        made.file_meta = FileMetaDataset()
        made.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        made.compress(uid.RLELossless)
    elif syntax == uid.ExplicitVRBigEndian:
        made.PixelData = RAMP.astype(">i2").tobytes()
        made["PixelData"].VR = "OW"
    image = read(write(tmp_path / "a.dcm", made, syntax))
    assert image.array.dtype == np.int16 and (image.array[0, 0, 0] == RAMP).all()


def test_a_file_without_preamble_is_read_with_a_note(tmp_path):
    whole = write(tmp_path / "a.dcm", dataset(RAMP), uid.ImplicitVRLittleEndian).read_bytes()
    start = whole.index(b"\x08\x00\x16\x00", 132 + 12)
    path = tmp_path / "raw"
    path.write_bytes(whole[start:])
    image = read(path)
    assert (image.array[0, 0, 0] == RAMP).all() and any("transfer syntax" in note for note in image.notes)


def test_broken_files_are_named_in_one_sentence(tmp_path):
    whole = write(tmp_path / "a.dcm", dataset(np.zeros((64, 64), np.int16))).read_bytes()
    for name, content, words in [
        ("zero.dcm", b"", "empty"),
        ("cut.dcm", whole[:-100], "8092 of 8192 bytes|broken"),
        ("header.dcm", whole[:300], "no pixels|broken|header"),
        ("text.dcm", b"hello world, I am not DICOM" * 9, "not DICOM"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Problem, match=words):
            read(tmp_path / name)


def test_a_missing_decoder_is_named(tmp_path):
    made = dataset(RAMP)
    from pydicom.encaps import encapsulate

    made.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    made["PixelData"].VR = "OB"
    with pytest.raises(Problem, match=r"JPEG Lossless.*no decoder"):
        read(write(tmp_path / "a.dcm", made, uid.JPEGLosslessSV1))


def test_distances_of_a_radiograph_are_those_of_the_detector_unless_calibrated(tmp_path):
    for pixel, imager, source in [
        (None, [0.2, 0.1], "ImagerPixelSpacing"),
        ([0.2, 0.1], [0.2, 0.1], "ImagerPixelSpacing"),
        ([0.15, 0.1], [0.2, 0.1], "PixelSpacing"),
        ([0.15, 0.1], None, "PixelSpacing"),
    ]:
        tags = {"PixelSpacing": pixel, "ImagerPixelSpacing": imager}
        made = dataset(RAMP, Modality="DX", **{name: value for name, value in tags.items() if value})
        geometry = read(write(tmp_path / "a.dcm", made)).geometry
        rows, columns = pixel or imager
        assert geometry == Spacing(columns, rows, None, source)
    assert read(write(tmp_path / "a.dcm", dataset(RAMP, Modality="DX"))).geometry == NoGeometry()


def region(delta: float, units: int = 3) -> Dataset:
    item = Dataset()
    item.RegionSpatialFormat, item.PhysicalUnitsXDirection, item.PhysicalUnitsYDirection = 1, units, units
    item.PhysicalDeltaX, item.PhysicalDeltaY = delta, -delta
    return item


def test_ultrasound_regions_give_a_spacing_if_they_agree(tmp_path):
    for regions, wanted in [
        ([region(0.05)], Spacing(0.5, 0.5, None, "UltrasoundRegion")),
        ([region(0.05), region(0.01, units=4)], Spacing(0.5, 0.5, None, "UltrasoundRegion")),
        ([region(0.05), region(0.04)], NoGeometry()),
    ]:
        made = dataset(RAMP, Modality="US", SequenceOfUltrasoundRegions=Sequence(regions))
        assert read(write(tmp_path / "a.dcm", made)).geometry == wanted


def test_a_loop_is_time_in_seconds_and_one_frame_can_be_taken(tmp_path):
    frames = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
    path = write(tmp_path / "a.dcm", dataset(frames, Modality="US", FrameTime=40))
    image = read(path)
    assert image.array.shape == (4, 1, 1, 2, 3) and image.times == pytest.approx((0, 0.04, 0.08, 0.12))
    assert (formats.read(Source(path, frame=2)).array[0, 0, 0] == frames[2]).all()
    made = dataset(frames, Modality="XA", FrameTimeVector=[0, 30, 50, 20])
    assert read(write(tmp_path / "b.dcm", made)).times == pytest.approx((0, 0.03, 0.08, 0.1))
    with pytest.raises(Problem, match="no frame 9 among 4"):
        formats.read(Source(path, frame=9))


def enhanced(positions) -> Dataset:
    frames = np.stack([RAMP + 100 * number for number in range(len(positions))])
    made = dataset(frames, SOPClassUID=uid.EnhancedCTImageStorage, FrameOfReferenceUID="1.2.3.4")
    shared, orientation, measures, values = Dataset(), Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.25], 3
    values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 2, -10, "HU"
    shared.PlaneOrientationSequence = Sequence([orientation])
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PixelValueTransformationSequence = Sequence([values])
    made.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for position in positions:
        plane, group = Dataset(), Dataset()
        plane.ImagePositionPatient = list(position)
        group.PlanePositionSequence = Sequence([plane])
        groups.append(group)
    made.PerFrameFunctionalGroupsSequence = Sequence(groups)
    return made


def test_an_enhanced_object_is_a_volume_in_the_order_of_its_positions(tmp_path):
    image = read(write(tmp_path / "a.dcm", enhanced([(1, 2, 9), (1, 2, 3), (1, 2, 6)])))
    assert image.array.shape == (1, 1, 3, 3, 4) and image.unit == "HU"
    assert (image.array[0, 0, :, 0, 1] == 2 * np.array([101, 201, 1]) - 10).all()
    assert image.to_patient(np.array([4.0, 2.0, 1.0])) == pytest.approx([2, 3, 6])
    with pytest.raises(Problem, match="same position"):
        read(write(tmp_path / "b.dcm", enhanced([(0, 0, 0), (0, 0, 1), (0, 0, 0), (0, 0, 1)])))


def test_a_slice_of_unknown_thickness_has_no_depth(tmp_path):
    made = dataset(RAMP, **in_patient((1, 2, 3)))
    del made.SliceThickness
    image = read(write(tmp_path / "a.dcm", made))
    assert image.geometry == Spacing(1.0, 1.0, None, "PixelSpacing") and any(
        "thickness" in note for note in image.notes
    )


@pytest.mark.real_data
def test_every_real_file_is_an_image_or_a_clear_sentence(real_data):
    read_ones = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in sorted(path for path in (real_data / "dicom").rglob("*") if path.is_file()):
            if "TINY_ALPHA" in path.parts and path.name not in ("DICOMDIR", "IM000000"):
                continue
            try:
                image = read(path)
            except Problem as problem:
                text = str(problem)
                assert text.startswith(path.name) or path.name in text
                assert text.endswith(".") and "\n" not in text and len(text) < 300
            else:
                read_ones += 1
                assert image.array.dtype.isnative and np.isfinite(image.array.astype(float)).all()
    assert read_ones > 70


@pytest.mark.real_data
def test_one_image_in_many_transfer_syntaxes_is_one_image(real_data):
    paths = sorted((real_data / "dicom" / "pydicom").glob("MR_small*.dcm"))
    images = [read(path) for path in paths]
    assert len(images) == 8
    for image in images:
        assert (image.array == images[0].array).all() and image.array.dtype == np.int16
        assert (image.geometry.matrix == images[0].geometry.matrix).all()


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "dicomdirtests/98892001/CT5N"])
def test_real_files_lie_where_an_independent_reader_puts_them(real_data, name):
    simple = pytest.importorskip("SimpleITK", reason="SimpleITK is an optional oracle")
    path = real_data / "dicom" / "pydicom" / name
    names = simple.ImageSeriesReader.GetGDCMSeriesFileNames(str(path)) if path.is_dir() else str(path)
    volume, image = simple.ReadImage(names), read(path)
    assert (simple.GetArrayFromImage(volume) == image.array[0, 0]).all()
    depth, height, width = image.size
    for point in [(0, 0, 0), (width - 1, 0, 0), (0, height - 1, 0), (3, 2, depth - 1)]:
        there = volume.TransformContinuousIndexToPhysicalPoint([float(number) for number in point])
        assert image.to_patient(np.array(point, float)) == pytest.approx(there, abs=1e-3)


def test_damaged_bytes_are_an_image_or_a_sentence(tmp_path):
    rng = np.random.default_rng(0)
    whole = write(tmp_path / "a.dcm", enhanced([(0, 0, 0), (0, 0, 1)])).read_bytes()
    path = tmp_path / "b.dcm"
    for _ in range(60):
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[rng.integers(132, len(whole), 3)] = rng.integers(0, 256, 3)
        path.write_bytes(damaged.tobytes())
        try:
            assert read(path).array.ndim == 5
        except Problem as problem:
            assert str(problem).isprintable()

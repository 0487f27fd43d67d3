"""DICOM series that contradict themselves, one a line: the right volume, or a sentence that names what is wrong.

Every series shows one phantom: a value that is a linear function of the place in the patient. So a volume is right
where each voxel, at the place that the affine gives it, holds the value of that place: nothing is compared with
positions that a reader could have mixed up in the same way as the test.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, uid
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from scipy.spatial.transform import Rotation

from dicom_files import dataset, write
from osler import formats
from osler.case import Source
from osler.image import Affine
from osler.problem import Problem

ROWS, COLUMNS = 6, 5
# Between rows, between columns, between slices: no two alike, so that none can take another's place.
SPACING = (0.7, 0.5, 2.0)
AXIAL = np.eye(3)
ORIGIN = np.array([-40.0, 25.0, 130.0])


def value(points: np.ndarray) -> np.ndarray:
    """The phantom at points in the patient ``(..., 3)``, LPS millimetres; steep and unlike along all axes."""
    return 2000 + points @ np.array([11.0, 17.0, 23.0])


@dataclass
class Slice:
    """A slice before it is a file: what is true of it, and what its file says."""

    position: np.ndarray
    axes: np.ndarray = field(default_factory=lambda: AXIAL)
    spacing: tuple[float, float] = SPACING[:2]
    shape: tuple[int, int] = (ROWS, COLUMNS)
    add: float = 0.0
    tags: dict[str, Any] = field(default_factory=dict)
    slope: float = 0.25
    intercept: float = 0.0
    kind: type = np.uint16
    syntax: str = uid.ExplicitVRLittleEndian

    def pixels(self) -> np.ndarray:
        """Stored values: those of the phantom after the rescale."""
        y, x = np.indices(self.shape)
        row, column = self.axes[0], self.axes[1]
        points = self.position + x[..., None] * self.spacing[1] * row + y[..., None] * self.spacing[0] * column
        return np.rint((value(points) + self.add - self.intercept) / self.slope).astype(self.kind)

    def file(self, number: int) -> Dataset:
        made = dataset(self.pixels())
        made.Modality, made.SOPClassUID = "MR", uid.MRImageStorage
        made.RescaleSlope, made.RescaleIntercept = self.slope, self.intercept
        made.ImagePositionPatient = [float(f"{part:.9g}") for part in self.position]
        made.ImageOrientationPatient = [float(f"{part:.9g}") for part in (*self.axes[0], *self.axes[1])]
        made.PixelSpacing, made.SliceThickness = list(self.spacing), SPACING[2]
        made.FrameOfReferenceUID, made.InstanceNumber = "1.2.3.4", number + 1
        for name, tag in self.tags.items():
            if tag is None:
                delattr(made, name)
            else:
                setattr(made, name, tag)
        return made


def up(millimetres: float) -> np.ndarray:
    return ORIGIN + millimetres * AXIAL[2]


def slices(count: int = 5, axes: np.ndarray = AXIAL, origin: np.ndarray = ORIGIN, **more: Any) -> list[Slice]:
    """``count`` slices along the third axis, ``SPACING`` apart."""
    return [Slice(origin + SPACING[2] * number * axes[2], axes, **more) for number in range(count)]


def turned(*degrees: float) -> np.ndarray:
    """Row direction, column direction, normal."""
    return Rotation.from_euler("xyz", degrees, degrees=True).as_matrix().T


def saved(folder: Path, parts: list[Slice]) -> Path:
    for number, each in enumerate(parts):
        # Names in an order of their own.
        made = each.file(number)
        if each.syntax == uid.RLELossless:
            made.file_meta = FileMetaDataset()
            made.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
            made.compress(uid.RLELossless)
        write(folder / f"{(7 * number) % 31:02d}.dcm", made, each.syntax)
    return folder


def check_volume(
    folder: Path, size: tuple[int, ...], adds: tuple[float, ...] = (0.0,), tolerance: float = 0.2
) -> Any:
    """Every voxel holds what the phantom is at its place; the first voxel of each slice is where a slice was put."""
    image = formats.read(Source(folder))
    assert image.array.shape == (len(adds), 1, *size)
    assert isinstance(image.geometry, Affine)
    z, y, x = np.indices(size)
    points = image.to_patient(np.stack([x, y, z], axis=-1).astype(float))
    for moment, add in enumerate(adds):
        away = np.abs(image.array[moment, 0].astype(float) - value(points) - add).max()
        assert away <= tolerance, f"up to {away} from the phantom"
    return image


def change(made: list[Slice], number: int, **tags: Any) -> list[Slice]:
    made[number].tags |= tags
    return made


def every(made: list[Slice], **tags: Callable[[int], Any]) -> list[Slice]:
    for number, each in enumerate(made):
        each.tags |= {name: tag(number) for name, tag in tags.items()}
    return made


def moved(made: list[Slice], number: int, by: Any) -> list[Slice]:
    made[number].position = made[number].position + np.asarray(by, float)
    return made


def sheared(degrees: float) -> list[Slice]:
    made = slices()
    for number, each in enumerate(made):
        each.position = each.position + number * SPACING[2] * np.tan(np.radians(degrees)) * AXIAL[1]
    return made


def moments(adds: tuple[float, ...], **tags: Callable[[int], Any]) -> list[Slice]:
    """Several times the same places, each time ``add`` brighter; ``tags`` are functions of the moment."""
    return [
        one
        for n, add in enumerate(adds)
        for one in every(slices(3, add=add), **{k: lambda _, t=t, n=n: t(n) for k, t in tags.items()})
    ]


def radial() -> list[Slice]:
    return [Slice(ORIGIN, turned(0, 0, 30 * number)) for number in range(5)]


def with_slopes() -> list[Slice]:
    made = slices()
    for each, slope in zip(made, (0.25, 0.2, 0.3, 0.22, 0.27), strict=True):
        each.slope = slope
    return made


SIZE = (5, ROWS, COLUMNS)
# What is odd: its slices, and the volume they make; where moments differ, how much brighter each is.
RIGHT: dict[str, tuple[Callable[[], list[Slice]], dict[str, Any]]] = {
    "axial": (slices, {}),
    "sagittal": (lambda: slices(axes=np.array([[0, 1, 0], [0, 0, -1], [-1, 0, 0]], float)), {}),
    "coronal": (lambda: slices(axes=np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], float)), {}),
    "one angle": (lambda: slices(axes=turned(0, 0, 20)), {}),
    "two angles": (lambda: slices(axes=turned(25, -40, 0)), {}),
    "three angles": (lambda: slices(axes=turned(20, -35, 50)), {}),
    "feet first": (lambda: change_all(slices(axes=np.diag([-1.0, 1, -1])), PatientPosition="FFS"), {}),
    "prone": (lambda: change_all(slices(axes=np.diag([-1.0, -1, 1])), PatientPosition="HFP"), {}),
    "decubitus": (
        lambda: change_all(slices(axes=np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]], float)), PatientPosition="HFDR"),
        {},
    ),
    "positions that go down": (lambda: slices()[::-1], {}),
    "instance numbers that contradict positions": (lambda: every(slices(), InstanceNumber=lambda n: (3 * n) % 5), {}),
    "one instance number for all": (lambda: every(slices(), InstanceNumber=lambda n: 1), {}),
    "a tilted gantry": (lambda: sheared(15), {"says": "tilted by 15.0 degrees"}),
    "a gantry tilted the other way": (lambda: sheared(-22), {"says": "tilted by 22.0 degrees"}),
    "positions rounded to a thousandth": (
        lambda: [Slice(np.round(ORIGIN + 2 * n * turned(5, 6, 7)[2], 3), turned(5, 6, 7)) for n in range(5)],
        {},
    ),
    "positions rounded to a hundredth": (
        lambda: every(
            slices(axes=turned(5, 6, 7)),
            ImagePositionPatient=lambda n: np.round(slices(axes=turned(5, 6, 7))[n].position, 2).tolist(),
        ),
        {"tolerance": 0.6},
    ),
    "directions rounded to four digits": (
        lambda: every(
            slices(axes=turned(20, -35, 50)),
            ImageOrientationPatient=lambda n: np.round(turned(20, -35, 50)[:2].ravel(), 4).tolist(),
        ),
        {"tolerance": 0.2},
    ),
    "a thickness that is not the distance": (lambda: change_all(slices(), SliceThickness=5), {}),
    "a wrong distance between slices": (lambda: change_all(slices(), SpacingBetweenSlices=3), {"says": "3 mm"}),
    "a negative distance between slices": (lambda: change_all(slices(), SpacingBetweenSlices=-2), {}),
    "very large coordinates": (lambda: slices(origin=up(20_000), intercept=460_000.0), {}),
    "a localizer inside": (
        lambda: [
            *slices(),
            Slice(ORIGIN, turned(90, 0, 0), tags={"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
        ],
        {"says": "a localizer"},
    ),
    "two slices": (lambda: slices(2), {"size": (2, ROWS, COLUMNS)}),
    "a single slice": (lambda: slices(1), {"size": (1, ROWS, COLUMNS)}),
    "a slope of its own for each slice": (with_slopes, {}),
    "one uncompressed, one compressed": (
        lambda: [
            Slice(s.position, syntax=syntax)
            for s, syntax in zip(
                slices(3), (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.RLELossless), strict=True
            )
        ],
        {"size": (3, ROWS, COLUMNS)},
    ),
    "a slice with signed pixels": (
        lambda: [
            Slice(s.position, kind=kind) for s, kind in zip(slices(3), (np.uint16, np.int16, np.uint16), strict=True)
        ],
        {"size": (3, ROWS, COLUMNS)},
    ),
    "a slice twice under two names": (lambda: [*slices(), slices()[2]], {"says": "copies"}),
    "all slices twice under two names": (lambda: [*slices(), *slices()], {"says": "5 files that are copies"}),
    "moments by TemporalPositionIdentifier": (
        lambda: moments((0, 500), TemporalPositionIdentifier=lambda n: n + 1),
        {"size": (3, ROWS, COLUMNS), "adds": (0, 500)},
    ),
    "moments by TriggerTime": (
        lambda: moments((0, 500, 900), TriggerTime=lambda n: 40 * n),
        {"size": (3, ROWS, COLUMNS), "adds": (0, 500, 900), "times": (0, 0.04, 0.08)},
    ),
    "moments by AcquisitionNumber, last first": (
        lambda: moments((0, 500), AcquisitionNumber=lambda n: 9 - n, AcquisitionTime=lambda n: f"1200{30 - n:02d}.5"),
        {"size": (3, ROWS, COLUMNS), "adds": (500, 0), "times": (0, 1)},
    ),
    "moments of one place": (
        lambda: [Slice(ORIGIN, add=100 * n, tags={"TriggerTime": 25 * n}) for n in range(4)],
        {"size": (1, ROWS, COLUMNS), "adds": (0, 100, 200, 300), "times": (0, 0.025, 0.05, 0.075)},
    ),
}


def change_all(made: list[Slice], **tags: Any) -> list[Slice]:
    return every(made, **{name: lambda _, tag=tag: tag for name, tag in tags.items()})


# What is wrong: the slices, and words of the sentence that says so.
WRONG: dict[str, tuple[Callable[[], list[Slice]], str]] = {
    "a slice is missing": (lambda: [s for n, s in enumerate(slices(7)) if n != 3], "1 slices are missing.* 4 mm"),
    "three slices are missing": (
        lambda: [s for n, s in enumerate(slices(9)) if n not in (2, 3, 6)],
        "3 slices are missing",
    ),
    "a slice twice with other pixels": (
        lambda: [*slices(), Slice(slices()[2].position, add=40)],
        "1 of its slices lie at the same position",
    ),
    "a slice is moved along": (lambda: moved(slices(), 2, (0, 0, 0.5)), "not even: 1.5 to 2.5 mm"),
    "distances grow": (
        lambda: [Slice(up(number**2)) for number in range(5)],
        "distance between slices is not even",
    ),
    "a slice is moved aside": (lambda: moved(slices(), 2, (0.4, 0, 0)), "straight line"),
    "one slice is turned": (
        lambda: [*slices(4), Slice(up(8), turned(0, 0, 3))],
        "different orientations",
    ),
    "two orientations": (lambda: [*slices(3), *slices(3, axes=turned(90, 0, 0))], "different orientations"),
    "a radial scan": (radial, "different orientations"),
    "one slice has another spacing": (
        lambda: [*slices(4), Slice(up(8), spacing=(0.5, 0.7))],
        "different pixel spacings",
    ),
    "one slice has another size": (lambda: [*slices(4), Slice(up(8), shape=(5, 6))], "differ in size"),
    "two stacks beside each other": (
        lambda: [*slices(3), *slices(3, origin=ORIGIN + np.array([60, 0, 0]))],
        "beside each other",
    ),
    "a position is missing": (lambda: change(slices(), 3, ImagePositionPatient=None), "1 of its 5 images do not say"),
    "no orientation": (lambda: change_all(slices(), ImageOrientationPatient=None), "5 of its 5 images do not say"),
    "directions that are not perpendicular": (
        lambda: change_all(slices(), ImageOrientationPatient=[1, 0, 0, 0.1, 0.995, 0]),
        "not perpendicular",
    ),
    "directions that are no unit vectors": (
        lambda: change_all(slices(), ImageOrientationPatient=[1, 0, 0, 0, 1.1, 0]),
        "not unit vectors",
    ),
    "directions of no length": (
        lambda: change_all(slices(), ImageOrientationPatient=[0, 0, 0, 0, 0, 0]),
        "not unit vectors",
    ),
    "a position of two numbers": (lambda: change(slices(), 1, ImagePositionPatient=[1, 2]), "not three numbers"),
    "a spacing of nothing": (lambda: change_all(slices(), PixelSpacing=[0, 0.5]), "PixelSpacing is not two positive"),
    "two echoes": (
        lambda: moments((0, 500), EchoTime=lambda n: 10 + 70 * n),
        "differ in EchoTime, of which there are 2",
    ),
    "three b-values": (
        lambda: moments((0, 500, 700), DiffusionBValue=lambda n: 500.0 * n),
        "differ in DiffusionBValue, of which there are 3",
    ),
    "magnitude and phase": (
        lambda: moments((0, 500), ImageType=lambda n: ["ORIGINAL", "PRIMARY", "MP"[n]]),
        "differ in ImageType",
    ),
    "two echoes with moments": (
        lambda: moments((0, 500), EchoTime=lambda n: 10 + 70 * n, AcquisitionNumber=lambda n: n),
        "differ in EchoTime",
    ),
    "moments of which one lacks a slice": (
        lambda: moments((0, 500, 900), TemporalPositionIdentifier=lambda n: n + 1)[:-1],
        "moments are not complete: there are 2 to 3 slices",
    ),
    "moments whose numbers contradict each other": (
        lambda: change(moments((0, 500), AcquisitionNumber=lambda n: n + 1), 1, AcquisitionNumber=5),
        "3 of its slices lie at the same position",
    ),
    "two frames of reference": (lambda: change(slices(), 4, FrameOfReferenceUID="1.9"), "2 different frames of ref"),
    "a slice of another patient": (lambda: change(slices(), 2, PatientID="p2"), "of 2 patients"),
    "a slice of another modality": (lambda: change(slices(), 2, Modality="PT"), "2 modalities .MR and PT."),
    "a slice that is dark where it is bright": (
        lambda: change(slices(), 2, PhotometricInterpretation="MONOCHROME1"),
        "stored in 2 ways .MONOCHROME1 and MONOCHROME2.",
    ),
    "a slice without a slope": (lambda: change(slices(), 2, RescaleSlope=None, RescaleIntercept=None), "some do not"),
    "a slice in another unit": (
        lambda: change(change_all(slices(), Units="BQML"), 2, Units="CNTS"),
        "2 different units .BQML and CNTS.",
    ),
    "one SOPInstanceUID for two slices": (lambda: change_all(slices(2), SOPInstanceUID="1.7"), "one SOPInstanceUID"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_the_right_volume(tmp_path: Path, name: str) -> None:
    made, expected = RIGHT[name]
    tolerance = expected.get("tolerance", 0.2)
    folder = saved(tmp_path, made())
    image = check_volume(folder, expected.get("size", SIZE), expected.get("adds", (0.0,)), tolerance)
    assert image.times == pytest.approx(expected.get("times", ()))
    assert expected.get("says") is None or any(expected["says"] in note for note in image.notes)


@pytest.mark.parametrize("name", WRONG)
def test_a_sentence_that_names_what_is_wrong(tmp_path: Path, name: str) -> None:
    made, words = WRONG[name]
    with pytest.raises(Problem, match=words) as caught:
        formats.read(Source(saved(tmp_path / "series", made())))
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text and "p2" not in text and len(text) < 250


def item(**tags: Any) -> Sequence:
    made = Dataset()
    for name, tag in tags.items():
        setattr(made, name, tag)
    return Sequence([made])


# Keyword: the functional group that holds it.
GROUPS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "SpacingBetweenSlices": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "TemporalPositionIndex": "FrameContentSequence",
    "StackID": "FrameContentSequence",
    "EffectiveEchoTime": "MREchoSequence",
    "DiffusionBValue": "MRDiffusionSequence",
    "NominalCardiacTriggerDelayTime": "CardiacSynchronizationSequence",
    "TemporalPositionTimeOffset": "TemporalPositionSequence",
}


def grouped(tags: dict[str, Any]) -> Dataset:
    made, groups = Dataset(), {}
    for name, tag in tags.items():
        groups.setdefault(GROUPS[name], {})[name] = tag
    for name, content in groups.items():
        setattr(made, name, item(**content))
    return made


SHARED = ("ImageOrientationPatient", "PixelSpacing", "SliceThickness")


def framed(parts: list[Slice], shared: tuple[str, ...] = SHARED) -> Dataset:
    """An enhanced object of slices; ``shared`` are said once for all frames, the rest for each."""
    made = dataset(np.stack([part.pixels() for part in parts]), SOPClassUID=uid.EnhancedMRImageStorage, Modality="MR")
    made.FrameOfReferenceUID = "1.2.3.4"
    said: list[dict[str, Any]] = []
    for number, part in enumerate(parts):
        file = part.file(number)
        names = [name for name in GROUPS if name in file or name in part.tags]
        said.append({name: file[name].value if name in file else part.tags[name] for name in names})
    made.SharedFunctionalGroupsSequence = Sequence([grouped({name: said[0][name] for name in shared})])
    each = [grouped({name: tag for name, tag in one.items() if name not in shared}) for one in said]
    made.PerFrameFunctionalGroupsSequence = Sequence(each)
    return made


def shuffled(parts: list[Slice]) -> list[Slice]:
    return [parts[number] for number in np.random.default_rng(3).permutation(len(parts))]


def contradicting() -> Dataset:
    made = framed(slices())
    made.PerFrameFunctionalGroupsSequence[2].PixelMeasuresSequence = item(PixelSpacing=[0.9, 0.9], SliceThickness=2)
    return made


def too_many() -> Dataset:
    made = framed(slices())
    made.NumberOfFrames = 2_000_000_000
    return made


def without_position() -> Dataset:
    made = framed(slices())
    del made.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence
    return made


RIGHT_FRAMES: dict[str, tuple[Callable[[], Dataset], dict[str, Any]]] = {
    "frames in order": (lambda: framed(slices()), {}),
    "shuffled frames": (lambda: framed(shuffled(slices(axes=turned(20, -35, 50)))), {}),
    "frames that say all themselves": (lambda: framed(shuffled(slices()), shared=()), {}),
    "a slope of its own for each frame": (lambda: framed(shuffled(with_slopes())), {}),
    "frames of a tilted gantry": (lambda: framed(shuffled(sheared(15))), {"says": "tilted by 15.0 degrees"}),
    "frames that contradict the distance between slices": (
        lambda: framed(change_all(slices(), SpacingBetweenSlices=2.5), shared=(*SHARED, "SpacingBetweenSlices")),
        {"says": "2.5 mm"},
    ),
    "shuffled moments": (
        lambda: framed(shuffled(moments((0, 500), TemporalPositionIndex=lambda n: n + 1))),
        {"size": (3, ROWS, COLUMNS), "adds": (0, 500)},
    ),
    "moments after the heart beat": (
        lambda: framed(shuffled(moments((0, 500), NominalCardiacTriggerDelayTime=lambda n: 50.0 * n))),
        {"size": (3, ROWS, COLUMNS), "adds": (0, 500), "times": (0, 0.05)},
    ),
    "moments whose seconds are stated": (
        lambda: framed(
            moments((0, 500), TemporalPositionIndex=lambda n: n + 1, TemporalPositionTimeOffset=lambda n: 2.5 * n)
        ),
        {"size": (3, ROWS, COLUMNS), "adds": (0, 500), "times": (0, 2.5)},
    ),
}
WRONG_FRAMES: dict[str, tuple[Callable[[], Dataset], str]] = {
    "more frames than there can be": (too_many, "2000000000 frames, which its pixel data cannot hold"),
    "frames that lie unevenly": (lambda: framed(moved(slices(), 2, (0, 0, 0.7))), "not even"),
    "a frame is missing": (lambda: framed([s for n, s in enumerate(slices(7)) if n != 3]), "1 slices are missing"),
    "a frame without a position": (without_position, "1 of its 5 frames do not say where they lie"),
    "a group for all and another for one": (contradicting, "states PixelMeasuresSequence for all frames and for one"),
    "two stacks": (
        lambda: framed([*change_all(slices(3), StackID="1"), *change_all(slices(3, origin=up(50)), StackID="2")]),
        "holds 2 stacks",
    ),
    "echoes in one object": (
        lambda: framed(moments((0, 500), EffectiveEchoTime=lambda n: 10.0 + n)),
        "differ in EchoTime",
    ),
    "b-values in one object": (
        lambda: framed(moments((0, 500), DiffusionBValue=lambda n: 1000.0 * n)),
        "differ in DiffusionBValue",
    ),
    "one frame turned": (
        lambda: framed([*slices(4), Slice(up(8), turned(0, 4, 0))], shared=("PixelSpacing", "SliceThickness")),
        "different orientations",
    ),
}


@pytest.mark.parametrize("name", RIGHT_FRAMES)
def test_frames_make_the_right_volume(tmp_path: Path, name: str) -> None:
    made, expected = RIGHT_FRAMES[name]
    path = write(tmp_path / "a.dcm", made())
    image = check_volume(path, expected.get("size", SIZE), expected.get("adds", (0.0,)))
    assert image.times == pytest.approx(expected.get("times", ()))
    assert expected.get("says") is None or any(expected["says"] in note for note in image.notes)


@pytest.mark.parametrize("name", WRONG_FRAMES)
def test_frames_are_refused_in_a_sentence(tmp_path: Path, name: str) -> None:
    made, words = WRONG_FRAMES[name]
    with pytest.raises(Problem, match=words):
        formats.read(Source(write(tmp_path / "a.dcm", made())))


def test_moments_may_lie_in_a_file_each(tmp_path: Path) -> None:
    for number, add in enumerate((0, 500)):
        parts = every(slices(add=add), TemporalPositionIndex=lambda _, n=number: n + 1)
        write(tmp_path / f"{number}.dcm", framed(shuffled(parts)))
    check_volume(tmp_path, SIZE, (0, 500))


def test_rows_and_columns_do_not_change_places(tmp_path: Path) -> None:
    """PixelSpacing states the distance between rows first (PS3.3 10.7.1.3), the affine goes along columns first."""
    image = formats.read(Source(saved(tmp_path, slices(axes=turned(20, -35, 50)))))
    assert image.spacing == pytest.approx((SPACING[2], SPACING[0], SPACING[1]), abs=1e-6)


def test_rounded_directions_do_not_stretch_the_image(tmp_path: Path) -> None:
    axes = np.round(turned(20, -35, 50), 4)
    assert np.abs(np.linalg.norm(axes, axis=1) - 1).max() > 1e-5
    image = formats.read(
        Source(saved(tmp_path, change_all(slices(), ImageOrientationPatient=axes[:2].ravel().tolist())[:1]))
    )
    assert image.spacing == pytest.approx((SPACING[2], SPACING[0], SPACING[1]), abs=1e-7)


# What else lies in the folder of a good series, and words of the refusal; ``None`` where the volume is still right.
def empty_file(folder: Path) -> None:
    (folder / "lost.dcm").touch()


def cut_slice(folder: Path) -> None:
    path = folder / "00.dcm"
    path.write_bytes(path.read_bytes()[:-20])


def corrupt_slice(folder: Path) -> None:
    (folder / "07.dcm").write_bytes(b"\0" * 128 + b"DICM" + bytes(range(256)))


def colour_capture(folder: Path) -> None:
    made = dataset(np.zeros((ROWS, COLUMNS), np.uint8), Modality="MR", SOPClassUID=uid.SecondaryCaptureImageStorage)
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PlanarConfiguration = 3, "RGB", 0
    made.PixelData = bytes(ROWS * COLUMNS * 3)
    write(folder / "sc.dcm", made)


def other_series(folder: Path) -> None:
    for number, part in enumerate(slices(2)):
        part.tags["SeriesInstanceUID"] = "1.2.99"
        write(folder / f"other{number}.dcm", part.file(number))


def directory(folder: Path) -> None:
    made = Dataset()
    made.SOPClassUID = uid.MediaStorageDirectoryStorage
    made.SOPInstanceUID, made.FileSetID, made.DirectoryRecordSequence = "1.6", "DISC", Sequence([])
    write(folder / "DICOMDIR", made)


def report(folder: Path) -> None:
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID, made.Modality = uid.BasicTextSRStorage, "1.8", "SR"
    made.SeriesInstanceUID = "1.2.98"
    write(folder / "report.dcm", made)


FOLDERS: dict[str, tuple[Callable[[Path], None], str | None]] = {
    "an empty file": (empty_file, "lost.dcm: the file is empty"),
    "a slice cut short": (cut_slice, "00.dcm: the pixel data end after 40 of 60 bytes"),
    "a corrupt slice": (corrupt_slice, "07.dcm"),
    "a capture in colour": (colour_capture, "in colour"),
    "another series": (other_series, "2 series are in this folder .MR series . of 2, MR series . of 5."),
    "a DICOMDIR": (directory, None),
    "a report": (report, None),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_what_else_lies_in_the_folder(tmp_path: Path, name: str) -> None:
    add, words = FOLDERS[name]
    add(saved(tmp_path, slices()))
    if words is None:
        check_volume(tmp_path, SIZE)
        return
    with pytest.raises(Problem, match=words):
        formats.read(Source(tmp_path))


def test_an_index_of_a_medium_is_no_image(tmp_path: Path) -> None:
    directory(tmp_path)
    with pytest.raises(Problem, match="DICOMDIR, the index of a medium; give the folder of one series"):
        formats.read(Source(tmp_path / "DICOMDIR"))


def test_the_set_is_large_enough() -> None:
    assert len(RIGHT) + len(WRONG) + len(RIGHT_FRAMES) + len(WRONG_FRAMES) + len(FOLDERS) >= 80
